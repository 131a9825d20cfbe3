"""Records to the evidence that a canary's gates look at. Pure."""

from array import array
from collections import defaultdict
from collections.abc import Iterable

from monitoring.rollout import Count, Evidence, Scores
from router.records import Record


class _Scores:
    """Latencies and feedback of one place, in bytes rather than objects."""

    def __init__(self) -> None:
        self.student_seconds, self.teacher_seconds = array("d"), array("d")
        self.feedback = array("d")


class Gathering:
    """Evidence of one adapter version as records pass; it keeps counts, latencies and which conversations it has seen.

    Disagreement comes from requests that both answered (audits, shadows), one draw a conversation so that a long talk
    does not count as many; guard failures and errors from all requests that the student was asked for.

    Args:
        adapter: `name/version`; None takes any.
    """

    def __init__(self, adapter: str | None) -> None:
        self._adapter = adapter
        self._disagreement: dict[str, list[int]] = {}
        self._guard: dict[str, list[int]] = {}
        self._errors: dict[str, list[int]] = {}
        self._scores: dict[str, _Scores] = defaultdict(_Scores)
        self._seen: set[str] = set()
        self.last_at: float | None = None
        """Time of the newest record, whoever answered it."""

    def add(self, record: Record) -> None:
        """Take one record that was made since the canary came to its step."""
        self.last_at = record.at if self.last_at is None else max(self.last_at, record.at)
        student = next((a for a in record.answers if a.role == "student"), None)
        teacher = record.answer_of("teacher")
        places = ("", record.segment) if record.segment else ("",)
        if teacher is not None:
            for place in places:
                self._scores[place].teacher_seconds.append(teacher.latency_seconds)
        if student is None or (self._adapter is not None and student.adapter != self._adapter):
            return
        said = [f.score for f in record.feedback if f.score is not None]
        for place in places:
            self._scores[place].student_seconds.append(student.latency_seconds)
            if record.served_by == "student":
                self._scores[place].feedback.extend(said)
        comparison = record.comparison
        # An answer of the wrong form differs from the teacher's too: a student of garbage must not pass for want of pairs.
        is_compared = comparison is not None and (
            comparison.agree is not None or not comparison.student_form_ok
        )
        is_new = record.conversation is None or record.conversation not in self._seen
        for place in places:
            _count(self._errors, place, student.error is not None)
            _count(self._guard, place, student.verdict is not None)
            if is_compared and is_new and comparison is not None:
                _count(self._disagreement, place, comparison.agree is not True)
        if is_compared and record.conversation is not None:
            self._seen.add(record.conversation)

    def evidence(self, reviews: int) -> Evidence:
        """What was gathered. `reviews`: disagreements that people have reviewed."""
        scores = {
            place: Scores(seen.student_seconds, seen.teacher_seconds, seen.feedback)
            for place, seen in self._scores.items()
        }
        whole = scores.pop("", Scores())
        return Evidence(
            _counts(self._disagreement), _counts(self._guard), _counts(self._errors), whole.student_seconds,
            whole.teacher_seconds, whole.feedback, reviews, scores,
        )  # fmt: skip


def gather(records: Iterable[Record], adapter: str | None, reviews: int) -> Evidence:
    """Evidence of one adapter version from `records`; see `Gathering`."""
    found = Gathering(adapter)
    for record in records:
        found.add(record)
    return found.evidence(reviews)


def _count(counts: dict[str, list[int]], place: str, is_bad: bool) -> None:
    count = counts.setdefault(place, [0, 0])
    count[0] += is_bad
    count[1] += 1


def _counts(found: dict[str, list[int]]) -> dict[str, Count]:
    return {place: Count(bad, rows) for place, (bad, rows) in found.items()}
