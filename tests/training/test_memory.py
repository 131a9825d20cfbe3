"""The estimate of a fit's memory: its arithmetic, what it refuses, how it is accepted; 4-bit settings without a GPU."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from serving.base_model import BaseModel
from tests.training.conftest import route, rows
from training import build, config, lora, memory, precision, preflight, servers, trl_settings
from training.cli import app
from training.dataset import Dataset
from training.encode import Encoded
from training.errors import ConfigError, PreflightFailed
from training.memory import GIB, Shape
from training.trl_settings import Machine

SMOLLM2 = Shape(576, 1536, 576, 49_152, 30, 134_515_008, 106_168_320)
LORA_ALL = 4_884_480


def encoded(count: int, length: int) -> list[Encoded]:
    return [Encoded(f"r{n}", tuple(range(length - 2)), (1, 2), False, 1.0) for n in range(count)]


def of(length: int = 128, count: int = 64, **settings: Any) -> memory.Estimate:
    sets = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
    chosen = config.load(None, sets)
    return memory.estimate(
        SMOLLM2, encoded(count, length), encoded(8, length), chosen, trainable=LORA_ALL, precision="fp32"
    )  # fmt: skip


def test_parts_by_hand() -> None:
    parts = of(batch_size=8, lora__top_layers=10).parts
    assert parts["base model"] == 134_515_008 * 4
    assert parts["adapter and optimiser"] == LORA_ALL * 4 * 5
    assert parts["kept hidden states"] == (64 + 8) * 128 * 576 * 4
    kept = 4 * 576 + 5 * 576 + 4 * 1536 + 7 * 16
    assert parts["a step's activations"] >= 8 * 128 * 10 * kept * 4
    assert of(engine="trl").parts.get("kept hidden states") is None


@pytest.mark.parametrize(
    ("less", "more"),
    [
        pytest.param({"batch_size": 8}, {"batch_size": 16}, id="rows of a step"),
        pytest.param({"lora__top_layers": 10}, {"lora__top_layers": 30}, id="layers trained"),
        pytest.param({"length": 64}, {"length": 128}, id="length"),
        pytest.param({"engine": "trl", "trl__checkpointing": "true"}, {"engine": "trl", "trl__checkpointing": "false"},
                     id="activations kept instead of computed again"),
        pytest.param({"engine": "trl", "trl__device_batch": 2}, {"engine": "trl", "trl__device_batch": 8}, id="rows at once"),
    ],
)  # fmt: skip
def test_what_takes_more(less: dict[str, Any], more: dict[str, Any]) -> None:
    assert of(**less).total < of(**more).total


def test_the_largest_batch_counts_not_the_longest_row_alone() -> None:
    mixed = [*encoded(15, 10), *encoded(1, 100)]
    assert memory.step_tokens(mixed, 4) == (400, 8)
    assert memory.step_tokens(encoded(3, 10), 8) == (30, 6)


@pytest.mark.parametrize(("chosen", "per_linear"), [("fp32", 4.0), ("bf16", 6.0), ("nf4", 0.53)])
def test_precisions_of_the_frozen_weights(chosen: str, per_linear: float) -> None:
    settings = config.load(None, ["engine=trl"])
    found = memory.estimate(
        SMOLLM2, encoded(8, 16), [], settings, trainable=1, precision=chosen, has_gpu=True
    )
    other = SMOLLM2.parameters - SMOLLM2.linear
    bytes_of_other = 2 if chosen == "nf4" else 4
    expected = SMOLLM2.linear * per_linear + other * bytes_of_other
    assert found.parts["base model"] == pytest.approx(expected, rel=1e-6)
    assert found.device == "GPU"
    assert "CUDA" in found.parts


def test_a_base_models_shape(base: BaseModel) -> None:
    found = memory.shape_of(base.model)
    assert found.layers == len(lora.decoder_of(base.model).layers)
    assert found.parameters == sum(p.numel() for p in base.model.parameters())
    assert 0 < found.linear < found.parameters


def test_what_a_layer_keeps_is_what_autograd_keeps(base: BaseModel) -> None:
    """Storages that autograd saves of a step, the parameters aside, beside the formula."""
    adapted = lora.add_lora(base.model, rank=4, alpha=8, top_layers=3, seed=0).train()
    shape = memory.shape_of(base.model)
    own = {p.untyped_storage().data_ptr() for p in adapted.parameters()}
    seen: dict[int, int] = {}
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    states, mask = torch.randn(8, 64, shape.hidden), torch.ones(8, 64, dtype=torch.long)
    mask[0, 40:] = 0  # padding, as batches have it
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        lora.decoder_of(adapted)(inputs_embeds=states, attention_mask=mask, use_cache=False)
    a_token = sum(seen.values()) / 4 / (8 * 64 * 3)
    assert memory.kept_by_layer(shape, 4) == pytest.approx(a_token, rel=0.35)


def test_the_machines_memory_is_its_control_groups_when_that_is_less(tmp_path: Path) -> None:
    whole = memory.machine_limit(tmp_path)
    assert whole is not None
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    assert memory.machine_limit(tmp_path) == whole
    (group / "memory.max").write_text("1073741824\n")
    assert memory.machine_limit(tmp_path) == GIB


def test_a_fit_that_does_not_fit_is_refused_unless_accepted(
    dataset: Dataset, base: BaseModel
) -> None:
    def ask(*sets: str) -> preflight.PreflightReport:
        return preflight.preflight(
            dataset, base.model, base.tokenizer, config.load(None, ["max_cut_share=1", *sets])
        )

    fine = ask()
    assert fine.refusals == ()
    assert fine.memory.limit == memory.machine_limit()
    small = ask("max_memory_gib=0.25")
    with pytest.raises(PreflightFailed, match=r"estimated to take .* more than max_memory_gib = 0\.25; lower batch_size"):  # fmt: skip
        preflight.enforce(small)
    assert small.estimated_seconds == 0.0
    # More than the machine has, and somebody says that it may be tried.
    accepted = ask("max_memory_gib=1e6", "batch_size=500000", "lora.top_layers=3")
    assert accepted.refusals == ()
    huge = replace(fine.memory, parts={"a step's activations": 1 << 60})
    assert huge.is_too_much
    assert not replace(huge, limit=None).is_too_much
    assert huge.sentence().startswith("1073741824.00 of ")


def test_the_command_says_what_it_needs(
    dataset: Dataset, base_folder: Path, tmp_path: Path
) -> None:
    command = ["preflight", "--dataset", str(dataset.path), "--model", str(base_folder), "--home", str(tmp_path)]  # fmt: skip
    done = CliRunner().invoke(app, [*command, "--set", "max_cut_share=1"])
    assert done.exit_code == 0, done.output
    assert "estimated memory" in done.output
    assert done.output.count("loss falls on") == 3
    assert "histogram" in done.output
    refused = CliRunner().invoke(app, [*command, "--set", "max_cut_share=1", "--set", "max_memory_gib=0.1"])  # fmt: skip
    assert refused.exit_code == 2
    assert "max_memory_gib = 0.1" in refused.output.replace("\n", " ")


@pytest.mark.parametrize(("prompt", "warns"), [("Mail: {input}\nAnswer:", False), ("Mail: {input}\nh", True)])  # fmt: skip
def test_a_template_that_grows_together_with_the_answer_warns(
    prompt: str, warns: bool, base: BaseModel, tmp_path: Path
) -> None:
    spec = route()
    assert spec.student is not None
    label = spec.answer.model_copy(update={"kind": "text", "schema_": None})
    spec = spec.model_copy(update={"student": spec.student.model_copy(update={"prompt": prompt}), "answer": label})  # fmt: skip
    made = build.build([row_of(n) for n in range(60)], spec, "mail", tmp_path, query={})
    report = preflight.preflight(
        made, base.model, base.tokenizer, config.load(None, ["max_cut_share=1"])
    )
    assert report.template_is_prefix is not warns
    assert any("one token when written together" in one for one in report.warnings) is warns


def row_of(number: int) -> build.Row:
    """A row whose answer goes on from "h" as the tokenizer's own word does."""
    messages = ({"role": "user", "content": f"order {number} {number % 7}"},)
    return build.Row(f"r{number}", messages, "ello", None, "traffic", "t", float(number))


@pytest.mark.parametrize(("rank", "warned"), [(64, []), (200, ["rank 200: lorax serves ranks up to 128"])])  # fmt: skip
def test_a_rank_that_a_server_refuses_is_said_before_training(
    rank: int, warned: list[str], base: BaseModel, tmp_path: Path
) -> None:
    made = build.build(rows(60), route(), "mail", tmp_path, query={})
    chosen = config.load(None, [f"lora.rank={rank}", "max_cut_share=1"])
    report = preflight.preflight(made, base.model, base.tokenizer, chosen)
    assert [w for w in report.warnings if "rank" in w] == warned
    assert all(server in servers.MAX_RANK for server in servers.SERVERS)


@pytest.mark.parametrize(
    ("sets", "machine", "wanted"),
    [
        (["trl.precision=nf4"], Machine(False, False), "needs a CUDA GPU"),
        (["trl.precision=fp16"], Machine(False, False), "needs a GPU"),
        (["trl.precision=nf4"], Machine(True, True), "nf4"),
        (["trl.precision=auto"], Machine(True, True), "bf16"),
        (["trl.precision=auto"], Machine(False, False), "fp32"),
    ],
)
def test_precisions_on_machines(sets: list[str], machine: Machine, wanted: str) -> None:
    chosen = config.load(None, ["engine=trl", *sets])
    if "needs" in wanted:
        with pytest.raises(ConfigError, match=wanted):
            trl_settings.precision_of(chosen, machine)
    else:
        assert trl_settings.precision_of(chosen, machine) == wanted


@pytest.mark.parametrize(
    ("machine", "dtype", "words"),
    [
        (Machine(True, True), torch.bfloat16, {"bf16": True, "fp16": False}),
        (Machine(True, False), torch.float16, {"bf16": False, "fp16": True}),
    ],
    ids=["a GPU with bf16", "an older one"],
)
def test_four_bit_settings(
    machine: Machine, dtype: torch.dtype, words: dict[str, bool], tmp_path: Path
) -> None:
    made = trl_settings.four_bit(machine)
    assert (made.load_in_4bit, made.bnb_4bit_quant_type) == (True, "nf4")
    assert made.bnb_4bit_use_double_quant
    assert made.bnb_4bit_compute_dtype == dtype
    chosen = config.load(None, ["engine=trl", "trl.precision=nf4"])
    said = trl_settings.arguments(
        chosen, machine, tmp_path, device_batch=8, steps=10, epochs=1, learning_rate=1e-4
    )
    assert {key: said[key] for key in words} == words


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_four_bit_without_a_gpu_is_refused_before_training(
    dataset: Dataset, base: BaseModel
) -> None:
    chosen = config.load(None, ["engine=trl", "trl.precision=nf4", "max_cut_share=1"])
    report = preflight.preflight(dataset, base.model, base.tokenizer, chosen)
    assert any("needs a CUDA GPU" in one for one in report.refusals)
    with pytest.raises(ConfigError, match="needs a CUDA GPU"):
        trl_settings.load_four_bit(base.path, chosen)


@pytest.mark.parametrize(
    ("sets", "wanted"),
    [(["frozen_products=bf16"], "bf16"), (["frozen_products=fp32"], "fp32"), (["engine=trl", "trl.device=cpu"], "fp32")],
)  # fmt: skip
def test_what_a_run_is_trained_in(sets: list[str], wanted: str) -> None:
    assert precision.trained_in(config.load(None, sets)) == wanted
