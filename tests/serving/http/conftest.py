"""A really running server: a tiny random base model, three adapter versions, uvicorn in a thread on a free port."""

import asyncio
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import uvicorn

from tests.tiny import random_adapter, tiny_model

PROMPT = "T: {input}\nA:"


@dataclass(frozen=True, slots=True)
class LiveServer:
    """Where it is, and what it serves."""

    url: str
    base_id: str
    adapters: list[str]
    prompted: str
    """The adapter whose manifest has a prompt, and an input cut at 8 characters."""


def publish(root: Path, base: Any, folder: Path, seed: int) -> list[str]:
    """`tickets/1`, `tickets/2` and, with a prompt, `mail/1`."""
    from serving.registry import ManifestFields, Registry

    registry = Registry(root)
    fields = ManifestFields(
        base_model=base.id,
        base_model_digest=base.digest,
        rank=4,
        alpha=16,
        target_modules=("q_proj", "v_proj"),
        prompt=None,
        max_input_chars=None,
        route="tickets",
        answer={"kind": "text"},
        metrics={"test_accuracy": 0.9},
    )
    prompted = msgspec.structs.replace(fields, prompt=PROMPT, max_input_chars=8)
    return [
        registry.publish(
            name,
            random_adapter(
                folder,
                root.parent / f"adapter-{seed + number}",
                seed + number,
                list(given.target_modules),
            ),
            given,
            {},
        ).id
        for number, (name, given) in enumerate(
            [("tickets", fields), ("tickets", fields), ("mail", prompted)]
        )
    ]


@contextmanager
def running(
    root: Path,
    worker_type: type[Any] | None = None,
    pinned: tuple[str, ...] = (),
    **worker_settings: Any,
) -> Iterator[LiveServer]:
    """A server over a fresh model and registry under `root`, with a worker of another type when one is given."""

    from serving import base_model
    from serving.listen import address_of, bind
    from serving.registry import Registry
    from serving.settings import AppSettings

    with (
        warnings.catch_warnings()
    ):  # llguidance's torch part makes torch import what torch deprecates
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
        from serving.app import create_app
        from serving.settings import WorkerSettings
        from serving.worker import Worker

    tiny_model(root / "model")
    base = base_model.load(str(root / "model"), root / "cache")
    adapters = publish(root / "registry", base, root / "model", seed=1)
    registry = Registry(root / "registry")
    kept = WorkerSettings(pinned=frozenset(pinned), **worker_settings)
    worker = (worker_type or Worker)(base, registry, kept)
    listener = bind("127.0.0.1", 0)
    config = uvicorn.Config(
        create_app(worker, registry, AppSettings(pinned=pinned)), log_level="warning", lifespan="on"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield LiveServer(address_of(listener), base.id, adapters, adapters[-1])
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One server for all tests."""
    with running(tmp_path_factory.mktemp("server")) as live:
        yield live


@pytest.fixture(scope="session")
def crowded_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that runs one request at a time and lets one wait."""
    with running(tmp_path_factory.mktemp("crowded"), max_batch=1, queue=1) as live:
        yield live


@pytest.fixture(scope="session")
def faulty_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server whose worker fails as the prompt says, with an adapter of another base model and one that is pinned."""
    from tests.serving.faulty import FaultyWorker, publish_foreign

    root = tmp_path_factory.mktemp("faulty")
    publish_foreign(root)
    with running(root, FaultyWorker, ("tickets/1",)) as live:
        yield live


@pytest.fixture
def http(server: LiveServer) -> Iterator[httpx.Client]:
    """A plain HTTP client of the server."""
    with httpx.Client(base_url=server.url, trust_env=False, timeout=20) as client:
        yield client
