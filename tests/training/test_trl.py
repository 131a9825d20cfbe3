"""The engine `trl`: what it trains on, what it leaves, that it goes on where it was cut, and preferences."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from serving import base_model
from serving.base_model import BaseModel
from tests.words import LABELS
from training import label_engine, lora, preference, trl_rows, trl_settings, whole_model
from training.cli import app
from training.config import FitConfig
from training.dataset import Dataset
from training.encode import Encoded, encode
from training.errors import ConfigError, DataError
from training.preference import Judgement, Pairs
from training.train import FitEvent
from training.trl_follow import Pace
from training.trl_run import TrlRun

FAST = FitConfig.model_validate(
    {
        "engine": "trl",
        "epochs": 3,
        "lora": {"top_layers": 2},
        "optimizer": {"learning_rate": 0.01},
        "trl": {"save_steps": 4},
    }
)


def encoded(dataset: Dataset, base: BaseModel, split: Any = "train") -> list[Encoded]:
    return [encode(e, base.tokenizer, dataset.info.prompt, None) for e in dataset.of(split)]


def test_the_loss_falls_on_the_answer_alone_and_weights_have_a_mean_of_one() -> None:
    rows = [Encoded("a", (1, 2, 3), (4, 5), weight=3.0), Encoded("b", (6,), (7, 8), weight=1.0)]
    table = trl_rows.sft_table(rows)
    assert table["input_ids"][0] == [1, 2, 3, 4, 5]
    assert table["labels"][0] == [-100, -100, -100, 4, 5]
    assert list(table["weight"]) == [1.5, 0.5]


def test_validation_through_the_whole_model_equals_the_fast_paths(
    dataset: Dataset, base: BaseModel
) -> None:
    adapted = lora.add_lora(base.model, rank=4, alpha=8, top_layers=2, seed=0)
    held = encoded(dataset, base, "validation")
    states = label_engine.cache_states(adapted, held)
    fast = label_engine.validate(adapted, held, states, 4)
    whole = whole_model.validate(adapted, held, 4)
    assert whole.loss == pytest.approx(fast.loss, rel=1e-4)
    assert whole.exact == fast.exact


@pytest.mark.slow
def test_a_run_learns_and_leaves_what_the_other_engine_leaves(
    dataset: Dataset, base: BaseModel, base_folder: Path, tmp_path: Path
) -> None:
    told: list[FitEvent] = []
    folder = tmp_path / "run"
    result = TrlRun(folder, FAST, dataset, base.model, base.tokenizer, told.append).fit()
    assert result.epochs[-1].train_loss < 0.5 * result.epochs[0].train_loss
    assert result.rows == len(dataset.of("train"))
    assert [e.phase for e in told if e.done == e.total] == ["epoch 1", "epoch 2", "epoch 3"]
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert sum("validation_loss" in line for line in log) == 3
    assert log[-1]["rows"] == 3 * result.rows
    assert {p.name for p in folder.iterdir()} >= {"config.json", "run.json", "curve.png", "adapter"}
    assert FitConfig.model_validate_json((folder / "config.json").read_text()) == FAST
    fresh = base_model.load(str(base_folder), tmp_path)
    student = lora.load_adapter(fresh.model, folder / "adapter")
    held = whole_model.validate(student, encoded(dataset, fresh, "validation"), 8)
    assert held.loss == pytest.approx(result.epochs[result.best - 1].validation_loss, rel=1e-3)


def weights(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "stop_at", [pytest.param(("epoch 2", 40), id="within an epoch"), pytest.param(("epoch 3", 8), id="after one")]
)  # fmt: skip
def test_a_cut_run_goes_on_to_the_adapter_of_the_uncut_one(
    dataset: Dataset, base_folder: Path, tmp_path: Path, stop_at: tuple[str, int]
) -> None:
    def run(name: str, tell: Any = None) -> Any:
        base = base_model.load(str(base_folder), tmp_path)
        return TrlRun(tmp_path / name, FAST, dataset, base.model, base.tokenizer, tell).fit()

    def stop(event: FitEvent) -> None:
        if (event.phase, event.done) == stop_at:
            raise KeyboardInterrupt

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("cut", stop)
    rest: list[FitEvent] = []
    cut = run("cut", rest.append)
    assert rest[0].phase != "epoch 1"
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert [e.validation_loss for e in cut.epochs] == [e.validation_loss for e in whole.epochs]
    steps = (tmp_path / "cut" / "log.jsonl").read_text().splitlines()
    assert len(steps) == len((tmp_path / "whole" / "log.jsonl").read_text().splitlines())


@pytest.mark.slow
def test_another_configuration_in_the_folder_starts_anew(
    dataset: Dataset, base: BaseModel, base_folder: Path, tmp_path: Path
) -> None:
    short = FAST.model_copy(update={"epochs": 1})
    TrlRun(tmp_path / "run", short, dataset, base.model, base.tokenizer).fit()
    fresh = base_model.load(str(base_folder), tmp_path)
    told: list[FitEvent] = []
    other = short.model_copy(update={"seed": 1})
    TrlRun(tmp_path / "run", other, dataset, fresh.model, fresh.tokenizer, told.append).fit()
    assert told[0].phase == "epoch 1"
    assert told[0].done == FAST.batch_size


@pytest.mark.slow
def test_the_declared_class_mix_weighs_the_rows(
    dataset: Dataset, base: BaseModel, tmp_path: Path
) -> None:
    """Rows of a class that hardly counts hardly teach: the student says the other class everywhere."""
    mix = {LABELS[0]: 0.98, LABELS[1]: 0.02}
    config = FAST.model_copy(update={"target_mix": mix, "target_mix_by": "weights"})
    run = TrlRun(tmp_path / "run", config, dataset, base.model, base.tokenizer)
    run.fit()
    light = min(row.weight for row in run.train)
    assert light < 0.1
    loss = {
        is_light: whole_model.validate(
            run.adapted,
            [replace(row, weight=1.0) for row in run.train if (row.weight == light) == is_light],
            8,
        ).loss
        for is_light in (True, False)
    }
    assert loss[True] > 1.5 * loss[False]


def wanted_pairs(dataset: Dataset, folder: Path) -> Pairs:
    """The row's class over the other one, for every training and validation row."""
    asked = []
    for example in (*dataset.of("train"), *dataset.of("validation")):
        own = json.loads(example.completion)["kind"]
        other = LABELS[1 - LABELS.index(own)]
        asked.append(Judgement(example.id, "gold", example.messages, example.completion, f'{{"kind":"{other}"}}'))  # fmt: skip
    found, dropped = preference.pair_up(asked, dataset.info, dataset.examples)
    return preference.save(folder, found, dropped, dataset.info)


@pytest.mark.slow
def test_preferences_raise_the_better_answer_over_the_worse(
    dataset: Dataset, base: BaseModel, base_folder: Path, tmp_path: Path
) -> None:
    TrlRun(tmp_path / "sft", FAST, dataset, base.model, base.tokenizer).fit()
    pairs = wanted_pairs(dataset, tmp_path)
    config = FAST.model_copy(
        update={"preference": FAST.preference.model_copy(update={"learning_rate": 0.01})}
    )
    fresh = base_model.load(str(base_folder), tmp_path)
    run = TrlRun(
        tmp_path / "dpo", config, dataset, fresh.model, fresh.tokenizer,
        pairs=pairs, start=tmp_path / "sft" / "adapter",
    )  # fmt: skip
    result = run.fit()
    assert result.epochs[-1].validation_loss < result.epochs[0].validation_loss
    assert not (tmp_path / "dpo" / "adapter" / "ref").exists()
    log = [json.loads(line) for line in (tmp_path / "dpo" / "log.jsonl").read_text().splitlines()]
    margins = [line["margins"] for line in log if "margins" in line]
    assert margins[0] == pytest.approx(0, abs=1e-4), "the reference is the adapter it starts from"
    assert margins[-1] > 0.1
    again = base_model.load(str(base_folder), tmp_path)
    lora.load_adapter(again.model, tmp_path / "dpo" / "adapter")


def test_a_run_of_one_epoch_leaves_an_adapter(
    dataset: Dataset, base: BaseModel, tmp_path: Path
) -> None:
    config = FAST.model_copy(update={"epochs": 1, "batch_size": 24})
    result = TrlRun(tmp_path / "run", config, dataset, base.model, base.tokenizer).fit()
    assert [epoch.epoch for epoch in result.epochs] == [1]
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()


def test_pairs_of_another_template_are_refused(
    dataset: Dataset, base: BaseModel, tmp_path: Path
) -> None:
    pairs = wanted_pairs(dataset, tmp_path)
    import msgspec

    info = msgspec.structs.replace(pairs.info, prompt="Other: {input}")
    other = Pairs(pairs.path, info, pairs.pairs)
    with pytest.raises(DataError, match="prompt = 'Other"):
        TrlRun(tmp_path / "r", FAST, dataset, base.model, base.tokenizer, pairs=other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"precision": "fp16"}, "needs a GPU", id="fp16 on a CPU"),
        pytest.param({"device_batch": 3}, "allowed: a multiple of 3", id="batch cannot be divided"),
    ],
)
def test_what_this_machine_cannot_do_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = FitConfig.model_validate({"engine": "trl", "trl": change})
    machine = trl_settings.Machine(has_gpu=False, has_bf16=False)
    with pytest.raises(ConfigError, match=message):
        trl_settings.arguments(
            config, machine, tmp_path, device_batch=config.trl.device_batch or 8,
            steps=10, epochs=1, learning_rate=1e-3,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("machine", "precision", "checkpointing"),
    [
        pytest.param(trl_settings.Machine(False, False), "fp32", False, id="a CPU"),
        pytest.param(trl_settings.Machine(True, True), "bf16", True, id="a GPU with bf16"),
        pytest.param(trl_settings.Machine(True, False), "fp32", True, id="an old GPU"),
    ],
)
def test_auto_means_what_suits_the_machine(
    machine: trl_settings.Machine, precision: str, checkpointing: bool, tmp_path: Path
) -> None:
    config = FitConfig(engine="trl")
    found = trl_settings.arguments(
        config, machine, tmp_path, device_batch=4, steps=10, epochs=1, learning_rate=1e-3
    )
    assert trl_settings.precision_of(config, machine) == precision
    assert found["gradient_checkpointing"] is checkpointing
    assert found["gradient_accumulation_steps"] * 4 == config.batch_size


@pytest.mark.parametrize(
    ("wanted", "room", "found"), [(16, 16, 16), (16, 5, 4), (12, 5, 4), (7, 3, 1), (1, 1, 1)]
)
def test_the_largest_batch_that_fits_keeps_the_step_whole(
    wanted: int, room: int, found: int
) -> None:
    assert trl_settings.largest_batch(wanted, lambda rows: rows <= room) == found
    assert wanted % found == 0


def test_a_row_that_does_not_fit_is_said() -> None:
    with pytest.raises(ConfigError, match="not even one row fits"):
        trl_settings.largest_batch(8, lambda rows: False)


def test_rows_are_counted_over_short_last_batches() -> None:
    pace = Pace(batch_size=8, rows=20)
    assert [pace.seen(step) for step in (1, 2, 3, 4)] == [8, 16, 20, 28]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        pytest.param("target_mix={a: 1}", "set target_mix_by=weights", id="logit shift"),
        pytest.param("average_share=0.5", "must be 0", id="average"),
        pytest.param("trl.device_batch=9", "more than batch_size", id="device batch"),
        pytest.param("trl.presicion=fp32", "did you mean 'trl.precision'", id="a typo"),
    ],
)
def test_what_the_engine_cannot_do_is_said_before_it_starts(assignment: str, message: str) -> None:
    from training import config

    with pytest.raises(ConfigError, match=message):
        config.load(None, ["engine=trl", assignment])


def test_the_fast_engines_file_has_no_keys_of_the_other() -> None:
    """Run folders and studies are known by it: new keys must not make all of them new."""
    assert "trl" not in json.loads(FitConfig().model_dump_json())
    assert "trl" in json.loads(FitConfig(engine="trl").model_dump_json())


@pytest.mark.slow
def test_fit_takes_the_engine_by_flag(dataset: Dataset, base_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ran = CliRunner().invoke(
        app,
        ["fit", "--dataset", str(dataset.path), "--home", str(tmp_path), "--model", str(base_folder), "--run", str(run),
         "--engine", "trl", "--set", "epochs=1", "--set", "lora.top_layers=1", "--json"],
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout.splitlines()[-1])["rows"] == len(dataset.of("train"))
    assert json.loads((run / "origin.json").read_text())["dataset_digest"] == dataset.info.digest
    assert torch.is_grad_enabled()


def test_preferences_with_the_label_engine_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    ran = CliRunner().invoke(
        app,
        ["fit", "--dataset", str(dataset.path), "--home", str(tmp_path), "--engine", "label", "--start", str(tmp_path)],
    )  # fmt: skip
    assert ran.exit_code == 2
    assert "--start needs engine trl" in ran.output


@pytest.mark.slow
def test_two_processes_of_torchrun_make_one_run(
    dataset: Dataset, base_folder: Path, tmp_path: Path
) -> None:
    """As a job of a cluster starts them; the steps see as many rows as with one process."""
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "graduate",
         "train", "fit", "--engine", "trl", "--dataset", str(dataset.path), "--home", str(tmp_path),
         "--model", str(base_folder), "--run-folder", str(run), "--set", "epochs=2", "--set", "trl.device=cpu", "--json"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    printed = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(printed) == 1, "the first process alone reports"
    rows = len(dataset.of("train"))
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [line for line in log if "loss" in line]
    assert len(steps) == 2 * -(-rows // FitConfig().batch_size)
    assert [line["rows"] for line in log if "validation_loss" in line] == [rows, 2 * rows]
    assert (run / "adapter" / "adapter_model.safetensors").exists()
