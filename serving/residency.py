"""Which adapters are resident: admit within a memory budget, evict the one unused for longest. Pure bookkeeping."""

from collections.abc import Set
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Admission:
    """What to evict so that an adapter fits; `refusal` says why it does not."""

    evict: tuple[str, ...] = ()
    refusal: str | None = None


@dataclass(slots=True)
class Residency:
    """Sizes and last uses of resident adapters. Sizes in bytes, times in seconds of any one clock."""

    budget_bytes: int
    pinned: frozenset[str] = frozenset()
    _sizes: dict[str, int] = field(default_factory=dict)
    _used_at: dict[str, float] = field(default_factory=dict)

    def ids(self) -> list[str]:
        """Resident adapters, the one used last at the end."""
        return sorted(self._sizes, key=lambda a: self._used_at[a])

    @property
    def used_bytes(self) -> int:
        """What resident adapters take."""
        return sum(self._sizes.values())

    def plan(self, size: int, in_use: Set[str]) -> Admission:
        """Which adapters must go for `size` bytes more; those in use or pinned stay."""
        if size > self.budget_bytes:
            return Admission(refusal=f"needs {size} bytes, the budget is {self.budget_bytes}")
        free = self.budget_bytes - self.used_bytes
        going = []
        for adapter in self.ids():
            if free >= size:
                break
            if adapter not in in_use and adapter not in self.pinned:
                going.append(adapter)
                free += self._sizes[adapter]
        if free < size:
            return Admission(
                refusal=f"needs {size} bytes, {free} of {self.budget_bytes} can be freed: the rest is in use or pinned"
            )
        return Admission(tuple(going))

    def admit(self, adapter: str, size: int, now: float) -> None:
        """An adapter is resident from now on."""
        self._sizes[adapter] = size
        self._used_at[adapter] = now

    def evict(self, adapter: str) -> None:
        """An adapter is no longer resident."""
        del self._sizes[adapter]
        del self._used_at[adapter]

    def touch(self, adapter: str, now: float) -> None:
        """An adapter was used."""
        if adapter in self._used_at:
            self._used_at[adapter] = now
