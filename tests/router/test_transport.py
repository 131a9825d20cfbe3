"""The HTTP client against raw sockets that behave and misbehave."""

import asyncio
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from router.connection import HIGH_WATER
from router.errors import BackendError, BadReply, ConnectFailed, TimedOut
from router.transport import Origin, Pool

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@asynccontextmanager
async def server(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()


@asynccontextmanager
async def pool(handler: Handler) -> AsyncIterator[Pool]:
    async with server(handler) as port:
        made = Pool(Origin.parse("up", f"http://127.0.0.1:{port}/v1/"))
        try:
            yield made
        finally:
            made.close()
            await asyncio.sleep(0)


def answers(*replies: bytes) -> Handler:
    """Answers each request head of a connection with the next reply, then closes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in replies:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(reply)
            await writer.drain()

    return handle


async def get(connections: Pool, **limits: float) -> tuple[int, bytes]:
    reply = await connections.request(b"GET", b"/x", [], b"", **limits)
    return reply.status, await reply.read()


def fails(reply: bytes, **limits: float) -> BackendError:
    async def run() -> BackendError:
        async with pool(answers(reply)) as up:
            with pytest.raises(BackendError) as caught:
                await get(up, **limits)
            return caught.value

    return asyncio.run(run())


def test_a_connection_is_used_again_and_the_request_is_as_given() -> None:
    seen: list[bytes] = []
    opened = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            seen.append(head + (await reader.readexactly(3) if b"POST" in head else b""))
            writer.write(OK)

    async def run() -> None:
        async with pool(handle) as up:
            for _ in range(3):
                assert await get(up) == (200, b"ok")
            sent = await up.request(
                b"POST", b"/y?q=1", [(b"X-Odd", b"a"), (b"X-Odd", b"b")], b"abc"
            )
            assert await sent.read() == b"ok"

    asyncio.run(run())
    assert opened == 1
    assert seen[0].startswith(b"GET /v1/x HTTP/1.1\r\nhost: 127.0.0.1:")
    assert b"content-length" not in seen[0]
    assert seen[3].startswith(b"POST /v1/y?q=1 HTTP/1.1\r\n")
    assert seen[3].endswith(b"\r\nX-Odd: a\r\nX-Odd: b\r\ncontent-length: 3\r\n\r\nabc")


def test_requests_at_once_have_connections_of_their_own() -> None:
    async def run() -> None:
        async with pool(answers(OK)) as up:
            assert await asyncio.gather(*(get(up) for _ in range(5))) == [(200, b"ok")] * 5

    asyncio.run(run())


def test_a_connection_that_the_server_closed_is_not_used_again() -> None:
    async def run() -> None:
        async with pool(answers(OK)) as up:
            for _ in range(3):
                assert await get(up) == (200, b"ok")
                await asyncio.sleep(0.02)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("reply", "status", "body"),
    [
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n", 200, b"abcde"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", 200, b"until the end"), (b"HTTP/1.0 200 OK\r\n\r\nold", 200, b"old"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""), (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, 200, b"ok"),
        (b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbusy", 503, b"busy"),
    ],
)  # fmt: skip
def test_replies_of_every_framing(reply: bytes, status: int, body: bytes) -> None:
    async def run() -> None:
        async with pool(answers(reply)) as up:
            assert await get(up) == (status, body)

    asyncio.run(run())


def test_headers_come_back_in_order_and_case() -> None:
    async def run() -> None:
        reply = b"HTTP/1.1 200 OK\r\nX-B: 1\r\nx-a: 2\r\nX-B: 3\r\ncontent-length: 0\r\n\r\n"
        async with pool(answers(reply)) as up:
            found = await up.request(b"GET", b"/", [])
            await found.read()
            assert found.headers[:3] == [(b"X-B", b"1"), (b"x-a", b"2"), (b"X-B", b"3")]
            assert (found.header(b"x-b"), found.header(b"no")) == (b"1", None)

    asyncio.run(run())


def test_a_refused_connection_names_the_address() -> None:
    async def run() -> None:
        async with server(answers(OK)) as port:
            pass
        with pytest.raises(ConnectFailed, match=f"backend up: cannot connect to 127.0.0.1:{port}"):
            await get(Pool(Origin.parse("up", f"http://127.0.0.1:{port}")))

    asyncio.run(run())


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (b"", ConnectFailed), (b"HTTP/1.1 200 OK\r\ncontent-le", ConnectFailed), (b"SSH-2.0-OpenSSH\r\n", BadReply),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", BadReply),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab", BadReply),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", BadReply),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", BadReply), (b"\x16\x03\x01\x00\x05", BadReply),
    ],
)  # fmt: skip
def test_what_is_no_whole_reply_is_a_named_failure(reply: bytes, kind: type[BackendError]) -> None:
    assert type(fails(reply)) is kind


def test_pieces_before_a_cut_are_given_out_first() -> None:
    async def run() -> None:
        cut = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"
        async with pool(answers(cut)) as up:
            reply = await up.request(b"GET", b"/", [])
            seen: list[bytes] = []

            async def take() -> None:
                async for piece in reply.stream():
                    seen.append(piece)  # noqa: PERF401 - the pieces before the failure count

            with pytest.raises(BadReply):
                await take()
            assert b"".join(seen) == b"half"

    asyncio.run(run())


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def halting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")
    await reader.read()


@pytest.mark.parametrize(
    ("handler", "limits"),
    [
        (silent, {"first_byte_seconds": 0.05}),
        (silent, {"total_seconds": 0.05}),
        (halting, {"total_seconds": 0.05}),
    ],
)
def test_a_reply_that_does_not_come_in_time(handler: Handler, limits: dict[str, float]) -> None:
    async def run() -> float:
        async with pool(handler) as up:
            start = time.monotonic()
            with pytest.raises(TimedOut):
                await get(up, **limits)
            return time.monotonic() - start

    assert 0.04 < asyncio.run(run()) < 1


def test_a_slow_reader_holds_the_backend_back() -> None:
    total, sent = 32 << 20, 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        for _ in range(total >> 16):
            writer.write(bytes(1 << 16))
            await writer.drain()
            sent += 1 << 16

    async def run() -> None:
        async with pool(flood) as up:
            reply = await up.request(b"GET", b"/", [])
            await asyncio.sleep(0.2)
            # ours, and what kernel and server buffer between
            assert sent < HIGH_WATER + (12 << 20) < total
            assert reply._connection._held < 2 * HIGH_WATER
            got = 0
            async for piece in reply.stream():
                got += len(piece)
            assert got == total

    asyncio.run(run())


@pytest.mark.parametrize("length", [None, b"6"])
def test_a_body_in_pieces_is_chunked_unless_its_length_is_known(length: bytes | None) -> None:
    seen = bytearray()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        end = b"abcdef" if length else b"0\r\n\r\n"
        while not seen.endswith(end):
            seen.extend(await reader.read(1 << 16))
        writer.write(OK)

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"abc", b"", b"def"):
            yield piece

    async def run() -> None:
        async with pool(handle) as up:
            headers = [(b"content-length", length)] if length else []
            reply = await up.request(b"POST", b"/up", headers, pieces())
            assert await reply.read() == b"ok"

    asyncio.run(run())
    head, _, body = bytes(seen).partition(b"\r\n\r\n")
    assert (b"chunked" in head) is (length is None)
    assert body == (b"abcdef" if length else b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n")


def test_a_backend_that_takes_no_upload_is_given_up_in_time() -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.5)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 16)

    async def run() -> None:
        async with pool(deaf) as up:
            async with asyncio.timeout(2):
                with pytest.raises(TimedOut):
                    await up.request(b"POST", b"/", [], endless(), total_seconds=0.2)

    asyncio.run(run())


def test_an_answer_before_the_end_of_the_upload_ends_the_upload() -> None:
    async def impatient(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig")
        await asyncio.sleep(0.2)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 16)

    async def run() -> None:
        async with pool(impatient) as up:
            reply = await up.request(b"POST", b"/", [], endless(), total_seconds=1)
            assert (reply.status, await reply.read()) == (413, b"big")
            assert not up._idle

    asyncio.run(run())


def test_leaving_a_stream_early_closes_the_connection() -> None:
    async def run() -> None:
        gone = asyncio.Event()

        async def watched(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await halting(reader, writer)
            finally:
                gone.set()

        async with pool(watched) as up:
            reply = await up.request(b"GET", b"/", [])
            reply.close()
            await asyncio.wait_for(gone.wait(), 2)

    asyncio.run(run())


def test_a_certificate_that_nobody_signed_is_refused(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.load_cert_chain(cert, key)

    async def run() -> None:
        async with server(answers(OK), ours) as port:
            origin = Origin.parse("up", f"https://localhost:{port}")
            with pytest.raises(ConnectFailed, match="TLS"):
                await get(Pool(origin))
            trusting = Pool(origin, ssl.create_default_context(cafile=str(cert)))
            assert await get(trusting) == (200, b"ok")
            trusting.close()
            await asyncio.sleep(0.01)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("url", "host", "port", "prefix", "header"),
    [
        ("https://a.example/v1/", "a.example", 443, b"/v1", b"a.example"), ("http://a:81", "a", 81, b"", b"a:81"),
        ("http://[::1]:8080/x", "::1", 8080, b"/x", b"[::1]:8080"), ("http://a", "a", 80, b"", b"a"),
    ],
)  # fmt: skip
def test_origins(url: str, host: str, port: int, prefix: bytes, header: bytes) -> None:
    origin = Origin.parse("up", url)
    assert (origin.host, origin.port, origin.prefix, origin.host_header) == (host, port, prefix, header)  # fmt: skip
