"""Memory that a fit will take at its peak, part by part, and what this machine has. Arithmetic over shapes; nothing is run.

Knows how the two engines work (`label`: hidden states kept, upper layers trained; `trl`: the whole model at every step), and what
a layer of Llama's kind keeps for its backward pass. Checked against measured peaks in `docs/publishing.md`.
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training import lora
from training.config import FitConfig
from training.encode import Encoded, buckets

GIB = 1 << 30
LIBRARIES = {"label": int(0.45 * GIB), "trl": int(0.65 * GIB)}
"""Interpreter, torch, transformers and, for `trl`, TRL, datasets and accelerate (measured after their import)."""
GPU_CONTEXT = int(0.6 * GIB)
"""CUDA's own on a device; not measured here."""
SLACK = {"CPU": 2.4, "GPU": 1.15}
"""Over what a step keeps: temporaries, and holes that batches of ever other lengths leave in the allocator. The CPU's is fitted to
measured peaks (docs/publishing.md; with MALLOC_MMAP_THRESHOLD_=1000000 it would be less); the GPU's is a guess."""
TILE = (4096, 32_768)
"""Positions and words that TRL's output head takes at once (`trl/kernels/chunked_logprob.py`, 1.16)."""
TILE_COPIES = {"CPU": 5, "GPU": 1}
"""Of such a tile; a CPU has no kernel for it, and takes every position instead of the answers' alone."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A base model in numbers."""

    hidden: int
    intermediate: int
    attention: int
    """Query heads times their width."""
    vocabulary: int
    layers: int
    parameters: int
    linear: int
    """Parameters of the frozen linear layers, the head aside."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes at the peak by part, where they lie, and what there is."""

    device: str
    parts: dict[str, int]
    limit: int | None
    """Bytes that may be used; None where the machine does not say."""

    @property
    def total(self) -> int:
        """All parts."""
        return sum(self.parts.values())

    @property
    def is_too_much(self) -> bool:
        """More than may be used."""
        return self.limit is not None and self.total > self.limit

    def sentence(self) -> str:
        """In a line, the largest parts first."""
        parts = sorted(self.parts.items(), key=lambda part: -part[1])
        told = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts if size >= GIB // 100)
        of = f" of {self.limit / GIB:.1f}" if self.limit is not None else ""
        return f"{self.total / GIB:.2f}{of} GiB on the {self.device} ({told})"


def shape_of(model: Any) -> Shape:
    """The numbers of a base model of Llama's kind."""
    config = model.config
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    layers = lora.decoder_of(model).layers
    linear = sum(
        p.numel() for layer in layers for n, p in layer.named_parameters() if n.endswith("_proj.weight")
    )  # fmt: skip
    return Shape(
        config.hidden_size, config.intermediate_size, heads * width, config.vocab_size, len(layers),
        sum(p.numel() for p in model.parameters()), linear,
    )  # fmt: skip


def kept_by_layer(shape: Shape, rank: int) -> int:
    """Numbers a token that one adapted layer keeps for its backward pass.

    Two norms keep their input and output each, attention keeps query, repeated key and value and its output twice, the MLP
    keeps gate, its activation, the up product and the inputs of down; LoRA keeps its seven inner products.
    """
    return 4 * shape.hidden + 5 * shape.attention + 4 * shape.intermediate + 7 * rank


def step_tokens(rows: Sequence[Encoded], batch_size: int) -> tuple[int, int]:
    """Padded tokens and answer tokens of the largest batch, as the length buckets make batches."""
    largest, answers = 0, 0
    for chosen in buckets(rows, batch_size, range(len(rows))):
        part = [rows[i] for i in chosen]
        largest = max(largest, len(part) * max(len(row) for row in part))
        answers = max(answers, sum(len(row.completion_ids) for row in part))
    return largest, answers


def estimate(
    shape: Shape, train: Sequence[Encoded], held: Sequence[Encoded], config: FitConfig, *, trainable: int, precision: str,
    has_gpu: bool = False, limit: int | None = None,
) -> Estimate:  # fmt: skip
    """The peak of a fit.

    Args:
        trainable: weights that LoRA adds.
        precision: of the frozen products, as `precision.trained_in` names it.
        has_gpu: the engine `trl` trains on a GPU; the estimate is the device's then.
        limit: bytes that may be used.
    """
    is_trl = config.engine == "trl"
    on_gpu = is_trl and has_gpu
    at_once = config.batch_size
    if is_trl:
        # A batch that was not given is tried on a GPU until it fits: one row has to.
        at_once = config.trl.device_batch or (1 if on_gpu else config.batch_size)
    tokens, answers = step_tokens(train, at_once)
    device = "GPU" if on_gpu else "CPU"
    parts = {
        "CUDA" if on_gpu else "libraries": GPU_CONTEXT if on_gpu else LIBRARIES[config.engine],
        "base model": _weights(shape, precision, is_trl),
        # weights, gradients and AdamW's two moments in fp32; the fast path also keeps the mean of the last weights
        "adapter and optimiser": trainable * 4 * (4 if is_trl else 5),
        "a step's activations": int(
            SLACK[device] * _activations(shape, config, tokens, on_gpu, precision)
        ),
        "a step's logits": _logits(shape, config, tokens, answers, device),
    }
    if not is_trl:
        parts["kept hidden states"] = sum(map(len, [*train, *held])) * shape.hidden * 4
    return Estimate(device, parts, limit)


def _weights(shape: Shape, precision: str, is_trl: bool) -> int:
    if precision == "nf4":  # half a byte each and their scales; embeddings and head stay in 16 bits
        return int(shape.linear * 0.53) + (shape.parameters - shape.linear) * 2
    copies = shape.linear * 2 if precision in ("bf16", "fp16") else 0
    return shape.parameters * 4 + copies  # fp32 stays; the products' copies lie beside it


def _logits(shape: Shape, config: FitConfig, tokens: int, answers: int, device: str) -> int:
    """Bytes of the output head: logits, their softmax and gradient."""
    if config.engine == "label":
        return answers * shape.vocabulary * 4 * 3
    positions = answers if device == "GPU" else tokens
    return min(positions, TILE[0]) * min(shape.vocabulary, TILE[1]) * 4 * TILE_COPIES[device]


def _activations(shape: Shape, config: FitConfig, tokens: int, on_gpu: bool, precision: str) -> int:
    """Bytes that a step keeps between forward and backward, and the largest layer's gradients."""
    top = min(config.lora.top_layers or shape.layers, shape.layers)
    size = 2 if on_gpu and precision != "fp32" else 4
    layer = kept_by_layer(shape, config.lora.rank)
    checkpointing = config.trl.checkpointing
    is_kept = config.engine == "trl" and (on_gpu if checkpointing is None else checkpointing)
    gradients = 3 * shape.intermediate + 2 * shape.hidden
    if is_kept:  # each layer's input, and one layer computed again
        return tokens * size * (shape.layers * shape.hidden + layer + gradients)
    lower = (
        4 * shape.hidden + 3 * shape.intermediate
    )  # one frozen layer's products, let go of again
    return tokens * size * (top * layer + max(gradients, lower))


def machine_limit(root: Path = Path("/")) -> int | None:
    """Bytes of memory that this process may use: the machine's, or its control group's when that is less."""
    found = []
    for name in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(int((root / name).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    with contextlib.suppress(OSError, ValueError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(found) if found else None
