"""What each server makes of an adapter: what is refused for it, the keys that it gets, flags, precision."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from tests.tiny import random_adapter, tiny_model
from training import servers
from training.servers import SERVERS, Server


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("servers")
    tiny_model(root / "model")
    return random_adapter(root / "model", root / "a", 0, ["q_proj"])


@pytest.mark.parametrize(
    ("change", "refusing"),
    [
        ({}, []),
        ({"use_rslora": True}, ["lorax"]),
        ({"use_dora": True}, ["lorax", "vllm", "graduate"]),
        ({"rank_pattern": {"q_proj": 4}}, ["lorax", "graduate"]),
        ({"alpha_pattern": {"q_proj": 4}}, ["lorax", "graduate"]),
        ({"modules_to_save": ["lm_head"]}, ["lorax", "vllm", "graduate"]),
        ({"bias": "all"}, ["lorax", "vllm", "graduate"]),
        ({"lora_bias": True}, ["vllm"]),
        ({"layers_to_transform": [1]}, ["lorax"]),
        ({"fan_in_fan_out": True}, ["graduate"]),
        ({"r": 64}, []),
        ({"r": 256}, ["lorax"]),
        ({"r": 1024}, ["lorax", "vllm"]),
        ({"target_modules": ["q_proj", "up_proj"]}, ["lorax"]),
    ],
    ids=lambda value: (", ".join(value) or "as trained") if isinstance(value, dict) else "",
)
def test_what_is_refused_for_which_server(
    adapter: Path, tmp_path: Path, change: dict[str, Any], refusing: list[Server]
) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "adapter_model.safetensors").symlink_to(adapter / "adapter_model.safetensors")
    config = {**json.loads((adapter / "adapter_config.json").read_text()), **change}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert [one for one in SERVERS if servers.lint(folder, 2, one)] == refusing
    assert bool(servers.lint(folder, 2)) == bool(refusing), "no server named: all of them must do"


def test_files_that_are_not_an_adapter_are_refused(tmp_path: Path) -> None:
    assert "adapter_config.json cannot be read" in servers.lint(tmp_path, 2)[0]
    (tmp_path / "adapter_config.json").write_text('{"r": 4}')
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    wrong = servers.lint(tmp_path, 2, "vllm")
    assert wrong == [
        "pickled weights: only safetensors are served", "adapter_model.safetensors is missing",
    ]  # fmt: skip


def of(server: Server, config: dict[str, Any], **more: Any) -> servers.Profile:
    said = {"adapter_id": "tickets/3", "base_model": "org/base", "width": 2048, "trained_in": "fp32", "max_new_tokens": 9}  # fmt: skip
    return servers.profile(server, config, **{**said, **more})


@pytest.mark.parametrize("server", SERVERS)
def test_a_profile_has_the_servers_keys_alone(adapter: Path, server: Server) -> None:
    config = servers.read_config(adapter)
    found = of(server, config).adapter_config
    assert set(found) <= set(servers.KEYS[server])
    assert len(found) < len(config) / 2, "most of PEFT's keys are not there"
    assert found["base_model_name_or_path"] == "org/base"
    for key in ("r", "lora_alpha", "target_modules", "peft_type"):
        assert found[key] == config[key]
    again = LoraConfig.from_peft_type(**found)  # type: ignore[no-untyped-call]
    assert (again.r, again.lora_alpha) == (config["r"], config["lora_alpha"])


def test_lorax_gets_keys_that_its_old_peft_knows() -> None:
    """LoraConfig and its parents in peft 0.4.0, which LoRAX pins; that version refuses any other."""
    known = {
        "auto_mapping", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "init_lora_weights",
        "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "modules_to_save", "peft_type", "r",
        "revision", "target_modules", "task_type",
    }  # fmt: skip
    assert set(servers.KEYS["lorax"]) <= known


@pytest.mark.parametrize(
    ("rank", "flag"), [(1, "1"), (4, "8"), (16, "16"), (17, "32"), (300, "320"), (512, "512")]
)
def test_vllm_is_told_the_smallest_rank_that_it_takes(rank: int, flag: str) -> None:
    flags = of("vllm", {"r": rank, "lora_alpha": 8}).flags
    assert flags[:3] == ("--enable-lora", "--max-lora-rank", flag)
    assert flags[-1] == "tickets-3=/adapters/tickets/3"


def test_a_pattern_may_need_a_larger_rank() -> None:
    config = {"r": 8, "lora_alpha": 8, "rank_pattern": {"q_proj": 40}}
    assert of("vllm", config).flags[2] == "64"


def test_lorax_says_what_its_kernels_lack() -> None:
    assert "DISABLE_SGMV=1" in of("lorax", {"r": 16, "lora_alpha": 8}, width=576).warnings[0]
    assert of("lorax", {"r": 16, "lora_alpha": 8}, trained_in="fp16").warnings == ()
    assert of("lorax", {"r": 128, "lora_alpha": 8}).flags == ("--compile-max-rank", "128")
    call = of("lorax", {"r": 16, "lora_alpha": 8}).call
    assert call["parameters"]["adapter_id"] == "/adapters/tickets/3"


@pytest.mark.parametrize(
    ("server", "trained_in", "warns"),
    [
        ("graduate", "fp32", None), ("graduate", "bf16", "bf16 weights, graduate serves fp32"),
        ("vllm", "bf16", None), ("vllm", "fp16", None), ("vllm", "fp32", "vllm serves bf16 or fp16"),
        ("lorax", "nf4", "make up for 4-bit weights"), ("lorax", "not recorded", "does not say"),
    ],
)  # fmt: skip
def test_another_precision_than_trained_warns(
    server: Server, trained_in: str, warns: str | None
) -> None:
    found = of(server, {"r": 8, "lora_alpha": 8}, trained_in=trained_in).warnings
    assert (warns in found[-1]) if warns else found == ()


def test_vllms_own_reader_takes_the_profile(adapter: Path) -> None:
    """Where vLLM is installed: its own checks on the stripped configuration."""
    helper = pytest.importorskip("vllm.lora.peft_helper", exc_type=ImportError)
    assert "vllm" in sys.modules
    config = of("vllm", servers.read_config(adapter)).adapter_config
    read = helper.PEFTHelper.from_dict(config)
    assert (read.r, read.vllm_lora_scaling_factor) == (config["r"], config["lora_alpha"] / config["r"])  # fmt: skip
