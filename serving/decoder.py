"""The forward pass: a Llama-like decoder over ragged rows, with our own key/value cache and batched LoRA.

All rows' new tokens are one flat matrix, so every linear layer is one product whatever the mix of prompts and single
tokens; attention runs row by row for prompts and batched for rows with one new token. transformers gives the
architecture and the weights: Llama, and what differs from it by a bias or a query/key norm (Qwen2, Qwen3).

Shapes: n new tokens of all rows, d hidden, h heads, g key/value heads, e head width, b rows, t cached tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from serving.errors import OperatorError
from serving.lora import Group, add_lora


@dataclass(frozen=True, slots=True)
class Slot:
    """A row's new tokens in a step: where they are in the flat batch, and how many tokens its cache holds before them."""

    row: int
    start: int
    stop: int
    cached: int


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    o: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    norm1: torch.Tensor
    norm2: torch.Tensor
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None


class KeyValueCache:
    """Keys and values of all rows: [layers][2, rows, g, tokens, e]. Row numbers are dense, so a step reads a view."""

    def __init__(self, num_layers: int, num_heads: int, width: int) -> None:
        self._shape = (num_heads, width)
        self._layers = [torch.zeros(2, 0, num_heads, 0, width) for _ in range(num_layers)]

    @property
    def num_rows(self) -> int:
        """Rows that there is room for."""
        return int(self._layers[0].shape[1])

    @property
    def num_tokens(self) -> int:
        """Tokens a row that there is room for."""
        return int(self._layers[0].shape[3])

    def reserve(self, rows: int, tokens: int) -> None:
        """Make room; what is cached stays. Grows by doubling, untouched memory costs nothing."""
        if rows <= self.num_rows and tokens <= self.num_tokens:
            return
        new_rows = max(self.num_rows, _doubled(4, rows))
        new_tokens = max(self.num_tokens, _doubled(128, tokens))
        for i, old in enumerate(self._layers):
            # Zeros, not whatever memory holds: a row reads the longest row's length, and 0 times NaN is NaN.
            grown = torch.zeros(2, new_rows, self._shape[0], new_tokens, self._shape[1])
            grown[:, : old.shape[1], :, : old.shape[3]] = old
            self._layers[i] = grown

    def layer(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer, each [rows, g, tokens, e]."""
        return self._layers[number][0], self._layers[number][1]

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy a row over another: its number becomes free."""
        for layer in self._layers:
            layer[:, target, :, :tokens] = layer[:, source, :, :tokens]

    def clear_values(self, row: int, begin: int, end: int) -> None:
        """Zero a row's values that no token owns any more.

        A shorter row in its place reads them with weight 0, and 0 times a NaN that was left there is NaN.
        """
        for layer in self._layers:
            layer[1, row, :, begin:end] = 0

    def copy_out(self, row: int, tokens: int) -> torch.Tensor:
        """A row's first tokens: [layers, 2, g, tokens, e]."""
        return torch.stack([layer[:, row, :, :tokens] for layer in self._layers])

    def copy_in(self, row: int, saved: torch.Tensor) -> None:
        """Put saved tokens at a row's beginning."""
        for layer, part in zip(self._layers, saved, strict=True):
            layer[:, row, :, : part.shape[2]] = part


def _doubled(start: int, wanted: int) -> int:
    while start < wanted:
        start *= 2
    return start


class Decoder:
    """The base model's weights, fused, and the step over them. The transformers model given is emptied."""

    def __init__(self, model: Any) -> None:
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
        width = getattr(config, "head_dim", None)
        self.head_width = int(width or self.hidden // self.num_heads)
        self.inner = int(config.intermediate_size)
        self.vocabulary = int(config.vocab_size)
        self.max_tokens = int(config.max_position_embeddings)
        self.epsilon = float(config.rms_norm_eps)
        inner = model.model
        self.embedding: torch.Tensor = inner.embed_tokens.weight.detach().float()
        self.norm: torch.Tensor = inner.norm.weight.detach().float()
        self.head: torch.Tensor = model.lm_head.weight.detach().float()
        # transformers knows every rope scaling; the tables are read off its own module.
        with torch.no_grad():
            positions = torch.arange(self.max_tokens)[None]
            cos, sin = inner.rotary_emb(torch.zeros(1, 1), positions)
        self.cos, self.sin = cos[0].float(), sin[0].float()
        self.layers = []
        for layer in inner.layers:
            self.layers.append(_fused(layer))
            layer.self_attn = layer.mlp = None  # the fused copies replace them

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.layers)

    def widths(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each adaptable module."""
        q, kv = self.num_heads * self.head_width, self.num_kv_heads * self.head_width
        return {
            "q_proj": (self.hidden, q),
            "k_proj": (self.hidden, kv),
            "v_proj": (self.hidden, kv),
            "o_proj": (q, self.hidden),
            "gate_proj": (self.hidden, self.inner),
            "up_proj": (self.hidden, self.inner),
            "down_proj": (self.inner, self.hidden),
        }

    def new_cache(self) -> KeyValueCache:
        """An empty cache for this model."""
        return KeyValueCache(self.num_layers, self.num_kv_heads, self.head_width)

    @torch.inference_mode()
    def step(
        self,
        ids: torch.Tensor,
        slots: Sequence[Slot],
        groups: tuple[Group, ...],
        cache: KeyValueCache,
        keep: torch.Tensor,
    ) -> torch.Tensor:
        """One forward pass over all rows' new tokens; their keys and values are in the cache afterwards.

        Args:
            ids: [n] token ids, rows one after the other.
            slots: one for each row, in the order of `ids`.
            groups: which tokens belong to which adapter.
            keep: [m] flat positions whose logits are wanted.

        Returns:
            [m, vocabulary] logits.
        """
        positions = torch.cat([torch.arange(s.cached, s.cached + s.stop - s.start) for s in slots])
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        singles = sorted(
            (s for s in slots if s.stop - s.start == 1 and s.cached), key=lambda s: s.row
        )
        prompts = [s for s in slots if not (s.stop - s.start == 1 and s.cached)]
        batch = _Singles.of(singles) if singles else None
        x = functional.embedding(ids, self.embedding)
        for number, layer in enumerate(self.layers):
            normed = self._normed(x, layer.norm1)
            qkv = functional.linear(normed, layer.qkv, layer.qkv_bias)
            add_lora(qkv, normed, groups, number, "qkv")
            q, k, v = self._heads(qkv, layer, cos, sin)
            keys, values = cache.layer(number)
            mixed = torch.empty(len(ids), self.num_heads * self.head_width)
            for slot in prompts:
                _attend_prompt(slot, q, k, v, keys, values, mixed)
            if batch is not None:
                batch.attend(q, k, v, keys, values, mixed)
            out = functional.linear(mixed, layer.o)
            add_lora(out, mixed, groups, number, "o")
            x = x + out
            normed = self._normed(x, layer.norm2)
            both = functional.linear(normed, layer.gate_up)
            add_lora(both, normed, groups, number, "gate_up")
            gate, up = both[:, : self.inner], both[:, self.inner :]
            activated = functional.silu(gate).mul_(up)
            out = functional.linear(activated, layer.down)
            add_lora(out, activated, groups, number, "down")
            x = x.add_(out)
        return functional.linear(self._normed(x[keep], self.norm), self.head)

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, (x.shape[-1],), weight, self.epsilon)

    def _heads(
        self, qkv: torch.Tensor, layer: _Layer, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries [n, h, e], keys and values [n, g, e], queries and keys rotated."""
        parts = qkv.view(len(qkv), -1, self.head_width)
        q = parts[:, : self.num_heads]
        k = parts[:, self.num_heads : self.num_heads + self.num_kv_heads]
        v = parts[:, self.num_heads + self.num_kv_heads :]
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = self._normed(q, layer.q_norm), self._normed(k, layer.k_norm)
        return _rotated(q, cos, sin), _rotated(k, cos, sin), v


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


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


def _fused(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    bias = None
    if projections[0].bias is not None:
        bias = torch.cat([p.bias.detach().float() for p in projections])
    q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    return _Layer(
        qkv=torch.cat([p.weight.detach().float() for p in projections]),
        qkv_bias=bias,
        o=attention.o_proj.weight.detach().float().contiguous(),
        gate_up=torch.cat(
            [mlp.gate_proj.weight.detach().float(), mlp.up_proj.weight.detach().float()]
        ),
        down=mlp.down_proj.weight.detach().float().contiguous(),
        norm1=layer.input_layernorm.weight.detach().float(),
        norm2=layer.post_attention_layernorm.weight.detach().float(),
        q_norm=None if q_norm is None else q_norm.weight.detach().float(),
        k_norm=None if k_norm is None else k_norm.weight.detach().float(),
    )


def _attend_prompt(
    slot: Slot,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mixed: torch.Tensor,
) -> None:
    """Attention of one row with several new tokens, causal, over its cache and itself."""
    tokens = slot.stop - slot.start
    end = slot.cached + tokens
    keys[slot.row, :, slot.cached : end] = k[slot.start : slot.stop].transpose(0, 1)
    values[slot.row, :, slot.cached : end] = v[slot.start : slot.stop].transpose(0, 1)
    mask = None
    if slot.cached:
        mask = torch.ones(tokens, end, dtype=torch.bool).tril(slot.cached)
    out = functional.scaled_dot_product_attention(
        q[slot.start : slot.stop].transpose(0, 1)[None],
        keys[slot.row, :, :end][None],
        values[slot.row, :, :end][None],
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=True,
    )
    mixed[slot.start : slot.stop] = out[0].transpose(0, 1).reshape(tokens, -1)


@dataclass(frozen=True, slots=True)
class _Singles:
    """Rows with one new token each, attended together."""

    flat: torch.Tensor
    """[b] their places in the flat batch."""
    rows: torch.Tensor
    """[b] their rows in the cache."""
    at: torch.Tensor
    """[b] where their new token goes in their row."""
    longest: int
    is_dense: bool
    """Whether they are rows 0 to b - 1 in order: then the cache is read as a view."""
    hidden: torch.Tensor
    """[b, 1, 1, longest] true where a row has no token."""

    @classmethod
    def of(cls, slots: Sequence[Slot]) -> "_Singles":
        """Indexes of a step's single-token rows."""
        cached = torch.tensor([s.cached for s in slots])
        longest = int(cached.max()) + 1
        rows = [s.row for s in slots]
        return cls(
            flat=torch.tensor([s.start for s in slots]),
            rows=torch.tensor(rows),
            at=cached,
            longest=longest,
            is_dense=rows == list(range(len(rows))),
            hidden=(torch.arange(longest)[None] > cached[:, None])[:, None, None],
        )

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mixed: torch.Tensor,
    ) -> None:
        """One query a row over its cache."""
        keys[self.rows, :, self.at] = k[self.flat]
        values[self.rows, :, self.at] = v[self.flat]
        if self.is_dense:
            seen_k, seen_v = (
                keys[: len(self.rows), :, : self.longest],
                values[: len(self.rows), :, : self.longest],
            )
        else:
            seen_k, seen_v = (
                keys[self.rows, :, : self.longest],
                values[self.rows, :, : self.longest],
            )
        b, g, _, e = seen_k.shape
        queries = q[self.flat].view(b, g, -1, e)
        scores = torch.matmul(queries, seen_k.transpose(-1, -2)).mul_(e**-0.5)
        weights = scores.masked_fill_(self.hidden, float("-inf")).softmax(dim=-1)
        mixed[self.flat] = torch.matmul(weights, seen_v).reshape(b, -1)
