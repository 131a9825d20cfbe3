"""One listening socket and one HTTP server on it, until SIGTERM or Ctrl-C. Knows nothing of what is served.

The socket is bound before anything slow is loaded, so that an occupied port is said at once and by us, not in the
middle of a traceback.
"""

import contextlib
import signal
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn

from serving.errors import OperatorError

Asgi = Callable[
    [
        MutableMapping[str, Any],
        Callable[[], Awaitable[MutableMapping[str, Any]]],
        Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ],
    Awaitable[None],
]


def bind(host: str, port: int) -> socket.socket:
    """A bound, not yet listening socket; port 0 takes a free one.

    Raises:
        OperatorError: the address is in use, not ours, or does not exist; names it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as why:
        raise OperatorError(
            f"--host {host} --port {port} cannot be used: {why.strerror or why}; choose another with --port"
        ) from why
    return listener


def address_of(listener: socket.socket) -> str:
    """`http://host:port` of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """A uvicorn server that calls `on_ready` once it accepts connections."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()


def serve(
    app: Asgi,
    listener: socket.socket,
    *,
    on_ready: Callable[[], None] = lambda: None,
    drain_seconds: float = 30.0,
) -> bool:
    """Serve until a signal ends it; open requests get `drain_seconds` to finish. False when the app did not start."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=int(drain_seconds),
        server_header=False,
    )
    server = Server(config, on_ready)
    # uvicorn drains, then raises the signal again for whoever had it before: a drained server ends with status 0.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, before)
    return server.started
