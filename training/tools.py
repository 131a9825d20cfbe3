"""A request's tools: read with their schemas, and what is wrong with calls of them, in words. Pure."""

import functools
import json
from collections.abc import Sequence
from typing import Any

import jsonschema_rs

from router.answer_spec import AnswerSpec
from router.compare import parse
from router.records import ToolCall
from router.tool_calls import read
from training.errors import DataError

Tools = tuple[dict[str, Any], ...]
ALLOWED = 'a list of {"type": "function", "function": {"name": …, "parameters": a JSON Schema}}'


def tools_of(place: str, value: Any) -> Tools:
    """Tools in the form of chat completions; the flat form of the Responses API becomes it, other types stay as they are.

    Raises:
        DataError: the place, the key, its value and what is allowed.
    """
    if value is None:
        return ()
    if not isinstance(value, list):
        raise DataError(f"{place}: tools = {value!r:.80}: allowed: {ALLOWED}")
    return tuple(_tool(f"{place}: tools[{number}]", tool) for number, tool in enumerate(value))


def _tool(place: str, tool: Any) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise DataError(f"{place} = {tool!r:.80}: allowed: {ALLOWED}")
    if tool.get("type", "function") != "function":
        return tool
    function = tool.get("function", {k: v for k, v in tool.items() if k not in ("type", "strict")})
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise DataError(f"{place} = {tool!r:.80}: allowed: {ALLOWED}")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise DataError(f"{place}: parameters = {parameters!r:.80}: allowed: a JSON Schema")
    try:
        _validator(json.dumps(parameters or {}))
    except ValueError as why:
        reason = str(why).splitlines()[0]
        raise DataError(f"{place}: parameters: not a JSON Schema: {reason}") from why
    return {"type": "function", "function": function}


def tool_choice_of(place: str, value: Any) -> Any:
    """A request's `tool_choice` as it may be sent on; None when there is none.

    Raises:
        DataError: it is none.
    """
    if value is None or value in ("auto", "none", "required") or isinstance(value, dict):
        return value
    raise DataError(
        f"{place}: tool_choice = {value!r:.80}: allowed: auto, none, required, or an object"
    )


def known_tools(body: dict[str, Any]) -> tuple[Tools, Any]:
    """Tools and choice of a logged request, which its teacher took; none of a form that is not known here."""
    try:
        return tools_of("", body.get("tools")), tool_choice_of("", body.get("tool_choice"))
    except DataError:
        return (), None


def calls_of(place: str, value: Any) -> list[ToolCall]:
    """Calls in OpenAI's form, one by one, so that a wrong one is named.

    Raises:
        DataError: the place, the call and what is allowed.
    """
    if not isinstance(value, list):
        raise DataError(f"{place} = {value!r:.80}: allowed: a list of calls")
    found = list[ToolCall]()
    for number, call in enumerate(value):
        calls = read(json.dumps({"tool_calls": [call]})) if isinstance(call, dict) else None
        if not calls:
            raise DataError(
                f'{place}[{number}] = {call!r:.80}: allowed: a "function" with a "name" and "arguments", an object as JSON text'
            )
        found += calls
    return found


@functools.lru_cache(maxsize=4096)
def _validator(schema: str) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(json.loads(schema), retriever=_not_fetched)


def _not_fetched(address: str) -> Any:
    """A schema out of somebody's log sends us nowhere."""
    raise ValueError(f"{address}: allowed: a schema that is whole in itself")


def schemas_of(tools: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Name of a function to the JSON Schema of its arguments; {} where a tool takes anything."""
    functions = (t["function"] for t in tools if isinstance(t.get("function"), dict))
    return {
        f["name"]: f.get("parameters") or {} for f in functions if isinstance(f.get("name"), str)
    }


def call_problem(name: str, arguments: Any, schemas: dict[str, dict[str, Any]]) -> str | None:
    """What is wrong with one call of these tools; None when nothing is."""
    if name not in schemas:
        return f"{name!r:.80}: allowed: {', '.join(schemas)}"
    error = next(_validator(json.dumps(schemas[name])).iter_errors(arguments), None)
    if error is None:
        return None
    field = ".".join(map(str, [name, *error.instance_path]))
    return f"{field}: {error.message}"


def calls_problem(spec: AnswerSpec, answer: str, tools: Sequence[dict[str, Any]]) -> str | None:
    """What is wrong with an answer of kind tool_call: no call where one is begun, an unknown tool, arguments beyond its schema.

    Args:
        tools: those that the request brought; without any only the spec's own schema of arguments holds.
    """
    calls = parse(spec, answer)
    if calls is None:
        return f'{answer!r:.80}: allowed: calls ({{"name": …, "arguments": {{…}}}} each) or words'
    schemas = schemas_of(tools)
    for name, arguments in calls:
        wrong = call_problem(name, arguments, schemas) if schemas else None
        if wrong is None and spec.validator is not None:
            error = next(iter(spec.validator.iter_errors(arguments)), None)
            wrong = f"{name}: {error.message}" if error else None
        if wrong is not None:
            return wrong
    return None


def names_of(answer: str) -> tuple[str, ...] | None:
    """The different tools that an answer calls, sorted; () for words, None for a call that is none."""
    calls = read(answer)
    return None if calls is None else tuple(sorted({call.name for call in calls}))
