"""Each rule of the guard on answers that hold and answers that do not."""

from typing import Any

import pytest

from router.answer_spec import AnswerSpec, Guard
from router.guard import RULES, check
from router.records import Answer, ToolCall

SCHEMA = {"type": "object", "required": ["a"], "properties": {"a": {"enum": [0, 1]}}}
JSON = AnswerSpec.model_validate({"kind": "json", "schema": SCHEMA})
LABEL = AnswerSpec.model_validate({"kind": "label", "labels": ["yes", "no"]})
CALL = AnswerSpec.model_validate({"kind": "tool_call", "schema": SCHEMA})
TEXT = AnswerSpec()


def failed(spec: AnswerSpec, rules: list[Any], text: str | None, **more: Any) -> str | None:
    answer = Answer("student", "b", "m", status=200, text=text, **more)
    return check(spec, Guard.model_validate({"rules": rules}).rules, answer).rule


@pytest.mark.parametrize(
    ("spec", "rule", "good", "bad"),
    [
        (JSON, "schema", '{"a": 1}', '{"a": 2}'), (JSON, "schema", '```json\n{"a": 0}\n```', "{}"), (JSON, "schema", '{"a":1}', "not json"),
        (JSON, "schema", '{"a":1,"b":2}', '{"a":NaN}'), (JSON, "schema", '{"a":1}', None), (JSON, "schema", '{"a":1}', "[" * 100_000),
        (LABEL, "label", " Yes.", "perhaps"), (LABEL, "label", "no", None),
        (TEXT, "not_empty", "x", " \n"), (TEXT, "not_empty", "x", None),
        (TEXT, "not_refusal", "He said I'm sorry.", "I'm sorry, but I cannot help."), (TEXT, "not_refusal", "Unfortunately, it rains.", "Unfortunately, I can't."),
        (TEXT, "not_refusal", "Ich kann das.", "Es tut mir leid, aber …"), (TEXT, "not_refusal", "I can do it", "I am unable to"),
        (TEXT, "not_refusal", "", "\"As an AI model, I"),
        (TEXT, "no_pii", "see page 12", "mail a@example.com"), (TEXT, "no_pii", "order 4111111111111112", "card 4111 1111 1111 1111"),
        (TEXT, {"max_chars": 3}, "abc", "abcd"), (TEXT, {"max_chars": 0}, "", "a"), (TEXT, {"min_chars": 3}, "abc", " ab "),
        (TEXT, {"forbid": "(?i)as an ai"}, "as a friend", "AS AN AI"), (TEXT, {"require": r"^\d+$"}, "12", "twelve"), (TEXT, {"require": "x"}, "x", None),
    ],
)  # fmt: skip
def test_a_rule_holds_or_names_itself(
    spec: AnswerSpec, rule: Any, good: str, bad: str | None
) -> None:
    assert failed(spec, [rule], good) is None
    assert failed(spec, [rule], bad) == (rule if isinstance(rule, str) else next(iter(rule)))


def test_a_truncated_answer_fails_only_the_rule_for_it() -> None:
    assert failed(TEXT, ["not_truncated"], "x", finish_reason="length") == "not_truncated"
    assert failed(TEXT, ["not_truncated"], "x", finish_reason="stop") is None
    assert failed(TEXT, ["not_empty"], "x", finish_reason="length") is None


def test_a_call_that_is_none_fails_the_schema() -> None:
    assert failed(CALL, ["schema"], '<tool_call>{"name":') == "schema"
    assert failed(CALL, ["schema"], '<tool_call>{"name":"f","arguments":{"a":5}}</tool_call>') == "schema"  # fmt: skip
    assert failed(CALL, ["schema"], "no tool helps") is None


def test_a_tool_calls_arguments_are_held_to_the_schema() -> None:
    def calls(*arguments: str) -> dict[str, Any]:
        return {"tool_calls": tuple(ToolCall("f", a) for a in arguments)}

    assert failed(CALL, ["not_empty", "schema"], None, **calls('{"a":1}')) is None
    assert failed(CALL, ["schema"], None, **calls('{"a":1}', '{"a":5}')) == "schema"
    assert failed(CALL, ["schema"], None, **calls("{")) == "schema"
    assert failed(CALL, ["not_empty"], None) == "not_empty"


def test_the_first_rule_that_fails_decides_and_http_is_left_to_the_caller() -> None:
    assert failed(TEXT, [{"max_chars": 1}, "not_refusal"], "I'm sorry") == "max_chars"
    assert failed(TEXT, ["not_refusal", {"max_chars": 1}], "I'm sorry") == "not_refusal"
    assert failed(TEXT, [{"http": "http://nowhere.invalid"}], "x") is None
    assert failed(TEXT, [], None) is None


def test_every_rule_of_the_policy_is_in_the_table() -> None:
    known = Guard.model_json_schema()["properties"]["rules"]["items"]["oneOf"][-1]
    assert set(known["properties"]["rule"]["enum"]) == {*RULES, "http"}
