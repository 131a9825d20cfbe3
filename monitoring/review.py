"""The review queue: flags in, labels out.

A flag is open, claimed, or decided; undoing a decision opens it again. A label is the newest decision that stands; a
discarded one says that the record is not to be learned from.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import func, select

from monitoring.errors import FlagTaken, ReviewError, UnknownFlag
from monitoring.store import FlagRow, ReviewRow, Store
from router.answer_spec import AnswerSpec, GuardRule
from router.compare import parse
from router.guard import check
from router.records import Answer

VerdictWord = Literal["accept_teacher", "accept_student", "correct", "discard"]
VERDICTS: tuple[VerdictWord, ...] = get_args(VerdictWord)
STATUSES = ("open", "claimed", "decided")


@dataclass(frozen=True, slots=True)
class Label:
    """A person's verdict on a record; `answer` is None when the record is discarded."""

    record_id: str
    route: str
    answer: str | None
    verdict: str
    by: str
    at: float


class ReviewQueue:
    """Reviews over one store."""

    def __init__(self, store: Store, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._now = now

    def list(
        self, route: str | None = None, status: str | None = "open", limit: int = 100
    ) -> Sequence[FlagRow]:
        """Flags, most informative first; `status` None gives all.

        Raises:
            ReviewError: an unknown status.
        """
        if status is not None and status not in STATUSES:
            raise ReviewError(f"status {status!r}: allowed: {', '.join(STATUSES)}, all")
        query = select(FlagRow).order_by(FlagRow.score.desc(), FlagRow.at).limit(limit)
        if route is not None:
            query = query.where(FlagRow.route == route)
        if status is not None:
            query = query.where(FlagRow.status == status)
        with self._store.session() as session:
            return list(session.scalars(query))

    def count(self, route: str, status: str = "open") -> int:
        """How many flags of a route there are."""
        query = select(func.count()).where(FlagRow.route == route, FlagRow.status == status)
        with self._store.session() as session:
            return session.scalar(query) or 0

    def waiting_by_kind(self, route: str) -> dict[str, int]:
        """Open flags of a route, by kind."""
        query = select(FlagRow.kind, func.count()).group_by(FlagRow.kind)
        query = query.where(FlagRow.route == route, FlagRow.status == "open")
        with self._store.session() as session:
            return {kind: count for kind, count in session.execute(query)}

    def standing_by_verdict(self, route: str) -> dict[str, int]:
        """Decisions of a route that stand, by verdict."""
        query = select(ReviewRow.verdict, func.count()).group_by(ReviewRow.verdict)
        query = query.where(ReviewRow.route == route, ReviewRow.undone_at.is_(None))
        with self._store.session() as session:
            return {verdict: count for verdict, count in session.execute(query)}

    def get(self, flag_id: str) -> FlagRow:
        """One flag.

        Raises:
            ReviewError: no such flag.
        """
        with self._store.session() as session:
            flag = session.get(FlagRow, flag_id)
        if flag is None:
            raise UnknownFlag(f"flag {flag_id!r}: no such flag")
        return flag

    def claim(self, flag_id: str, by: str) -> FlagRow:
        """Take a flag, so that nobody else reviews it at the same time.

        Raises:
            ReviewError: no such flag, or somebody else has it, or it is decided.
        """
        with self._store.session() as session:
            flag = session.get(FlagRow, flag_id, with_for_update=True)
            if flag is None:
                raise UnknownFlag(f"flag {flag_id!r}: no such flag")
            if flag.status == "decided":
                raise FlagTaken(f"flag {flag_id}: decided already; undo it first")
            if flag.claimed_by not in (None, by):
                raise FlagTaken(f"flag {flag_id}: claimed by {flag.claimed_by}")
            flag.claimed_by, flag.status = by, "claimed"
            session.commit()
            return flag

    def decide(
        self,
        flag_id: str,
        verdict: str,
        answer: str | None = None,
        *,
        by: str,
        note: str | None = None,
        spec: AnswerSpec | None = None,
    ) -> Label:
        """Decide a flag.

        Args:
            answer: the right answer, for `correct`.
            spec: the route's answer spec; a label that does not fit it is refused.

        Raises:
            UnknownFlag: there is none.
            FlagTaken: decided already, or somebody else has it.
            ReviewError: an unknown verdict, or an answer that does not fit.
        """
        check_verdict(verdict)
        with self._store.session() as session:
            flag = session.get(FlagRow, flag_id, with_for_update=True)
            if flag is None:
                raise UnknownFlag(f"flag {flag_id!r}: no such flag")
            if flag.status == "decided":
                raise FlagTaken(f"flag {flag_id}: decided already; undo it first")
            if flag.claimed_by not in (None, by):
                raise FlagTaken(f"flag {flag_id}: claimed by {flag.claimed_by}; undo releases it")
            chosen = chosen_answer(flag, verdict, answer)
            if chosen is not None and spec is not None:
                check_answer(spec, chosen)
            row = ReviewRow(
                flag_id=flag.id, record_id=flag.record_id, route=flag.route, verdict=verdict,
                answer=chosen, by=by, note=note, at=self._now(),
            )  # fmt: skip
            flag.status, flag.claimed_by = "decided", by
            session.add(row)
            session.commit()
            return _label(row)

    def undo(self, flag_id: str) -> None:
        """Open a decided or claimed flag again; a decision stays in the history.

        Raises:
            UnknownFlag: there is none.
            FlagTaken: it is open.
        """
        with self._store.session() as session:
            flag = session.get(FlagRow, flag_id, with_for_update=True)
            if flag is None:
                raise UnknownFlag(f"flag {flag_id!r}: no such flag")
            if flag.status == "open":
                raise FlagTaken(f"flag {flag_id}: open, so there is nothing to undo")
            standing = session.scalars(
                select(ReviewRow).where(ReviewRow.flag_id == flag_id, ReviewRow.undone_at.is_(None))
            )
            for row in standing:
                row.undone_at = self._now()
            flag.status, flag.claimed_by = "open", None
            session.commit()

    def labels(self, route: str | None = None, since: float | None = None) -> Sequence[Label]:
        """One label a record: the newest decision that stands."""
        query = select(ReviewRow).where(ReviewRow.undone_at.is_(None)).order_by(ReviewRow.at)
        if route is not None:
            query = query.where(ReviewRow.route == route)
        if since is not None:
            query = query.where(ReviewRow.at >= since)
        with self._store.session() as session:
            newest = {row.record_id: row for row in session.scalars(query)}
        return [_label(row) for row in newest.values()]


def check_verdict(verdict: str) -> None:
    """Nothing, when there is such a verdict.

    Raises:
        ReviewError: there is not, with what is allowed.
    """
    if verdict not in VERDICTS:
        raise ReviewError(f"verdict {verdict!r}: allowed: {', '.join(VERDICTS)}")


def label_schema(spec: AnswerSpec) -> dict[str, Any]:
    """JSON Schema of the answers that a label of the route may hold; of text, any that is not empty."""
    if spec.kind == "label":
        return {"enum": list(spec.labels)}
    if spec.kind == "json":
        wanted: dict[str, Any] = {"type": "object"} if spec.compare.fields else {}
        if spec.compare.fields:
            wanted["required"] = list(spec.compare.fields)
        return spec.schema_ if spec.schema_ is not None else wanted
    return {"type": "string", "minLength": 1}


def check_answer(spec: AnswerSpec, answer: str) -> None:
    """Nothing, when the answer fits the route.

    Raises:
        ReviewError: it does not, with what is allowed.
    """
    if parse(spec, answer) is None:
        allowed = {
            "label": f"one of {', '.join(spec.labels)}",
            "json": "JSON with the fields " + (", ".join(spec.compare.fields) or "of the schema"),
        }.get(spec.kind, "a text")
        raise ReviewError(f"answer {answer!r}: allowed: {allowed}")
    if spec.kind == "json" and spec.schema_ is not None:
        given = Answer(role="student", backend="", model="", status=200, text=answer)
        verdict = check(spec, [GuardRule(rule="schema")], given)
        if not verdict.ok:
            raise ReviewError(f"answer {answer!r}: {verdict.detail}")


def chosen_answer(flag: FlagRow, verdict: str, answer: str | None) -> str | None:
    """The answer that a verdict stands for; None for `discard`.

    Raises:
        ReviewError: `correct` without an answer, or an answer accepted that nobody gave.
    """
    if verdict == "discard":
        return None
    if verdict == "correct":
        if answer is None:
            raise ReviewError("verdict correct needs an answer")
        return answer
    chosen = flag.teacher_text if verdict == "accept_teacher" else flag.student_text
    if chosen is None:
        role = verdict.removeprefix("accept_")
        raise ReviewError(f"flag {flag.id}: the {role} gave no answer to accept; use correct")
    return chosen


def _label(row: ReviewRow) -> Label:
    return Label(row.record_id, row.route, row.answer, row.verdict, row.by, row.at)
