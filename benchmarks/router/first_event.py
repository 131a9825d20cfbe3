"""Streams over a few connections and says when the first event was there: `python first_event.py PORT SECONDS`.

Runs as its own process on the load's core. Prints one JSON object: `streams`, `errors`, `p50_ms`, `p99_ms`.
"""

import asyncio
import contextlib
import json
import re
import sys
import time

CONNECTIONS = 4
FILLER = "Classify the customer message into one of the labels and answer in JSON. " * 10
BODY = json.dumps(
    {
        "model": "bench-model",
        "messages": [
            {"role": "system", "content": FILLER},
            {"role": "user", "content": "My parcel has not arrived."},
        ],
        "temperature": 0.2,
        "max_tokens": 128,
        "user": "user-1234",
        "stream": True,
    },
    separators=(",", ":"),
).encode()
HEAD = (
    f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    f"authorization: Bearer sk-bench\r\ncontent-length: {len(BODY)}\r\n\r\n"
).encode()


async def _one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
    """Milliseconds to the first event of one stream, which is read to its end.

    Raises:
        ConnectionError: it broke off, or was no stream.
    """
    began = time.perf_counter()
    writer.write(HEAD + BODY)
    data, first = b"", 0.0
    while not _is_whole(data):
        piece = await reader.read(65536)
        if not piece:
            raise ConnectionError("closed early")
        data += piece
        if not first and b"data:" in data:
            first = time.perf_counter() - began
    if not data.startswith(b"HTTP/1.1 200") or b"data: [DONE]" not in data:
        raise ConnectionError("not a whole stream")
    return first * 1e3


def _is_whole(data: bytes) -> bool:
    """Whether the reply is at its end: events come in chunks, or all at once with their length."""
    head, gap, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
    if length is None:
        return body.endswith(b"0\r\n\r\n")
    return bool(gap) and len(body) >= int(length[1])


async def _connection(port: int, until: float, found: list[float]) -> int:
    """Streams one after the other until the time is over; how many failed."""
    errors = 0
    while time.perf_counter() < until and errors < 20:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            while time.perf_counter() < until:
                found.append(await _one(reader, writer))
            writer.close()
        except OSError:
            errors += 1
            await asyncio.sleep(0.05)
    return errors


async def main(port: int, seconds: float) -> dict[str, float]:
    """Figures of all connections."""
    found: list[float] = []
    until = time.perf_counter() + seconds
    errors = await asyncio.gather(*(_connection(port, until, found) for _ in range(CONNECTIONS)))
    found.sort()
    result: dict[str, float] = {"streams": len(found), "errors": sum(errors)}
    with contextlib.suppress(IndexError):
        result["p50_ms"] = round(found[len(found) // 2], 3)
        result["p99_ms"] = round(found[int(len(found) * 0.99)], 3)
    return result


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))))
