"""Callers that are slow, endless or not speaking HTTP: told so in OpenAI's form, and gone."""

import json
import socket
import time
from collections.abc import Callable

import pytest

from tests.router.conftest import Live, Start

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
BODY = b'{"model":"mail","messages":[{"role":"user","content":"hello"}]}'
BOUNDS = {"head_seconds": 0.4, "body_seconds": 0.4, "max_head_bytes": 4096}


@pytest.fixture
def live(start: Start) -> Live:
    return start(settings=BOUNDS)


def connect(live: Live) -> socket.socket:
    host, _, port = live.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=5)


def rest(sock: socket.socket) -> tuple[int, dict[str, object]]:
    """Status and body of what comes until the connection closes; (0, {}) when nothing does."""
    data = b""
    while piece := sock.recv(65536):
        data += piece
    if not data:
        return 0, {}
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def drip(sock: socket.socket, data: bytes) -> None:
    for number in range(len(data)):
        sock.sendall(data[number : number + 1])
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("send", "status", "said"),
    [
        (lambda s: None, 408, "no whole request head within 0.4 s"),
        (lambda s: s.sendall(HEAD), 408, "no whole request head within 0.4 s"),
        (lambda s: s.sendall(HEAD + b"content-length: 90\r\n\r\n" + BODY), 408, "nothing of the body"),
        (lambda s: s.sendall(HEAD + b"x: " + b"y" * 5000), 431, "more than 4096 bytes"),
        (lambda s: s.sendall(HEAD + b"x: " + b"y" * 5000 + b"\r\n\r\n"), 431, "more than 4096 bytes"),
        (lambda s: s.sendall(b"\x16\x03\x01\x02\x00 what is this\r\n\r\n"), 400, "Invalid HTTP"),
    ],
    ids=["nothing", "half a head", "half a body", "endless head", "large head", "TLS"],
)  # fmt: skip
def test_a_bad_caller_is_told_and_let_go(
    live: Live, send: Callable[[socket.socket], None], status: int, said: str
) -> None:
    with connect(live) as sock:
        send(sock)
        got, body = rest(sock)
    assert got == status
    assert said in body["error"]["message"]  # type: ignore[index]
    assert live.ask().status_code == 200, "the others are served"


def test_a_head_that_drips_is_cut_off_although_something_always_comes(live: Live) -> None:
    began = time.monotonic()
    with connect(live) as sock, pytest.raises(OSError, match=r"reset|[Pp]ipe"):
        drip(sock, HEAD * 3)
    assert time.monotonic() - began < 2


def test_a_body_that_comes_slowly_but_comes_is_taken(live: Live) -> None:
    with connect(live) as sock:
        sock.sendall(HEAD + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(BODY))
        drip(sock, BODY)  # 1.3 s in all, never a pause of 0.4 s
        status, body = rest(sock)
    assert status == 200
    assert body["choices"]


def test_requests_in_one_piece_after_another(live: Live) -> None:
    one = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
    with connect(live) as sock:
        sock.sendall(one * 3)
        seen = b""
        while seen.count(b"HTTP/1.1 200") < 3:
            seen += sock.recv(65536)
