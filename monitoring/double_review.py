"""A second person's verdict on flags that one has decided: how far labels depend on who gave them.

The second opinion is given without sight of the first and changes no label: the first stands until it is undone.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Select, select

from monitoring.disagreement import kappa
from monitoring.errors import FlagTaken, UnknownFlag
from monitoring.review import check_answer, check_verdict, chosen_answer
from monitoring.slices import Share
from monitoring.store import FlagRow, ReviewRow, SecondReviewRow, Store
from monitoring.windows import class_of
from router.answer_spec import AnswerSpec

DISCARDED = "discarded"


@dataclass(frozen=True, slots=True)
class Split:
    """A flag on which two people differ. An answer of None was discarded."""

    flag_id: str
    record_id: str
    first_by: str
    first_answer: str | None
    second_by: str
    second_answer: str | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two reviews of one flag compare, over all flags of a route that have two."""

    route: str
    agreed: Share
    kappa: float | None
    """Cohen's, over the classes of the answers and `discarded`; None without a flag that has two reviews."""
    splits: tuple[Split, ...]
    """Those that differ, the newest first: they are worth a third look."""


class DoubleReview:
    """Second opinions over one store."""

    def __init__(self, store: Store, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._now = now

    def waiting(self, by: str, route: str | None = None, limit: int = 100) -> Sequence[FlagRow]:
        """Decided flags that `by` may give a second opinion on, in an order that depends on nothing but their ids."""
        seconded = select(SecondReviewRow.flag_id).where(SecondReviewRow.undone_at.is_(None))
        own = select(ReviewRow.flag_id).where(ReviewRow.undone_at.is_(None), ReviewRow.by == by)
        query = select(FlagRow).where(
            FlagRow.status == "decided", FlagRow.id.not_in(seconded), FlagRow.id.not_in(own)
        )
        if route is not None:
            query = query.where(FlagRow.route == route)
        with self._store.session() as session:
            return list(session.scalars(query.order_by(FlagRow.id).limit(limit)))

    def give(
        self,
        flag_id: str,
        verdict: str,
        answer: str | None = None,
        *,
        by: str,
        note: str | None = None,
        spec: AnswerSpec | None = None,
    ) -> str | None:
        """Write a second opinion down; its answer, None when it is to discard.

        Raises:
            UnknownFlag: there is none.
            FlagTaken: nobody has decided it yet, `by` has done so, or it has a second opinion.
            ReviewError: an unknown verdict, or an answer that does not fit.
        """
        check_verdict(verdict)
        with self._store.session() as session:
            flag = session.get(FlagRow, flag_id, with_for_update=True)
            if flag is None:
                raise UnknownFlag(f"flag {flag_id!r}: no such flag")
            first = session.scalar(_standing(flag_id))
            if first is None:
                raise FlagTaken(f"flag {flag_id}: nobody has decided it yet; decide it first")
            if first.by == by:
                raise FlagTaken(
                    f"flag {flag_id}: {by} decided it; the second opinion is another person's"
                )
            second = session.scalar(
                select(SecondReviewRow).where(
                    SecondReviewRow.flag_id == flag_id, SecondReviewRow.undone_at.is_(None)
                )
            )
            if second is not None:
                raise FlagTaken(
                    f"flag {flag_id}: {second.by} has given a second opinion; undo it first"
                )
            chosen = chosen_answer(flag, verdict, answer)
            if chosen is not None and spec is not None:
                check_answer(spec, chosen)
            session.add(
                SecondReviewRow(
                    flag_id=flag.id, route=flag.route, verdict=verdict, answer=chosen, by=by,
                    note=note, at=self._now(),
                )
            )  # fmt: skip
            session.commit()
            return chosen

    def undo(self, flag_id: str) -> None:
        """Take a second opinion back; it stays in the history.

        Raises:
            FlagTaken: there is none that stands.
        """
        with self._store.session() as session:
            found = session.scalar(
                select(SecondReviewRow).where(
                    SecondReviewRow.flag_id == flag_id, SecondReviewRow.undone_at.is_(None)
                )
            )
            if found is None:
                raise FlagTaken(f"flag {flag_id}: has no second opinion to undo")
            found.undone_at = self._now()
            session.commit()

    def agreement(self, route: str, spec: AnswerSpec | None = None) -> Agreement:
        """How often two people agree. With a spec answers are told apart by their class, otherwise by their text."""
        query = (
            select(ReviewRow, SecondReviewRow)
            .join(SecondReviewRow, SecondReviewRow.flag_id == ReviewRow.flag_id)
            .where(
                ReviewRow.route == route,
                ReviewRow.undone_at.is_(None),
                SecondReviewRow.undone_at.is_(None),
                ReviewRow.by != SecondReviewRow.by,  # undone, and decided anew by the other person
            )
            .order_by(SecondReviewRow.at.desc(), SecondReviewRow.id.desc())
        )
        with self._store.session() as session:
            pairs = [(one, two) for one, two in session.execute(query)]
        confusion: dict[str, Counter[str]] = defaultdict(Counter)
        splits = []
        for one, two in pairs:
            first, second = _class(spec, one.answer), _class(spec, two.answer)
            confusion[first][second] += 1
            if first != second:
                splits.append(
                    Split(one.flag_id, one.record_id, one.by, one.answer, two.by, two.answer)
                )
        agreed = Share.of(len(pairs) - len(splits), len(pairs))
        return Agreement(route, agreed, kappa(confusion), tuple(splits))


def _standing(flag_id: str) -> Select[ReviewRow]:
    return select(ReviewRow).where(ReviewRow.flag_id == flag_id, ReviewRow.undone_at.is_(None))


def _class(spec: AnswerSpec | None, answer: str | None) -> str:
    if answer is None:
        return DISCARDED
    found = class_of(spec, answer) if spec is not None else None
    return answer if found is None else found
