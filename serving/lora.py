"""LoRA weights of one adapter, laid out for the engine's fused projections, and adding them to a batch.

Rows of a batch are ordered by adapter, so an adapter's tokens are one slice: two small matrix products a projection,
no gather of A and B for each token. Knows the projections' names, no queue and no HTTP.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from serving.registry import BrokenAdapter, check_folder

FUSED = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
"""The engine's projections, each made of these modules side by side."""

_NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class FusedLora:
    """One projection's LoRA in one layer.

    `a` is [sum of ranks, inputs]; `parts` gives, for each adapted module, its columns of the output, its rows of `a`
    and its transposed B [rank, outputs], scale folded in.
    """

    a: torch.Tensor
    parts: tuple[tuple[int, int, int, int, torch.Tensor], ...]


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """One adapter: for each layer, the projections that it changes. Layers whose B is zero are left out."""

    adapter_id: str
    layers: tuple[dict[str, FusedLora], ...]
    num_bytes: int


def load_lora(
    adapter_id: str, folder: Path, widths: dict[str, tuple[int, int]], num_layers: int
) -> LoraWeights:
    """Read a checked PEFT folder.

    A layer that has no tensors for a module keeps the base model's there, also when `target_modules` names the module
    (PEFT's `layers_to_transform` makes such adapters).

    Args:
        widths: module → (inputs, outputs) of the base model.
        num_layers: of the base model.

    Raises:
        BrokenAdapter: a tensor that the base model has no place for, a wrong shape, values that are not
            finite, or a kind of LoRA that is not served.
    """
    config = check_folder(folder)
    for key in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out"):
        if config.get(key):
            raise BrokenAdapter(f"adapter {adapter_id}: {key} is not served")
    if config.get("bias", "none") != "none":
        raise BrokenAdapter(
            f"adapter {adapter_id}: bias = {config['bias']!r} is not served; allowed: none"
        )
    rank = int(config["r"])
    scale = float(config["lora_alpha"]) / (rank**0.5 if config.get("use_rslora") else rank)
    tensors = load_file(folder / "adapter_model.safetensors")
    found: dict[tuple[int, str], dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        found_at = _place(name)
        if found_at is None or found_at[1] not in widths or not 0 <= found_at[0] < num_layers:
            raise BrokenAdapter(f"adapter {adapter_id}: the base model has no place for {name}")
        layer, module, half = found_at
        inputs, outputs = widths[module]
        wanted = (rank, inputs) if half == "lora_A" else (outputs, rank)
        if tuple(tensor.shape) != wanted:
            raise BrokenAdapter(
                f"adapter {adapter_id}: {name} is {list(tensor.shape)}, the base model needs {list(wanted)}"
            )
        exact = tensor.float()
        if not bool(torch.isfinite(exact * scale if half == "lora_B" else exact).all()):
            raise BrokenAdapter(
                f"adapter {adapter_id}: {name} holds values that are not finite (NaN, infinity or over float32)"
            )
        found.setdefault((layer, module), {})[half] = exact
    layers = tuple(_fuse(layer, found, widths, scale) for layer in range(num_layers))
    size = sum(
        f.a.numel() * 4 + sum(b.numel() * 4 for *_, b in f.parts)
        for fused in layers
        for f in fused.values()
    )
    return LoraWeights(adapter_id, layers, size)


def _place(name: str) -> tuple[int, str, str] | None:
    """Layer, module and half of a PEFT tensor name; None for a name of another form."""
    parts = name.split(".")
    if "layers" not in parts or parts[-1] != "weight" or parts[-2] not in ("lora_A", "lora_B"):
        return None
    number = parts[parts.index("layers") + 1]
    return (int(number), parts[-3], parts[-2]) if _NUMBER.fullmatch(number) else None


def _fuse(
    layer: int,
    found: dict[tuple[int, str], dict[str, torch.Tensor]],
    widths: dict[str, tuple[int, int]],
    scale: float,
) -> dict[str, FusedLora]:
    fused = {}
    for projection, modules in FUSED.items():
        stacked, parts, column, row = [], [], 0, 0
        for module in modules:
            width = widths[module][1]
            halves = found.get((layer, module))
            if halves is not None and bool(halves["lora_B"].any()):
                rank = halves["lora_A"].shape[0]
                b = (halves["lora_B"] * scale).T.contiguous()
                stacked.append(halves["lora_A"])
                parts.append((column, column + width, row, row + rank, b))
                row += rank
            column += width
        if parts:
            fused[projection] = FusedLora(torch.cat(stacked).contiguous(), tuple(parts))
    return fused


@dataclass(frozen=True, slots=True)
class Group:
    """Tokens `start` to `stop` of a flattened batch belong to rows of one adapter; None is the base model."""

    start: int
    stop: int
    weights: LoraWeights | None


def add_lora(
    out: torch.Tensor, x: torch.Tensor, groups: tuple[Group, ...], layer: int, projection: str
) -> None:
    """Add each group's LoRA to a projection's output, in place.

    Args:
        out: [tokens, outputs], the base model's.
        x: [tokens, inputs].
    """
    for group in groups:
        if group.weights is None:
            continue
        fused = group.weights.layers[layer].get(projection)
        if fused is None:
            continue
        low = torch.mm(x[group.start : group.stop], fused.a.T)
        for first, last, begin, end, b in fused.parts:
            out[group.start : group.stop, first:last].addmm_(low[:, begin:end], b)
