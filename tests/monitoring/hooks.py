"""Real HTTP servers in threads: a receiver of webhooks, that answers as it is told and remembers what it got; and any app."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import uvicorn
from starlette.applications import Starlette


class Receiver:
    """`status` and `delay_seconds` of the answers to come; `got`: path, headers (lower case) and JSON of each request."""

    def __init__(self) -> None:
        self.status = 200
        self.delay_seconds = 0.0
        self.got: list[tuple[str, dict[str, str], Any]] = []
        self.url = ""

    @property
    def bodies(self) -> list[Any]:
        """JSON of each request."""
        return [body for _, _, body in self.got]


@contextlib.contextmanager
def receiver() -> Iterator[Receiver]:
    """One that runs."""
    here = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            headers = {k.lower(): v for k, v in self.headers.items()}
            here.got.append((self.path, headers, json.loads(content)))
            time.sleep(here.delay_seconds)
            said = b"told so"
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.send_response(here.status)
                self.send_header("content-length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield here
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def serving(app: Starlette) -> Iterator[int]:
    """The app on a port."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield place.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()
