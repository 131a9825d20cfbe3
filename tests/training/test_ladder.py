"""The ladder of base models: where the climb stops, what is said of it, and a whole one on Llamas of several sizes."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from tests.tiny import tokenizer
from tests.training.conftest import route
from tests.training.conftest import rows as teacher_rows
from training import build, experiment_plots, experiments, ladder
from training.cli import app
from training.errors import ConfigError
from training.experiment_run import RunFigures
from training.experiments import Experiment

BASE = {"epochs": 3, "optimizer": {"learning_rate": 0.02}, "lora": {"top_layers": 2}, "frozen_products": "fp32"}  # fmt: skip


def runs_of(
    model: str, skill: float, hard: np.ndarray, seeds: int = 3, noise: float = 0.05, draw: int = 0
) -> list[RunFigures]:
    """Runs that get the rows right that are easier than `skill`, each seed a bit otherwise."""
    made = []
    for seed in range(seeds):
        generator = np.random.default_rng([draw, seed, len(model), *map(ord, model)])
        right = hard + generator.normal(0, noise, len(hard)) < skill
        made.append(
            RunFigures(
                name=f"{model}-s{seed}", group=model, change=f"model = {model}", seed=seed, share=1.0, budget=None,
                rows=100, accuracy=float(right.mean()), validation_loss=0.3, epochs=2, best_epoch=2, seconds=36.0,
                right={f"v{i}": bool(r) for i, r in enumerate(right)}, rows_per_second=10.0, trained_parameters=5,
                model=model, is_rung=True, parameters=1000 * len(model), train_loss=0.25, answer_ms=20.0, answer_ms_p95=25.0,
            )
        )  # fmt: skip
    return made


def rungs(*skills: float, **more: Any) -> list[tuple[str, list[RunFigures]]]:
    hard = np.random.default_rng(7).random(300)
    return [("m" * (n + 1), runs_of("m" * (n + 1), skill, hard, **more)) for n, skill in enumerate(skills)]  # fmt: skip


@pytest.mark.parametrize(
    ("skills", "planned", "take", "is_over", "said"),
    [
        pytest.param((0.5, 0.7, 0.9), 3, "mmm", True, "every rung beat the one below", id="all the way up"),
        pytest.param((0.5, 0.8, 0.8), 4, "mm", True, "mmm costs more and was not shown to be better; 1 larger one was not run", id="stops at the first that brings nothing"),
        pytest.param((0.5, 0.3), 2, "m", True, "take m ", id="a larger one is worse"),
        pytest.param((0.5, 0.8), 3, "mm", False, "not decided yet; so far mm (1 to go)", id="a rung is to come"),
    ],
)  # fmt: skip
def test_the_climb_stops_at_the_first_rung_that_does_not_beat_the_one_below(
    skills: tuple[float, ...], planned: int, take: str, is_over: bool, said: str
) -> None:
    found = ladder.climb(rungs(*skills), planned, usd_per_hour=0.36)
    assert (found.take, found.is_over) == (take, is_over)
    assert said in found.sentences[-1]
    assert found.rungs[0].training_usd == pytest.approx(0.0036)
    assert found.rungs[0].answers_usd == pytest.approx(0.002), "1,000 answers of 20 ms"


def test_a_rung_above_a_failed_one_is_never_the_one_to_take() -> None:
    """Also when all were asked for: the rule was fixed before."""
    found = ladder.climb(rungs(0.6, 0.6, 0.9), 3, climb_all=True)
    assert [rung.holds for rung in found.rungs] == [True, False, True]
    assert found.take == "m"


def test_gains_below_what_is_asked_for_do_not_count() -> None:
    assert ladder.climb(rungs(0.6, 0.75), 2).take == "mm"
    found = ladder.climb(rungs(0.6, 0.75), 2, worth=0.3)
    assert found.take == "m"
    assert "30.0 are asked for" in found.sentences[0]


def test_one_seed_shows_nothing() -> None:
    found = ladder.climb(rungs(0.5, 0.9, seeds=1), 2)
    assert found.take == "m"
    assert "cannot be told with one seed" in found.sentences[-1]


def test_models_that_are_equal_are_seldom_told_apart() -> None:
    """Only seeds differ, and by much: a rung must not hold by the rows' interval alone."""
    climbed = 0
    for draw in range(100):
        hard = np.random.default_rng(draw).random(200)
        groups = [(m, runs_of(m, 0.7, hard, noise=0.25, draw=draw)) for m in ("m", "mm")]
        climbed += ladder.climb(groups, 2).take == "mm"
    assert climbed <= 6


def test_welchs_bound_is_kept_in_95_of_100_comparisons_of_nothing() -> None:
    generator = np.random.default_rng(1)
    beyond = 0
    for _ in range(2000):
        one, other = generator.normal(size=4), generator.normal(0, 2, size=4)
        floor = ladder.seeds_alone(one.tolist(), other.tolist())
        assert floor is not None
        beyond += abs(one.mean() - other.mean()) > floor
    assert 0.03 < beyond / 2000 < 0.07


def test_a_rung_without_all_its_seeds_is_not_judged() -> None:
    made = [run for _, runs in rungs(0.5, 0.7) for run in runs]
    groups = ladder.groups_of(("m", "mm", "mmm"), "other", 3, made[:-1])
    assert [model for model, _ in groups] == ["m"]


def made(**keys: Any) -> Experiment:
    return Experiment.model_validate({"name": "x", "baseline": BASE, **keys})


def test_the_lowest_rung_is_the_baseline_where_no_model_is_named() -> None:
    chosen = made(ladder={"models": ["small", "large"]}, seeds=2)
    planned = experiments.plan(chosen)
    assert chosen.base == "small"
    assert [(p.model, p.seed) for p in planned] == [(None, 0), (None, 1), ("large", 0), ("large", 1)]  # fmt: skip
    assert {p.config.model_copy(update={"seed": 0}) for p in planned} == {planned[0].config}
    named = made(ladder={"models": ["small", "large"]}, model="other", seeds=1)
    assert [p.model for p in experiments.plan(named)] == [None, "small", "large"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{models: [a]}", "ladder.models = .*at least 2", id="one rung"),
        pytest.param("{models: [a, b, a]}", "ladder.models: 'a' is there twice", id="a rung twice"),
        pytest.param("{modles: [a, b]}", "ladder.modles: unknown key", id="a typo"),
    ],
)
def test_a_ladder_that_is_none_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(f"name: x\nladder: {text}\n")
    with pytest.raises(ConfigError, match=message):
        experiments.load(file)


def llama(folder: Path, width: int, layers: int) -> str:
    """A Llama of this size with random weights."""
    torch.manual_seed(0)
    text = tokenizer()
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(text), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, eos_token_id=text.eos_token_id,
            bos_token_id=None, initializer_range=0.2,
        )
    ).save_pretrained(folder)  # fmt: skip
    text.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_a_ladder_of_llamas_stops_where_nothing_is_gained(tmp_path: Path) -> None:
    options = build.BuildOptions(0.1, 0.4)
    dataset = build.build(
        teacher_rows(160), route(), "mail", tmp_path / "datasets", query={}, options=options
    )
    sizes = {"narrow": (8, 1), "middle": (64, 2), "wide": (64, 4), "widest": (128, 4)}
    models = [llama(tmp_path / name, *size) for name, size in sizes.items()]
    file = tmp_path / "e.yaml"
    file.write_text(yaml.safe_dump({
        "name": "sizes", "dataset": str(dataset.path), "seeds": 3, "baseline": {**BASE, "epochs": 10, "patience": 10},
        "ladder": {"models": models, "timed_rows": 3, "usd_per_hour": 1.0},
    }))  # fmt: skip
    words = ["experiment", str(file), "--home", str(tmp_path), "--workers", "1", "--json"]
    ran = CliRunner().invoke(app, words)
    assert ran.exit_code == 0, ran.output
    report = json.loads(ran.stdout)
    climb = report["ladder"]
    assert report["done"] == report["planned"] == 3 * len(climb["rungs"])
    weights = [rung["parameters"] for rung in climb["rungs"]]
    assert weights == sorted(weights)
    assert all(rung["answer_ms"] > 0 for rung in climb["rungs"])
    assert climb["take"] == models[1]
    assert len(climb["rungs"]) == 3
    assert climb["sentences"][-1].endswith("1 larger one was not run.")
    folder = tmp_path / "experiments" / "sizes"
    assert (folder / "study-sizes-ladder.png").stat().st_size > 1000
    rows = list(csv.DictReader((folder / "leaderboard.csv").read_text().splitlines()))
    assert {row["model"] for row in rows} == set(models[:3])
    shown = CliRunner().invoke(app, [*words[:-1], "--report-only"])
    assert "take" in shown.stdout


def test_the_picture_names_the_rung_to_take(tmp_path: Path) -> None:
    experiment_plots.ladder(ladder.climb(rungs(0.5, 0.8, 0.8), 3), tmp_path / "l.png")
    assert (tmp_path / "l.png").stat().st_size > 1000


@pytest.mark.parametrize("name", ["ladder", "tickets", "tickets-short"])
def test_the_shipped_experiments_can_be_planned(name: str) -> None:
    file = Path(__file__).parents[2] / "examples" / "experiments" / f"{name}.yaml"
    planned = experiments.plan(experiments.load(file))
    assert len({p.name for p in planned}) == len(planned)
