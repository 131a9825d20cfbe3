"""What gates come to: graduate, hybrid only, do not graduate; and that each failing gate refuses."""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from monitoring.review import ReviewQueue
from monitoring.store import FlagRow, open_store
from training import gates, publish, review_gate
from training.dataset import Dataset, Example
from training.errors import DataError, PublishRefused
from training.eval_judge import JudgeReport
from training.eval_judge_figures import Pairwise
from training.gates import Gate
from training.metrics import Mean
from training.predict import Prediction, Progress
from training.review_gate import Limits


def report_of(split: str, non_inferior: bool | None, **hybrid: float) -> dict[str, Any]:
    """A test set as the evaluation has it, as far as the gates read it."""
    gap = {"difference": -0.01, "low": -0.04 if non_inferior else -0.09, "high": 0.02}
    accuracy = {"share": hybrid.get("student", 0.8), "low": 0.7, "high": 0.9}
    together = {
        "handed_over": hybrid.get("handed_over", 0.3), "accuracy": {"share": 0.9, "high": hybrid.get("high", 0.93)},
        "teacher_alone": {"share": 0.9},
    }  # fmt: skip
    return {
        "split": split, "rows": 200, "reference": "teacher" if non_inferior is None else "gold", "margin": 0.05,
        "non_inferior": non_inferior, "student_against_teacher": None if non_inferior is None else gap,
        "hybrid": None if non_inferior is None else together,
        "lines": [{"name": "student", "figures": {"accuracy": accuracy, "unparseable": 0}}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("tests", "verdict", "reason"),
    [
        pytest.param([("test", True, {}), ("test_balanced", True, {})], "graduate", "non-inferior on test_balanced", id="on both sets"),
        pytest.param([("test", True, {})], "graduate", "non-inferior on test:", id="no classes to balance"),
        pytest.param([("test", True, {}), ("test_balanced", False, {})], "hybrid only",
                     "non-inferior on test_balanced: -1.0 points [-9.0, +2.0]", id="not on the balanced one"),
        pytest.param([("test", False, {}), ("test_balanced", True, {})], "hybrid only", "hybrid on test:", id="not on the traffic's mix"),
        pytest.param([("test", False, {"handed_over": 1.0}), ("test_balanced", True, {})], "do not graduate",
                     "with the teacher on 100 %", id="all of it handed over is the teacher alone"),
        pytest.param([("test", False, {"handed_over": 0.98}), ("test_balanced", True, {})], "do not graduate",
                     "on at most 90 % of requests", id="the teacher answers nearly everything"),
        pytest.param([("test", False, {}), ("test_balanced", True, {"high": 0.85})], "do not graduate", "hybrid on test_balanced",
                     id="together worse on the balanced set"),
        pytest.param([("test", None, {"student": 0.8})], "hybrid only", "80.0 % of 200 test rows; there is no gold", id="no gold"),
        pytest.param([("test", None, {"student": 0.4})], "do not graduate", "40.0 %", id="no gold, and rarely the teacher's answer"),
    ],
)  # fmt: skip
def test_the_conclusion(tests: list[tuple[str, bool | None, dict[str, float]]], verdict: str, reason: str) -> None:  # fmt: skip
    evaluation = {"tests": [report_of(split, holds, **more) for split, holds, more in tests]}
    found = gates.conclude(gates.of_evaluation(evaluation))
    assert found.verdict == verdict
    assert any(reason in one for one in found.reasons), found.reasons
    assert all(gate.figure and gate.limit for gate in found.gates)


@pytest.mark.parametrize(
    ("low", "may_gate", "state", "verdict"),
    [
        pytest.param(0.47, True, "passed", "graduate", id="a judge that people agree with"),
        pytest.param(0.44, True, "failed", "do not graduate", id="not shown to be non-inferior"),
        pytest.param(0.47, False, "not measured", "hybrid only", id="a judge that nobody has checked"),
    ],
)  # fmt: skip
def test_a_judge_gates_only_when_people_agree_with_it(
    low: float, may_gate: bool, state: str, verdict: str
) -> None:
    won = {"value": 0.52, "rows": 90, "low": low, "high": 0.6}
    judge = {
        "model": "j-1", "rows": 90, "may_gate": may_gate, "why": "no person's label", "pairwise": {"win_rate": won},
    }  # fmt: skip
    found = gates.of_evaluation({"tests": [report_of("test", None)], "judges": [judge]})
    line = next(gate for gate in found if gate.name == "non-inferior by judge j-1")
    assert line.state == state
    assert gates.conclude(found).verdict == verdict


def test_the_judges_report_has_what_the_gate_reads() -> None:
    assert {"model", "rows", "may_gate", "why", "pairwise"} <= {f.name for f in fields(JudgeReport)}
    assert "win_rate" in {f.name for f in fields(Pairwise)}
    assert {"value", "low", "high"} <= {f.name for f in fields(Mean)}


def test_nothing_measured_is_no_graduation() -> None:
    found = gates.conclude(
        [Gate("non-inferior on test", "not measured", "no rows", "x", "verdict")]
    )
    assert found.verdict == "do not graduate"
    assert "nothing was measured" in found.reasons[0]


HOLDS = Gate("non-inferior on test", "passed", "+1.0 points", "above -5", "verdict")


@pytest.mark.parametrize(
    ("stops", "forced", "refuses"),
    [
        ("always", None, True), ("always", "we know", True),
        ("signature", None, True), ("signature", "we know", True),
        ("verdict", None, True), ("verdict", "we know", False),
        ("never", None, False),
    ],
)  # fmt: skip
def test_a_failed_gate_refuses(stops: gates.Stops, forced: str | None, refuses: bool) -> None:
    failed = Gate("open flags", "failed", "312", "at most 200", stops)
    found = gates.conclude([HOLDS, failed])
    assert found.failed == (failed,)
    if refuses:
        with pytest.raises(PublishRefused, match="open flags: 312"):
            gates.enforce(found, forced)
    else:
        gates.enforce(found, forced)
    not_measured = Gate("open flags", "not measured", "no store", "at most 200", stops)
    gates.enforce(gates.conclude([HOLDS, not_measured]), None)


@pytest.mark.parametrize(
    ("same", "exact", "share", "failed"),
    [
        pytest.param(2, 15, 0.95, None, id="as fitted"),
        pytest.param(16, 15, 0.95, "reload check: not the base model", id="the base model's answers"),
        pytest.param(2, 6, 0.95, "reload check: as fitted", id="far fewer exact answers than at the end of training"),
        pytest.param(2, 13, 0.95, None, id="a few fewer is chance"),
        pytest.param(2, 0, None, None, id="an old run that does not say"),
        pytest.param(2, 0, 0.0, None, id="nothing was learned, and nothing is there"),
    ],
)  # fmt: skip
def test_the_reload_check(same: int, exact: int, share: float | None, failed: str | None) -> None:
    lines = publish.Reloaded(16, same, 16, exact, share).gates()
    assert [g.name for g in lines if g.state == "failed"] == ([failed] if failed else [])
    assert all(g.stops == "always" for g in lines)


def test_chance_by_hand() -> None:
    assert publish.at_most(1, 2, 0.5) == pytest.approx(0.75)
    assert publish.at_most(2, 2, 0.5) == pytest.approx(1.0)
    assert publish.at_most(0, 3, 0.9) == pytest.approx(0.001)


def test_a_runs_fitted_share_is_its_best_epochs(tmp_path: Path) -> None:
    assert publish.fitted_share(tmp_path) is None
    epochs = [{"exact_share": 0.5}, {"exact_share": 0.75}, {"exact_share": 0.7}]
    (tmp_path / "run.json").write_text(json.dumps({"best": 2, "epochs": epochs}))
    assert publish.fitted_share(tmp_path) == 0.75
    (tmp_path / "run.json").write_text(json.dumps({"best": 9, "epochs": epochs}))
    assert publish.fitted_share(tmp_path) is None


class Says:
    """Answers every row with its own completion, or with the same words."""

    name = "student"

    def __init__(self, words: str | None = None) -> None:
        self.words = words

    def predict(
        self, examples: Sequence[Example], progress: Progress | None = None
    ) -> list[Prediction]:
        return [Prediction(self.words or e.completion, 0.9) for e in examples]


def reviewed(dataset: Dataset, root: Path, judged: int, open_flags: int) -> str:
    """A store in which people judged so many held-out rows, all of them training's own answer, and left flags open."""
    url = f"sqlite:///{root / 'graduate.db'}"
    store = open_store(url)
    held = [*dataset.of("test"), *dataset.of("validation")]
    with store.session() as session:
        for n in range(judged + open_flags):
            record = held[n].id if n < judged else f"open-{n}"
            answer = held[n].completion if n < judged else "{}"
            session.add(
                FlagRow(
                    id=f"f{n}", record_id=record, route="mail", kind="disagreement", reason="differ", score=1.0,
                    status="open", at=1.0, record_at=1.0, input_text="hello", teacher_text=answer, student_text="{}",
                )
            )  # fmt: skip
        session.commit()
    queue = ReviewQueue(store)
    for n in range(judged):
        queue.decide(f"f{n}", "accept_teacher", by="ada")
    return url


@pytest.mark.parametrize(
    ("judged", "open_flags", "student", "limits", "states"),
    [
        pytest.param(20, 3, Says(), Limits(), ["passed", "passed", "passed"], id="reviewed, and right"),
        pytest.param(20, 3, Says(), Limits(max_open=2), ["failed", "passed", "passed"], id="doubts are open"),
        pytest.param(20, 3, Says(), Limits(min_reviewed=21), ["passed", "failed", "passed"], id="too few judged"),
        pytest.param(20, 3, Says('{"kind":"x"}'), Limits(), ["passed", "passed", "failed"], id="wrong on what people judged"),
        pytest.param(19, 0, Says('{"kind":"x"}'), Limits(), ["passed", "passed", "not measured"], id="too few held out to say"),
    ],
)  # fmt: skip
def test_reviews(
    dataset: Dataset, tmp_path: Path, judged: int, open_flags: int, student: Says, limits: Limits, states: list[str]
) -> None:  # fmt: skip
    reviews = review_gate.read(reviewed(dataset, tmp_path, judged, open_flags), "mail")
    assert reviews is not None
    assert (reviews.open_flags, len(reviews.labels)) == (open_flags, judged)
    found = review_gate.gates(reviews, dataset, student, limits)
    assert [gate.state for gate in found] == states
    conclusion = gates.conclude([HOLDS, *found])
    assert conclusion.verdict == ("do not graduate" if "failed" in states else "graduate")


def test_another_routes_flags_and_training_rows_do_not_count(
    dataset: Dataset, tmp_path: Path
) -> None:
    url = reviewed(dataset, tmp_path, 5, 5)
    other = review_gate.read(url, "tickets")
    assert other == review_gate.Reviews(0, {})
    of_training = review_gate.Reviews(0, {e.id: e.completion for e in dataset.of("train")})
    assert review_gate.judged(dataset, of_training) == []


def test_without_a_monitor_reviews_are_not_measured_unless_asked_for(
    dataset: Dataset, tmp_path: Path
) -> None:
    assert review_gate.read(f"sqlite:///{tmp_path / 'none.db'}", "mail") is None
    assert not (tmp_path / "none.db").exists()
    free = review_gate.gates(None, dataset, Says(), Limits())
    assert {gate.state for gate in free} == {"not measured"}
    asked = review_gate.gates(None, dataset, Says(), Limits(min_reviewed=10))
    assert [gate.state for gate in asked] == ["not measured", "failed", "not measured"]


def test_a_database_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(DataError, match="--database"):
        review_gate.read("nosuch://nowhere", "mail")
