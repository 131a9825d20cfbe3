"""Names of adapters are looked up once for all who ask together, and a name that is not there not again at once."""

import asyncio
import threading
from pathlib import Path

import pytest

from serving.errors import AdapterFailed
from serving.lookups import MAX_FAILED, Lookups
from serving.registry import AdapterRef, Registry, RegistryUnreachable, UnknownAdapter


class Shelf(Registry):
    """A registry that counts its lookups; `slow` waits until it is let go, `away` is a bucket that does not answer."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: list[str] = []
        self.go = threading.Event()

    def resolve(self, adapter_id: str) -> AdapterRef:
        self.asked.append(adapter_id)
        if adapter_id == "slow":
            assert self.go.wait(20)
            return AdapterRef("slow", 3)
        if adapter_id == "away":
            raise RegistryUnreachable("registry s3://x: no route")
        raise UnknownAdapter(f"adapter {adapter_id!r} is not in the registry")


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def test_who_asks_together_waits_for_one_lookup_and_may_leave(shelf: Shelf) -> None:
    async def story() -> list[AdapterRef]:
        lookups = Lookups(shelf)
        tasks = [asyncio.create_task(lookups.resolve("slow")) for _ in range(5)]
        await asyncio.sleep(0.05)
        tasks[0].cancel()
        with pytest.raises(AdapterFailed):  # nobody else is held up
            await asyncio.wait_for(lookups.resolve("nobody"), 10)
        shelf.go.set()
        return await asyncio.gather(*tasks[1:])

    assert asyncio.run(story()) == [AdapterRef("slow", 3)] * 4
    assert shelf.asked == ["slow", "nobody"]


@pytest.mark.parametrize("name", ["nobody", "away"])
def test_a_failed_lookup_is_not_repeated_at_once(shelf: Shelf, name: str) -> None:
    now = [0.0]

    async def story() -> None:
        lookups = Lookups(shelf, clock=lambda: now[0])
        for _ in range(50):
            with pytest.raises(AdapterFailed) as caught:
                await lookups.resolve(name)
        assert isinstance(caught.value.__cause__, (UnknownAdapter, RegistryUnreachable))
        now[0] = 1.5
        with pytest.raises(AdapterFailed):
            await lookups.resolve(name)

    asyncio.run(story())
    assert shelf.asked == [name, name]


def test_what_is_remembered_of_callers_words_is_bounded(shelf: Shelf) -> None:
    async def story() -> Lookups:
        lookups = Lookups(shelf, clock=lambda: 0.0)
        asked = (lookups.resolve(f"n{number}") for number in range(MAX_FAILED + 20))
        await asyncio.gather(*asked, return_exceptions=True)
        return lookups

    lookups = asyncio.run(story())
    assert len(lookups._failed) == MAX_FAILED
    assert lookups._pending == {}
