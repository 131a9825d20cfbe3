"""Keys and values: room that grows, rows that keep what is theirs, and what an idle cache gives back."""

import torch

from serving.cache import KeyValueCache


def test_growing_keeps_what_is_cached() -> None:
    cache = KeyValueCache(2, 3, 4)
    cache.reserve(2, 10)
    cache.layer(1)[:, 1, :, :10] = 7.0
    cache.reserve(9, 200)
    assert (cache.num_rows, cache.num_tokens) == (16, 256)
    assert bool((cache.layer(1)[:, 1, :, :10] == 7.0).all())
    assert bool((cache.layer(1)[:, 1, :, 10:] == 0.0).all())


def test_one_row_that_is_a_token_longer_does_not_double_all() -> None:
    cache = KeyValueCache(2, 3, 4)
    cache.reserve(16, 128)
    assert cache.num_tokens == 128
    cache.reserve(16, 129)
    assert cache.num_tokens == 192
    cache.reserve(1, 1000)
    cache.reserve(1, 1001)
    assert cache.num_tokens == 1024
    cache.reserve(1, 1025)
    assert cache.num_tokens == 1280  # a long row is copied some times, not every 64 tokens


def test_an_idle_cache_gives_back_what_is_more_than_it_may_keep() -> None:
    cache = KeyValueCache(2, 3, 4)
    cache.reserve(4, 128)
    size = 2 * 4 * 128 * 2 * 3 * 4 * 4
    cache.shrink(size)
    assert cache.num_rows == 4
    cache.shrink(size - 1)
    assert (cache.num_rows, cache.num_tokens) == (0, 0)
    cache.reserve(1, 1)
    assert torch.equal(cache.copy_out(0, 1), torch.zeros(2, 2, 3, 1, 4))
