"""Several router processes behind one port: a parent that starts, watches and stops them, and shows their metrics as one.

Each worker has a listening socket of its own on the port (`SO_REUSEPORT`: the kernel spreads connections); the parent
keeps all of them open, so connections that wait for a worker that died are taken by the one that follows it. Workers
share no memory: each writes its own segments of the one log, callers' limits lie in one file, counters in one folder.
"""

import asyncio
import collections
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING

from router.errors import SettingsError
from router.serve import Server, admin_server, bind, caller_server, settle_memory, stop_at_signals
from router.settings import RouterSettings

if TYPE_CHECKING:
    from router.admin import AdminView

logger = logging.getLogger(__name__)

METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client's own variable: it keeps values in files of this folder."""
MAX_DEATHS_A_MINUTE = 10
"""More, and the workers are not started again: something is wrong that a restart does not mend."""


def supervise(settings: RouterSettings, admin: socket.socket) -> None:
    """Serve with `settings.workers` processes until SIGTERM or Ctrl-C.

    Raises:
        SettingsError, PolicyError, OSError: what the operator has to change.
    """
    # Imported before the variable is set: the parent's own values stay in memory, the workers' go into the folder.
    import router.metrics  # noqa: F401

    sockets = _shared_sockets(settings)
    folder = tempfile.mkdtemp(prefix="graduate-metrics-")
    os.environ[METRICS_FOLDER] = folder
    try:
        asyncio.run(_Parent(settings, sockets, Path(folder)).serve(admin))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _shared_sockets(settings: RouterSettings) -> list[socket.socket]:
    # Asked for alone first: with SO_REUSEPORT another router's port would be shared silently.
    bind(settings.host, settings.port, "router", "--port").close()
    first = bind(settings.host, settings.port, "router", "--port", shared=True)
    port = first.getsockname()[1]
    more = [
        bind(settings.host, port, "router", "--port", shared=True)
        for _ in range(settings.workers - 1)
    ]
    return [first, *more]


@dataclass(slots=True)
class _Parent:
    settings: RouterSettings
    sockets: list[socket.socket]
    folder: Path
    workers: list[SpawnProcess] = field(default_factory=list)
    deaths: collections.deque[float] = field(default_factory=collections.deque)
    is_stopping: bool = False

    async def serve(self, admin: socket.socket) -> None:
        """Start the workers and the admin pages; returns when all have stopped."""
        from router.admin import admin_app

        pages = _Pages(self.settings, self.folder)
        back = admin_server(admin_app(pages.view()), self.settings)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        self.workers = [self._start(sock) for sock in self.sockets]
        tasks = [
            asyncio.create_task(back.serve(sockets=[admin])),
            asyncio.create_task(pages.watch()),
        ]
        try:
            await self._until_stopped()
        finally:
            back.should_exit = True
            tasks[1].cancel()
            await tasks[0]

    def _start(self, sock: socket.socket) -> SpawnProcess:
        context = multiprocessing.get_context("spawn")
        worker = context.Process(target=work, args=(self.settings, sock, os.getpid()), daemon=True)
        worker.start()
        return worker

    async def _until_stopped(self) -> None:
        deadline: float | None = None
        while True:
            await asyncio.sleep(0.1)
            if self.is_stopping:
                deadline = deadline or time.monotonic() + self.settings.drain_seconds + 10
                if not any(worker.is_alive() for worker in self.workers):
                    return
                if time.monotonic() > deadline:
                    for worker in self.workers:
                        worker.kill()
                continue
            for number, worker in enumerate(self.workers):
                if not worker.is_alive():
                    self.workers[number] = self._again(worker, self.sockets[number])

    def _again(self, dead: SpawnProcess, sock: socket.socket) -> SpawnProcess:
        """Another worker in a dead one's place.

        Raises:
            SettingsError: too many died.
        """
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(dead.pid, str(self.folder))  # type: ignore[no-untyped-call]
        now = time.monotonic()
        self.deaths.append(now)
        while now - self.deaths[0] > 60:
            self.deaths.popleft()
        if len(self.deaths) > MAX_DEATHS_A_MINUTE:
            self._stop()
            raise SettingsError(
                f"{len(self.deaths)} workers died within a minute, the last with exit status {dead.exitcode}; "
                "their own messages are above"
            )
        logger.error("worker %s died with exit status %s; another starts", dead.pid, dead.exitcode)
        return self._start(sock)

    def _stop(self) -> None:
        """Tell the workers to drain; a second signal is passed on, and they drop what is left."""
        self.is_stopping = True
        for worker in self.workers:
            if worker.is_alive() and worker.pid is not None:
                os.kill(worker.pid, signal.SIGTERM)


class _Pages:
    """What the admin pages show of the workers: the files that they leave, and the policy as the parent reads it."""

    def __init__(self, settings: RouterSettings, folder: Path) -> None:
        from prometheus_client import CollectorRegistry
        from prometheus_client.multiprocess import MultiProcessCollector

        from router.home import Home
        from router.metrics import RouterMetrics
        from router.state import PolicyState

        # The parent's own counters go nowhere: what is in force and what was counted are the workers' to say.
        own = RouterMetrics(CollectorRegistry())
        self._every_seconds = settings.reload_seconds
        self._state = PolicyState(
            settings.policy, Home(settings.home), own, needs_keys=settings.needs_keys
        )
        self._registry = CollectorRegistry()
        MultiProcessCollector(self._registry, path=str(folder))  # type: ignore[no-untyped-call]

    def view(self) -> "AdminView":
        """For the admin application."""
        from router.admin import AdminView

        return AdminView(
            self._state, self._registry, lambda: None, self._breakers, self._log_trouble
        )

    async def watch(self) -> None:
        """Keep the policy fresh, for ever."""
        while True:
            await asyncio.sleep(self._every_seconds)
            self._state.reload_if_changed()

    def _gauge(self, name: str) -> dict[str, float]:
        return {
            sample.labels.get("backend", ""): sample.value
            for metric in self._registry.collect()
            if metric.name == name
            for sample in metric.samples
        }

    def _breakers(self) -> dict[str, str]:
        found = self._gauge("graduate_router_breaker_open")
        return {name: "open" if value else "closed" for name, value in found.items()}

    def _log_trouble(self) -> tuple[int, str | None]:
        dropped = int(self._gauge("graduate_router_log_drops").get("", 0))
        return dropped, "the disk refused lines; the workers' output says why" if dropped else None


def work(settings: RouterSettings, sock: socket.socket, parent: int) -> None:
    """One worker, in a process of its own."""
    import uvloop

    logging.basicConfig(
        level=logging.INFO,
        format=f"%(asctime)s %(levelname)s worker {os.getpid()} %(name)s %(message)s",
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_work(settings, sock, parent))


async def _work(settings: RouterSettings, sock: socket.socket, parent: int) -> None:
    from router.app import Router, running

    router = Router.build(settings)
    front = caller_server(router)
    stop_at_signals(front)
    settle_memory()
    async with running(router):
        orphan = asyncio.create_task(_stop_without(parent, front))
        await front.serve(sockets=[sock])
        orphan.cancel()


async def _stop_without(parent: int, server: Server) -> None:
    """A worker whose parent was killed drains and goes: nobody would ever stop it."""
    while os.getppid() == parent:  # noqa: ASYNC110 - no event tells of it
        await asyncio.sleep(0.5)
    logger.error("the parent is gone; this worker drains and stops")
    server.should_exit = True
