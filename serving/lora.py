"""LoRA weights of one adapter, laid out for the engine's fused projections, and adding them to a batch.

Rows of a batch are ordered by adapter, so an adapter's tokens are one slice: two small matrix products a projection,
no gather of A and B for each token. Knows the projections' names, no queue and no HTTP.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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

MAX_STACKED = 8
"""Adapters whose weights are copied side by side at most; more are added one by one."""

STACK_AFTER = 12
"""Steps that a composition must have gone on for before its weights are stacked."""

_NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Places:
    """What of the base model an adapter's tensors must fit."""

    num_layers: int
    widths: Mapping[str, tuple[int, int]]
    """Module → inputs and outputs."""
    orders: Mapping[str, torch.Tensor]
    """Module → [outputs] the order in which the engine has its outputs, where that is not the model's."""


@dataclass(frozen=True, slots=True)
class FusedLora:
    """One projection's LoRA in one layer, scale folded in.

    The modules of a projection lie side by side, so B has zeros between them: one product instead of three takes a batch of
    single tokens less than half the time.
    """

    a: torch.Tensor
    """[inputs, sum of ranks], laid out by ranks: for eight ranks a product takes half the time that it takes laid out by inputs."""
    b: torch.Tensor
    """[sum of ranks, outputs]."""


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """One adapter: for each layer, the projections that it changes. Layers whose B is zero are left out."""

    adapter_id: str
    layers: tuple[dict[str, FusedLora], ...]
    num_bytes: int


def load_lora(adapter_id: str, folder: Path, places: Places) -> LoraWeights:
    """Read a checked PEFT folder.

    A layer that has no tensors for a module keeps the base model's there, also when `target_modules` names the module
    (PEFT's `layers_to_transform` makes such adapters).

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
        if (
            found_at is None
            or found_at[1] not in places.widths
            or not 0 <= found_at[0] < places.num_layers
        ):
            raise BrokenAdapter(f"adapter {adapter_id}: the base model has no place for {name}")
        layer, module, half = found_at
        inputs, outputs = places.widths[module]
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
    layers = tuple(_fuse(layer, found, places, scale) for layer in range(places.num_layers))
    size = sum(4 * (f.a.numel() + f.b.numel()) for fused in layers for f in fused.values())
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
    places: Places,
    scale: float,
) -> dict[str, FusedLora]:
    fused = {}
    for projection, modules in FUSED.items():
        found_here = [(m, found[layer, m]) for m in modules if (layer, m) in found]
        parts = [(m, halves) for m, halves in found_here if bool(halves["lora_B"].any())]
        if not parts:
            continue
        columns = {m: sum(places.widths[n][1] for n in modules[:i]) for i, m in enumerate(modules)}
        outputs = sum(places.widths[m][1] for m in modules)
        b = torch.zeros(sum(len(halves["lora_A"]) for _, halves in parts), outputs)
        row = 0
        for module, halves in parts:
            own = (halves["lora_B"] * scale)[places.orders.get(module, slice(None))]
            rank, width = own.shape[1], own.shape[0]
            b[row : row + rank, columns[module] : columns[module] + width] = own.T
            row += rank
        a = torch.cat([halves["lora_A"] for _, halves in parts]).T
        fused[projection] = FusedLora(a, b)
    return fused


class Stacks:
    """The weights of the adapters of a batch, one on the other, while the same adapters go on together.

    A step of single tokens then has one small product for all adapters where it had one for each. Stacking copies their
    weights, 5 MB an adapter: it is done when a composition has gone on for `STACK_AFTER` steps, so that what it saves can
    outweigh the copy. The place that they are copied to stays: compositions come and go many times a minute.
    """

    def __init__(self) -> None:
        self._seen: tuple[LoraWeights, ...] = ()
        self._num_seen = 0
        self._stacked: tuple[LoraWeights, ...] = ()
        self._layers: list[dict[str, tuple[torch.Tensor, torch.Tensor]]] = []
        self._rooms: dict[tuple[int, str], _Room] = {}

    def of(
        self, adapters: tuple[LoraWeights, ...]
    ) -> list[dict[str, tuple[torch.Tensor, torch.Tensor]]] | None:
        """For each layer, a projection's A [adapters, inputs, ranks] and B [adapters, ranks, outputs]; None when not stacked."""
        if not 1 < len(adapters) <= MAX_STACKED:
            return None
        if not _are_same(adapters, self._stacked):
            self._num_seen = self._num_seen + 1 if _are_same(adapters, self._seen) else 0
            self._seen = adapters
            if self._num_seen < STACK_AFTER:
                return None
            # Until the copy is whole nothing is stacked: the old composition's views lie in the same place.
            self._stacked = ()
            self._layers = [
                self._stack(i, [a.layers[i] for a in adapters])
                for i in range(len(adapters[0].layers))
            ]
            self._stacked = adapters
        return self._layers

    def _stack(
        self, number: int, layers: Sequence[dict[str, FusedLora]]
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """One layer of several adapters; ranks that are smaller, or projections that are missing, are filled with zeros."""
        found = {}
        for projection in {p for layer in layers for p in layer}:
            own = [layer.get(projection) for layer in layers]
            room = self._rooms.get((number, projection))
            most = max(fused.b.shape[0] for fused in own if fused is not None)
            if room is None or room.a.shape[1] < most:
                room = _Room.like(next(fused for fused in own if fused is not None), most)
                self._rooms[number, projection] = room
            found[projection] = room.filled(own, most)
        return found

    def clear(self) -> None:
        """Nothing is stacked."""
        self._seen = self._stacked = ()
        self._layers = []


@dataclass(frozen=True, slots=True)
class _Room:
    """Where one projection's weights of several adapters are copied to."""

    a: torch.Tensor
    """[MAX_STACKED, ranks, inputs]."""
    b: torch.Tensor
    """[MAX_STACKED, ranks, outputs]."""

    @classmethod
    def like(cls, fused: FusedLora, ranks: int) -> "_Room":
        """Empty, for inputs and outputs such as an adapter's."""
        return cls(
            torch.zeros(MAX_STACKED, ranks, fused.a.shape[0]),
            torch.zeros(MAX_STACKED, ranks, fused.b.shape[1]),
        )

    def filled(
        self, own: Sequence[FusedLora | None], ranks: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A [adapters, inputs, ranks] and B [adapters, ranks, outputs], with zeros where an adapter has fewer ranks or none."""
        a, b = self.a[: len(own), :ranks], self.b[: len(own), :ranks]
        for i, fused in enumerate(own):
            rank = fused.b.shape[0] if fused is not None else 0
            if fused is not None:
                a[i, :rank], b[i, :rank] = fused.a.T, fused.b
            a[i, rank:] = 0
            b[i, rank:] = 0
        return a.transpose(1, 2), b


def _are_same(some: tuple[LoraWeights, ...], others: tuple[LoraWeights, ...]) -> bool:
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one adapter, or of the base model (None), that lie side by side in a step's flat batch."""

    weights: LoraWeights | None
    num_tokens: int
    num_kept: int
    """Tokens whose logits are wanted."""


class Batch:
    """Whose tokens a flat batch holds: adapters with their numbers of tokens, in order, the base model (None) first."""

    def __init__(
        self,
        weights: Sequence[LoraWeights | None],
        sizes: Sequence[int],
        stacked: list[dict[str, tuple[torch.Tensor, torch.Tensor]]] | None,
    ) -> None:
        """`stacked` is used when all adapters have as many tokens."""
        self._weights, self._sizes = weights, list(sizes)
        self._num_tokens = sum(sizes)
        self._base_tokens = sizes[0] if weights[0] is None else 0
        own = sizes[1:] if weights[0] is None else sizes
        self._num = len(own)
        self._stacked = stacked if len(set(own)) == 1 else None

    def add(self, out: torch.Tensor, x: torch.Tensor, layer: int, projection: str) -> None:
        """Add each adapter's LoRA to a projection's output, in place.

        Args:
            out: [tokens, outputs], the base model's; more rows than the batch has tokens are left alone.
            x: [tokens, inputs].
        """
        if not self._num:
            return
        if len(x) > self._num_tokens:
            out, x = out[: self._num_tokens], x[: self._num_tokens]
        if self._stacked is not None:
            pair = self._stacked[layer].get(projection)
            if pair is not None:
                own = x[self._base_tokens :].view(self._num, -1, x.shape[1])
                after = out[self._base_tokens :].view(self._num, -1, out.shape[1])
                after.baddbmm_(torch.bmm(own, pair[0]), pair[1])
            return
        befores, afters = torch.split(x, self._sizes), torch.split(out, self._sizes)
        for weights, before, after in zip(self._weights, befores, afters, strict=True):
            fused = weights.layers[layer].get(projection) if weights is not None else None
            if fused is not None:
                after.addmm_(torch.mm(before, fused.a), fused.b)


class Batches(NamedTuple):
    """A step's tokens: all, and those whose logits are wanted, which alone go through the end of the last layer."""

    all: Batch
    kept: Batch


def batches(groups: Sequence[Group], stacks: Stacks) -> Batches:
    """For groups in order, the base model's first."""
    weights = [g.weights for g in groups]
    adapters = tuple(w for w in weights if w is not None)
    kept = [g.num_kept for g in groups]
    is_even = len(set(kept[len(groups) - len(adapters) :])) == 1
    stacked = stacks.of(adapters) if is_even else None
    return Batches(
        Batch(weights, [g.num_tokens for g in groups], stacked), Batch(weights, kept, stacked)
    )
