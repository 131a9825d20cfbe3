"""Mistakes: side by side, filters, slices beyond chance, flips, the training rows behind them, the review queue."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from monitoring.review import ReviewQueue
from monitoring.store import open_store
from router.answer_spec import AnswerSpec
from training import mistakes
from training.dataset import Dataset, Example
from training.errors import ConfigError
from training.predict import Prediction

SPEC = AnswerSpec(kind="label", labels=("yes", "no"))


def example(name: str, text: str, label: str, **more: str) -> Example:
    return Example(name, "t", ({"role": "user", "content": text},), label, **more)  # type: ignore[arg-type]


def case(
    number: int, right: bool, text: str = "plain words here", name: str = "a"
) -> mistakes.Case:
    return mistakes.Case(f"c{number}", text, "yes", "yes", "yes", "yes" if right else "no", 0.9, right, True, name)  # fmt: skip


def test_gold_is_the_reference_and_the_teacher_is_judged_by_it() -> None:
    rows = [
        example("1", "a", "yes", gold="yes", teacher="no"),
        example("2", "b", "no", teacher="no"),
    ]
    found = mistakes.cases(SPEC, rows, [Prediction("yes", 0.8), Prediction("maybe", 0.4)])
    assert (found[0].student_right, found[0].teacher_right) == (True, False)
    assert (found[1].student_right, found[1].teacher_right) == (False, None)
    assert found[1].reference == "no"


@pytest.mark.parametrize(
    ("which", "ids"),
    [
        ("wrong", ["2", "3"]),
        ("teacher-right", ["2"]),
        ("teacher-wrong", ["3"]),
        ("disagreement", ["2", "1"]),
        ("unsure", ["3"]),
        ("right", ["1"]),
        ("all", ["2", "3", "1"]),
    ],
)
def test_filters_show_sure_mistakes_first(which: str, ids: list[str]) -> None:
    rows = [
        example("1", "alpha", "yes", gold="yes", teacher="no"),
        example("2", "beta", "yes", gold="yes", teacher="yes"),
        example("3", "gamma", "yes", gold="yes", teacher="no"),
    ]
    answers = [Prediction("yes", 0.8), Prediction("no", 0.95), Prediction("no", 0.5)]
    found = mistakes.cases(SPEC, rows, answers)
    assert [c.id for c in mistakes.choose(found, which)] == ids
    assert [c.id for c in mistakes.choose(found, "all", search="BET")] == ["2"]
    with pytest.raises(ConfigError, match="allowed: wrong, teacher-right"):
        mistakes.choose(found, "bad")


def test_a_slice_with_more_errors_is_found_and_chance_is_not() -> None:
    draw = np.random.default_rng(0)
    rows = [
        case(i, bool(draw.random() < (0.4 if i % 3 == 0 else 0.95)),
             f"{'refund' if i % 3 == 0 else 'order'} number {draw.choice(['red', 'blue', 'green'])}")
        for i in range(240)
    ]  # fmt: skip
    found = mistakes.slices(rows)
    significant = {s.name for s in found if s.p_value < 0.05}
    assert "has “refund”" in significant
    assert not significant & {"has “red”", "has “blue”", "has “green”", "has “order”"}
    by_chance = 0
    for seed in range(40):
        draw = np.random.default_rng(seed)
        words = ["ab", "cd", "ef", "gh"]
        blind = [case(i, bool(draw.random() < 0.8), " ".join(draw.choice(words, 2))) for i in range(120)]  # fmt: skip
        by_chance += any(s.p_value < 0.05 for s in mistakes.slices(blind))
    assert by_chance <= 6, "Holm keeps false alarms at 5 % of tables"


def test_flips_are_the_rows_that_changed() -> None:
    before = [case(i, right) for i, right in enumerate([True, True, False, False])]
    now = [case(i, right) for i, right in enumerate([True, False, True, True])]
    found = mistakes.flips(before, [*now, case(9, False)])
    assert found.fixed == ("c2", "c3")
    assert found.broken == ("c1",)


def test_a_mistake_is_traced_to_the_rows_that_taught_it() -> None:
    train = [
        example("t1", "the parcel was broken on arrival", "no"),
        example("t2", "the parcel was broken in transit", "no"),
        example("t3", "thank you for the quick answer", "yes"),
    ]
    wrong = [case(1, False, "my parcel was broken on arrival"), case(2, False, "zzz qqq xxx")]
    first, second = mistakes.trace(SPEC, wrong, train, 2)
    assert [n.id for n in first.neighbours] == ["t1", "t2"]
    assert all(n.conflicts for n in first.neighbours)
    assert "check their labels" in first.verdict
    assert not second.has_similar
    assert "no similar training row" in second.verdict


@pytest.fixture
def run(dataset: Dataset, tmp_path: Path) -> Path:
    """A run with answers that are kept already: half of them wrong."""
    import hashlib

    folder = tmp_path / "runs" / "mail-1"
    (folder / "adapter").mkdir(parents=True)
    weights = folder / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(b"weights")
    (folder / "origin.json").write_text(json.dumps({"dataset": str(dataset.path), "model": "none"}))
    other = {'{"kind":"refund"}': '{"kind":"order"}', '{"kind":"order"}': '{"kind":"refund"}'}
    answers = {
        e.id: [other[e.completion] if i % 2 else e.completion, 0.9]
        for i, e in enumerate(dataset.of("validation"))
    }
    digest = hashlib.sha256(b"weights").hexdigest()[:16] + dataset.info.digest
    (folder / "answers-validation.json").write_text(json.dumps({"of": digest, "answers": answers}))
    return folder


def invoke(tmp_path: Path, *words: str, keys: str | None = None) -> str:
    from training.cli import app

    found = CliRunner().invoke(app, ["mistakes", "--home", str(tmp_path), *words], input=keys)
    assert found.exit_code == 0, found.output
    return found.output


def test_the_command_shows_mistakes_and_sends_one_to_the_review_queue(
    dataset: Dataset, run: Path, tmp_path: Path
) -> None:
    found = json.loads(invoke(tmp_path, "--json"))
    assert found["rows"] == len(dataset.of("validation"))
    assert found["wrong"] == found["rows"] // 2
    assert all(len(c["trace"]["neighbours"]) == 3 for c in found["cases"])
    name = found["cases"][0]["id"]
    for _ in range(2):
        invoke(tmp_path, "--flag", name)
    queue = ReviewQueue(open_store(f"sqlite:///{tmp_path / 'graduate.db'}")).list("mail")
    assert [(f.record_id, f.kind) for f in queue] == [(name, "mistake")]
    assert (run / "mistakes-validation.csv").exists()


def test_one_key_sends_a_row_to_the_review_queue(run: Path, tmp_path: Path) -> None:
    shown = invoke(tmp_path, "--browse", keys="nfq")
    assert "in the review queue as" in shown
    assert len(ReviewQueue(open_store(f"sqlite:///{tmp_path / 'graduate.db'}")).list("mail")) == 1


def test_another_run_is_compared(run: Path, tmp_path: Path) -> None:
    assert "fixed 0, broken 0" in invoke(tmp_path, "--against", str(run))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--split", "train"), "allowed: validation, test, test_balanced"),
        (("--filter", "odd"), "allowed: wrong"),
        (("--flag", "nobody"), "no such row in this split"),
    ],
)
def test_bad_input_is_refused(
    run: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    from training.cli import app

    found = CliRunner().invoke(app, ["mistakes", "--home", str(tmp_path), *words])
    assert found.exit_code == 2
    assert message in found.output
