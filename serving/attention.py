"""Attention of a step: each row's new tokens over its own cache. What is the same for all layers is worked out once a step.

Rows with one new token are attended together, prompts one by one. Knows no weights and no adapter.

Shapes: n new tokens of all rows, h heads, g key/value heads, e head width, b rows with one new token, r rows of the cache up to
the last of them, t cached tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from serving.cache import KeyValueCache

_WIDTH = 16
"""fp32 numbers of the widest registers."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A row's new tokens in a step: where they are in the flat batch, and how many tokens its cache holds before them."""

    row: int
    start: int
    stop: int
    cached: int

    @property
    def is_single(self) -> bool:
        """Whether it is one token after others: no prompt to speak of."""
        return self.stop - self.start == 1 and self.cached > 0


@dataclass(frozen=True, slots=True)
class _Prompt:
    slot: Slot
    num_seen: int
    """Tokens of its cache row that are read: its own, and others behind them that nobody sees."""
    mask: torch.Tensor | None
    """[new, num_seen] minus infinity where a token does not see; None is the plain causal one."""


@dataclass(frozen=True, slots=True)
class _Singles:
    """Rows 0 to r - 1 of the cache are attended, so that it is read as a view: a prompt's row among them costs less than a copy
    of the others."""

    flat: torch.Tensor | None
    """[b] their places in the flat batch, in the order of their cache rows; None when they are the whole batch in order."""
    rows: torch.Tensor | None
    """[b] their rows in the cache; None when they are all of rows 0 to r - 1."""
    num_rows: int
    longest: int
    bias: torch.Tensor
    """[r, 1, 1, longest] minus infinity where a row has no token."""


class Attention:
    """One step's attention over a cache that has room for its new tokens."""

    def __init__(self, slots: Sequence[Slot], cache: KeyValueCache) -> None:
        self.places = torch.cat(
            [
                torch.arange(cache.place(s.row, s.cached), cache.place(s.row, s.cached) + s.stop - s.start)
                for s in slots
            ]
        )  # fmt: skip
        """[n] where each new token goes in a layer whose rows and tokens are one dimension."""
        self._num_tokens = slots[-1].stop
        self._prompts = [_prompt(s, cache.num_tokens) for s in slots if not s.is_single]
        singles = sorted((s for s in slots if s.is_single), key=lambda s: s.row)
        self._singles = _together(singles, self._num_tokens, cache.num_tokens) if singles else None

    def __call__(
        self, q: torch.Tensor, key_values: torch.Tensor, layer: torch.Tensor
    ) -> torch.Tensor:
        """Store the new keys and values, then attend.

        Args:
            q: [n, h, e], rotated.
            key_values: [n, 2, g, e], keys rotated.
            layer: the cache's, [rows, tokens, 2, g, e].

        Returns:
            [n, h * e].
        """
        layer.view(-1, *layer.shape[2:]).index_copy_(0, self.places, key_values)
        if not self._prompts:
            assert self._singles is not None
            out = _attend_singles(self._singles, q, layer)
            return out if self._singles.flat is None else _scattered(out, self._singles.flat)
        mixed = q.new_empty(self._num_tokens, q.shape[1] * q.shape[2])
        for prompt in self._prompts:
            _attend_prompt(prompt, q, layer, mixed)
        if self._singles is not None:
            assert self._singles.flat is not None
            mixed.index_copy_(0, self._singles.flat, _attend_singles(self._singles, q, layer))
        return mixed


def _scattered(out: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(out).index_copy_(0, flat, out)


def _rounded(tokens: int, room: int) -> int:
    """Tokens of the cache to read: products of a width that registers divide take a tenth less time."""
    return min(room, -(-tokens // _WIDTH) * _WIDTH)


def _prompt(slot: Slot, room: int) -> _Prompt:
    own = slot.cached + slot.stop - slot.start
    if not slot.cached:
        return _Prompt(slot, own, None)
    seen = _rounded(own, room)
    return _Prompt(
        slot, seen, torch.full((own - slot.cached, seen), float("-inf")).triu(slot.cached + 1)
    )


def _together(singles: Sequence[Slot], num_tokens: int, room: int) -> _Singles:
    rows, flat = [s.row for s in singles], [s.start for s in singles]
    num_rows = rows[-1] + 1
    # A prompt's row among them sees its first token, so that its softmax is over something.
    cached = torch.zeros(num_rows, dtype=torch.long)
    cached[rows] = torch.tensor([s.cached for s in singles])
    longest = _rounded(max(s.cached for s in singles) + 1, room)
    bias = torch.zeros(num_rows, longest)
    bias.masked_fill_(torch.arange(longest)[None] > cached[:, None], float("-inf"))
    return _Singles(
        flat=None if flat == list(range(num_tokens)) else torch.tensor(flat),
        rows=None if len(rows) == num_rows else torch.tensor(rows),
        num_rows=num_rows,
        longest=longest,
        bias=bias[:, None, None],
    )


def _attend_prompt(
    prompt: _Prompt, q: torch.Tensor, layer: torch.Tensor, mixed: torch.Tensor
) -> None:
    """One row with several new tokens, causal, over its cache and itself."""
    slot = prompt.slot
    seen = layer[slot.row, : prompt.num_seen].permute(1, 2, 0, 3)
    out = functional.scaled_dot_product_attention(
        q[slot.start : slot.stop].transpose(0, 1)[None],
        seen[0][None],
        seen[1][None],
        attn_mask=prompt.mask,
        is_causal=prompt.mask is None,
        enable_gqa=True,
    )
    mixed.view(-1, *q.shape[1:])[slot.start : slot.stop] = out[0].transpose(0, 1)


def _attend_singles(singles: _Singles, q: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
    """One query a row. [b, h * e], in the order of the cache.

    Each head by itself: taken as queries of the key/value head that they share, heads would take half as long again.
    """
    if singles.flat is not None:
        q = q.index_select(0, singles.flat)
    if singles.rows is not None:
        q = q.new_zeros(singles.num_rows, *q.shape[1:]).index_copy_(0, singles.rows, q)
    keys, values = layer[: singles.num_rows, : singles.longest].permute(2, 0, 3, 1, 4)
    out = functional.scaled_dot_product_attention(
        q[:, :, None], keys, values, attn_mask=singles.bias, enable_gqa=True
    ).reshape(singles.num_rows, -1)
    return out if singles.rows is None else out.index_select(0, singles.rows)
