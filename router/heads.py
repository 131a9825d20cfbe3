"""Heads of callers' requests, and the memory of those seen before.

A caller on a kept-alive connection sends the same head again and again, but for its content-length. A head that was
parsed once, and now comes with another length only, is not parsed again. Knows HTTP's framing and no application.
"""

import re
from dataclasses import dataclass

from router.transport import Header

MAX_HEADS = 512
MAX_HEAD_BYTES = 4096
"""A longer head is not remembered."""
MAX_LENGTH_DIGITS = 9
_LENGTH_SPELLINGS = (b"\r\nContent-Length: ", b"\r\ncontent-length: ")
_LENGTH = re.compile(rb"^content-length", re.IGNORECASE | re.MULTILINE)
_FOLDED = re.compile(rb"\n[ \t]")


@dataclass(slots=True, frozen=True)
class Head:
    """A request's head as the parser found it."""

    method: str
    path: str
    raw_path: bytes
    query: bytes
    version: str
    headers: tuple[Header, ...]
    """Names in lower case, in order."""
    names: dict[str, str]
    """The headers by name; of several with one name the last. Without the content-length where the head is remembered."""
    keeps_alive: bool


class KnownHeads:
    """Heads by their bytes without the line of the content-length.

    Only heads that the parser took are kept, with exactly one content-length and no other framing; what differs from
    one of them in that line alone, and has digits and nothing else there, is framed by that number for the parser too.
    """

    def __init__(self) -> None:
        self._heads: dict[bytes, Head] = {}

    def find(self, data: bytes) -> tuple[Head, bytes] | None:
        """Head and body when `data` is one whole request whose head is known."""
        split = _split(data)
        if split is None:
            return None
        key, body = split
        head = self._heads.get(key)
        return None if head is None else (head, body)

    def keep(self, data: bytes, head: Head) -> None:
        """Remember the head of `data`, which the parser took for one whole request without anything behind it."""
        split = _split(data)
        if split is None or len(split[0]) > MAX_HEAD_BYTES or not _is_plain(split[0], head):
            return
        if len(self._heads) >= MAX_HEADS:  # callers whose heads never come twice: begin again
            self._heads.clear()
        headers = tuple(header for header in head.headers if header[0] != b"content-length")
        names = {name: value for name, value in head.names.items() if name != "content-length"}
        self._heads[split[0]] = Head(
            head.method, head.path, head.raw_path, head.query, head.version, headers, names, True
        )


def _split(data: bytes) -> tuple[bytes, bytes] | None:
    """The head without its content-length line, and the body; None unless the body is as long as that line says."""
    end = data.find(b"\r\n\r\n")
    for spelling in _LENGTH_SPELLINGS:
        begin = data.find(spelling, 0, end)
        if begin > 0:
            break
    else:
        return None
    digits = begin + len(spelling)
    after = data.find(b"\r\n", digits)
    number = data[digits:after]
    if not number.isdigit() or len(number) > MAX_LENGTH_DIGITS:
        return None
    if len(data) != end + 4 + int(number):
        return None
    return data[:begin] + data[after:end], data[end + 4 :]


def _is_plain(key: bytes, head: Head) -> bool:
    names = {name for name, _ in head.headers}
    return (
        head.keeps_alive
        and head.version == "1.1"
        and names.isdisjoint((b"transfer-encoding", b"expect", b"upgrade", b"connection"))
        and _LENGTH.search(key) is None
        and _FOLDED.search(key) is None
    )
