"""Tool calls as text: what is written is read again, and what begins a call and is none is told from words."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.records import ToolCall
from router.tool_calls import NO_CALL, openai_form, read, written

LOOK = ToolCall("look", '{"at":"ü","deep":true}')
BLOCK = '<tool_call>\n{"name":"look","arguments":{"at":"ü","deep":true}}\n</tool_call>'
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc<>/", max_size=12), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def test_a_call_is_written_as_the_chat_templates_of_qwen_and_hermes_have_it() -> None:
    assert written([LOOK]) == BLOCK
    assert written([LOOK, ToolCall("stop")]) == f'{BLOCK}\n<tool_call>\n{{"name":"stop","arguments":{{}}}}\n</tool_call>'  # fmt: skip
    assert (written([]), read(NO_CALL)) == ("[]", ())


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(BLOCK, id="as written"),
        pytest.param(f"Let me look. {BLOCK} So.", id="words around it"),
        pytest.param('<tool_call>[{"name": "look", "arguments": {"at": "ü", "deep": true}}]</tool_call>', id="a list in a block (SmolLM2)"),
        pytest.param('{"name": "look", "parameters": {"at": "ü", "deep": true}}', id="bare JSON (Llama)"),
        pytest.param('[{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{\\"at\\": \\"\\u00fc\\", \\"deep\\": true}"}}]', id="OpenAI's tool_calls"),
        pytest.param('{"tool_calls": [{"function": {"name": "look", "arguments": {"at": "ü", "deep": true}}}]}', id="a message with calls"),
    ],
)  # fmt: skip
def test_every_form_is_read(text: str) -> None:
    assert read(text) == (LOOK,)


@pytest.mark.parametrize(
    "text",
    ["", "I cannot look.", '{"answer": 5}', "[1] and [2] say so", "[1, 2]", '{"tool_calls": null}'],
)
def test_words_are_no_call(text: str) -> None:
    assert read(text) == ()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('<tool_call>\n{"name":"look","argu', id="cut"),
        pytest.param("<tool_call>look</tool_call>", id="no JSON"),
        pytest.param(f"{BLOCK}\n<tool_call>", id="a second one cut"),
        pytest.param('<tool_call>{"arguments":{}}</tool_call>', id="no name"),
        pytest.param('<tool_call>{"name":"look","arguments":[1]}</tool_call>', id="arguments that are a list"),
        pytest.param('<tool_call>{"name":"look","arguments":"no json"}</tool_call>', id="arguments that are a text"),
        pytest.param('<tool_call>{"name":"look","arguments":{"a":NaN}}</tool_call>', id="NaN"),
        pytest.param('<tool_call>{"name":"look","arguments":{"a":1e999}}</tool_call>', id="beyond JSON's numbers"),
        pytest.param('<tool_call>{"name":"look","arguments":{"a":"\\ud800"}}</tool_call>', id="half a character"),
        pytest.param('{"name": "look", "parameters": {', id="bare JSON, cut"),
        pytest.param('[{"name": 5, "arguments": {}}]', id="a name that is a number"),
        pytest.param("<tool_call>" + "[" * 100_000 + "</tool_call>", id="too deep"),
    ],
)  # fmt: skip
def test_a_call_that_is_none_is_told_from_words(text: str) -> None:
    assert read(text) is None


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.dictionaries(st.text("ab", max_size=3), JSON, max_size=3))  # fmt: skip
def test_what_is_written_is_read_again(name: str, arguments: dict[str, Any]) -> None:
    found = read(written([ToolCall(name, json.dumps(arguments))]))
    assert found is not None
    assert (found[0].name, json.loads(found[0].arguments)) == (name, arguments)


def test_the_marks_inside_a_string_do_not_end_a_call() -> None:
    call = ToolCall("say", json.dumps({"text": "</tool_call><tool_call>"}, separators=(",", ":")))
    text = written([call])
    assert (text.count("<tool_call>"), text.count("</tool_call>"), read(text)) == (1, 1, (call,))


def test_openais_form_has_an_id_a_call() -> None:
    first, second = openai_form([LOOK, ToolCall("stop", id="mine")])
    assert (first["id"], second["id"], first["type"]) == ("call_0", "mine", "function")
    assert second["function"] == {"name": "stop", "arguments": "{}"}
