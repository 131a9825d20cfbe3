"""Attention of a step: each row's new tokens over its own cache. What is the same for all layers is worked out once a step.

Rows with one new token are attended together. So are prompts of about one length: two products over all of their heads take half
the time of torch's own attention prompt by prompt. Long prompts go by themselves, through torch's, which never holds all of
their weights at once. Knows no weights of the model and no adapter.

Shapes: n new tokens of all rows, h heads, g key/value heads, e head width, b rows attended together, r rows of the cache up to the
last of them, m new tokens of the longest of them, t cached tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from serving.cache import KeyValueCache

_WIDTH = 16
"""fp32 numbers of the widest registers."""
_MOST_WEIGHTS = 1 << 20
"""Attention weights that prompts attended together may have, over all heads: they should stay in the processor's own cache."""
_MOST_SHORT = 9
"""New tokens of a row that is attended with the single ones."""
_MOST_PADDED = 1.25
"""Times their own tokens that prompts attended together may come to, the shorter ones filled up."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A row's new tokens in a step: where they are in the flat batch, and how many tokens its cache holds before them."""

    row: int
    start: int
    stop: int
    cached: int

    @property
    def num_new(self) -> int:
        """New tokens."""
        return self.stop - self.start

    @property
    def is_short(self) -> bool:
        """Whether it is a token after others, maybe with some guessed ones behind it: no prompt to speak of."""
        return self.num_new <= _MOST_SHORT and self.cached > 0


@dataclass(frozen=True, slots=True)
class _Long:
    """A prompt by itself."""

    slot: Slot
    num_seen: int
    """Tokens of its cache row that are read: its own, and others behind them that nobody sees."""
    mask: torch.Tensor | None
    """[new, num_seen] minus infinity where a token does not see; None is the plain causal one."""


@dataclass(frozen=True, slots=True)
class _Prompts:
    """Prompts attended together, in the order of their cache rows; the shorter ones are filled up by their last token."""

    rows: torch.Tensor | slice
    """Their rows in the cache, a slice where they lie side by side."""
    num_rows: int
    flat: torch.Tensor
    """[b * m] each one's token in the flat batch."""
    own: torch.Tensor | None
    """[sum of new tokens] which of these are tokens of their own; None when all are."""
    num_seen: int
    mask: torch.Tensor
    """[1 or b * g, h / g * m, num_seen] minus infinity where a token does not see."""


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
    """[r * g, 1, longest] minus infinity where a row has no token."""


class Attention:
    """One step's attention over a cache that has room for its new tokens."""

    def __init__(self, slots: Sequence[Slot], cache: KeyValueCache, num_heads: int) -> None:
        """`num_heads` is h; g is the cache's."""
        num_kv_heads = int(cache.layer(0).shape[2])
        self._places = (
            torch.cat([torch.full((s.num_new,), s.row) for s in slots]),
            torch.cat([torch.arange(s.cached, s.cached + s.num_new) for s in slots]),
        )
        self._num_tokens = slots[-1].stop
        self._long: list[_Long] = []
        self._prompts: list[_Prompts] = []
        for group in _groups([s for s in slots if not s.is_short], num_heads):
            if _num_weights(group, num_heads) > _MOST_WEIGHTS:
                self._long += [_long(s, cache.num_tokens) for s in group]
            else:
                self._prompts.append(_prompts(group, cache.num_tokens, num_heads, num_kv_heads))
        shorts = sorted((s for s in slots if s.is_short), key=lambda s: s.row)
        self._singles = None
        if any(s.num_new > 1 for s in shorts):
            self._prompts.append(
                _prompts(_without_gaps(shorts), cache.num_tokens, num_heads, num_kv_heads)
            )
        elif shorts:
            self._singles = _together(shorts, self._num_tokens, cache.num_tokens, num_kv_heads)

    def __call__(
        self, q: torch.Tensor, key_values: torch.Tensor, layer: torch.Tensor
    ) -> torch.Tensor:
        """Store the new keys and values, then attend.

        Args:
            q: [n, h, e], rotated.
            key_values: [n, 2, g, e], keys rotated.
            layer: the cache's, [2, rows, g, tokens, e].

        Returns:
            [n, h * e].
        """
        layer.permute(1, 3, 0, 2, 4).index_put_(self._places, key_values)
        if not self._prompts and not self._long:
            assert self._singles is not None
            out = _attend_singles(self._singles, q, layer)
            return out if self._singles.flat is None else _scattered(out, self._singles.flat)
        mixed = q.new_empty(self._num_tokens, q.shape[1] * q.shape[2])
        for prompts in self._prompts:
            _attend_prompts(prompts, q, layer, mixed)
        for long in self._long:
            _attend_long(long, q, layer, mixed)
        if self._singles is not None:
            assert self._singles.flat is not None
            mixed.index_copy_(0, self._singles.flat, _attend_singles(self._singles, q, layer))
        return mixed


def _scattered(out: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(out).index_copy_(0, flat, out)


def _rounded(tokens: int, room: int) -> int:
    """Tokens of the cache to read: products of a width that registers divide take a tenth less time."""
    return min(room, -(-tokens // _WIDTH) * _WIDTH)


def _num_weights(group: Sequence[Slot], num_heads: int) -> int:
    """Attention weights of prompts that are attended together."""
    new, seen = max(s.num_new for s in group), max(s.cached + s.num_new for s in group)
    return len(group) * num_heads * new * seen


def _groups(slots: Sequence[Slot], num_heads: int) -> list[list[Slot]]:
    """Prompts to be attended together, longest first."""
    groups: list[list[Slot]] = []
    for slot in sorted(slots, key=lambda s: -s.num_new):
        if groups:
            wider = [*groups[-1], slot]
            padded = len(wider) * wider[0].num_new
            if (
                padded <= _MOST_PADDED * sum(s.num_new for s in wider)
                and _num_weights(wider, num_heads) <= _MOST_WEIGHTS
            ):
                groups[-1] = wider
                continue
        groups.append([slot])
    return groups


def _long(slot: Slot, room: int) -> _Long:
    own = slot.cached + slot.num_new
    if not slot.cached:
        return _Long(slot, own, None)
    seen = _rounded(own, room)
    return _Long(
        slot, seen, torch.full((own - slot.cached, seen), float("-inf")).triu(slot.cached + 1)
    )


def _without_gaps(shorts: Sequence[Slot]) -> list[Slot]:
    """The same with a slot of no tokens for each row of the cache between them, so that it is read as a view: a prompt's row among
    them costs less than a copy of the others."""
    by_row = {s.row: s for s in shorts}
    return [by_row.get(row, Slot(row, 0, 0, 0)) for row in range(shorts[0].row, shorts[-1].row + 1)]


def _prompts(group: Sequence[Slot], room: int, num_heads: int, num_kv_heads: int) -> _Prompts:
    group = sorted(group, key=lambda s: s.row)
    new = torch.tensor([s.num_new for s in group])
    most = int(new.max())
    steps = torch.arange(most)
    # [b, m] a filling sees what the last token sees; a row of no tokens its cache's first, so that its softmax is over something
    filled = torch.minimum(steps[None], new[:, None] - 1).clamp_(min=0)
    starts, cached = (torch.tensor([getattr(s, key) for s in group]) for key in ("start", "cached"))
    is_own = (steps[None] < new[:, None]).flatten()
    seen = _rounded(max(s.cached + s.num_new for s in group), room)
    last_seen = cached[:, None] + filled
    if bool((last_seen == last_seen[:1]).all()):
        last_seen = last_seen[:1]
    mask = torch.zeros(len(last_seen), most, seen)
    mask.masked_fill_(torch.arange(seen) > last_seen[:, :, None], float("-inf"))
    each = num_heads // num_kv_heads
    mask = mask.repeat(1, each, 1)
    first = group[0].row
    is_run = [s.row for s in group] == list(range(first, first + len(group)))
    return _Prompts(
        rows=slice(first, first + len(group)) if is_run else torch.tensor([s.row for s in group]),
        num_rows=len(group),
        flat=(starts[:, None] + filled).flatten(),
        own=None if bool(is_own.all()) else is_own.nonzero()[:, 0],
        num_seen=seen,
        mask=mask if len(mask) == 1 else mask.repeat_interleave(num_kv_heads, dim=0),
    )


def _together(singles: Sequence[Slot], num_tokens: int, room: int, num_kv_heads: int) -> _Singles:
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
        bias=bias.repeat_interleave(num_kv_heads, dim=0)[:, None],
    )


def _weighted(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Attention of `q` [x, y, e] over `keys` and `values` [x, t, e], with `mask` added to its scores. [x, y, e]."""
    weights = torch.bmm(q, keys.transpose(1, 2)).mul_(q.shape[-1] ** -0.5).add_(mask)
    return torch.bmm(torch.softmax(weights, dim=-1), values)


def _attend_long(long: _Long, q: torch.Tensor, layer: torch.Tensor, mixed: torch.Tensor) -> None:
    """One row with several new tokens, causal, over its cache and itself."""
    slot = long.slot
    keys, values = layer[:, slot.row, :, : long.num_seen]
    out = functional.scaled_dot_product_attention(
        q[slot.start : slot.stop].transpose(0, 1)[None],
        keys[None],
        values[None],
        attn_mask=long.mask,
        is_causal=long.mask is None,
        enable_gqa=True,
    )
    mixed.view(-1, *q.shape[1:])[slot.start : slot.stop] = out[0].transpose(0, 1)


def _attend_prompts(
    prompts: _Prompts, q: torch.Tensor, layer: torch.Tensor, mixed: torch.Tensor
) -> None:
    """Rows with several new tokens, causal, each over its cache and itself."""
    g, e = layer.shape[2], layer.shape[4]
    b, m, each = prompts.num_rows, len(prompts.flat) // prompts.num_rows, q.shape[1] // g
    keys, values = layer[:, prompts.rows, :, : prompts.num_seen].flatten(1, 2)
    queries = q.index_select(0, prompts.flat).view(b, m, g, each, e).permute(0, 2, 3, 1, 4)
    out = _weighted(queries.reshape(b * g, each * m, e), keys, values, prompts.mask)
    rows = out.view(b, g, each, m, e).permute(0, 3, 1, 2, 4).reshape(b * m, -1)
    if prompts.own is None:
        mixed.index_copy_(0, prompts.flat, rows)
    else:
        own = prompts.own
        mixed.index_copy_(0, prompts.flat.index_select(0, own), rows.index_select(0, own))


def _attend_singles(singles: _Singles, q: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
    """One query a row. [b, h * e], in the order of the cache."""
    if singles.flat is not None:
        q = q.index_select(0, singles.flat)
    if singles.rows is not None:
        q = q.new_zeros(singles.num_rows, *q.shape[1:]).index_copy_(0, singles.rows, q)
    g, e = layer.shape[2], layer.shape[4]
    keys, values = layer[:, : singles.num_rows].flatten(1, 2)[:, :, : singles.longest]
    out = _weighted(q.reshape(singles.num_rows * g, -1, e), keys, values, singles.bias)
    rows = out.view(singles.num_rows, -1)
    return rows if singles.rows is None else rows.index_select(0, singles.rows)
