"""Where each of the other tools' formats keeps input, answer, gold, user and time: one function a format.

A function takes one entry and gives its `Parts`, says that it is no row (`Skip`), or refuses it by line and field.
Reads no file: `imports` does.
"""

import datetime
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from router.tool_calls import written
from training.build import Keys
from training.errors import ConfigError, DataError
from training.tools import Tools, calls_of, tool_choice_of, tools_of

Entry = dict[str, Any]
REDACTED = "redacted-by-litellm"


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the fields beside input and answers: JSON keys of our own format and of Evals items, columns of a CSV."""

    keys: Keys = field(default_factory=Keys)
    id: str = "id"
    user: str = "user"
    at: str = "at"
    system: str = "system"
    gold_template: str | None = None
    """The gold answer of a CSV cell, which stands for `{}`: `{"is_bad": {}}` makes a JSON answer of 0 and 1."""

    @classmethod
    def parse(cls, keys: Keys, assignments: list[str]) -> "Columns":
        """`["user=customer", "id=row"]` laid over the defaults; `gold` is a template with `{}` for the cell.

        Raises:
            ConfigError: no `=`, or an unknown name.
        """
        chosen: dict[str, str] = {}
        for assignment in assignments:
            name, equals, column = assignment.partition("=")
            if not equals or not column or name not in ("id", "user", "at", "system", "gold"):
                raise ConfigError(
                    f"--column {assignment!r}: allowed: id=NAME, user=NAME, at=NAME, system=NAME, gold=TEMPLATE with {{}}"
                )
            if name == "gold" and "{}" not in column:
                raise ConfigError(
                    f"--column {assignment!r}: allowed: a template with {{}} for the cell"
                )
            chosen[name] = column
        plain = cls(keys)
        return cls(
            keys,
            chosen.get("id", plain.id),
            chosen.get("user", plain.user),
            chosen.get("at", plain.at),
            chosen.get("system", plain.system),
            chosen.get("gold"),
        )


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a row beyond its texts: who asked, and how the answer ended."""

    user: str = ""
    finish_reason: str = ""


class Skip(Exception):
    """An entry that is no row, with the reason."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an entry stands, for messages."""

    path: Path
    where: str
    number: int

    def refuse(self, at: str, value: Any, allowed: str) -> DataError:
        """The error of a field that is not what it should be."""
        return DataError(f"{self.path}: {self.where}: {at} = {value!r:.80}: allowed: {allowed}")


@dataclass(frozen=True, slots=True)
class Parts:
    """One entry, read."""

    messages: list[Entry]
    teacher: str | None = None
    gold: str | None = None
    id: str = ""
    model: str = ""
    at: float = 0.0
    facts: Facts = Facts()
    tools: Tools = ()
    tool_choice: Any = None


def word(value: Any) -> str:
    """An id, a name or a reason as text; "" when it is neither a text nor a whole number."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _messages(place: Place, value: Any, at: str) -> list[Entry]:
    """Chat messages with a role each, or a single user text.

    Raises:
        DataError: neither.
    """
    if isinstance(value, str) and value.strip():
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise place.refuse(at, value, "a text or a list of messages that is not empty")
    for number, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise place.refuse(f"{at}[{number}]", message, 'an object with a "role"')
        content = message.get("content")
        if content is not None and not isinstance(content, str | list):
            raise place.refuse(
                f"{at}[{number}].content", content, "a text, a list of parts, or null"
            )
    if not any(m["role"] == "user" for m in value):
        raise place.refuse(at, [m["role"] for m in value], 'messages with one of role "user"')
    return value


def _said(place: Place, message: Any, at: str) -> str:
    """The answer of an assistant's message: its tool calls as text, else its words.

    Raises:
        Skip: it says nothing.
        DataError: it is not a message, or a call is none.
    """
    if isinstance(message, str):
        return message
    if not isinstance(message, dict):
        raise place.refuse(at, message, "a text or a message")
    if message.get("tool_calls"):
        where = f"{place.path}: {place.where}: {at}.tool_calls"
        return written(calls_of(where, message["tool_calls"]))
    content = message.get("content")
    if isinstance(content, list):
        texts = [p.get("text") for p in content if isinstance(p, dict)]
        content = "".join(t for t in texts if isinstance(t, str))
    if content is not None and not isinstance(content, str):
        raise place.refuse(f"{at}.content", content, "a text, a list of parts, or null")
    if not content:
        raise Skip("no answer text")
    return content


def _asked(place: Place, source: Any, at: str = "") -> tuple[Tools, Any]:
    """`tools` and `tool_choice` of a request."""
    if not isinstance(source, dict):
        return (), None
    where = f"{place.path}: {place.where}{f': {at}' if at else ''}"
    return tools_of(where, source.get("tools")), tool_choice_of(where, source.get("tool_choice"))


def _choice(place: Place, reply: Entry, at: str) -> tuple[str, str]:
    """Text and finish reason of a chat completion's first choice."""
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise place.refuse(f"{at}choices", choices, "a list with one choice")
    text = _said(place, choices[0].get("message"), f"{at}choices[0].message")
    return text, word(choices[0].get("finish_reason"))


def _answer(place: Place, entry: Entry, key: str, at: str = "") -> str | None:
    value = entry.get(key)
    if value is None or value == "":
        return None
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool | int | float | str):
        return str(value)
    raise place.refuse(f"{at}{key}", value, "text, a number or JSON")


def _time(place: Place, value: Any, at: str) -> float:
    """Epoch seconds of a number or an ISO 8601 text; 0 when there is none."""
    if value is None or value == "":
        return 0.0
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:
        return float(value)
    except (TypeError, ValueError):
        pass
    try:
        moment = datetime.datetime.fromisoformat(str(value))
    except ValueError as why:
        raise place.refuse(at, value, "epoch seconds or an ISO 8601 time") from why
    return moment.replace(tzinfo=moment.tzinfo or datetime.UTC).timestamp()


# Formats


def _openai_chat(place: Place, entry: Entry, names: Columns) -> Parts:
    messages = _messages(place, entry.get("messages"), "messages")
    if messages[-1]["role"] != "assistant":
        raise place.refuse("messages[-1].role", messages[-1]["role"], "assistant, with the answer")
    if messages[-1].get("weight") == 0:
        raise Skip("weight 0")
    answer = _said(place, messages[-1], "messages[-1]")
    gold = _answer(place, entry, names.keys.gold)
    tools, choice = _asked(place, entry)
    return Parts(
        messages[:-1], answer, gold, word(entry.get("id")), tools=tools, tool_choice=choice
    )


def _openai_stored(place: Place, entry: Entry, names: Columns) -> Parts:
    if "messages" not in entry and "input" not in entry:
        raise DataError(
            f"{place.path}: {place.where}: 'messages' is missing: a stored completion holds only the answer; "
            "put the messages of GET /v1/chat/completions/{id}/messages beside it"
        )
    messages = _messages(place, entry.get("messages", entry.get("input")), "messages")
    answer, finish = _choice(place, entry, "")
    if messages[-1]["role"] == "assistant" and _is_said(place, messages[-1], answer):
        messages = messages[:-1]
    tools, choice = _asked(place, entry)
    tags = entry.get("metadata")
    user = word(entry.get("input_user")) or word(
        (tags or {}).get("user") if isinstance(tags, dict) else ""
    )
    return Parts(
        messages, answer, _answer(place, entry, names.keys.gold), word(entry.get("id")), word(entry.get("model")),
        _time(place, entry.get("created"), "created"), Facts(user, finish), tools, choice,
    )  # fmt: skip


def _is_said(place: Place, message: Entry, answer: str) -> bool:
    try:
        return _said(place, message, "messages[-1]") == answer
    except Skip:
        return False


def _openai_evals(place: Place, entry: Entry, names: Columns) -> Parts:
    item = entry.get("item", entry.get("datasource_item"))
    if not isinstance(item, dict):
        raise place.refuse("item", item, "an object (or datasource_item)")
    sample = entry.get("sample") or {}
    if not isinstance(sample, dict):
        raise place.refuse("sample", sample, "an object")
    if sample.get("error"):
        raise Skip("the call failed")
    given, at = sample.get("input"), "sample.input"
    if given is None:
        key = next((k for k in ("messages", "input", names.keys.input) if k in item), None)
        if key is None:
            known = ", ".join(sorted(item))
            raise DataError(
                f"{place.path}: {place.where}: item: no {names.keys.input!r}, 'input' or 'messages'; keys: {known}"
            )
        given, at = item[key], f"item.{key}"
    answer = _answer(place, item, names.keys.teacher, "item.")
    finish = word(sample.get("finish_reason"))
    tools, choice = _asked(place, item, "item")
    if isinstance(sample.get("output"), list) and sample["output"]:
        answer = _said(place, sample["output"][-1], "sample.output[-1]")
    elif isinstance(sample.get("output_text"), str):
        answer = sample["output_text"]
    elif "choices" in sample:
        answer, finish = _choice(place, sample, "sample.")
    return Parts(
        _messages(place, given, at), answer, _answer(place, item, names.keys.gold, "item."), word(entry.get("id")),
        word(sample.get("model")), _time(place, entry.get("created_at"), "created_at"), Facts("", finish),
        tools, choice,
    )  # fmt: skip


def _unwrapped(value: Any) -> Any:
    """A JSON text's value (exports to blob storage write inputs and outputs as JSON texts), else the value itself."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _langfuse(place: Place, entry: Entry, names: Columns) -> Parts:
    kind = str(entry.get("type", "GENERATION"))
    if kind.upper() != "GENERATION":
        raise Skip(f"an observation of type {kind.upper()}")
    if str(entry.get("level", "")).upper() == "ERROR":
        raise Skip("the call failed")
    given = _unwrapped(entry.get("input"))
    tools, choice = _asked(place, given, "input")
    if isinstance(given, dict):
        given = given.get("messages", [given] if "role" in given else given)
    output = _unwrapped(entry.get("output"))
    if output is None:
        raise Skip("no answer text")
    finish = ""
    if isinstance(output, list) and output:
        output = output[-1]
    if isinstance(output, dict) and "choices" in output:
        answer, finish = _choice(place, output, "output.")
    elif isinstance(output, dict) and not {"role", "content", "tool_calls"} & set(output):
        answer = (
            entry["output"]
            if isinstance(entry["output"], str)
            else json.dumps(output, ensure_ascii=False)
        )
    elif isinstance(entry["output"], str) and not isinstance(output, dict):
        answer = entry["output"]
    else:
        answer = _said(place, output, "output")
    started = "startTime" if "startTime" in entry else "start_time"
    model = next(
        (entry[k] for k in ("model", "providedModelName", "provided_model_name") if entry.get(k)),
        "",
    )
    user = word(entry.get("userId")) or word(entry.get("user_id"))
    return Parts(
        _messages(place, given, "input"), answer, None, word(entry.get("id")), word(model),
        _time(place, entry.get(started), started), Facts(user, finish), tools, choice,
    )  # fmt: skip


def _litellm(place: Place, entry: Entry, names: Columns) -> Parts:
    payload = entry.get("standard_logging_object", entry)
    if not isinstance(payload, dict):
        raise place.refuse("standard_logging_object", payload, "an object")
    if payload.get("status") not in (None, "success"):
        raise Skip("the call failed")
    kind = str(payload.get("call_type") or "completion")
    if "completion" not in kind:
        raise Skip(f"a call of type {kind}")
    given = _unwrapped(payload.get("messages"))
    if REDACTED in json.dumps(given):
        raise place.refuse(
            "messages", REDACTED, "texts: switch turn_off_message_logging off and log again"
        )
    response = _unwrapped(payload.get("response"))
    finish = ""
    if isinstance(response, dict) and "choices" in response:
        answer, finish = _choice(place, response, "response.")
    elif isinstance(response, dict) and not {"content", "tool_calls"} & set(response):
        raise place.refuse(
            "response", sorted(response), "a text, a message, or an object with choices"
        )
    else:
        answer = _said(place, response, "response")
    tools, choice = _asked(place, _unwrapped(payload.get("model_parameters")), "model_parameters")
    meta = payload.get("metadata")
    known = meta if isinstance(meta, dict) else {}
    user = next(
        (u for u in (payload.get("end_user"), known.get("user_api_key_end_user_id"), known.get("user_api_key_user_id")) if u),
        "",
    )  # fmt: skip
    return Parts(
        _messages(place, given, "messages"), answer, None, word(payload.get("id")), word(payload.get("model")),
        _time(place, payload.get("startTime"), "startTime"), Facts(word(user), finish),
        tools, choice,
    )  # fmt: skip


def _csv(place: Place, entry: Entry, names: Columns) -> Parts:
    text = entry[names.keys.input]
    gold = _answer(place, entry, names.keys.gold)
    if gold is not None and names.gold_template is not None:
        gold = names.gold_template.replace("{}", gold)
    if not text.strip():
        raise place.refuse(names.keys.input, text, "a text that is not blank")
    messages: list[Entry] = [{"role": "user", "content": text}]
    if entry.get(names.system):
        messages.insert(0, {"role": "system", "content": entry[names.system]})
    return Parts(
        messages, _answer(place, entry, names.keys.teacher), gold,
        word(entry.get(names.id)), "", _time(place, entry.get(names.at), names.at), Facts(word(entry.get(names.user))),
    )  # fmt: skip


READERS: dict[str, Callable[[Place, Entry, Columns], Parts]] = {
    "openai-chat": _openai_chat,
    "openai-stored": _openai_stored,
    "openai-evals": _openai_evals,
    "langfuse": _langfuse,
    "litellm": _litellm,
    "csv": _csv,
}
