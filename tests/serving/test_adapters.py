"""Adapters in memory: what is refused and why, and who goes when the budget is full."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from serving.errors import (
    AdapterFailed,
)
from serving.lora import load_lora
from serving.registry import BrokenAdapter
from tests.serving.place import MODULES, Place, job, whole
from tests.tiny import random_adapter, tiny_model


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        pytest.param("nobody/1", "not in the registry", id="unknown"),
        pytest.param("a0/99", "not in the registry", id="unknown version"),
        pytest.param("../a0", "allowed: NAME", id="outside the registry"),
        pytest.param("foreign/1", "was made for base model", id="made for another base model"),
        pytest.param("broken/1", "not a whole safetensors file", id="cut off"),
        pytest.param("wide/1", "no place for", id="more layers than the base model"),
        pytest.param("swapped/1", "its manifest says", id="weights that were not published"),
        pytest.param("rankless/1", "r = None; allowed", id="no rank"),
        pytest.param("dtype/1", "cannot be read: .*NO_SUCH", id="an error nobody thought of"),
    ],
)
def test_a_bad_adapter_fails_with_its_reason(
    place: Place, tmp_path: Path, adapter: str, message: str
) -> None:
    folder = place.folders["a0/1"]
    if adapter == "foreign/1":
        place.registry.publish("foreign", folder, place.fields(4, MODULES[0], "0" * 16), {})
    if adapter == "broken/1":
        ref = place.registry.publish("broken", folder, place.fields(4, MODULES[0]), {})
        weights = place.registry.open_local(ref) / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-10])
    if adapter == "swapped/1":
        ref = place.registry.publish("swapped", folder, place.fields(4, MODULES[0]), {})
        weights = place.registry.open_local(ref) / "adapter_model.safetensors"
        save_file({n: t + 1 for n, t in load_file(weights).items()}, weights)
    if adapter == "rankless/1":
        ref = place.registry.publish("rankless", folder, place.fields(4, MODULES[0]), {})
        config = place.registry.open_local(ref) / "adapter_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "r": None}))
    if adapter == "dtype/1":
        ref = place.registry.publish("dtype", folder, place.fields(4, MODULES[0]), {})
        weights = place.registry.open_local(ref) / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes().replace(b'"dtype":"F32"', b'"dtype":"NO_SUCH"', 1))
        data = weights.read_bytes()
        weights.write_bytes(
            (int.from_bytes(data[:8], "little") + 4).to_bytes(8, "little") + data[8:]
        )
    if adapter == "wide/1":
        tiny_model(tmp_path / "wide", num_layers=5)
        wide = random_adapter(tmp_path / "wide", tmp_path / "w", 9, MODULES[0])
        place.registry.publish("wide", wide, place.fields(4, MODULES[0]), {})

    async def run() -> None:
        worker = place.worker()
        await worker.start()
        for _ in range(2):  # the second time from memory, without another load
            with pytest.raises(AdapterFailed, match=message):
                await whole(worker, job(place, "hello", adapter))
        tokens, _ = await whole(worker, job(place, "hello", "a1/1"))
        assert [t.id for t in tokens] == place.alone("a1/1", place.ids("hello"), 12)
        await worker.stop()

    asyncio.run(run())


def changed(place: Place, folder: Path, config: dict[str, Any], fill: float | None = None) -> Path:
    """A copy of adapter a3 with another config, and values of one tensor replaced."""
    shutil.copytree(place.folders["a3/1"], folder)
    known = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**known, **config}))
    if fill is not None:
        tensors = load_file(folder / "adapter_model.safetensors")
        for name, tensor in tensors.items():
            if "layers.0" in name and "v_proj.lora_B" in name:
                tensor.fill_(fill)
        save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_weights_that_are_not_finite_are_refused(
    place: Place, tmp_path: Path, value: float
) -> None:
    folder = changed(place, tmp_path / "a", {}, value)
    decoder = place.worker()._engine.decoder
    with pytest.raises(BrokenAdapter, match=r"v_proj\.lora_B.* not finite"):
        load_lora("bad/1", folder, decoder.places())


def test_adapters_over_the_memory_budget_are_evicted_least_recently_used_first(
    place: Place,
) -> None:
    async def run() -> None:
        worker = place.worker(adapter_memory_bytes=place.size("a0/1", "a1/1", "a3/1"))
        await worker.start()
        for adapter in ("a0/1", "a2/1", "a0/1", "a1/1", "a3/1"):
            tokens, _ = await whole(worker, job(place, "hello", adapter, 6))
            assert [t.id for t in tokens] == place.alone(adapter, place.ids("hello"), 6)
        assert "a2/1" not in worker.resident()
        assert worker.resident()[-1] == "a3/1"
        await worker.stop()

    asyncio.run(run())


def test_a_full_budget_makes_requests_wait_and_starves_none(place: Place) -> None:
    """Room for one or two of four adapters, all asked for at once, two of them again and again."""

    budget = place.size("a1/1")

    async def run() -> None:
        worker = place.worker(adapter_memory_bytes=budget, max_batch=4)
        await worker.start()

        async def ask(adapter: str, count: int) -> None:
            tokens, _ = await whole(worker, job(place, "hello", adapter, count, ignore_eos=True))
            assert len(tokens) == count

        busy = [asyncio.create_task(ask(a, 20)) for _ in range(3) for a in list(place.folders)[:3]]
        load = asyncio.create_task(worker.load("a1/1"))
        await asyncio.wait_for(asyncio.gather(*busy, load), 20)
        with pytest.raises(AdapterFailed, match=f"the budget is {budget}"):
            await ask("a3/1", 1)
        await worker.stop()

    asyncio.run(run())


def test_an_adapter_gets_in_although_others_are_always_busy(place: Place) -> None:
    async def run() -> None:
        worker = place.worker(adapter_memory_bytes=place.size("a1/1"))
        await worker.start()
        is_over = asyncio.Event()

        async def keep_busy(first: int) -> None:
            count = first  # rows that never end together
            while not is_over.is_set():
                await whole(worker, job(place, "hello", "a0/1", count, ignore_eos=True))
                count = 150

        busy = [asyncio.create_task(keep_busy(first)) for first in (50, 100, 150)]
        await asyncio.sleep(0.1)
        tokens, _ = await asyncio.wait_for(whole(worker, job(place, "hello", "a1/1", 6)), 10)
        assert [t.id for t in tokens] == place.alone("a1/1", place.ids("hello"), 6)
        is_over.set()
        await asyncio.wait_for(asyncio.gather(*busy), 10)
        await worker.stop()

    asyncio.run(run())
