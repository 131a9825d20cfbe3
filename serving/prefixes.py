"""Keys and values of prompts' shared beginnings, kept for each adapter: a task's instruction is computed once.

What two successive prompts of an adapter have in common is stored from the second on; a prompt that begins with a
stored prefix takes it over. An adapter version never changes, so what is stored never goes stale.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from serving.cache import KeyValueCache

MIN_TOKENS = 16
"""Shorter beginnings are not worth copying."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """Token ids and their states, [layers, 2, g, tokens, e]."""

    ids: tuple[int, ...]
    states: torch.Tensor


class Prefixes:
    """One prefix an adapter, least recently used ones dropped over a memory budget."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._stored: OrderedDict[str | None, Prefix] = OrderedDict()
        self._last_prompt: dict[str | None, tuple[int, ...]] = {}

    def longest(self, adapter_id: str | None, prompt: Sequence[int]) -> Prefix | None:
        """The stored prefix that `prompt` begins with; at least one token of the prompt is left to compute."""
        found = self._stored.get(adapter_id)
        if found is None or not _is_beginning(found.ids, prompt):
            return None
        self._stored.move_to_end(adapter_id)
        return found

    def num_saved(self, adapter_id: str | None, prompt: Sequence[int]) -> int:
        """Tokens of a prompt that need not be computed."""
        found = self._stored.get(adapter_id)
        return len(found.ids) if found is not None and _is_beginning(found.ids, prompt) else 0

    def saw(
        self, adapter_id: str | None, prompt: tuple[int, ...], row: int, cache: KeyValueCache
    ) -> None:
        """A prompt is in the cache: remember it, and store what it shares with the one before."""
        before = self._last_prompt.get(adapter_id)
        self._last_prompt[adapter_id] = prompt
        if before is None:
            return
        common = _common(before, prompt)
        stored = self._stored.get(adapter_id)
        if common < MIN_TOKENS or common == len(prompt):
            return
        if (
            stored is not None
            and stored.ids == prompt[: len(stored.ids)]
            and len(stored.ids) >= common
        ):
            return
        self._stored[adapter_id] = Prefix(prompt[:common], cache.copy_out(row, common))
        self._stored.move_to_end(adapter_id)
        while self._bytes() > self._budget_bytes:
            self._stored.popitem(last=False)

    def forget(self, adapter_id: str | None) -> None:
        """Drop what is stored for an adapter."""
        self._stored.pop(adapter_id, None)
        self._last_prompt.pop(adapter_id, None)

    def _bytes(self) -> int:
        return sum(p.states.numel() * p.states.element_size() for p in self._stored.values())


def _is_beginning(ids: tuple[int, ...], prompt: Sequence[int]) -> bool:
    return len(ids) < len(prompt) and tuple(prompt[: len(ids)]) == ids


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return i
    return min(len(one), len(other))
