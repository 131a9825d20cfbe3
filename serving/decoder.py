"""The forward pass: a Llama-like decoder over ragged rows, with batched LoRA.

All rows' new tokens are one flat matrix, so every linear layer is one product whatever the mix of prompts and single
tokens. The architecture is transformers' Llama, and what differs from it by a bias or a query/key
norm (Qwen2, Qwen3).

A head's columns are laid out so that the two halves which a rotation mixes lie side by side: the rotation is then one
product of complex numbers. Queries and keys, and whatever is added to them, share that order, and their products do not change.

Shapes: n new tokens of all rows, d hidden, h heads, g key/value heads, e head width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from serving.attention import Attention, Slot
from serving.cache import KeyValueCache
from serving.errors import OperatorError
from serving.lora import Batches, Places
from serving.products import Linear, Product, product_of
from serving.settings import Precision
from serving.weights import EMBEDDING, HEAD, Weights, head_width, of_model

_ROWS = 8


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: Linear
    o: Linear
    gate_up: Linear
    down: Linear
    norm1: torch.Tensor
    norm2: torch.Tensor
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None


class Decoder:
    """The base model's weights, fused, and the step over them. What it is built from is emptied."""

    def __init__(
        self,
        model: Weights | Any,
        embedding: torch.Tensor | None = None,
        precision: Precision = "float32",
    ) -> None:
        """`model` is `Weights` or a transformers model. `embedding`, when given, holds the same values as the model's own
        and takes less memory. `precision` is that of the layers' products.
        """
        config = model.config
        if config.model_type not in ("llama", "mistral", "qwen2", "qwen3"):
            raise OperatorError(
                f"base model of type {config.model_type!r} is not served; allowed: llama, mistral, qwen2, qwen3"
            )
        if getattr(config, "hidden_act", "silu") != "silu":
            raise OperatorError(f"hidden_act {config.hidden_act!r} is not served; allowed: silu")
        _refuse_what_is_not_computed(config)
        self.hidden = int(config.hidden_size)
        self.num_heads = int(config.num_attention_heads)
        self.num_kv_heads = int(config.num_key_value_heads)
        self.head_width = head_width(config)
        self.inner = int(config.intermediate_size)
        self.vocabulary = int(config.vocab_size)
        self.max_tokens = int(config.max_position_embeddings)
        self._epsilon = torch.tensor(float(config.rms_norm_eps))
        weights = model if isinstance(model, Weights) else of_model(model)
        tensors, self.rotations = weights.tensors, weights.rotations
        own = tensors.pop(EMBEDDING)
        make = product_of(precision)
        # In fp32 always: a head's rounding changes which of two near tokens wins, and it is a fifth of a small model.
        self.head = Product(tensors.pop(HEAD).float())
        self.embedding = own.float() if embedding is None else embedding
        self.norm = _copied(tensors.pop("model.norm.weight"))
        self.layers = [
            _fused(tensors, f"model.layers.{i}.", self.head_width, make)
            for i in range(config.num_hidden_layers)
        ]

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.layers)

    def places(self) -> Places:
        """Where an adapter's tensors go."""
        q, kv = self.num_heads * self.head_width, self.num_kv_heads * self.head_width
        return Places(
            num_layers=self.num_layers,
            widths={
                "q_proj": (self.hidden, q),
                "k_proj": (self.hidden, kv),
                "v_proj": (self.hidden, kv),
                "o_proj": (q, self.hidden),
                "gate_proj": (self.hidden, self.inner),
                "up_proj": (self.hidden, self.inner),
                "down_proj": (self.inner, self.hidden),
            },
            orders={
                "q_proj": side_by_side(q, self.head_width),
                "k_proj": side_by_side(kv, self.head_width),
            },
        )

    def new_cache(self) -> KeyValueCache:
        """An empty cache for this model."""
        return KeyValueCache(self.num_layers, self.num_kv_heads, self.head_width)

    @torch.inference_mode()
    def step(
        self,
        ids: torch.Tensor,
        slots: Sequence[Slot],
        adapters: Batches,
        cache: KeyValueCache,
        keep: torch.Tensor,
    ) -> torch.Tensor:
        """One forward pass over all rows' new tokens; their keys and values are in the cache afterwards.

        Args:
            ids: [n] token ids, rows one after the other.
            slots: one for each row, in the order of `ids`.
            adapters: which tokens belong to which adapter.
            keep: [m] flat positions whose logits are wanted, ascending.

        Returns:
            [m, vocabulary] logits.
        """
        positions = torch.cat([torch.arange(s.cached, s.cached + s.stop - s.start) for s in slots])
        turns = self.rotations.index_select(0, positions)[:, None]
        attend = Attention(slots, cache, self.num_heads)
        x, batch = functional.embedding(ids, self.embedding), adapters.all
        for number, layer in enumerate(self.layers):
            normed = self._normed(x, layer.norm1)
            qkv = layer.qkv(normed)
            batch.add(qkv, normed, number, "qkv")
            q, key_values = self._heads(qkv, layer, turns)
            mixed = attend(q, key_values, cache.layer(number))
            if number == self.num_layers - 1 and len(keep) < len(x):
                # nobody reads the other tokens any more: their keys and values are in the cache
                padded = _padded(keep)
                x, mixed, batch = x[padded], mixed[padded], adapters.kept
            x = layer.o.onto(mixed, x)
            batch.add(x, mixed, number, "o")
            normed = self._normed(x, layer.norm2)
            both = layer.gate_up(normed)
            batch.add(both, normed, number, "gate_up")
            activated = functional.silu(both[:, : self.inner]).mul_(both[:, self.inner :])
            x = layer.down.onto(activated, x)
            batch.add(x, activated, number, "down")
        return self.head(self._normed(x, self.norm))[: len(keep)]

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """RMS norm over the last dimension. torch's own takes two to three times as long in a step."""
        norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scales = torch.addcmul(self._epsilon, norms, norms, value=1 / x.shape[-1]).rsqrt_()
        return (x * scales).mul_(weight)

    def _heads(
        self, qkv: torch.Tensor, layer: _Layer, turns: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries [n, h, e], and keys and values [n, 2, g, e]; queries and keys rotated, in place where that can be."""
        heads = qkv.view(len(qkv), -1, self.head_width)
        turned = heads[:, : self.num_heads + self.num_kv_heads]
        if layer.q_norm is not None and layer.k_norm is not None:
            turned[:, : self.num_heads] = self._normed(turned[:, : self.num_heads], layer.q_norm)
            turned[:, self.num_heads :] = self._normed(turned[:, self.num_heads :], layer.k_norm)
        torch.view_as_complex(torch.unflatten(turned, -1, (-1, 2))).mul_(turns)
        key_values = heads[:, self.num_heads :].view(len(qkv), 2, self.num_kv_heads, -1)
        return heads[:, : self.num_heads], key_values


def _padded(keep: torch.Tensor) -> torch.Tensor:
    """The same positions, the last one repeated up to a multiple of `_ROWS`.

    A product for a number of rows that was not seen lately takes a millisecond more, and guesses make it another one each step.
    """
    missing = -len(keep) % _ROWS
    return torch.cat([keep, keep[-1:].expand(missing)]) if missing else keep


def side_by_side(width: int, head_width: int) -> torch.Tensor:
    """[width] an order of columns: in each head, column i of the first half and column i of the second, one after the other."""
    heads = torch.arange(width).view(-1, 2, head_width // 2)
    return heads.transpose(1, 2).reshape(-1)


def _refuse_what_is_not_computed(config: Any) -> None:
    """Settings that change the model's scores and that the step below does not know."""
    for key in ("attention_bias", "mlp_bias", "use_sliding_window"):
        value = getattr(config, key, None)
        if value:
            raise OperatorError(f"base model with {key} = {value!r} is not served; allowed: false")
    window = getattr(config, "sliding_window", None)
    is_used = getattr(config, "use_sliding_window", True)
    if is_used and window is not None and window < config.max_position_embeddings:
        raise OperatorError(
            f"base model with sliding_window = {window!r} is not served; "
            f"allowed: null, or max_position_embeddings ({config.max_position_embeddings}) and more"
        )


def _copied(weight: torch.Tensor) -> torch.Tensor:
    """fp32 in memory of its own: one view into a mapped file would keep the whole file mapped."""
    return weight.detach().to(torch.float32, copy=True)


def _fused(
    tensors: dict[str, torch.Tensor], prefix: str, head_width: int, make: Callable[..., Linear]
) -> _Layer:
    """One layer; its tensors are taken out."""

    def plain(name: str) -> torch.Tensor:
        return tensors.pop(prefix + name).float()

    def turned(name: str) -> torch.Tensor:
        tensor = plain(name)
        return tensor[side_by_side(len(tensor), head_width)]

    def heads(part: str) -> torch.Tensor:
        names = (f"self_attn.{name}_proj.{part}" for name in "qkv")
        return torch.cat([turned(next(names)), turned(next(names)), plain(next(names))])

    has_bias = f"{prefix}self_attn.q_proj.bias" in tensors
    has_norm = f"{prefix}self_attn.q_norm.weight" in tensors
    return _Layer(
        qkv=make(heads("weight"), heads("bias") if has_bias else None),
        o=make(plain("self_attn.o_proj.weight")),
        gate_up=make(torch.cat([plain("mlp.gate_proj.weight"), plain("mlp.up_proj.weight")])),
        down=make(plain("mlp.down_proj.weight")),
        norm1=_copied(plain("input_layernorm.weight")),
        norm2=_copied(plain("post_attention_layernorm.weight")),
        q_norm=turned("self_attn.q_norm.weight") if has_norm else None,
        k_norm=turned("self_attn.k_norm.weight") if has_norm else None,
    )
