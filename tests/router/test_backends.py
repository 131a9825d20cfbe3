"""A backend's client: whom it waits for, and until when a call is under way."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from router.backends import BackendClient
from router.errors import Overloaded
from router.policy import Backend
from tests.router.conftest import Behaviour, Start, policy_text

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"


@asynccontextmanager
async def backend(bound: int) -> AsyncIterator[tuple[BackendClient, asyncio.Event]]:
    """A client of a server that sends its head and two bytes at once, and the rest when the event is set."""
    goes_on = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(OK + b"ab")
                await goes_on.wait()
                writer.write(b"cd")
        except (asyncio.IncompleteReadError, ConnectionResetError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    config = Backend.model_validate(
        {"kind": "openai", "base_url": f"http://127.0.0.1:{port}", "max_concurrency": bound}
    )
    client = BackendClient("up", config)
    try:
        yield client, goes_on
    finally:
        goes_on.set()
        client.close()
        server.close()
        await asyncio.sleep(0.01)


def test_a_call_is_under_way_until_its_body_has_ended() -> None:
    async def run() -> None:
        async with backend(bound=1) as (client, goes_on):
            reply = await client.send(b"GET", b"/", [])
            assert client.in_flight == 1
            with pytest.raises(Overloaded):
                await client.send(b"GET", b"/", [])
            goes_on.set()
            assert await reply.read() == b"abcd"
            assert client.in_flight == 0
            reply.close()
            assert client.in_flight == 0, "an end counts once"

    asyncio.run(run())


@pytest.mark.parametrize("leaves", ["close", "stream", "cancel"])
def test_a_call_that_is_left_is_no_longer_under_way(leaves: str) -> None:
    async def run() -> None:
        async with backend(bound=1) as (client, _):
            reply = await client.send(b"GET", b"/", [])
            if leaves == "close":
                reply.close()
            elif leaves == "stream":
                pieces = reply.stream()
                assert await anext(pieces) == b"ab"
                await pieces.aclose()
            else:
                task = asyncio.create_task(reply.read())
                await asyncio.sleep(0.01)
                task.cancel()
                await asyncio.wait([task])
            assert client.in_flight == 0

    asyncio.run(run())


def test_a_student_that_asks_for_time_is_replaced_at_once(
    start: Start, behaviour: Behaviour, shared_upstream: tuple[str, Behaviour]
) -> None:
    text = policy_text(shared_upstream[0], "student").replace("attempts: 1", "attempts: 3")
    live = start(text=text)
    behaviour.student_status, behaviour.student_headers = 429, {"retry-after": "2"}
    began = time.monotonic()
    reply = live.ask()
    assert time.monotonic() - began < 1
    assert reply.headers["x-graduate-served-by"] == "teacher"
    (record,) = live.records()
    assert [a.error for a in record.answers] == ["overload", None]


def test_the_teacher_is_waited_for(
    start: Start, behaviour: Behaviour, shared_upstream: tuple[str, Behaviour]
) -> None:
    live = start(text=policy_text(shared_upstream[0]).replace("attempts: 1", "attempts: 2"))
    behaviour.status, behaviour.headers = 429, {"retry-after": "0.3"}
    began = time.monotonic()
    assert live.ask().status_code == 429
    assert time.monotonic() - began >= 0.3
    assert len(behaviour.seen) == 2
