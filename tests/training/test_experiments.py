"""Experiments: one change a run, nested sizes, the noise floor, the size law, and a whole one on a tiny model."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from serving.base_model import BaseModel
from training import experiment_plots, experiment_report, experiment_run, experiments, size_law
from training.dataset import Dataset
from training.errors import ConfigError
from training.experiment_run import RunFigures
from training.experiments import Experiment

BASE = {"epochs": 2, "lora": {"rank": 4, "alpha": 8, "top_layers": 2}, "frozen_products": "fp32"}


def made(**keys: Any) -> Experiment:
    return Experiment.model_validate({"name": "x", "baseline": BASE, **keys})


def test_each_run_differs_from_the_baseline_in_one_thing() -> None:
    planned = experiments.plan(made(vary={"lora.rank": [2, 8], "epochs": [3]}, seeds=2))
    base = planned[0].config
    assert [p.change for p in planned[::2]] == ["", "lora.rank = 2", "lora.rank = 8", "epochs = 3"]
    assert [p.seed for p in planned[:2]] == [0, 1]
    assert all(len(experiments.differences(base, p.config)) == bool(p.change) for p in planned)
    assert len({p.name for p in planned}) == len(planned)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        pytest.param(
            {"runs": [{"lora.rank": 8, "epochs": 3}]},
            r"runs\[0\] differs from the baseline in 2 things \(epochs, lora.rank\): allowed: one",
            id="two things at once",
        ),
        pytest.param(
            {"runs": [{"lora": {"rank": 8, "alpha": 16}}]},
            "in 2 things",
            id="two things in one mapping",
        ),
        pytest.param({"vary": {"lora.rank": [4]}}, "is the baseline itself", id="no change"),
        pytest.param(
            {"vary": {"lora.rnak": [4]}}, "lora.rnak = 4: Extra inputs", id="an unknown key"
        ),
        pytest.param({"vary": {"epochs": [0]}}, "epochs = 0", id="a value out of range"),
        pytest.param(
            {"vary": {"seed": [4]}}, "is the baseline itself", id="the seed is not a change"
        ),
    ],
)
def test_an_experiment_that_could_not_be_read_is_refused(
    keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        experiments.plan(made(**keys))


def test_sizes_are_nested_and_have_three_seeds_at_least() -> None:
    ids = [f"r{i}" for i in range(40)]
    small, large = (experiments.nested_rows(ids, share, 1) for share in (0.25, 0.5))
    assert set(small) < set(large)
    assert len(large) == 20
    assert set(experiments.nested_rows(ids, 0.25, 2)) != set(small)
    planned = experiments.plan(
        made(sizes={"shares": [0.25, 1.0], "budgets": ["epochs", "steps"]}, seeds=1)
    )
    sizes = [p for p in planned if p.budget]
    assert {(p.share, p.seed) for p in sizes} == {(s, n) for s in (0.25, 1.0) for n in range(3)}
    epochs = {(p.budget, p.share): p.config.epochs for p in sizes}
    assert epochs["epochs", 0.25] == 2
    assert epochs["steps", 0.25] == 8, "as many steps as on all rows"


def test_all_rows_are_the_baselines_runs_where_these_are_the_same() -> None:
    sizes = {"shares": [0.5, 1.0]}
    planned = experiments.plan(made(sizes=sizes, seeds=3))
    assert {p.share for p in planned if p.budget} == {0.5}, "two passes are never out of patience"
    patient = experiments.plan(made(sizes=sizes, seeds=3, baseline={**BASE, "epochs": 9}))
    assert {p.share for p in patient if p.budget} == {0.5, 1.0}, "a size is given all its passes"
    right = np.arange(100) < 60
    runs = [figures("", seed, right) for seed in range(3)]
    runs += [figures("rows 50 %", s, right[::-1], share=0.5, rows=50, budget="epochs") for s in range(3)]  # fmt: skip
    found = experiment_report.report("x", runs, 6, whole_is_baseline=True).ablations[0]
    assert [(p.rows, len(p.accuracies)) for p in found.points] == [(50, 3), (100, 3)]
    assert len(experiment_report.report("x", runs, 6).ablations[0].points) == 1


def test_a_share_out_of_range_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text("name: x\nsizes: {shares: [0.5, 2]}\n")
    with pytest.raises(ConfigError, match=r"sizes.shares = 2.0: allowed: above 0, at most 1"):
        experiments.load(file)


def figures(change: str, seed: int, right: np.ndarray, **more: Any) -> RunFigures:
    keys: dict[str, Any] = {
        "share": 1.0, "budget": None, "rows": 100, "validation_loss": 0.3, "epochs": 2, "best_epoch": 2, "seconds": 9.0,
        "rows_per_second": 10.0, "trained_parameters": 5,
    }  # fmt: skip
    return RunFigures(
        name=f"{change or 'baseline'}-s{seed}", group=change, change=change, seed=seed, accuracy=float(right.mean()),
        right={f"v{i}": bool(r) for i, r in enumerate(right)}, **{**keys, **more},
    )  # fmt: skip


def test_a_change_counts_only_beyond_the_noise_of_seeds() -> None:
    generator = np.random.default_rng(0)
    hard = generator.random(300)

    def right(skill: float) -> np.ndarray:
        return np.asarray(hard + generator.normal(0, 0.05, 300) < skill)

    runs = [figures("", s, right(0.80)) for s in range(3)]
    runs += [figures("lora.rank = 8", s, right(0.92)) for s in range(3)]
    runs += [figures("lora.rank = 2", s, right(0.802)) for s in range(3)]
    runs += [figures("epochs = 1", s, right(0.6), rows_per_second=20.0) for s in range(3)]
    found = experiment_report.report("x", runs, 12)
    words = {d.change: d.word for d in found.deltas}
    assert words == {"lora.rank = 8": "better", "lora.rank = 2": "within the noise", "epochs = 1": "worse"}  # fmt: skip
    assert found.deltas[0].change == "lora.rank = 8"
    assert next(d for d in found.deltas if d.change == "epochs = 1").speed == pytest.approx(2)
    one_seed = experiment_report.report("x", [r for r in runs if r.seed == 0], 12)
    assert one_seed.noise_floor is None
    assert {d.word for d in one_seed.deltas} == {"noise unknown"}


def test_the_noise_floor_is_kept_in_95_of_100_comparisons_of_nothing() -> None:
    generator = np.random.default_rng(1)
    beyond = 0
    for _ in range(2000):
        base, other = generator.normal(size=4), generator.normal(size=4)
        floor = experiment_report.noise_floor(base.tolist(), 4)
        assert floor is not None
        beyond += abs(base.mean() - other.mean()) > floor
    assert 0.03 < beyond / 2000 < 0.08


def curve_runs(
    law: tuple[float, float, float], noise: float, seed: int = 0
) -> dict[int, list[float]]:
    generator = np.random.default_rng(seed)
    sizes = [50, 100, 250, 500, 750, 1000]
    return {n: [float(size_law.curve(law, n) + generator.normal(0, noise)) for _ in range(3)] for n in sizes}  # fmt: skip


def test_the_law_of_a_clean_curve_is_found_and_predicts_twice_the_rows() -> None:
    true = (0.05, 2.0, 0.5)
    found = size_law.law(curve_runs(true, 0.001))
    assert found.identifiable
    assert found.exponent is not None
    assert found.exponent.low < 0.5 < found.exponent.high
    assert found.at_twice is not None
    assert found.at_twice.value == pytest.approx(float(size_law.curve(true, 2000)), abs=0.004)
    assert found.verdict == "more data"
    assert found.rows_for_a_point is not None
    wanted = (2.0 / (float(size_law.curve(true, 1000)) - 0.01 - 0.05)) ** 2 - 1000
    assert found.rows_for_a_point == pytest.approx(wanted, rel=0.25)


def test_the_next_point_costs_labels_and_one_more_training() -> None:
    true = (0.05, 2.0, 0.5)
    runs = [
        figures(f"rows {n}", seed, np.arange(1000) >= 1000 * error, share=n / 1000, rows=n, budget="epochs", seconds=3.6 * n)
        for n, errors in curve_runs(true, 0.001).items()
        for seed, error in enumerate(errors)
    ]  # fmt: skip

    def cost(**prices: Any) -> float:
        found = experiment_report.report("x", runs, len(runs), **prices).ablations[0]
        assert found.law.rows_for_a_point is not None
        assert found.usd_for_a_point is not None
        return found.usd_for_a_point

    law = experiment_report.report("x", runs, len(runs)).ablations[0]
    assert law.usd_for_a_point is None
    more = law.law.rows_for_a_point
    assert more is not None
    assert cost(usd_per_row=0.5) == pytest.approx(0.5 * more)
    assert cost(usd_per_hour=2.0) == pytest.approx(2.0 * (1000 + more) / 1000)
    assert cost(usd_per_row=0.5, usd_per_hour=2.0) == pytest.approx(0.5 * more + 2.0 * (1000 + more) / 1000)  # fmt: skip


@pytest.mark.parametrize(
    ("runs", "why"),
    [
        pytest.param({50: [0.3] * 3, 100: [0.2] * 3}, "2 sizes", id="too few sizes"),
        pytest.param({n: [1 / n, 1.1 / n] for n in (5, 10, 20, 40)}, "2 seeds", id="too few seeds"),
        pytest.param(curve_runs((0.2, 0.0, 0.5), 0.02, 1), "seeds alone move it", id="no trend"),
    ],
)
def test_points_that_show_no_law_are_said_not_to(runs: dict[int, list[float]], why: str) -> None:
    found = size_law.law(runs)
    assert found.verdict == "not identifiable"
    assert why in found.decision
    assert found.at_twice is None


def test_sizes_without_a_right_answer_do_not_make_a_law() -> None:
    runs = {21: [1.0] * 3, 42: [1.0] * 3, 104: [0.8, 0.796, 0.811], 418: [0.67, 0.678, 0.674]}
    found = size_law.law(runs)
    assert found.verdict == "not identifiable"
    assert "2 sizes; a law of three numbers needs at least 4" in found.why
    assert "at 21, 42 rows no answer is right" in found.why


def test_intervals_hold_the_truth_and_a_flat_curve_is_seldom_a_law() -> None:
    true, held, laws = (0.05, 2.0, 0.5), 0, 0
    for seed in range(40):
        found = size_law.law(curve_runs(true, 0.004, seed), seed=seed)
        assert found.at_twice is not None
        held += found.at_twice.low <= float(size_law.curve(true, 2000)) <= found.at_twice.high
        laws += size_law.law(curve_runs((0.2, 0.0, 0.5), 0.02, seed)).identifiable
    assert held >= 34
    assert laws <= 6


def test_a_flat_end_says_no_more_data_of_this_kind() -> None:
    found = size_law.law(curve_runs((0.10, 30.0, 1.2), 0.0005))
    assert found.verdict == "better data or a bigger model"
    assert "below the 1.0 that are worth it" in found.decision


@pytest.mark.slow
def test_an_experiment_from_jobs_to_report(
    dataset: Dataset, base: BaseModel, base_folder: Path, tmp_path: Path
) -> None:
    from serving import base_model

    chosen = made(vary={"optimizer.learning_rate": [0.01]}, seeds=1, sizes={"shares": [0.5]})
    planned = experiments.plan(chosen)
    where = {"dataset": str(dataset.path), "model": str(base_folder), "models": str(tmp_path),
             "folder": str(tmp_path / "e"), "slice_seconds": 60.0}  # fmt: skip
    for one in [p for p in planned if p.seed == 0]:
        model = base_model.load(str(base_folder), tmp_path)
        experiment_run.run_job(experiment_run.job_of(one, **where), model, math.inf)
    runs = experiment_run.read_results(tmp_path / "e")
    half = next(r for r in runs if r.budget)
    whole = next(r for r in runs if not r.change)
    assert half.rows == round(whole.rows / 2)
    assert set(half.right) == set(whole.right) == {e.id for e in dataset.of("validation")}
    assert whole.accuracy == sum(whole.right.values()) / len(whole.right)
    found = experiment_report.report("x", runs, len(planned))
    assert found.done == 3
    assert found.ablations[0].law.verdict == "not identifiable"
    experiment_plots.deltas(found, tmp_path / "d.png")
    experiment_plots.sizes(found.ablations[0], tmp_path / "s.png")
    assert (tmp_path / "d.png").stat().st_size > 1000
    table = list(csv.DictReader(experiment_report.to_csv(runs).splitlines()))
    assert [float(r["accuracy"]) for r in table] == sorted((round(r.accuracy, 5) for r in runs), reverse=True)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"engine": "trl"}, id="engine trl"),
        pytest.param({"stages": [{"share": 0.5}, {"epochs": 1}]}, id="stages"),
    ],
)
def test_a_run_is_measured_as_it_was_trained(
    change: dict[str, Any], dataset: Dataset, base: BaseModel, base_folder: Path, tmp_path: Path
) -> None:
    (planned,) = experiments.plan(made(baseline={**BASE, **change}, seeds=1))
    job = experiment_run.job_of(
        planned, dataset=str(dataset.path), model=str(base_folder), models=str(tmp_path), folder=str(tmp_path / "e"),
        slice_seconds=60.0, timed_rows=2,
    )  # fmt: skip
    found = experiment_run.run_job(job, base, math.inf)
    told = json.loads((tmp_path / "e" / "runs" / planned.name / "run.json").read_text())
    best = told["epochs"][told["best"] - 1]
    assert found.epochs == len(told["epochs"]) == 2
    assert found.validation_loss == pytest.approx(best["validation_loss"], rel=1e-3)
    assert found.accuracy == best["exact_share"]
    assert found.answer_ms is not None


def test_the_command_lists_its_runs_and_refuses_two_changes(tmp_path: Path) -> None:
    from training.cli import app

    file = tmp_path / "e.yaml"
    file.write_text(
        yaml.safe_dump({"name": "x", "baseline": BASE, "vary": {"epochs": [3]}, "seeds": 1})
    )
    listed = CliRunner().invoke(
        app, ["experiment", str(file), "--home", str(tmp_path), "--dry-run", "--json"]
    )
    assert [line["change"] for line in json.loads(listed.stdout)] == ["", "epochs = 3"]
    file.write_text(yaml.safe_dump({"name": "x", "runs": [{"epochs": 3, "batch_size": 2}]}))
    refused = CliRunner().invoke(app, ["experiment", str(file), "--home", str(tmp_path)])
    assert refused.exit_code == 2
    assert "2 things" in refused.output
