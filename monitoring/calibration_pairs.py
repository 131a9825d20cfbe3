"""Records to the pairs that a calibration needs: who would have been asked, who differed, how likely a pair was. Pure."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from monitoring.calibrate import SEARCH_SHARE, Bools, Pairs
from monitoring.counterfactual import Unknown, both_answers, pair_probability, request_of
from router.decide import decide
from router.policy import Match
from router.policy_file import LoadedPolicy
from router.records import Answer, Record


@dataclass(frozen=True, slots=True)
class Example:
    """One request that both answered."""

    key: str
    """Conversation, or the record's own id: what is split by, and taken once."""
    text: str | None
    """The input; None where it is not logged."""
    confidence: float | None
    wrong: bool
    may_serve: bool
    probability: float
    student_usd: float
    teacher_usd: float


@dataclass(slots=True)
class Found:
    """The pairs of one adapter version, and what was left out and why."""

    adapter: str | None = None
    examples: list[Example] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    other_versions: Counter[str] = field(default_factory=Counter)


def alone(rules: LoadedPolicy, name: str) -> LoadedPolicy:
    """The policy with this route only, in hybrid mode and without thresholds: who may ask the student at all."""
    route = rules.policy.routes[name]
    hybrid = route.hybrid.model_copy(update={"difficulty": None, "cascade": None})
    route = route.model_copy(
        update={"match": Match(), "mode": "hybrid", "hybrid": hybrid, "segments": {}}
    )
    return replace(rules, policy=rules.policy.model_copy(update={"routes": {name: route}}))


def gather(records: Iterable[Record], rules: LoadedPolicy, name: str, adapter: str | None) -> Found:
    """Pairs of one adapter version, the first of each conversation.

    Args:
        adapter: `name/version`; None takes the version of the newest pair.
    """
    only = alone(rules, name)
    by_adapter: dict[str, Found] = {}
    seen: dict[str, set[str]] = {}
    newest = None
    for record in records:
        both = both_answers(record)
        if both is None or record.comparison is None:
            continue
        newest = both[0].adapter or ""
        found = by_adapter.setdefault(newest, Found(newest))
        if record.comparison.agree is None and record.comparison.student_form_ok:
            why = (
                "the monitor has not compared it"
                if record.comparison.is_left
                else "the teacher's answer has no form to compare"
            )
            found.left_out[why] += 1
            continue
        key = record.conversation or record.id
        if key in seen.setdefault(newest, set()):
            found.left_out["a conversation counts once"] += 1
            continue
        try:
            found.examples.append(_example(record, only, name, key, *both))
        except Unknown as why:
            found.left_out[str(why)] += 1
            continue
        seen[newest].add(key)
    wanted = adapter if adapter is not None else newest
    result = by_adapter.get(wanted or "", Found(wanted))
    result.other_versions = Counter(
        {a: len(f.examples) for a, f in by_adapter.items() if a != wanted}
    )
    return result


def _example(
    record: Record, only: LoadedPolicy, name: str, key: str, student: Answer, teacher: Answer
) -> Example:
    request = request_of(record)
    route = only.policy.routes[name]
    asked = decide(only, request, record.draw).arm == "student"
    caught = student.verdict is not None and "guard" in route.fallback.on
    assert record.comparison is not None
    return Example(
        key=key,
        text=request.input_text if record.request else None,
        confidence=student.confidence,
        wrong=record.comparison.agree is not True,
        may_serve=asked and student.ok and not caught,
        probability=pair_probability(record, student, teacher),
        student_usd=student.cost_usd,
        teacher_usd=teacher.cost_usd,
    )


def arrays(examples: Sequence[Example]) -> Pairs:
    """The examples as arrays, without difficulty."""
    confidence = [np.nan if e.confidence is None else e.confidence for e in examples]
    return Pairs(
        np.asarray(confidence, dtype=float),
        np.zeros(len(examples)),
        np.asarray([e.wrong for e in examples], dtype=bool),
        np.asarray([e.may_serve for e in examples], dtype=bool),
        np.asarray([1 / e.probability for e in examples], dtype=float),
        np.asarray([_place(e.key, "thin") for e in examples], dtype=float),
    )


def in_search(examples: Sequence[Example], seed: int = 0) -> Bools:
    """Which examples belong to the search part: by a hash of their key, so that a pair stays where it is as the log grows."""
    return np.asarray([_place(e.key, str(seed)) < SEARCH_SHARE for e in examples], dtype=bool)


def _place(key: str, use: str) -> float:
    digest = hashlib.blake2b(f"{use}\0{key}".encode(), digest_size=7).digest()
    return int.from_bytes(digest) / 2**56
