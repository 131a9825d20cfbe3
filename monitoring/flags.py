"""Records that a person should look at, by the route's rules; each with its reason. Pure.

| kind | when | score (0-1, higher is looked at first) |
|---|---|---|
| disagreement | student and teacher differ | 1 - confidence: an unsure student is more informative; 0.9 when it was sure |
| guard | a guard rule failed | 0.8 |
| feedback | the caller said it was bad, or corrected it | 1 |
| low_confidence | below the route's limit | 1 - confidence |
| drift_outlier | among the rows least like the reference | 0.5 |
| audit | a sample of agreeing pairs | 0.1 |
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from monitoring.windows import input_of
from router.decide import uniform
from router.policy import Flags
from router.records import Record


@dataclass(frozen=True, slots=True)
class Flag:
    """One mark."""

    id: str
    record_id: str
    route: str
    kind: str
    reason: str
    score: float
    record_at: float
    adapter: str | None
    input_text: str
    teacher_text: str | None
    student_text: str | None


KINDS = ("disagreement", "guard", "feedback", "low_confidence", "drift_outlier", "audit")
KEPT_AN_HOUR = 10
"""Times `per_hour` candidates, at least 200, are kept of each hour, the most informative: enough to be diverse."""


class Candidates:
    """Flags that records give as they pass: at most one a record, a bounded number an hour.

    Args:
        flagged: records that have a flag from earlier passes, with their time: they count into their hour.
    """

    def __init__(self, rule: Flags, flagged: Mapping[str, float] | None = None) -> None:
        self._rule = rule
        self._known = flagged or {}
        self._kept = max(200, KEPT_AN_HOUR * rule.per_hour)
        self._hours: dict[int, dict[str, Flag]] = {}

    def add(self, record: Record, outliers: Collection[str] = ()) -> None:
        """Take a record, its most informative flag at least. A record may come again with outliers known."""
        if record.id in self._known:
            return
        found = [f for f in _candidates(record, self._rule, outliers) if f is not None]
        if not found:
            return
        best = max(found, key=lambda f: f.score)
        hour = self._hours.setdefault(int(record.at // 3600), {})
        before = hour.get(record.id)
        if before is None or best.score > before.score:
            hour[record.id] = best
        if len(hour) > 2 * self._kept:
            most = sorted(hour.values(), key=lambda f: (-f.score, f.id))[: self._kept]
            self._hours[int(record.at // 3600)] = {f.record_id: f for f in most}

    def flags(self) -> list[Flag]:
        """At most `per_hour` for each hour of traffic, spread over inputs."""
        taken = Counter(int(at // 3600) for at in self._known.values())
        return [
            flag
            for hour, found in sorted(self._hours.items())
            for flag in _diverse(list(found.values()), max(0, self._rule.per_hour - taken[hour]))
        ]


def find(
    records: Iterable[Record],
    rule: Flags,
    outliers: Collection[str] = (),
    flagged: Mapping[str, float] | None = None,
) -> list[Flag]:
    """The flags of `records`; see `Candidates`. `outliers`: ids that drift found to be least like the reference."""
    found = Candidates(rule, flagged)
    for record in records:
        found.add(record, outliers)
    return found.flags()


def _candidates(record: Record, rule: Flags, outliers: Collection[str]) -> list[Flag | None]:
    student = next((a for a in record.answers if a.role == "student"), None)
    confidence = student.confidence if student else None
    comparison = record.comparison
    found: list[Flag | None] = []
    if rule.disagreement and comparison is not None and comparison.agree is False:
        wrong = [name for name, same in comparison.fields.items() if not same]
        what = f" in {', '.join(wrong)}" if wrong else ""
        sure = "" if confidence is None else f", student's confidence {confidence:.2f}"
        score = 0.9 if confidence is None or confidence > 0.9 else 1 - confidence
        found.append(
            _flag(
                record, "disagreement", f"student and teacher differ{what}{sure}", max(score, 0.3)
            )
        )
    if rule.guard and student is not None and student.verdict is not None:
        found.append(_flag(record, "guard", f"guard rule {student.verdict} failed", 0.8))
    bad = [
        f
        for f in record.feedback
        if f.correction is not None or (f.score is not None and f.score < 0.5)
    ]
    said = record.feedback if rule.feedback == "any" else bad
    if rule.feedback != "off" and said:
        note = said[-1].comment or said[-1].correction or "negative"
        found.append(_flag(record, "feedback", f"feedback: {note[:200]}", 1.0))
    limit = rule.low_confidence
    if limit is not None and confidence is not None and confidence < limit:
        found.append(
            _flag(
                record, "low_confidence", f"confidence {confidence:.2f} < {limit:g}", 1 - confidence
            )
        )
    if rule.drift_outlier and record.id in outliers:
        found.append(
            _flag(record, "drift_outlier", "among the inputs least like the reference", 0.5)
        )
    agreed = rule.audit > 0 and comparison is not None and comparison.agree is True
    if agreed and uniform(record.draw, "flag_audit") < rule.audit:
        found.append(_flag(record, "audit", "sampled although student and teacher agree", 0.1))
    return found


def _flag(record: Record, kind: str, reason: str, score: float) -> Flag:
    student = next((a for a in record.answers if a.role == "student"), None)
    teacher = record.answer_of("teacher")
    return Flag(
        id=hashlib.sha256(f"{record.id}\0{kind}".encode()).hexdigest()[:16],
        record_id=record.id,
        route=record.route,
        kind=kind,
        reason=reason,
        score=round(score, 4),
        record_at=record.at,
        adapter=student.adapter if student else None,
        input_text=input_of(record),
        teacher_text=teacher.text if teacher else None,
        student_text=student.text if student else None,
    )


def _diverse(flags: list[Flag], limit: int) -> list[Flag]:
    """The most informative, but not many of one look: each time a first word and length band repeats, it counts less."""
    seen: dict[tuple[str, int], int] = {}
    ranked = []
    for flag in sorted(flags, key=lambda f: (-f.score, f.id)):
        words = flag.input_text.lower().split()
        look = (words[0] if words else "", len(words) // 20)
        seen[look] = seen.get(look, 0) + 1
        ranked.append((flag.score / seen[look], flag))
    ranked.sort(key=lambda item: (-item[0], item[1].id))
    return [flag for _, flag in ranked[:limit]]
