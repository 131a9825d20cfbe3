"""Running the router's two servers in one event loop until SIGTERM, then draining."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator

import uvicorn

from router.app import CallerApp, Router, admin_app, running
from router.errors import SettingsError
from router.settings import RouterSettings


class _Server(uvicorn.Server):
    """A server that leaves the signals to us: uvicorn raises them again when it ends, before the log is closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int, what: str, option: str) -> socket.socket:
    """A listening socket.

    Raises:
        SettingsError: the port cannot be had; the message names it and the option for another.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
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


async def _serve(settings: RouterSettings, caller: socket.socket, admin: socket.socket) -> None:
    router = Router.build(settings)
    common = {
        "log_level": "warning",
        "access_log": False,
        "lifespan": "off",
        "timeout_graceful_shutdown": int(settings.drain_seconds),
    }
    front = _Server(
        uvicorn.Config(
            CallerApp(router),
            http="httptools",
            server_header=False,
            date_header=False,
            **common,  # type: ignore[arg-type]
        )
    )
    back = _Server(uvicorn.Config(admin_app(router), **common))  # type: ignore[arg-type]
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, front)
    async with running(router):
        serving = asyncio.create_task(back.serve(sockets=[admin]))
        await front.serve(sockets=[caller])
        back.should_exit = True
        await serving


def _stop(server: uvicorn.Server) -> None:
    """Drain at the first signal, drop what is left at the second."""
    server.force_exit = server.should_exit
    server.should_exit = True


def run(settings: RouterSettings) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        SettingsError, PolicyError, OSError: what the operator has to change.
    """
    caller = bind(settings.host, settings.port, "router", "--port")
    admin = bind(settings.admin_host, settings.admin_port, "router's admin pages", "--admin-port")
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, caller, admin))
