"""Kubernetes' protobuf form, as far as helm 4 sends it."""

import base64
from collections.abc import Iterator
from typing import Any

from tests.helm.kube_api import Object


def _wire_fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Fields of a protobuf message: varints and byte strings."""

    def varint(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value, at

    at = 0
    while at < len(data):
        tag, at = varint(at)
        if tag & 7 == 0:
            value, at = varint(at)
            yield tag >> 3, value
        elif tag & 7 == 2:
            length, at = varint(at)
            yield tag >> 3, data[at : at + length]
            at += length
        else:
            raise ValueError(f"wire type {tag & 7}")


def from_protobuf(raw: bytes) -> Object:
    """A Secret or Namespace as helm 4 posts it; other kinds come as JSON."""
    envelope = dict(_wire_fields(raw[4:]))
    kind = {number: text.decode() for number, text in _wire_fields(envelope[1])}
    found: Object = {"apiVersion": kind[1], "kind": kind[2], "metadata": {}}
    for number, value in _wire_fields(envelope[2]):
        if number == 1:
            for inner, text in _wire_fields(value):
                if inner in (1, 3):
                    found["metadata"]["name" if inner == 1 else "namespace"] = text.decode()
                elif inner in (11, 12):
                    entry = {n: t.decode() for n, t in _wire_fields(text)}
                    name = "labels" if inner == 11 else "annotations"
                    found["metadata"].setdefault(name, {})[entry[1]] = entry.get(2, "")
        elif number == 2 and kind[2] == "Secret":
            entry = dict(_wire_fields(value))
            found.setdefault("data", {})[entry[1].decode()] = base64.b64encode(entry[2]).decode()
        elif number == 3 and kind[2] == "Secret":
            found["type"] = value.decode()
    return found
