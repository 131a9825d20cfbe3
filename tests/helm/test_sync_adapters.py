"""The sidecar that copies adapters: whole versions only, by one rename, in both directions."""

import importlib.util
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import ModuleType
from typing import Any

import fsspec
import pytest

from tests.helm.render import CHART


def load() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location(
        "sync_adapters", CHART / "files" / "sync_adapters.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sync_adapters"] = module
    spec.loader.exec_module(module)
    return module


sync = load()


def version(root: Path, name: str, *, whole: bool = True, weights: bytes = b"weights") -> None:
    """One version in a registry folder."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(weights)
    if whole:
        (folder / "manifest.json").write_text("{}")


def once(source: str | Path, target: str | Path) -> Any:
    """One pass."""
    state = sync.State(15.0)
    sync.sync(sync.Place(str(source)), sync.Place(str(target)), state)
    return state


def test_whole_versions_are_copied_and_stay(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    version(source, "tickets/1")
    version(source, "tickets/2")
    version(source, "tickets/3", whole=False)
    state = once(source, target)
    assert (state.copied, state.versions) == (2, 2)
    assert (target / "tickets/2/adapter_model.safetensors").read_bytes() == b"weights"
    assert not (target / "tickets/3").exists()
    assert once(source, target).copied == 0
    (source / "tickets/3/manifest.json").write_text("{}")
    assert once(source, target).copied == 1
    assert [p.name for p in (target / "tickets").iterdir() if p.name.startswith(".")] == []


def test_no_reader_ever_sees_half_a_version(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for number in range(1, 30):
        version(source, f"a/{number}", weights=b"x" * 200_000)
    half: list[str] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            for folder in target.glob("a/[0-9]*"):
                names = {p.name for p in folder.iterdir()}
                if len(names) != 3:
                    half.append(f"{folder}: {names}")

    reader = threading.Thread(target=look)
    reader.start()
    once(source, target)
    stop.set()
    reader.join()
    assert half == []


def test_a_store_gets_its_manifest_last(tmp_path: Path) -> None:
    source = tmp_path / "source"
    version(source, "tickets/1")
    store = fsspec.filesystem("memory")
    store.store.clear()
    order: list[str] = []
    target = sync.Place("memory://registry")
    put = target.fs.pipe_file

    def watched(path: str, data: bytes) -> None:
        order.append(path.rsplit("/", 1)[-1])
        put(path, data)

    target.fs.pipe_file = watched
    try:
        sync.sync(sync.Place(str(source)), target, sync.State(15.0))
    finally:
        target.fs.pipe_file = put
    assert order[-1] == "manifest.json"
    assert len(order) == 3
    back = tmp_path / "back"
    assert once("memory://registry", back).copied == 1
    assert (back / "tickets/1/manifest.json").exists()


def test_difficulty_models_follow_their_changes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "difficulty").mkdir(parents=True)
    (source / "difficulty" / "tickets.json").write_text('{"v": 1}')
    once(source, target)
    (source / "difficulty" / "tickets.json").write_text('{"v": 2}')
    once(source, target)
    assert (target / "difficulty" / "tickets.json").read_text() == '{"v": 2}'


def test_a_version_that_cannot_be_read_does_not_stop_the_others(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    version(source, "tickets/1")
    version(source, "tickets/2")
    weights = source / "tickets/1/adapter_model.safetensors"
    weights.unlink()
    weights.symlink_to(tmp_path / "nowhere")
    state = once(source, target)
    assert (state.copied, state.errors, state.synced_at) == (1, 1, 0.0)
    assert (target / "tickets/2").exists()
    assert not (target / "tickets/1").exists()


def test_it_is_ready_after_its_first_pass(tmp_path: Path) -> None:
    state = sync.State(0.05)
    server = sync.ThreadingHTTPServer(("127.0.0.1", 0), sync.page(state))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}/ready", timeout=5)
    assert refused.value.code == 503
    refused.value.close()
    version(tmp_path / "source", "tickets/1")
    stop = threading.Event()
    thread = threading.Thread(
        target=sync.watch, args=(str(tmp_path / "source"), str(tmp_path / "target"), state, stop)
    )
    thread.start()
    deadline = time.monotonic() + 5
    while not state.synced_at and time.monotonic() < deadline:
        time.sleep(0.01)
    with urllib.request.urlopen(f"{address}/ready", timeout=5) as reply:
        assert reply.status == 200
    with urllib.request.urlopen(f"{address}/metrics", timeout=5) as reply:
        assert b"graduate_sync_versions 1\n" in reply.read()
    stop.set()
    thread.join()
    server.shutdown()
    server.server_close()
