"""Running the router's two servers in one event loop until SIGTERM, then draining."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn

from router.app import CallerApp, Router, admin_app, running
from router.errors import SettingsError
from router.settings import RouterSettings


class _Quiet(uvicorn.Server):
    """A second server beside one that has the signals."""

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
    front = uvicorn.Server(
        uvicorn.Config(
            CallerApp(router),
            http="httptools",
            server_header=False,
            date_header=False,
            **common,  # type: ignore[arg-type]
        )
    )
    back = _Quiet(uvicorn.Config(admin_app(router), **common))  # type: ignore[arg-type]
    async with running(router):
        serving = asyncio.create_task(back.serve(sockets=[admin]))
        await front.serve(sockets=[caller])
        back.should_exit = True
        await serving


def run(settings: RouterSettings) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        SettingsError, PolicyError, OSError: what the operator has to change.
    """
    caller = bind(settings.host, settings.port, "router", "--port")
    admin = bind(settings.admin_host, settings.admin_port, "router's admin pages", "--admin-port")
    import uvloop

    with (
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        contextlib.suppress(KeyboardInterrupt),
    ):
        runner.run(_serve(settings, caller, admin))
