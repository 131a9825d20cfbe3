"""A head that is remembered is taken for the same head again, and for nothing else."""

import pytest

from router.heads import MAX_HEADS, Head, KnownHeads

PATH = "/v1/chat/completions"
LINES = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nAuthorization: k"


def request(body: bytes, lines: bytes = LINES) -> bytes:
    return lines % len(body) + b"\r\n\r\n" + body


def head(*headers: tuple[bytes, bytes], keeps_alive: bool = True, version: str = "1.1") -> Head:
    found = (*headers, (b"content-length", b"2"))
    names = {name.decode(): value.decode() for name, value in found}
    return Head("POST", PATH, PATH.encode(), b"", version, found, names, keeps_alive)


def known(lines: bytes = LINES, given: Head | None = None) -> KnownHeads:
    found = KnownHeads()
    found.keep(request(b"{}", lines), given or head((b"host", b"x"), (b"authorization", b"k")))
    return found


def test_another_length_is_the_same_head() -> None:
    found = known().find(request(b'{"a": 1}'))
    assert found is not None
    assert found[0].names == {"host": "x", "authorization": "k"}
    assert found[0].headers == ((b"host", b"x"), (b"authorization", b"k"))
    assert found[1] == b'{"a": 1}'


@pytest.mark.parametrize(
    "data",
    [
        b"", request(b"{}")[:-1], request(b"{}") + b"x", request(b"{}") * 2, request(b"{}", LINES.replace(b": k", b": K")),
        request(b"{}", LINES + b"\r\nContent-Length: 2"), request(b"{}", LINES + b"\r\nTransfer-Encoding: chunked"),
        request(b"{}").replace(b": 2\r", b": +2\r"), request(b"{}").replace(b": 2\r", b": 2 \r"), request(b"{}").replace(b": 2\r", b": 0x2\r"),
        request(b"{}").replace(b": 2\r\n", b": 2\r\n 2\r\n"), request(b"{}").replace(b": 2\r", b": 0000000002\r"),
        b"\r\nContent-Length: 0\r\n\r\n", LINES % 2 + b"\r\n\r\n",
    ],
)  # fmt: skip
def test_anything_else_is_the_parsers(data: bytes) -> None:
    assert known().find(data) is None


@pytest.mark.parametrize(
    ("lines", "given"),
    [
        (LINES, head(keeps_alive=False)), (LINES, head(version="1.0")), (LINES, head((b"connection", b"keep-alive"))),
        (LINES, head((b"expect", b"100-continue"))), (LINES, head((b"transfer-encoding", b"chunked"))),
        (LINES + b"\r\ncontent-length: 2", head()), (LINES + b"\r\n folded", head()), (LINES + b"a" * 5000, head()),
    ],
)  # fmt: skip
def test_what_is_framed_otherwise_is_not_remembered(lines: bytes, given: Head) -> None:
    assert known(lines, given).find(request(b"{}", lines)) is None


def test_heads_that_never_come_twice_do_not_fill_the_memory() -> None:
    found = KnownHeads()
    for number in range(3 * MAX_HEADS):
        found.keep(request(b"{}", LINES + b"%d" % number), head())
    assert 0 < len(found._heads) <= MAX_HEADS
