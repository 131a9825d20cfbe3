"""Encoding, preflight, the label engine and a whole run, on a tiny model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from router.prompt import render
from serving.base_model import BaseModel
from tests.training.conftest import route, rows
from training import build, config, label_engine, lora, precision, preflight
from training.config import FitConfig
from training.dataset import Dataset
from training.encode import Encoded, buckets, canonical, encode
from training.errors import ConfigError, PreflightFailed
from training.predict import ModelPredictor
from training.train import EpochResult, FitEvent, Run, best_of

FAST = FitConfig.model_validate(
    {
        "epochs": 3,
        "lora": {"top_layers": 2},
        "optimizer": {"learning_rate": 0.01},
        "frozen_products": "fp32",
    }
)


def test_an_answer_becomes_compact_json_in_the_schemas_order() -> None:
    spec = {"kind": "json", "schema": {"properties": {"a": {}, "b": {}}}}
    assert canonical('```json\n{"b": 1, "a": "x y"}\n```', spec) == '{"a":"x y","b":1}'
    assert canonical(" refund \n", {"kind": "label"}) == "refund"
    assert canonical("not json", spec) == "not json"


def test_a_row_is_the_routers_prompt_then_the_answer_then_the_end(
    dataset: Dataset, base: BaseModel
) -> None:
    example = dataset.examples[0]
    row = encode(example, base.tokenizer, dataset.info.prompt, 20)
    prompt, was_cut = render(dataset.info.prompt, example.messages, 20)
    assert base.tokenizer.decode(row.prompt_ids) == prompt
    assert prompt.endswith("\nAnswer:")
    assert row.was_cut == was_cut is True
    assert base.tokenizer.decode(row.completion_ids[:-1]) == example.completion
    assert row.completion_ids[-1] == base.tokenizer.eos_token_id


def test_buckets_hold_every_row_once_and_pad_little() -> None:
    many = [Encoded(str(i), (1,) * (1 + i * 7 % 60), (2, 3)) for i in range(100)]
    found = buckets(many, 8, range(100))
    assert sorted(i for batch in found for i in batch) == list(range(100))
    padded = sum(max(len(many[i]) for i in b) * len(b) for b in found)
    assert padded < 1.15 * sum(map(len, many))


def encoded(dataset: Dataset, base: BaseModel) -> list[Encoded]:
    return [encode(e, base.tokenizer, dataset.info.prompt, None) for e in dataset.of("train")]


@pytest.mark.parametrize("top", [None, 1, 2])
def test_cached_states_give_the_logits_of_the_whole_model(
    dataset: Dataset, base: BaseModel, top: int | None
) -> None:
    adapted = lora.add_lora(base.model, rank=4, alpha=8, top_layers=top, seed=0)
    for name, weights in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.2)
    part = encoded(dataset, base)[:5]
    states = label_engine.cache_states(adapted, part)
    batch = label_engine.make_batch(part, states)
    with (
        torch.no_grad(),
        lora.upper_part(adapted, label_engine.first_adapted_layer(adapted)) as decoder,
    ):
        found = label_engine.answer_logits(adapted, decoder, batch)
    place = 0
    for row in part:
        ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]])
        with torch.no_grad():
            logits = adapted(input_ids=ids).logits[0]
        start = len(row.prompt_ids) - 1
        wanted = logits[start : start + len(row.completion_ids)]
        torch.testing.assert_close(found[place : place + len(wanted)], wanted, atol=2e-4, rtol=1e-3)
        place += len(wanted)


def test_bf16_products_change_little_and_are_put_back(dataset: Dataset, base: BaseModel) -> None:
    part = encoded(dataset, base)[:4]
    adapted = lora.add_lora(base.model, rank=4, alpha=8, top_layers=2, seed=0)
    exact = label_engine.cache_states(adapted, part)
    before = {n: type(m) for n, m in adapted.named_modules()}
    with precision.frozen_in_bf16(adapted):
        rounded = label_engine.cache_states(adapted, part)
        assert any(isinstance(m, precision.FrozenLinear) for m in adapted.modules())
    assert {n: type(m) for n, m in adapted.named_modules()} == before
    gap = max(float((a - b).abs().max()) for a, b in zip(exact, rounded, strict=True))
    assert 0 < gap < 0.1 * float(exact[0].abs().max())


def fit(
    folder: Path, dataset: Dataset, base: BaseModel, settings: FitConfig = FAST, tell: Any = None
) -> Run:
    run = Run(folder, settings, dataset, base.model, base.tokenizer, tell)
    run.fit()
    return run


def test_a_run_learns_and_leaves_an_adapter_that_answers(
    dataset: Dataset, base: BaseModel, base_folder: Path, tmp_path: Path
) -> None:
    settings = FAST.model_copy(update={"epochs": 14, "patience": 14})
    told: list[FitEvent] = []
    run = fit(tmp_path / "run", dataset, base, settings, told.append)
    assert run.epochs[-1].train_loss < 0.3 * run.epochs[0].train_loss
    assert {event.phase for event in told} >= {"lower layers, training rows", "epoch 1", "epoch 14"}
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert sum("validation_loss" in line for line in log) == 14
    assert (tmp_path / "run" / "curve.png").stat().st_size > 1000
    from serving import base_model

    fresh = base_model.load(str(base_folder), tmp_path)
    student = lora.load_adapter(fresh.model, tmp_path / "run" / "adapter")
    found = ModelPredictor(
        "s", student, fresh.tokenizer, dataset.info.prompt, max_new_tokens=16
    ).predict(dataset.of("train"))
    right = [p.text == e.completion for p, e in zip(found, dataset.of("train"), strict=True)]
    assert sum(right) > 0.8 * len(right)
    assert all(0 < p.confidence <= 1 for p in found)


def test_the_same_seed_gives_the_same_adapter_and_a_cut_run_goes_on_to_it(
    dataset: Dataset, base_folder: Path, tmp_path: Path
) -> None:
    from serving import base_model

    def weights(name: str) -> bytes:
        return (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes()

    def fresh() -> BaseModel:
        return base_model.load(str(base_folder), tmp_path)

    fit(tmp_path / "one", dataset, fresh())
    fit(tmp_path / "two", dataset, fresh())
    assert weights("one") == weights("two")

    def stop(event: FitEvent) -> None:
        if event.phase == "epoch 3":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "cut", dataset, fresh(), FAST, stop)
    fit(tmp_path / "cut", dataset, fresh())
    assert weights("cut") == weights("one")


def test_the_best_epoch_is_chosen_by_loss_or_by_the_tasks_metric() -> None:
    epochs = [
        EpochResult(1, 1.0, 0.5, 0.7, 1.0),
        EpochResult(2, 0.8, 0.6, 0.9, 1.0),
        EpochResult(3, 0.6, 0.7, 0.9, 1.0),
    ]
    assert best_of(epochs, "loss").epoch == 1
    assert best_of(epochs, "exact").epoch == 2


def test_preflight_shows_figures_and_the_mask(dataset: Dataset, base: BaseModel) -> None:
    report = preflight.preflight(dataset, base.model, base.tokenizer, FAST)
    assert report.refusals == ()
    assert report.ends_with_eos
    assert report.masks[0].masked.endswith("Answer:")
    assert report.masks[0].trained.startswith('{"kind":')
    adapted = lora.add_lora(base.model, rank=16, alpha=32, top_layers=2, seed=0)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert report.trainable_parameters == trained
    assert sum(count for _, count in report.histogram) == report.rows["train"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"max_input_chars": 4}, "100 % of the inputs are cut", id="all rows cut"),
        pytest.param(
            {"prompt": "Answer:"},
            "the input does not reach the student",
            id="no input in the template",
        ),
    ],
)
def test_preflight_refuses(
    tmp_path: Path, base: BaseModel, change: dict[str, Any], message: str
) -> None:
    spec = route()
    assert spec.student is not None
    spec = spec.model_copy(update={"student": spec.student.model_copy(update=change)})
    made = build.build(rows(60), spec, "mail", tmp_path, query={})
    report = preflight.preflight(made, base.model, base.tokenizer, FAST)
    with pytest.raises(PreflightFailed, match=message):
        preflight.enforce(report)


def test_preflight_refuses_a_class_that_training_lacks(tmp_path: Path, base: BaseModel) -> None:
    only = [r for r in rows(60) if "refund" in (r.teacher or "")]
    tests = [
        build.Row(r.id, r.messages, r.teacher, r.teacher, "file", fixed="test")
        for r in rows(6, first=500)
    ]
    made = build.build([*only, *tests], route(), "mail", tmp_path, query={})
    report = preflight.preflight(made, base.model, base.tokenizer, FAST)
    assert any("no training row of class order" in refusal for refusal in report.refusals)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        pytest.param("lora.rnak=8", "did you mean 'lora.rank'", id="a typo"),
        pytest.param(
            "epochs=0", "epochs = 0: input should be greater than or equal to 1", id="out of range"
        ),
        pytest.param("epochs", "allowed: KEY=VALUE", id="no value"),
        pytest.param("epochs=many", "epochs = 'many'", id="not a number"),
    ],
)
def test_a_bad_setting_names_key_value_and_what_is_allowed(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.load(None, [assignment])


def test_a_run_file_and_settings_are_laid_over_each_other(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("epochs: 4\nlora: {rank: 8}\n")
    found = config.load(file, ["lora.alpha=64", "epochs=9"])
    assert (found.epochs, found.lora.rank, found.lora.alpha) == (9, 8, 64)
