"""Real servers for the router's tests: an upstream that can be told to misbehave, and a router in front of it."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
import yaml

from router.admin import AdminView, admin_app
from router.app import Router, running
from router.records import Record
from router.serve import admin_server, bind, caller_server
from router.settings import RouterSettings
from router.traffic import scan
from tests.router.upstream import Behaviour as Behaviour  # tests take it from here
from tests.router.upstream import upstream


class ThreadServer(uvicorn.Server):
    """uvicorn in a thread, on a free port."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The address of an application that is served while the block lasts."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off")
    server = ThreadServer(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="session")
def shared_upstream() -> Iterator[tuple[str, Behaviour]]:
    behaviour = Behaviour()
    with serving(upstream(behaviour)) as address:
        yield address, behaviour


@pytest.fixture
def behaviour(shared_upstream: tuple[str, Behaviour]) -> Behaviour:
    """The upstream's behaviour, as if it had just been started."""
    found = shared_upstream[1]
    found.__init__()  # type: ignore[misc]
    return found


@dataclass
class Live:
    """A running router in front of the upstream."""

    url: str
    admin: str
    home: Path
    policy: Path
    upstream: str
    router: Router
    client: httpx.Client

    def ask(
        self, text: str = "hello", *, headers: dict[str, str] | None = None, **more: Any
    ) -> httpx.Response:
        """A chat request."""
        body = {"model": "mail", "messages": [{"role": "user", "content": text}], **more}
        return self.client.post("/v1/chat/completions", json=body, headers=headers)

    def records(
        self, count: int = 1, *, settled: Callable[[Record], bool] = lambda record: True
    ) -> list[Record]:
        """The log's records, once there are so many and all have settled."""
        deadline = time.monotonic() + 5
        while True:
            found = list(scan(self.home / "traffic"))
            if len(found) >= count and all(map(settled, found)):
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.02)

    def metric(self, name: str) -> float:
        """Sum of a metric over its labels."""
        text = httpx.get(f"{self.admin}/metrics", trust_env=False).text
        return sum(
            float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name)
        )


def policy_text(upstream_address: str, mode: str = "teacher", **more: Any) -> str:
    """A policy with one route, `mail`, over the upstream."""
    student = {
        "backend": "students",
        "adapter": "mail",
        "version": 3,
        "prompt": "Mail: {input}\nAnswer:",
    }
    route = {
        "match": {"model": "mail"}, "teacher": {"backend": "up"}, "student": student, "mode": mode,
        "answer": {"kind": "text", "compare": {"comparator": "exact"}}, **more,
    }  # fmt: skip
    backends = {
        "up": {
            "kind": "openai", "base_url": f"{upstream_address}/v1", "price": {"input": 1, "output": 2},
            "timeout": {"connect": "1s", "first_token": "1s", "total": "3s"}, "retries": {"attempts": 1},
        },
        "students": {
            "kind": "lorax", "base_url": upstream_address, "retries": {"attempts": 1},
            "timeout": {"connect": "1s", "first_token": "500ms", "total": "2s"},
        },
    }  # fmt: skip
    policy = {
        "version": 1,
        "backends": backends,
        "routes": {"mail": route},
        "default": {"teacher": {"backend": "up"}},
    }
    return yaml.safe_dump(policy)


Start = Callable[..., Live]


@pytest.fixture
def start(
    shared_upstream: tuple[str, Behaviour], behaviour: Behaviour, tmp_path: Path
) -> Iterator[Start]:
    """Starts a router with a mode and more route keys."""
    address, _ = shared_upstream
    stops: list[Callable[[], None]] = []

    def begin(
        mode: str = "teacher",
        *,
        text: str | None = None,
        settings: dict[str, Any] | None = None,
        **more: Any,
    ) -> Live:
        policy = tmp_path / "policy.yaml"
        policy.write_text(text or policy_text(address, mode, **more))
        chosen = RouterSettings(policy, tmp_path, reload_seconds=0.05, **(settings or {}))
        live, stop = launch(chosen, address)
        stops.append(stop)
        return live

    yield begin
    for stop in stops:
        stop()


def launch(settings: RouterSettings, address: str) -> tuple[Live, Callable[[], None]]:
    """A router in a thread with its own event loop."""
    made: dict[str, Any] = {}
    is_up, done = threading.Event(), threading.Event()

    async def serve() -> None:
        router = Router.build(settings)
        servers = [
            caller_server(router),
            admin_server(admin_app(AdminView.of(router)), settings),
        ]
        sockets = [bind("127.0.0.1", 0, "test", "--port") for _ in servers]
        async with running(router):
            pairs = zip(servers, sockets, strict=True)
            tasks = [asyncio.create_task(s.serve(sockets=[sock])) for s, sock in pairs]
            while not all(s.started for s in servers):
                await asyncio.sleep(0.005)
            ports = [sock.getsockname()[1] for sock in sockets]
            made.update(router=router, ports=ports, servers=servers)
            is_up.set()
            await asyncio.gather(*tasks)

    def run() -> None:
        try:
            asyncio.run(serve())
        finally:
            done.set()
            is_up.set()

    threading.Thread(target=run, daemon=True).start()
    assert is_up.wait(10)
    assert made, "the router did not start"
    url, admin = (f"http://127.0.0.1:{port}" for port in made["ports"])
    client = httpx.Client(base_url=url, trust_env=False, timeout=10)
    live = Live(url, admin, settings.home, settings.policy, address, made["router"], client)

    def stop() -> None:
        client.close()
        for server in made["servers"]:
            server.should_exit = True
        assert done.wait(10)

    return live, stop
