"""JSON texts of people's files, addresses, and what is wrong with an answer under a route's spec, in words. Pure."""

import json
from collections.abc import Sequence
from typing import Any

import httpx

from router.answer_spec import AnswerSpec
from router.compare import parse
from training.errors import ConfigError, DataError
from training.tools import calls_problem


def json_of(text: str, place: str) -> Any:
    """The value of a JSON text.

    Raises:
        DataError: it is none, or holds half a character (a lone surrogate), which no file and no server takes.
    """
    try:
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as why:
        half = why.object[why.start]
        raise DataError(f"{place}: half a character: {half!r}: allowed: whole ones") from why
    except (ValueError, RecursionError) as why:
        line = getattr(why, "lineno", None)
        inside = "" if line is None or ": " in place else f": line {line}"
        raise DataError(f"{place}{inside}: not JSON: {why}") from why
    return value


def misfit(spec: AnswerSpec, answer: str, tools: Sequence[dict[str, Any]] = ()) -> str | None:
    """What is wrong with an answer under the spec: the field, its value and what is allowed; None when nothing is.

    Args:
        tools: those of the request, for answers that call them.
    """
    if spec.kind == "tool_call":
        return calls_problem(spec, answer, tools)
    value = parse(spec, answer)
    if value is None:
        wanted = {
            "label": ", ".join(spec.labels),
            "json": "JSON" + "".join(f" with {name!r}" for name in spec.compare.fields),
        }.get(spec.kind, f"an answer of kind {spec.kind}")
        return f"{answer!r:.80}: allowed: {wanted}"
    if spec.kind != "json" or spec.validator is None:
        return None
    error = next(iter(spec.validator.iter_errors(value)), None)
    if error is None:
        return None
    field = ".".join(map(str, error.instance_path))
    return f"{field + ': ' if field else ''}{error.message}"


def address(said: str, flag: str) -> str:
    """The address of a server as it was said.

    Raises:
        ConfigError: it is none.
    """
    try:
        url = httpx.URL(said)
    except httpx.InvalidURL as why:
        raise ConfigError(f"{flag} {said!r}: {why}: allowed: http://HOST:PORT") from why
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"{flag} {said!r}: allowed: http://HOST:PORT or https://HOST")
    return said
