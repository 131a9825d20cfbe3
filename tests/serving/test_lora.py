"""Adding several adapters' LoRA to a batch: one by one or stacked, it is each one's own."""

import pytest
import torch

from serving.lora import STACK_AFTER, FusedLora, Group, LoraWeights, Stacks, batches

WIDTHS = {"qkv": (12, 20), "o": (20, 12)}


def adapter(seed: int, **ranks: int) -> LoraWeights:
    draw = torch.Generator().manual_seed(seed)

    def fused(projection: str, rank: int) -> FusedLora:
        inputs, outputs = WIDTHS[projection]
        return FusedLora(
            torch.randn(rank, inputs, generator=draw).T, torch.randn(rank, outputs, generator=draw)
        )

    layers = tuple({name: fused(name, rank) for name, rank in ranks.items()} for _ in range(2))
    return LoraWeights(f"a{seed}/1", layers, 0)


ADAPTERS = [
    adapter(0, qkv=4, o=2),
    adapter(1, qkv=2, o=2),
    adapter(2, qkv=6),
    adapter(3, qkv=1, o=5),
]


def by_hand(x: torch.Tensor, weights: LoraWeights | None, layer: int, name: str) -> torch.Tensor:
    fused = weights.layers[layer].get(name) if weights is not None else None
    return x @ fused.a @ fused.b if fused is not None else torch.zeros(len(x), WIDTHS[name][1])


@pytest.mark.parametrize("has_base", [False, True])
def test_compositions_that_follow_each_other_are_added_as_one_by_one(has_base: bool) -> None:
    draw = torch.Generator().manual_seed(9)
    stacks = Stacks()
    for chosen in ([0, 1], [2, 3, 1], [1, 3], [0, 2], [3, 2, 0, 1], [1, 0]):
        for step in range(STACK_AFTER + 3):
            sizes = [2] * len(chosen) if step % 5 else [3, 1, 2, 4][: len(chosen)]
            groups = [Group(ADAPTERS[i], n, 1) for i, n in zip(chosen, sizes, strict=True)]
            groups = [Group(None, 3, 2), *groups] if has_base else groups
            found = batches(groups, stacks)
            for batch, counts in (
                (found.all, [g.num_tokens for g in groups]),
                (found.kept, [g.num_kept for g in groups]),
            ):
                for layer, name in ((0, "qkv"), (1, "o")):
                    x = torch.randn(sum(counts), WIDTHS[name][0], generator=draw)
                    out = torch.ones(len(x), WIDTHS[name][1])
                    batch.add(out, x, layer, name)
                    parts = zip(torch.split(x, counts), groups, strict=True)
                    wanted = torch.cat([by_hand(p, g.weights, layer, name) for p, g in parts])
                    torch.testing.assert_close(out - 1, wanted, atol=1e-4, rtol=1e-4)


def test_a_composition_that_goes_on_is_stacked_and_its_place_is_used_again() -> None:
    stacks = Stacks()
    first, second = tuple(ADAPTERS[:2]), tuple(ADAPTERS[2:])
    before = [stacks.of(first) for _ in range(STACK_AFTER + 1)]
    assert before[-2] is None
    stacked = before[-1]
    assert stacked is not None
    place = stacked[0]["o"][1].data_ptr()
    assert stacks.of(second) is None
    for _ in range(STACK_AFTER):
        stacked = stacks.of(second)
    assert stacked is not None
    assert stacked[0]["qkv"][0].shape == (2, 12, 6)
    stacks.clear()
    again = [stacks.of(first) for _ in range(STACK_AFTER + 1)][-1]
    assert again is not None
    assert again[0]["o"][1].data_ptr() != place  # more ranks have come since
    for _ in range(STACK_AFTER + 1):
        second_again = stacks.of(second)
    assert second_again is not None
    assert second_again[0]["o"][1].data_ptr() == again[0]["o"][1].data_ptr()


def test_a_copy_that_breaks_off_leaves_no_composition_with_weights_of_another() -> None:
    stacks = Stacks()
    first = tuple(ADAPTERS[:2])
    assert [stacks.of(first) is not None for _ in range(STACK_AFTER + 1)][-1]
    good = adapter(7, qkv=2, o=2)
    layers = (good.layers[0], {"qkv": FusedLora(torch.ones(5, 2), torch.ones(2, 20))})
    broken = (good, LoraWeights("broken/1", layers, 0))
    assert [stacks.of(broken) for _ in range(STACK_AFTER)] == [None] * STACK_AFTER
    with pytest.raises(RuntimeError):
        stacks.of(broken)
    assert stacks.of(first) is None
