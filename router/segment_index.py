"""Where each line of a segment lies, without decoding it: kind, id, time, route, offset and length.

An entry takes some 250 bytes whatever its line holds, so ten minutes of traffic fit into memory as entries where they
would not as records. Knows nothing of policies, of merging, or of what is done with the lines.
"""

import os
from collections.abc import Iterator
from typing import BinaryIO, Literal, NamedTuple

import msgspec

from router.records import Line, load

Kind = Literal["record", "answer", "feedback"]


class Entry(NamedTuple):
    """One line of a segment."""

    at: float
    id: str
    kind: Kind
    route: str
    offset: int
    length: int


class _Head(msgspec.Struct):
    """What is read of a line: msgspec checks the rest to be JSON and builds nothing of it."""

    kind: Kind
    id: str
    at: float
    route: str = ""


_decoder = msgspec.json.Decoder(_Head)


def entries(file: BinaryIO, size: int | None = None) -> Iterator[Entry | int]:
    """Entries in the order of the lines, its number for a torn or foreign line; blank lines are left out.

    Args:
        size: read only the first so many bytes; the segment may be growing.
    """
    offset = 0
    for number, data in enumerate(file, 1):
        length = len(data)
        if size is not None and offset + length > size:
            data = data[: size - offset]
        if data.strip():
            try:
                head = _decoder.decode(data)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                yield number
            else:
                yield Entry(head.at, head.id, head.kind, head.route, offset, len(data))
        offset += length
        if size is not None and offset >= size:
            return


def line_at(handle: int, entry: Entry) -> Line | None:
    """The line of an entry, from the file's descriptor; None when it is no record after all.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        return load(os.pread(handle, entry.length, entry.offset))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
