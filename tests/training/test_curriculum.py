"""Stages on one adapter: which rows each sees, what a run of them leaves, and that a cut one goes on."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from typer.testing import CliRunner

from serving import base_model
from serving.base_model import BaseModel
from tests.training.conftest import route, rows
from training import build, curriculum, experiments, lora, whole_model
from training.cli import app
from training.config import FitConfig, Stage
from training.curriculum import Curriculum, StageOrder
from training.dataset import Dataset
from training.encode import encode
from training.errors import DataError
from training.train import Run, RunResult

TWO = FitConfig.model_validate(
    {
        "lora": {"top_layers": 2},
        "optimizer": {"learning_rate": 0.01},
        "frozen_products": "fp32",
        "stages": [{"order": "length", "share": 0.5, "epochs": 2}, {"epochs": 1, "learning_rate": 0.005}],
    }
)  # fmt: skip


def fitted(
    folder: Path, dataset: Dataset, base: BaseModel, config: FitConfig = TWO, tell: Any = None
) -> RunResult:
    def make(order: StageOrder) -> Run:
        return Run(order.folder, order.config, order.dataset, base.model, base.tokenizer, order.tell, start=order.start)  # fmt: skip

    return Curriculum(folder, config, dataset, base.model, base.tokenizer, make, tell).fit()


def weights(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_stage_sees_the_first_rows_of_its_order(dataset: Dataset, base: BaseModel) -> None:
    sizes = {
        e.id: len(encode(e, base.tokenizer, dataset.info.prompt, None)) for e in dataset.of("train")
    }
    short = curriculum.stage_rows(Stage(order="length", share=0.25), dataset, base.tokenizer, {})
    chosen = {e.id for e in short.of("train")}
    assert len(chosen) == round(0.25 * len(sizes))
    assert max(sizes[i] for i in chosen) <= min(n for i, n in sizes.items() if i not in chosen)
    assert short.of("validation") == dataset.of("validation")
    losses = {name: float(n) for n, name in enumerate(sorted(sizes, reverse=True))}
    easy = curriculum.stage_rows(Stage(share=0.1), dataset, base.tokenizer, losses)
    assert {e.id for e in easy.of("train")} == set(sorted(sizes, reverse=True)[: len(easy.of("train"))])  # fmt: skip


def test_rows_on_which_teacher_and_gold_agree_come_first(dataset: Dataset, base: BaseModel) -> None:
    train = dataset.of("train")
    disputed = {e.id for e in train[:10]}
    marked = tuple(
        msgspec.structs.replace(e, gold='{"kind":"other"}' if e.id in disputed else e.teacher)
        for e in dataset.examples
    )
    part = curriculum.stage_rows(
        Stage(order="noise", share=1 - 10 / len(train)),
        Dataset(dataset.path, dataset.info, marked), base.tokenizer, {},
    )  # fmt: skip
    assert not disputed & {e.id for e in part.of("train")}


def test_a_run_of_stages_leaves_what_a_run_leaves(
    dataset: Dataset, base: BaseModel, base_folder: Path, tmp_path: Path
) -> None:
    told: list[Any] = []
    result = fitted(tmp_path / "run", dataset, base, tell=told.append)
    assert [e.epoch for e in result.epochs] == [1, 2, 3]
    assert {e.phase.partition(",")[0] for e in told} == {"stage 1", "stage 2"}
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in log if "validation_loss" in line] == [1, 1, 2]
    seen = [line["rows"] for line in log]
    assert seen == sorted(seen)
    assert seen[-1] == 2 * round(0.5 * result.rows) + result.rows
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {"config.json", "run.json", "curve.png", "adapter"}  # fmt: skip
    fresh = base_model.load(str(base_folder), tmp_path)
    student = lora.load_adapter(fresh.model, tmp_path / "run" / "adapter")
    held = [encode(e, fresh.tokenizer, dataset.info.prompt, None) for e in dataset.of("validation")]
    kept = whole_model.validate(student, held, 8)
    assert kept.loss == pytest.approx(result.epochs[result.best - 1].validation_loss, rel=1e-3)
    assert not any("lora" in name for name, _ in base.model.named_parameters())


def test_the_second_stage_goes_on_from_the_first(dataset: Dataset, base: BaseModel, tmp_path: Path) -> None:  # fmt: skip
    """With a rate that changes nothing, it has the first one's loss."""
    still = TWO.model_copy(
        update={"stages": (Stage(epochs=3), Stage(epochs=1, learning_rate=1e-12))}
    )
    result = fitted(tmp_path / "run", dataset, base, still)
    first = min(e.validation_loss for e in result.epochs[:3])
    assert result.epochs[3].validation_loss == pytest.approx(first, rel=1e-4)


def test_a_cut_run_goes_on_and_comes_to_the_same_adapter(
    dataset: Dataset, base_folder: Path, tmp_path: Path
) -> None:
    def fresh() -> BaseModel:
        return base_model.load(str(base_folder), tmp_path)

    fitted(tmp_path / "whole", dataset, fresh())

    def stop(event: Any) -> None:
        if event.phase == "stage 2, epoch 1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "cut", dataset, fresh(), tell=stop)
    rest: list[Any] = []
    fitted(tmp_path / "cut", dataset, fresh(), tell=rest.append)
    assert not any(e.phase.startswith("stage 1") for e in rest), "what is finished is not done again"  # fmt: skip
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_another_first_stage_makes_all_of_them_anew(
    dataset: Dataset, base: BaseModel, tmp_path: Path
) -> None:
    fitted(tmp_path / "run", dataset, base)
    other = TWO.model_copy(update={"stages": (Stage(share=0.5, order="length"), TWO.stages[1])})
    told: list[Any] = []
    fitted(tmp_path / "run", dataset, base, other, told.append)
    assert {e.phase.partition(",")[0] for e in told} == {"stage 1", "stage 2"}


@pytest.mark.parametrize(
    ("name", "first", "message"),
    [
        pytest.param("other", 500, "task = 'other', the run's dataset has 'mail'", id="another task"),
        pytest.param("mail", 0, "training rows are held-out rows of", id="held-out rows among them"),
    ],
)  # fmt: skip
def test_a_stages_dataset_that_does_not_fit_is_refused(
    name: str, first: int, message: str, dataset: Dataset, base: BaseModel, tmp_path: Path
) -> None:
    options = build.BuildOptions(0, 0)
    other = build.build(rows(80, first), route(), name, tmp_path / "more", query={}, options=options)  # fmt: skip
    with pytest.raises(DataError, match=message):
        curriculum.stage_rows(Stage(dataset=other.path), dataset, base.tokenizer, {})


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["label", "trl"])
def test_fit_takes_stages_by_a_run_file(
    engine: str, dataset: Dataset, base_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "run.yaml"
    stages = [{"share": 0.4, "epochs": 2}, {"epochs": 1, "learning_rate": 0.002}]
    file.write_text(yaml.safe_dump({"engine": engine, "stages": stages, "max_cut_share": 1, "lora": {"top_layers": 1}}))  # fmt: skip
    run = tmp_path / "run"
    words = ["fit", "--dataset", str(dataset.path), "--home", str(tmp_path), "--model", str(base_folder), "--json"]  # fmt: skip
    ran = CliRunner().invoke(app, [*words, "--config", str(file), "--run", str(run)])
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.stdout.splitlines()[-1])
    assert len(told["epochs"]) == 3
    first, second = (told["epochs"][n]["train_loss"] for n in (0, 1))
    assert second < first, "two passes over the same rows"
    assert (run / "adapter" / "adapter_model.safetensors").exists()
    assert json.loads((run / "origin.json").read_text())["dataset_digest"] == dataset.info.digest
    pairs = CliRunner().invoke(app, [*words, "--config", str(file), "--set", "engine=trl", "--preference", str(tmp_path)])  # fmt: skip
    assert pairs.exit_code == 2
    assert "--preference takes none" in pairs.output


def test_stages_are_one_change_of_an_experiment() -> None:
    """The same rows shuffled are the baseline that an order is compared with."""
    stages = [[{"share": 0.5}, {"epochs": 2}]]
    chosen = experiments.Experiment.model_validate({"name": "x", "vary": {"stages": stages}, "seeds": 1})  # fmt: skip
    planned = experiments.plan(chosen)
    assert [len(p.config.stages) for p in planned] == [0, 2]
    assert planned[1].config.passes == 2.5
