"""Running the router until SIGTERM, then draining: its servers in one process, or several workers under a parent."""

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from router.app import CallerApp, Router, running
from router.errors import SettingsError
from router.protocol import bounded
from router.settings import RouterSettings

KEEP_ALIVE_SECONDS = 75
"""Idle connections are kept longer than load balancers keep theirs (60 s), which would else send into a closing one."""


class Server(uvicorn.Server):
    """A server that leaves the signals to us: uvicorn raises them again when it ends, before the log is closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int, what: str, option: str, *, shared: bool = False) -> socket.socket:
    """A listening socket.

    Args:
        shared: other sockets will listen on the port too (`SO_REUSEPORT`).

    Raises:
        SettingsError: the port cannot be had; the message names it and the option for another.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((host, port))
    except OSError as why:
        sock.close()
        raise SettingsError(
            f"port {port} of {host} ({what}) cannot be used: {why.strerror}; choose another with {option}"
        ) from why
    sock.listen(2048)
    sock.set_inheritable(True)
    return sock


def settle_memory() -> None:
    """Take what start-up made out of the garbage collector's sight: it would walk through all of it again and again.

    What requests make is nearly all freed by counting; the rest is looked for ten times as rarely as by default.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(7_000, 20, 50)


def caller_server(router: Router) -> Server:
    """The callers' server."""
    settings = router.settings
    app = CallerApp(router)
    protocol = bounded(
        settings.max_head_bytes,
        settings.head_seconds,
        settings.body_seconds,
        KEEP_ALIVE_SECONDS,
        app.hot,
    )
    return Server(
        uvicorn.Config(
            app,
            http=protocol,
            proxy_headers=False,
            ws="none",
            **common(settings),
        )
    )


def admin_server(app: Any, settings: RouterSettings) -> Server:
    """The operators' server."""
    return Server(uvicorn.Config(app, **common(settings)))


def common(settings: RouterSettings) -> dict[str, Any]:
    """What both servers are told."""
    return {
        "log_level": "warning", "access_log": False, "lifespan": "off",
        "timeout_graceful_shutdown": int(settings.drain_seconds),
    }  # fmt: skip


async def _serve(settings: RouterSettings, caller: socket.socket, admin: socket.socket) -> None:
    from router.admin import AdminView, admin_app

    router = Router.build(settings)
    front = caller_server(router)
    back = admin_server(admin_app(AdminView.of(router)), settings)
    stop_at_signals(front)
    settle_memory()
    async with running(router):
        serving = asyncio.create_task(back.serve(sockets=[admin]))
        await front.serve(sockets=[caller])
        back.should_exit = True
        await serving


def stop_at_signals(server: Server) -> None:
    """Drain at the first SIGTERM or Ctrl-C, drop what is left at the second."""

    def stop() -> None:
        server.force_exit = server.should_exit
        server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)


def run(settings: RouterSettings) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        SettingsError, PolicyError, OSError: what the operator has to change.
    """
    admin = bind(settings.admin_host, settings.admin_port, "router's admin pages", "--admin-port")
    if settings.workers > 1:
        from router.workers import supervise

        supervise(settings, admin)
        return
    caller = bind(settings.host, settings.port, "router", "--port")
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, caller, admin))
