"""Keys and values of all rows under way: one tensor a layer, grown as rows need it. Knows no model and no adapter.

A layer is [2, rows, g, tokens, e], keys and then values: a row's head is read from one place to its end, and rows and heads are
one dimension for products over all of them, without a copy.
"""

import torch

_TOKENS = 64


class KeyValueCache:
    """Row numbers are dense, so that a step over rows 0 to b - 1 reads a view."""

    def __init__(self, num_layers: int, num_heads: int, width: int) -> None:
        self._num_heads, self._width = num_heads, width
        self._layers = [self._empty(0, 0) for _ in range(num_layers)]

    def _empty(self, rows: int, tokens: int) -> torch.Tensor:
        # Zeros, not whatever memory holds: a row reads the longest row's length, and 0 times NaN is NaN.
        return torch.zeros(2, rows, self._num_heads, tokens, self._width)

    @property
    def num_rows(self) -> int:
        """Rows that there is room for."""
        return int(self._layers[0].shape[1])

    @property
    def num_tokens(self) -> int:
        """Tokens a row that there is room for."""
        return int(self._layers[0].shape[3])

    def reserve(self, rows: int, tokens: int) -> None:
        """Make room; what is cached stays.

        Tokens grow by a quarter or to the next multiple of `_TOKENS`: with doubling, one row of 129 tokens among sixteen would cost
        a small model 90 MiB.
        """
        if rows <= self.num_rows and tokens <= self.num_tokens:
            return
        new_rows = max(self.num_rows, _doubled(4, rows))
        new_tokens = self.num_tokens
        if tokens > new_tokens:
            new_tokens = -(-max(tokens, new_tokens * 5 // 4) // _TOKENS) * _TOKENS
        for i, old in enumerate(self._layers):
            grown = self._empty(new_rows, new_tokens)
            grown[:, : old.shape[1], :, : old.shape[3]] = old
            self._layers[i] = grown

    def shrink(self, max_bytes: int) -> None:
        """With no row left: give back what a burst of long prompts has taken, if it is more than `max_bytes`."""
        layer = self._layers[0]
        if len(self._layers) * layer.numel() * layer.element_size() > max_bytes:
            self._layers = [self._empty(0, 0) for _ in self._layers]

    def layer(self, number: int) -> torch.Tensor:
        """One layer, [2, rows, g, tokens, e]."""
        return self._layers[number]

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy a row over another: its number becomes free."""
        for layer in self._layers:
            layer[:, target, :, :tokens] = layer[:, source, :, :tokens]

    def clear(self, row: int, begin: int, end: int) -> None:
        """Zero what no token of a row owns any more.

        A shorter row in its place reads it with weight 0, and a NaN that was left there would come through.
        """
        for layer in self._layers:
            layer[:, row, :, begin:end] = 0

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
