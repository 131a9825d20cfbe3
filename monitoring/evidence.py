"""Records to the evidence that a canary's gates look at. Pure."""

from collections import defaultdict
from collections.abc import Iterable

from monitoring.rollout import Count, Evidence
from router.records import Record


def gather(records: Iterable[Record], adapter: str | None, reviews: int) -> Evidence:
    """Evidence of one adapter version since the canary came to its step.

    Disagreement comes from requests that both answered (audits, shadows), one draw a conversation so that a long talk
    does not count as many; guard failures and errors from all requests that the student was asked for.

    Args:
        adapter: `name/version`; None takes any.
        reviews: disagreements that people have reviewed.
    """
    disagreement: dict[str, list[bool]] = defaultdict(list)
    guard: dict[str, list[bool]] = defaultdict(list)
    errors: dict[str, list[bool]] = defaultdict(list)
    student_seconds, teacher_seconds, feedback = [], [], []
    seen: set[str] = set()
    for record in records:
        student = next((a for a in record.answers if a.role == "student"), None)
        teacher = record.answer_of("teacher")
        if teacher is not None:
            teacher_seconds.append(teacher.latency_seconds)
        if student is None or (adapter is not None and student.adapter != adapter):
            continue
        student_seconds.append(student.latency_seconds)
        if record.served_by == "student":
            feedback += [f.score for f in record.feedback if f.score is not None]
        places = ["", record.segment] if record.segment else [""]
        comparison = record.comparison
        # An answer of the wrong form differs from the teacher's too: a student of garbage must not pass for want of pairs.
        is_compared = comparison is not None and (
            comparison.comparable or not comparison.student_form_ok
        )
        is_new = record.conversation is None or record.conversation not in seen
        for place in places:
            errors[place].append(student.error is not None)
            guard[place].append(student.verdict is not None)
            if is_compared and is_new and comparison is not None:
                disagreement[place].append(comparison.agree is not True)
        if is_compared and record.conversation is not None:
            seen.add(record.conversation)
    return Evidence(
        _counts(disagreement), _counts(guard), _counts(errors), tuple(student_seconds),
        tuple(teacher_seconds), tuple(feedback), reviews,
    )  # fmt: skip


def _counts(found: dict[str, list[bool]]) -> dict[str, Count]:
    return {place: Count(sum(bad), len(bad)) for place, bad in found.items()}
