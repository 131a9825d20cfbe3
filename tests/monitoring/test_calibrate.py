"""Thresholds with a promise: p-values that are valid, a walk that starts where it can, and the command end to end."""

import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from typer.testing import CliRunner

from benchmarks.calibrate import make, run
from monitoring import calibrate_report, difficulty_model
from monitoring.calibrate import Pairs, Point, calibrate, least_pairs, p_value, path
from monitoring.calibrate_run import thresholds
from monitoring.calibration_pairs import arrays, gather, in_search
from monitoring.cli import app
from router import policy_file
from router.difficulty import load_model
from router.home import Home
from router.records import Comparison, Record
from router.traffic import TrafficLog
from tests.monitoring.conftest import answer, policy, record


def made(confidence: list[float], wrong: list[bool], **more: Any) -> Pairs:
    rows = len(wrong)
    fields = {
        "confidence": np.asarray(confidence, dtype=float), "difficulty": np.zeros(rows),
        "wrong": np.asarray(wrong, dtype=bool), "may_serve": np.ones(rows, dtype=bool), "weight": np.ones(rows), "luck": np.zeros(rows),
    }  # fmt: skip
    return Pairs(**{**fields, **more})


def test_the_trap_of_the_first_pairs_has_the_known_size() -> None:
    assert least_pairs(0.05, 0.10) == 45
    none = [made([1.0] * n, [False] * n) for n in (44, 45)]
    assert p_value(none[1], 0.05) <= 0.10 < p_value(none[0], 0.05)


def test_with_equal_weights_the_p_value_is_the_exact_binomial() -> None:
    wrong = [n < 3 for n in range(200)]
    expected = stats.binomtest(3, 200, 0.05, alternative="less").pvalue
    found = made([1.0] * 200, wrong, weight=np.full(200, 4.0))
    assert p_value(found, 0.05) == pytest.approx(expected)
    assert p_value(made([], []), 0.05) == 1.0


@pytest.mark.parametrize(
    ("heavy_share", "heavy"),
    [
        pytest.param(0.0, 1.0, id="equal weights"),
        pytest.param(0.5, 4.0, id="thinned"),
        pytest.param(0.02, 10.0, id="by a bet"),
    ],
)
def test_p_values_are_valid_at_the_limit_whatever_the_weights(
    heavy_share: float, heavy: float
) -> None:
    """Of 500 samples whose weighted disagreement is exactly the limit, about delta at most are rejected."""
    generator = np.random.default_rng(1)
    rejected = 0
    limit = (heavy_share * heavy * 0.08 + (1 - heavy_share) * 0.05) / (
        heavy_share * heavy + 1 - heavy_share
    )
    for _ in range(500):
        is_heavy = generator.random(300) < heavy_share
        wrong = generator.random(300) < np.where(is_heavy, 0.08, 0.05)
        weight = np.where(is_heavy, heavy, 1.0)
        found = made([1.0] * 300, wrong.tolist(), weight=weight, luck=generator.random(300))
        rejected += p_value(found, limit) <= 0.1
    assert rejected <= 70


@pytest.mark.parametrize("heavy", [3, 100])
def test_unequal_weights_can_still_show_a_limit(heavy: int) -> None:
    rows = 3000
    weight = np.where(np.arange(rows) % heavy == 0, 10.0, 1.0)
    luck = np.random.default_rng(2).random(rows)
    wrong = [n % 301 == 7 for n in range(rows)]
    assert p_value(made([1.0] * rows, wrong, weight=weight, luck=luck), 0.05) < 0.001


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60),
    st.floats(0.01, 0.5),
)
@settings(max_examples=30, deadline=None)
def test_a_path_lets_the_student_answer_more_at_every_step(
    rows: list[tuple[float, bool]], limit: float
) -> None:
    pairs = made([c for c, _ in rows], [w for _, w in rows])
    kept = [int(p.kept(pairs).sum()) for p in path(pairs, limit, 0.05)]
    assert kept == sorted(kept)
    assert kept[-1] == len(rows)


def _sloping(rows: int, seed: int) -> Pairs:
    generator = np.random.default_rng(seed)
    confidence = generator.random(rows)
    wrong = generator.random(rows) < 0.3 * (1 - confidence) ** 2
    return made(confidence.tolist(), wrong.tolist())


def test_the_suggestion_is_among_the_accepted_and_its_figures_are_of_the_test_part() -> None:
    search, test = _sloping(800, 1), _sloping(1600, 2)
    found = calibrate(search, path(search, 0.05, 0.05), test, limit=0.05, confidence=0.95)
    assert found.chosen is not None
    kept = found.chosen.point.kept(test)
    assert found.chosen.share == pytest.approx(kept.mean())
    assert found.chosen.disagreement is not None
    assert found.chosen.disagreement.value == pytest.approx(test.wrong[kept].mean())
    assert 0.3 < found.chosen.share < 1
    accepted = [i for i, s in enumerate(found.curve) if s.accepted]
    assert accepted == list(range(accepted[0], accepted[-1] + 1))
    assert all(found.curve[i].p_value <= 0.05 for i in accepted)


def test_a_student_that_is_worse_than_the_limit_gets_nothing_and_hears_why() -> None:
    generator = np.random.default_rng(3)
    search, test = (
        made(generator.random(900).tolist(), (generator.random(900) < 0.2).tolist())
        for _ in range(2)
    )
    found = calibrate(search, path(search, 0.05, 0.05), test, limit=0.05, confidence=0.95)
    assert found.chosen is None
    assert "does not show less than 5 %" in (found.why_not or "")
    few = made([0.9] * 40, [False] * 40)
    found = calibrate(few, path(few, 0.05, 0.05), few, limit=0.05, confidence=0.95)
    assert (
        found.why_not
        == "too few pairs: as good as 40 are tested, and 59 without one disagreement are the least"
    )


def test_what_the_router_would_not_serve_is_never_kept() -> None:
    pairs = made([0.9, np.nan, 0.9], [False] * 3, may_serve=np.asarray([True, True, False]))
    assert Point(0.5, None).kept(pairs).tolist() == [True, False, False]
    assert Point(None, None).kept(pairs).tolist() == [True, True, False]


@pytest.mark.parametrize("use", ["confidence", pytest.param("both", marks=pytest.mark.slow)])
def test_the_promise_holds_on_held_out_pairs(use: Any) -> None:
    """A small fixed-seed version of `python -m benchmarks.calibrate`."""
    rows, splits = (1500, 12) if use == "confidence" else (1200, 3)
    found = run(
        make(4000, 7), splits=splits, calibrate_rows=rows, limit=0.05, confidence=0.95, use=use
    )
    assert found["held_share"] >= 0.95
    if use == "confidence":
        assert found["student_share"] > 0.3
        assert found["naive_held_share"] < 0.8  # without a promise the limit breaks all the time


def test_the_difficulty_model_scores_in_the_router_as_it_did_in_training(tmp_path: Path) -> None:
    examples = make(2500, 5)
    trained = difficulty_model.train(
        [e.text or "" for e in examples], [e.wrong for e in examples], [1.0] * len(examples)
    )
    assert trained is not None
    assert trained.auc > 0.6
    model = difficulty_model.named(trained.model, "mail/3")
    assert model.name.startswith("mail-3-difficulty-")
    loaded = load_model(difficulty_model.save(model, tmp_path))
    assert loaded == model
    hard, easy = loaded.score("harda hardb hardc"), loaded.score("easyaa easybb easycc")
    assert hard > easy
    assert difficulty_model.train(["a"] * 30, [False] * 30, [1.0] * 30) is None


def _logged(number: int, generator: random.Random, **more: Any) -> Record:
    """A shadowed record whose student is wrong where it is not sure."""
    sure = generator.random()
    right = generator.random() > 0.4 * (1 - sure) ** 2
    student = '{"kind":"a"}' if right else '{"kind":"b"}'
    return record(number, student=student, confidence=sure, text=f"words of mail {number}", **more)


def _log(home: Home, records: list[Record]) -> None:
    log = TrafficLog(home.traffic, now=lambda: records[0].at)
    for r in records:
        log.append(r)
    log.close()


def test_pairs_of_a_record_know_their_probability_and_what_was_served(tmp_path: Path) -> None:
    place = Home(tmp_path)
    place.policy.write_text(policy())
    loaded = policy_file.load(place.policy)
    teacher = answer("teacher", '{"kind":"a"}')
    unsure = answer("student", '{"kind":"b"}', adapter="mail/1", confidence=0.2)
    agreed = Comparison("json", True)
    fell = record(2, answers=(unsure, teacher), shadow_share=0.1, arm="student", comparison=agreed)
    guarded = answer(
        "student",
        '{"kind":"b"}',
        adapter="mail/1",
        verdict="schema",
        confidence=0.9,
        purpose="shadow",
    )
    caught = record(3, answers=(guarded, teacher), comparison=agreed, shadow_share=0.25)
    broken_teacher = record(
        4, student='{"kind":"a"}', comparison=Comparison("json", comparable=False)
    )
    again = [record(n, student='{"kind":"a"}', conversation="c") for n in (5, 6)]
    old = record(0, answers=(answer("student", "{}", adapter="mail/0"), teacher), comparison=agreed)
    found = gather([old, fell, caught, broken_teacher, *again], loaded, "mail", None)
    assert [(e.key, e.may_serve, e.probability) for e in found.examples] == [
        ("r2", True, 1.0), ("r3", False, 0.25), ("c", True, 1.0),
    ]  # fmt: skip
    assert found.adapter == "mail/1"
    assert found.other_versions == {"mail/0": 1}
    assert sum(found.left_out.values()) == 2


def test_the_command_suggests_writes_and_never_touches_the_policy(tmp_path: Path) -> None:
    place = Home(tmp_path / "home")
    place.root.mkdir()
    place.policy.write_text(policy())
    generator, now = random.Random(4), time.time()
    _log(place, [_logged(n, generator, at=now - 3000 + n) for n in range(1000)])
    before = place.policy.read_text()
    command = ["calibrate", "mail", "--max-disagreement", "8%", "--home", str(place.root)]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    body = json.loads(done.stdout)
    assert body["chosen"]["share"] > 0.2
    assert body["chosen"]["p_value"] <= 0.05
    assert body["adapter"] == "mail/1"
    patch = Path(body["files"]["policy patch"])
    route = yaml.safe_load(patch.read_text())["routes"]["mail"]
    assert route["hybrid"]["cascade"]["min_confidence"] == body["chosen"]["min_confidence"]
    assert Path(body["files"]["picture"]).read_bytes().startswith(b"\x89PNG")
    assert place.policy.read_text() == before
    whole = calibrate_report.patched(policy_file.load(place.policy).policy, patch.read_text())
    assert whole.routes["mail"].mode == "hybrid"
    shown = CliRunner().invoke(app, [*command, "--use", "confidence"])
    assert "suggested" in shown.stdout
    assert "the student may answer" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "route 'nope': allowed: mail"),
        (["mail", "--max-disagreement", "3x"], "--max-disagreement = '3x': allowed: a share"),
        (["mail", "--confidence", "100%"], "--confidence = 1: allowed: between 0 and 1"),
        (["mail", "--since", "7"], "--since = '7': allowed: a duration"),
        (["mail"], "route 'mail' has no pairs to calibrate on"),
    ],
)
def test_bad_input_is_refused_in_plain_words(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    place = Home(tmp_path)
    place.policy.write_text(policy())
    done = CliRunner().invoke(app, ["calibrate", *arguments, "--home", str(tmp_path)])
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_pair_stays_in_its_part_as_the_log_grows() -> None:
    examples = make(300, 1)
    assert in_search(examples[:100]).tolist() == in_search(examples)[:100].tolist()
    assert 0.25 < in_search(examples).mean() < 0.42
    assert len(arrays(examples)) == 300
    assert thresholds(examples[:60], limit=0.05, confidence=0.95).calibration.chosen is None
