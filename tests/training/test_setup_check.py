"""Checks of the set-up: a fresh adapter changes nothing, and a few rows can be learnt by heart."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from serving.base_model import BaseModel
from tests.words import LABELS
from training import preflight, setup_check
from training.cli import app
from training.config import FitConfig
from training.dataset import Dataset
from training.encode import Encoded, encode

FAST = FitConfig.model_validate(
    {"lora": {"top_layers": 2}, "optimizer": {"learning_rate": 0.01}, "frozen_products": "fp32"}
)


def encoded(dataset: Dataset, base: BaseModel) -> list[Encoded]:
    return [encode(e, base.tokenizer, dataset.info.prompt, None) for e in dataset.of("train")]


def test_before_a_step_the_engine_has_the_plain_models_loss_and_leaves_it_alone(
    dataset: Dataset, base: BaseModel
) -> None:
    before = {name: p.clone() for name, p in base.model.named_parameters()}
    found = setup_check.at_start(base.model, encoded(dataset, base), FAST)
    assert found.refusals() == []
    assert found.engine == pytest.approx(found.plain, rel=1e-4)
    assert {n for n, _ in base.model.named_parameters()} == set(before)
    assert all(torch.equal(p, before[n]) for n, p in base.model.named_parameters())


@pytest.mark.parametrize(
    ("engine", "plain", "is_refused", "is_warned"),
    [
        pytest.param(2.0, 2.0, False, False, id="as it should be"),
        pytest.param(2.0, 2.2, True, False, id="the engine sees other tokens"),
        pytest.param(float("nan"), 2.0, True, False, id="no number"),
        pytest.param(9.0, 9.0, False, True, id="worse than guessing"),
    ],
)
def test_what_the_start_shows(
    engine: float, plain: float, is_refused: bool, is_warned: bool
) -> None:
    found = setup_check.AtStart(16, engine, plain, uniform=5.8)
    assert bool(found.refusals()) == is_refused
    assert bool(found.warnings()) == is_warned


def test_few_rows_are_learnt_by_heart_and_the_model_is_left_alone(
    dataset: Dataset, base: BaseModel
) -> None:
    told: list[tuple[int, int, float]] = []
    rows = encoded(dataset, base)[:16]
    found = setup_check.overfit(base.model, rows, FAST, lambda *now: told.append(now))
    assert found.refusals() == []
    assert found.exact_share >= setup_check.ENOUGH_EXACT
    assert found.passes == len(told) < setup_check.OVERFIT_PASSES
    assert not any("lora" in name for name, _ in base.model.named_parameters())


def test_rows_that_contradict_each_other_cannot_be(dataset: Dataset, base: BaseModel) -> None:
    rows = encoded(dataset, base)[:6]
    other = base.tokenizer.encode(json.dumps({"kind": LABELS[0]}), add_special_tokens=False)
    twins = [Encoded(f"{r.id}-twin", r.prompt_ids, (*other, base.tokenizer.eos_token_id)) for r in rows]  # fmt: skip
    found = setup_check.overfit(base.model, [*rows, *twins], FAST)
    assert found.passes == setup_check.OVERFIT_PASSES
    assert "12 rows cannot be learnt by heart" in found.refusals()[0]


def test_the_command_shows_both_and_refuses_a_rate_that_teaches_nothing(
    dataset: Dataset, base_folder: Path, tmp_path: Path
) -> None:
    words = [
        "preflight", "--dataset", str(dataset.path), "--home", str(tmp_path), "--model", str(base_folder),
        "--set", "lora.top_layers=2", "--set", "max_cut_share=1", "--overfit", "12", "--json",
    ]  # fmt: skip
    good = CliRunner().invoke(app, [*words, "--set", "optimizer.learning_rate=0.01"])
    assert good.exit_code == 0, good.output
    told = json.loads(good.stdout)
    assert told["overfit"]["exact_share"] >= setup_check.ENOUGH_EXACT
    assert told["at_start"]["engine"] == pytest.approx(told["at_start"]["plain"], rel=1e-3)
    bad = CliRunner().invoke(app, [*words, "--set", "optimizer.learning_rate=1e-9"])
    assert bad.exit_code == 2
    assert "12 rows cannot be learnt by heart" in " ".join(bad.output.split())


def test_one_answer_everywhere_and_unseen_classes_are_said(
    dataset: Dataset, base: BaseModel
) -> None:
    import msgspec

    only = tuple(
        msgspec.structs.replace(e, completion='{"kind":"refund"}') for e in dataset.examples
    )
    answer = json.loads(json.dumps(dataset.info.answer))
    answer["schema"]["properties"]["kind"]["enum"].append("complaint")
    info = msgspec.structs.replace(dataset.info, answer=answer)
    report = preflight.preflight(Dataset(dataset.path, info, only), base.model, base.tokenizer, FAST)  # fmt: skip
    assert any("nothing to tell apart" in refusal for refusal in report.refusals)
    assert any("no row at all of class complaint" in warning for warning in report.warnings)
