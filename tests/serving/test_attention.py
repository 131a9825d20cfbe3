"""Single tokens and prompts in one step, in any order of their cache rows: each attends what it attends alone."""

import pytest
import torch

from serving.attention import Attention, Slot
from serving.cache import KeyValueCache

HEADS, KV_HEADS, WIDTH = 4, 2, 8
ROWS = {
    0: (1, 3),
    1: (5, 0),
    2: (1, 9),
    3: (1, 1),
    4: (2, 4),
    5: (15, 7),
    6: (12, 6),
    7: (520, 0),
    8: (512, 9),
    9: (15, 3),
    10: (14, 0),
    11: (4, 12),
    12: (9, 2),
}
"""Cache row: its new tokens, and the tokens that it holds."""


@pytest.mark.parametrize(
    "order",
    [
        pytest.param((0, 1, 2, 3, 4), id="single tokens and prompts"),
        pytest.param((4, 2, 1, 3, 0), id="in another order"),
        pytest.param((3, 0, 2), id="single tokens"),
        pytest.param((2, 3), id="single tokens of the later rows"),
        pytest.param((0,), id="one single token"),
        pytest.param((1, 4), id="prompts of two lengths"),
        pytest.param((5, 10, 6), id="prompts filled up, their rows apart"),
        pytest.param((6, 5), id="prompts filled up, their rows side by side"),
        pytest.param((9, 6), id="prompts of which the first row is filled up"),
        pytest.param((11, 12), id="guesses"),
        pytest.param((12, 0, 4, 11), id="guesses and single tokens, their rows apart"),
        pytest.param((11, 1, 4, 9), id="guesses, with prompts' rows among theirs"),
        pytest.param((8, 0, 7), id="prompts too long to be attended together"),
    ],
)
def test_a_row_sees_its_own_tokens_and_no_others(order: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    held = {row: torch.randn(n, 2, KV_HEADS, WIDTH, generator=draw) for row, (_, n) in ROWS.items()}
    q = {row: torch.randn(n, HEADS, WIDTH, generator=draw) for row, (n, _) in ROWS.items()}
    new = {row: torch.randn(n, 2, KV_HEADS, WIDTH, generator=draw) for row, (n, _) in ROWS.items()}

    def attended(rows: tuple[int, ...]) -> dict[int, torch.Tensor]:
        cache = KeyValueCache(1, KV_HEADS, WIDTH)
        cache.reserve(len(ROWS), 521)
        slots, start = [], 0
        for row in rows:
            cache.copy_in(row, held[row].permute(1, 2, 0, 3)[None])
            slots.append(Slot(row, start, start + len(q[row]), ROWS[row][1]))
            start = slots[-1].stop
        step = Attention(slots, cache, HEADS)
        flat = [torch.cat([part[row] for row in rows]) for part in (q, new)]
        out = step(flat[0], flat[1], cache.layer(0))
        return {slot.row: out[slot.start : slot.stop] for slot in slots}

    together = attended(order)
    for row in order:
        torch.testing.assert_close(together[row], by_hand(q[row], held[row], new[row]))


def by_hand(q: torch.Tensor, held: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Softmax over all tokens up to each query's own, written out."""
    states = torch.cat([held, new]).repeat_interleave(HEADS // KV_HEADS, dim=2)
    keys, values = states[:, 0], states[:, 1]
    found = []
    for number, query in enumerate(q):
        seen = len(held) + number + 1
        weights = torch.einsum("he,the->ht", query, keys[:seen]) / WIDTH**0.5
        found.append(torch.einsum("ht,the->he", weights.softmax(-1), values[:seen]).flatten())
    return torch.stack(found)
