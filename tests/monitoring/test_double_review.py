"""Two people review one flag: what is asked of whom, kappa, undo; by code, HTTP and command line."""

import json

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from typer.testing import CliRunner

from monitoring.cli import app
from monitoring.double_review import DoubleReview
from monitoring.double_review_routes import double_review_routes
from monitoring.errors import FlagTaken, ReviewError, UnknownFlag
from monitoring.review import ReviewQueue, label_schema
from monitoring.settings import MonitorSettings
from monitoring.store import Store
from router.answer_spec import AnswerSpec
from tests.monitoring.conftest import SPEC
from tests.monitoring.test_review import any_store, flagged

__all__ = ["any_store"]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:platformdirs")


@pytest.fixture
def decided(any_store: Store) -> tuple[Store, list[str]]:
    """Four flags, all decided by ada."""
    found = flagged(any_store, 4)
    for flag in found:
        ReviewQueue(any_store).decide(flag, "accept_teacher", by="ada", spec=SPEC)
    return any_store, found


def test_two_reviews_give_a_kappa_and_change_no_label(
    decided: tuple[Store, list[str]],
) -> None:
    store, found = decided
    queue, doubles = ReviewQueue(store), DoubleReview(store)
    before = queue.labels("mail")
    queue.undo(found[3])
    queue.decide(found[3], "accept_student", by="ada", spec=SPEC)
    assert doubles.waiting("ada") == []
    assert {f.id for f in doubles.waiting("bob", "mail")} == set(found)
    for flag in found[:2]:
        doubles.give(flag, "accept_teacher", by="bob", spec=SPEC)
    doubles.give(found[2], "discard", by="bob", spec=SPEC)
    doubles.give(found[3], "correct", '{"kind": "b"}', by="bob", spec=SPEC)
    assert doubles.waiting("bob") == []
    agreed = doubles.agreement("mail", SPEC)
    assert (agreed.agreed.count, agreed.agreed.rows) == (3, 4)
    # Classes a, b, discarded: observed 3/4; by chance (3*2 + 1*1 + 0*1) / 16 = 7/16.
    assert agreed.kappa == pytest.approx((3 / 4 - 7 / 16) / (1 - 7 / 16))
    (split,) = agreed.splits
    assert (split.flag_id, split.second_answer) == (found[2], None)
    assert len(queue.labels("mail")) == len(before)


def test_a_second_opinion_is_another_persons_and_one(decided: tuple[Store, list[str]]) -> None:
    store, (flag, other, *_) = decided
    doubles = DoubleReview(store, now=lambda: 9.0)
    with pytest.raises(FlagTaken, match="ada decided it"):
        doubles.give(flag, "discard", by="ada")
    with pytest.raises(ReviewError, match='"z" is not one of'):
        doubles.give(flag, "correct", '{"kind":"z"}', by="bob", spec=SPEC)
    doubles.give(flag, "discard", by="bob")
    with pytest.raises(FlagTaken, match="bob has given"):
        doubles.give(flag, "discard", by="eve")
    doubles.undo(flag)
    with pytest.raises(FlagTaken, match="no second opinion"):
        doubles.undo(flag)
    doubles.give(flag, "accept_teacher", by="eve")
    ReviewQueue(store).undo(other)
    with pytest.raises(FlagTaken, match="nobody has decided"):
        doubles.give(other, "discard", by="bob")
    with pytest.raises(UnknownFlag):
        doubles.give("nope", "discard", by="bob")
    assert doubles.agreement("mail", SPEC).agreed.rows == 1
    assert doubles.agreement("other").kappa is None


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (AnswerSpec(kind="label", labels=("a", "b")), {"enum": ["a", "b"]}),
        (SPEC, SPEC.schema_),
        (AnswerSpec(), {"type": "string", "minLength": 1}),
    ],
    ids=["labels", "json with a schema", "text"],
)
def test_the_label_schema_is_the_routes(spec: AnswerSpec, wanted: object) -> None:
    assert label_schema(spec) == wanted


def test_over_http(settings: MonitorSettings, store: Store) -> None:
    flag, *_ = flagged(store)
    ReviewQueue(store).decide(flag, "accept_teacher", by="ada")
    app_ = FastAPI()
    app_.include_router(double_review_routes(settings, store), prefix="/api")
    with TestClient(app_) as client:
        (seen,) = client.get("/api/second-opinions", params={"by": "bob"}).json()
        assert seen["id"] == flag
        assert "status" not in seen
        given = client.post(
            f"/api/flags/{flag}/second-opinion", json={"verdict": "accept_student", "by": "bob"}
        )
        assert given.json()["answer"] == '{"kind":"b"}'
        found = client.get("/api/routes/mail/agreement").json()
        assert (found["agreed"]["rows"], found["agreed"]["count"]) == (1, 0)
        assert client.get("/api/routes/mail/label-schema").json() == SPEC.schema_
        assert client.get("/api/routes/nope/label-schema").status_code == 404
        assert client.delete(f"/api/flags/{flag}/second-opinion").json() == {"undone": True}


def test_by_the_command_line(settings: MonitorSettings, store: Store) -> None:
    flag, *_ = flagged(store)
    home = ["--home", str(settings.home.root)]

    def run(*words: str, status: int = 0) -> str:
        found = CliRunner().invoke(app, ["review", *words, *home])
        assert found.exit_code == status, found.output
        return found.stdout

    assert "claimed by ada" in run("claim", flag, "--by", "ada")
    run("claim", flag, "--by", "bob", status=2)
    run("decide", flag, "--verdict", "accept_teacher", "--by", "ada")
    (waiting,) = json.loads(run("second", "--by", "bob", "--json"))
    assert waiting["id"] == flag
    run("second", flag, "--by", "bob", status=2)
    run("second", flag, "--verdict", "accept_teacher", "--by", "bob")
    assert json.loads(run("agreement", "mail", "--json"))["kappa"] == 1.0
    assert "Cohen's kappa 1.00" in run("agreement", "mail")
    assert json.loads(run("schema", "mail")) == SPEC.schema_
    run("agreement", "nope", status=2)
    run("second", flag, "--undo")
