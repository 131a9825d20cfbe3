"""What each server makes of a LoRA adapter: what it would serve wrongly, the keys that it reads, flags that it needs, its id there.

Knows adapter files and what is known of LoRAX, vLLM and Graduate's own server (their loaders' sources, named below); asks none of
them. A running server is asked by `parity`.

| server | source of what is said here |
|---|---|
| lorax | its adapter loader, which pins peft 0.4.0: r, lora_alpha, target_modules and fan_in_fan_out count |
| vllm | `vllm/lora/peft_helper.py` and `vllm/config/lora.py`, 0.32 |
| graduate | `serving/lora.py` |
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from safetensors import safe_open

from training.errors import DataError

Server = Literal["lorax", "vllm", "graduate"]
SERVERS: tuple[Server, ...] = get_args(Server)
FILE = "servers.json"
"""Beside the adapter in the registry: a flat file, because a bucket's registry has no folders within a version."""
VERSION = "VERSION"
"""Stands in `servers.json` for the version's number, which the registry gives when the files are there already."""
SERVED_IN: Mapping[Server, str] = {"lorax": "fp16", "vllm": "bf16 or fp16", "graduate": "fp32"}
"""Precision of the base model's weights, unless a server is started otherwise."""
MAX_RANK: Mapping[Server, int] = {"lorax": 128, "vllm": 512, "graduate": 65_536}
"""LoRAX has kernels up to 128 and adds anything larger in a slow loop of its own; the others refuse more."""
LORAX_GRAPH_RANK = 64
"""LoRAX captures CUDA graphs up to this rank unless `--compile-max-rank` says more."""
LORAX_WIDTHS_WITHOUT_KERNEL = (576, 896, 960)
"""Hidden sizes (SmolLM2-135M, Qwen2.5-0.5B, SmolLM2-360M) that LoRAX's decode kernels are not compiled for."""
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` may be."""
_COMMON = (
    "peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "target_modules", "bias",
    "fan_in_fan_out", "inference_mode",
)  # fmt: skip
KEYS: Mapping[Server, tuple[str, ...]] = {
    "lorax": _COMMON,
    "vllm": (*_COMMON, "use_rslora", "rank_pattern", "alpha_pattern"),
    "graduate": (*_COMMON, "use_rslora"),
}
"""Keys of adapter_config.json that a server reads rightly; the others of PEFT's forty do not go there."""
_WRONG: Mapping[Server, tuple[str, ...]] = {
    "lorax": ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform"),
    "vllm": ("use_dora", "lora_bias", "modules_to_save", "alora_invocation_tokens", "layer_replication", "use_qalora",
             "use_bdlora"),
    "graduate": ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out"),
}  # fmt: skip
_DOES: Mapping[Server, str] = {
    "lorax": "LoRAX ignores it and would serve other weights",
    "vllm": "vLLM refuses it",
    "graduate": "Graduate's server refuses it",
}


@dataclass(frozen=True, slots=True)
class Profile:
    """One server's part of `servers.json`."""

    server: Server
    adapter_config: dict[str, Any]
    """adapter_config.json as this server gets it."""
    flags: tuple[str, ...]
    """What the server must be started with."""
    load: str
    """How the adapter gets there."""
    call: dict[str, Any]
    """Path and body keys of a request."""
    served_precision: str
    warnings: tuple[str, ...]


def read_config(adapter: Path) -> dict[str, Any]:
    """adapter_config.json of a folder.

    Raises:
        DataError: it is not there or not JSON.
    """
    file = adapter / "adapter_config.json"
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as why:
        raise DataError(f"adapter_config.json cannot be read: {why}") from why
    if not isinstance(found, dict):
        raise DataError(f"{file}: allowed: a JSON object")
    return found


def lint(adapter: Path, num_layers: int, server: Server | None = None) -> list[str]:
    """What the server would serve wrongly or not at all, each in a sentence; [] when nothing is wrong.

    Args:
        server: None asks for all of them.
    """
    try:
        config = read_config(adapter)
    except DataError as why:
        return [str(why)]
    wrong: list[str] = []
    for one in SERVERS if server is None else (server,):
        wrong += lint_config(config, one)
    if list(adapter.glob("*.bin")) or list(adapter.glob("*.pt")):
        wrong.append("pickled weights: only safetensors are served")
    if not (adapter / "adapter_model.safetensors").exists():
        return [*wrong, "adapter_model.safetensors is missing"]
    if server in (None, "lorax"):
        wrong += _missing_layers(adapter, config, num_layers)
    return wrong


def lint_config(config: Mapping[str, Any], server: Server) -> list[str]:
    """The same of the configuration alone, so that it can be asked before anything is trained."""
    wrong = [f"{key} is set: {_DOES[server]}" for key in _WRONG[server] if config.get(key)]
    if config.get("bias", "none") != "none":
        wrong.append(f"bias = {config['bias']!r}: {server} does not serve LoRA biases; allowed: none")  # fmt: skip
    if config.get("r", 0) > MAX_RANK[server]:
        wrong.append(f"rank {config['r']}: {server} serves ranks up to {MAX_RANK[server]}")
    return wrong


def _missing_layers(adapter: Path, config: Mapping[str, Any], num_layers: int) -> list[str]:
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as tensors:
        names = set(tensors.keys())
    wrong = []
    for module in config.get("target_modules", ()):
        layers = {
            int(name.split(".layers.")[1].split(".")[0])
            for name in names
            if f".{module}.lora_A" in name and ".layers." in name
        }
        if layers != set(range(num_layers)):
            missing = sorted(set(range(num_layers)) - layers)
            wrong.append(
                f"{module} has no weights in layers {missing}: LoRAX would skip {module} everywhere"
            )
    return wrong


def profile(
    server: Server, config: Mapping[str, Any], *, adapter_id: str, base_model: str, width: int, trained_in: str,
    max_new_tokens: int,
) -> Profile:  # fmt: skip
    """How one server serves an adapter.

    Args:
        adapter_id: `NAME/VERSION` of the registry.
        base_model: the base model's id; the path that training had is of no use elsewhere.
        width: the base model's hidden size.
        trained_in: the frozen weights' precision in training, as `precision` names it.
    """
    stripped = {key: config[key] for key in KEYS[server] if key in config}
    stripped |= {"base_model_name_or_path": base_model, "lora_dropout": 0.0, "inference_mode": True}
    makers = {"lorax": _lorax, "vllm": _vllm, "graduate": _graduate}
    flags, load, call, warnings = makers[server](config, adapter_id, width, max_new_tokens)
    precision = SERVED_IN[server]
    differs = precision_warning(server, trained_in, precision)
    warned = (*warnings, *((differs,) if differs else ()))
    return Profile(server, stripped, flags, load, call, precision, warned)


_Parts = tuple[tuple[str, ...], str, dict[str, Any], tuple[str, ...]]


def _lorax(config: Mapping[str, Any], adapter_id: str, width: int, limit: int) -> _Parts:
    flags, warnings = [], []
    if config["r"] > LORAX_GRAPH_RANK:
        flags += ["--compile-max-rank", str(config["r"])]
    if width in LORAX_WIDTHS_WITHOUT_KERNEL:
        warnings.append(
            f"hidden size {width}: LoRAX's decode kernels are not compiled for it; start it with DISABLE_SGMV=1"
        )
    body = {"adapter_id": f"/adapters/{adapter_id}", "adapter_source": "local", "max_new_tokens": limit}  # fmt: skip
    return (
        tuple(flags), "mount the folder there; the first request loads it, and that id keeps its weights for good",
        {"path": "/generate", "parameters": body}, tuple(warnings),
    )  # fmt: skip


def _vllm(config: Mapping[str, Any], adapter_id: str, width: int, limit: int) -> _Parts:
    largest = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    rank = next((rank for rank in VLLM_RANKS if rank >= largest), VLLM_RANKS[-1])
    name = adapter_id.replace("/", "-")
    return (
        ("--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"{name}=/adapters/{adapter_id}"),
        "named at its start; or POST /v1/load_lora_adapter under VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, each version under its "
        "own name: a reload in place may keep old caches",
        {"path": "/v1/completions", "model": name, "max_tokens": limit}, (),
    )  # fmt: skip


def _graduate(config: Mapping[str, Any], adapter_id: str, width: int, limit: int) -> _Parts:
    body = {"adapter_id": adapter_id, "max_new_tokens": limit}
    return (
        (), "serve the registry: graduate serving serve --adapters REGISTRY",
        {"path": "/generate", "parameters": body}, (),
    )  # fmt: skip


def precision_warning(server: Server, trained_in: str, served_in: str) -> str | None:
    """That the student was trained over other roundings than it is served over; None when they are the same."""
    if trained_in in served_in.split(" or "):
        return None
    if trained_in == "not recorded":
        return f"the run does not say in which precision it was trained; {server} serves in {served_in} by default"
    weight = "close calls may turn: ask the running server (train publish --server-url)"
    if trained_in == "nf4":
        weight = "the adapter has learned to make up for 4-bit weights that are not there: measure it again as it is served"
    return (
        f"trained over {trained_in} weights, {server} serves {served_in} ones by default: {weight}"
    )


def dump(profiles: Mapping[Server, Profile]) -> str:
    """`servers.json`."""
    return json.dumps({"schema": 1, **{k: asdict(p) for k, p in profiles.items()}}, indent=2)
