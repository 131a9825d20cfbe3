"""What the monitor alone can say of a pair: whether two texts mean the same, or what a judge thinks of them.

The router leaves pairs of routes under the comparators `embedding` and `judge` to the monitor (`Comparison.is_left`). Before its
pass over the log a tick looks for such pairs, compares some of them and keeps each verdict in a table: a pair is compared
once, whatever crashes. Those that are compared are drawn by a hash of their id, never by what they say, so that rates stay
those of the traffic.

An answer of another attempt of the teacher (the noise floor) is compared in the same way, under its own key.
"""

import asyncio
import hashlib
import heapq
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import httpx
import msgspec
from sqlalchemy import func, select

from monitoring.encoder import load, similarities
from monitoring.errors import JudgeError, MonitoringError
from monitoring.judge import judged
from monitoring.settings import MonitorSettings
from monitoring.store import Store, VerdictRow, open_store
from monitoring.text_pairs import TextPair
from monitoring.windows import input_of, pair_of
from router.answer_spec import Compare, Judge
from router.policy import Policy, Route, judge_of
from router.records import Record

logger = logging.getLogger(__name__)
PAIRS_AN_HOUR = 1_000
"""By vectors. A judge gets an hour's part of the policy's number a day, so that it is asked about pairs of all hours."""
HOUR_SECONDS, JUDGE_SECONDS = 3_600.0, 120.0
ENCODER = "minilm"
"""Folder of the encoder under the home's models."""
NOISE = "/noise"
Ask = Callable[[Sequence[TextPair]], "list[Verdict]"]


class Verdict(NamedTuple):
    """On one pair. `agree` is None when the judge gave no answer that can be read."""

    agree: bool | None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Compared:
    """A route's pairs that are the monitor's to compare."""

    comparator: str
    verdicts: int
    """Pairs that have one, of those in the window."""
    left: int
    """Pairs that wait."""
    error: str | None = None
    """Why none was compared in this tick."""


class Verdicts:
    """A route's verdicts, laid over records as they pass."""

    def __init__(self, found: Mapping[str, Verdict], comparator: str = "") -> None:
        self._found = found
        self._comparator = comparator

    def over(self, record: Record) -> Record:
        """The record with its verdict, where it has one."""
        comparison = record.comparison
        if not self._found or comparison is None or not comparison.is_left:
            return record
        verdict = self._found.get(record.id)
        if verdict is None:
            return record
        settled = msgspec.structs.replace(
            comparison, comparator=self._comparator, agree=verdict.agree, score=verdict.score
        )
        return msgspec.structs.replace(record, comparison=settled)

    def noise(self, record: Record) -> bool | None:
        """Whether the teacher's two answers agree; None when nobody has said so."""
        verdict = self._found.get(record.id + NOISE)
        return verdict.agree if verdict is not None else None


def key_of(route: Route) -> str:
    """What verdicts are good for: a comparator, with all that would change what it says."""
    rule = route.answer.compare
    how: list[object] = [rule.comparator]
    how += judge_of(route) if rule.comparator == "judge" else [rule.threshold]
    return hashlib.sha256(json.dumps(how).encode()).hexdigest()[:16]


def known_verdicts(store: Store, name: str, route: Route, since: float) -> Verdicts:
    """The route's verdicts on records from `since` on, under the comparator in force."""
    if not route.answer.compare.is_deferred:
        return Verdicts({})
    found = _stored(store, name, key_of(route), since)
    return Verdicts(found, route.answer.compare.comparator)


def verdicts_of(database: str, name: str, route: Route, since: float) -> Verdicts:
    """`known_verdicts` of a database by URL, which is not opened for a route that leaves the monitor nothing."""
    if not route.answer.compare.is_deferred:
        return Verdicts({})
    store = open_store(database)
    try:
        return known_verdicts(store, name, route, since)
    finally:
        store.close()


def _stored(store: Store, name: str, key: str, since: float) -> dict[str, Verdict]:
    query = select(VerdictRow.pair_id, VerdictRow.agree, VerdictRow.score)
    # A verdict is never older than its record.
    query = query.where(VerdictRow.route == name, VerdictRow.key == key, VerdictRow.at >= since)
    with store.session() as session:
        return {pair: Verdict(agree, score) for pair, agree, score in session.execute(query)}


def compare_left(
    settings: MonitorSettings,
    store: Store,
    policy: Policy,
    name: str,
    records: Iterable[Record],
    *,
    since: float,
    now: float,
    ask: Ask | None = None,
) -> Compared:
    """Compare some of the route's pairs that wait, and keep the verdicts.

    Args:
        records: the route's, from `since` on.
        ask: says what it thinks of pairs; by default what the policy names.
    """
    route = policy.routes[name]
    rule, key = route.answer.compare, key_of(route)
    have = _stored(store, name, key, since)
    left = seen = 0

    def waiting() -> Iterator[TextPair]:
        nonlocal left, seen
        for pair in _pairs(records):
            seen += pair.id in have
            left += pair.id not in have
            if pair.id not in have:
                yield pair

    room = _room(store, name, key, rule, now)
    # One at least, because of no room nothing would be looked at and nothing counted.
    pairs = heapq.nsmallest(max(1, room), waiting(), key=lambda pair: _place(pair.id))[:room]
    if not pairs:
        return Compared(rule.comparator, seen, left)
    try:
        said = (ask or _asker(settings, policy, route))(pairs)
    except (MonitoringError, httpx.HTTPError, OSError) as why:
        logger.warning("pairs of route %s are not compared: %s", name, why)
        return Compared(rule.comparator, seen, left, str(why))
    added = store.add_verdicts(
        [
            {"route": name, "key": key, "pair_id": pair.id, "at": now, **verdict._asdict()}
            for pair, verdict in zip(pairs, said, strict=True)
        ]
    )
    return Compared(rule.comparator, seen + added, left - added)


def _room(store: Store, name: str, key: str, rule: Compare, now: float) -> int:
    """Pairs that may be compared now: what is left of this hour and of this day."""
    per_day = 24 * PAIRS_AN_HOUR
    if rule.comparator == "judge":
        per_day = (rule.judge or Judge()).per_day
    with store.session() as session:

        def left(span: float, limit: int) -> int:
            query = select(func.count()).select_from(VerdictRow).where(VerdictRow.at > now - span)
            query = query.where(VerdictRow.route == name, VerdictRow.key == key)
            return max(0, limit - (session.scalar(query) or 0))

        hour = left(HOUR_SECONDS, math.ceil(per_day / 24))
        return min(hour, left(24 * HOUR_SECONDS, per_day))


def _place(pair_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(pair_id.encode(), digest_size=8).digest())


def _pairs(records: Iterable[Record]) -> Iterator[TextPair]:
    """Pairs of texts that only the monitor can compare, and the teacher's answers to itself."""
    for record in records:
        comparison = record.comparison
        both = pair_of(record)
        if both is not None and comparison is not None and comparison.is_left:
            student, teacher = both
            if student.text and teacher.text:
                yield TextPair(record.id, input_of(record), teacher.text, student.text, None)
        again = next((a for a in record.answers if a.purpose == "noise" and a.ok), None)
        first = record.answer_of("teacher")
        if again is not None and first is not None and again.text and first.text:
            yield TextPair(record.id + NOISE, input_of(record), first.text, again.text, None)


def _asker(settings: MonitorSettings, policy: Policy, route: Route) -> Ask:
    rule = route.answer.compare
    if rule.comparator == "judge":
        return _judge(policy, route)
    embed = load(settings.home.models / ENCODER)

    def by_vectors(pairs: Sequence[TextPair]) -> list[Verdict]:
        cosines = similarities(embed, [p.student for p in pairs], [p.teacher for p in pairs])
        return [Verdict(bool(c >= rule.threshold), round(float(c), 6)) for c in cosines]

    return by_vectors


def _judge(policy: Policy, route: Route) -> Ask:
    backend, model = judge_of(route)
    chosen = policy.backends[backend]
    secret = os.environ.get(chosen.api_key_env or "", "")
    headers = {"authorization": f"Bearer {secret}"} if secret else {}

    async def asked(pairs: Sequence[TextPair]) -> list[Verdict]:
        url = chosen.base_url.rstrip("/") + "/"
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client:
            try:
                async with asyncio.timeout(JUDGE_SECONDS):
                    found = await judged(client, str(model), pairs)
            except TimeoutError as why:
                raise JudgeError(f"judge at {url}: no end after {JUDGE_SECONDS:.0f} s") from why
        if all(one.winner is None for one in found):
            # Nothing of this is kept: a judge that is down must not use up the pairs.
            raise JudgeError(f"judge at {url}: no verdict that can be read")
        return [Verdict(None if one.winner is None else not one.is_worse) for one in found]

    return lambda pairs: asyncio.run(asked(pairs))
