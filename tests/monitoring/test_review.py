"""The store and the review queue, on SQLite and on a real PostgreSQL."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest

from monitoring import flags
from monitoring.errors import FlagTaken, ReviewError, StoreError, UnknownFlag
from monitoring.review import ReviewQueue
from monitoring.store import Store, open_store
from router.policy import Flags
from tests.monitoring.conftest import SPEC, record

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:platformdirs")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "sqlite":
        store = open_store(f"sqlite:///{tmp_path / 'db.sqlite'}")
        yield store
        store.close()
        return
    store = open_store(request.getfixturevalue("postgresql"))
    yield store
    store.close()


def flagged(store: Store, count: int = 3) -> list[str]:
    found = flags.find([record(n, student='{"kind":"b"}') for n in range(count)], Flags())
    rows = [{**asdict(f), "at": 1.0, "status": "open"} for f in found]
    assert store.add_flags(rows) == count
    assert store.add_flags(rows) == 0
    return [f.id for f in ReviewQueue(store).list("mail")]


def test_each_verdict_gives_its_label(any_store: Store) -> None:
    one, two, three = flagged(any_store)
    queue = ReviewQueue(any_store, now=lambda: 5.0)
    assert queue.decide(one, "accept_teacher", by="ada", spec=SPEC).answer == '{"kind":"a"}'
    assert queue.decide(two, "accept_student", by="ada", spec=SPEC).answer == '{"kind":"b"}'
    assert queue.decide(three, "discard", by="bob", note="spam").answer is None
    labels = {label.record_id: label for label in queue.labels("mail")}
    assert len(labels) == 3
    assert {label.by for label in labels.values()} == {"ada", "bob"}
    assert queue.list("mail") == []
    assert queue.labels("other") == []


def test_two_people_do_not_review_one_flag(any_store: Store) -> None:
    flag, *_ = flagged(any_store)
    queue = ReviewQueue(any_store)
    queue.claim(flag, "ada")
    queue.claim(flag, "ada")
    with pytest.raises(ReviewError, match="claimed by ada"):
        queue.claim(flag, "bob")


def test_a_decision_is_final_until_it_is_undone(any_store: Store) -> None:
    flag, *_ = flagged(any_store)
    queue = ReviewQueue(any_store)
    queue.decide(flag, "accept_student", by="ada")
    with pytest.raises(ReviewError, match="decided already"):
        queue.decide(flag, "discard", by="bob")
    queue.undo(flag)
    assert queue.labels() == []
    queue.decide(flag, "correct", '{"kind":"a"}', by="bob", spec=SPEC)
    assert [(label.answer, label.by) for label in queue.labels()] == [('{"kind":"a"}', "bob")]


@pytest.mark.parametrize(
    ("verdict", "answer", "message"),
    [
        pytest.param("yes", None, "allowed: accept_teacher, accept_student, correct, discard", id="unknown verdict"),
        pytest.param("correct", None, "needs an answer", id="correct without an answer"),
        pytest.param("correct", "no json", "allowed: JSON with the fields kind", id="not the form"),
        pytest.param("correct", '{"kind":"z"}', '"z" is not one of', id="outside the schema"),
    ],
)  # fmt: skip
def test_a_bad_decision_is_refused(
    store: Store, verdict: str, answer: str | None, message: str
) -> None:
    flag, *_ = flagged(store)
    queue = ReviewQueue(store)
    with pytest.raises(ReviewError, match=message):
        queue.decide(flag, verdict, answer, by="ada", spec=SPEC)
    assert len(queue.list()) == 3
    with pytest.raises(ReviewError, match="no such flag"):
        queue.decide("nope", "discard", by="ada")


def test_a_database_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened"):
        open_store(f"sqlite:///{tmp_path / 'no' / 'such' / 'folder.db'}")
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:9/db cannot be opened") as caught:
        open_store("postgresql+psycopg://me:secret@127.0.0.1:9/db")
    assert "secret" not in str(caught.value)


def test_a_claimed_flag_is_its_claimers_until_it_is_released(any_store: Store) -> None:
    flag, *_ = flagged(any_store)
    queue = ReviewQueue(any_store)
    queue.claim(flag, "ada")
    assert [f.id for f in queue.list(status="claimed")] == [flag]
    with pytest.raises(FlagTaken, match="claimed by ada"):
        queue.decide(flag, "discard", by="bob")
    queue.undo(flag)
    assert queue.decide(flag, "discard", by="bob").by == "bob"
    queue.undo(flag)
    with pytest.raises(FlagTaken, match="nothing to undo"):
        queue.undo(flag)
    with pytest.raises(UnknownFlag, match="no such flag"):
        queue.undo("nope")


def test_the_newest_label_of_a_record_wins(any_store: Store) -> None:
    one, *_ = flagged(any_store)
    first = ReviewQueue(any_store, now=lambda: 5.0).decide(one, "accept_teacher", by="ada")
    second = {
        "id": "other", "record_id": first.record_id, "route": "mail", "kind": "feedback", "reason": "", "score": 1.0,
        "at": 6.0, "record_at": 1.0, "input_text": "", "status": "open",
    }  # fmt: skip
    assert any_store.add_flags([second]) == 1
    queue = ReviewQueue(any_store, now=lambda: 7.0)
    queue.decide("other", "correct", '{"kind":"b"}', by="bob")
    assert [(label.answer, label.by) for label in queue.labels("mail")] == [('{"kind":"b"}', "bob")]
    queue.undo("other")
    assert [label.by for label in queue.labels("mail")] == ["ada"]
    assert queue.labels(since=6.0) == []


def test_a_flag_twice_in_one_call_is_one(store: Store) -> None:
    (row,) = (asdict(f) for f in flags.find([record(1, student='{"kind":"b"}')], Flags()))
    rows = [{**row, "id": str(n), "at": 1.0, "status": "open"} for n in range(400)]
    assert store.add_flags([*rows, rows[0]]) == 400
    assert store.add_flags(rows) == 0
    with pytest.raises(ReviewError, match="allowed: open, claimed, decided, all"):
        ReviewQueue(store).list(status="new")


def test_two_ticks_at_once_add_each_flag_once(any_store: Store) -> None:
    found = flags.find([record(n, student='{"kind":"b"}') for n in range(40)], Flags())
    rows = [{**asdict(f), "at": 1.0, "status": "open"} for f in found]
    with ThreadPoolExecutor(4) as pool:
        added = list(pool.map(any_store.add_flags, [rows] * 4))
    assert sum(added) == 40
    assert len(ReviewQueue(any_store).list()) == 40
