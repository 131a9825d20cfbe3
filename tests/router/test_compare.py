"""Agreement: the table of comparators, and ROUGE-L against the reference implementation."""

import random
from typing import Any

import pytest
from rouge_score.rouge_scorer import RougeScorer

from router.answer_spec import AnswerSpec
from router.compare import compare, compare_online, parse, rouge_l, unfenced
from router.records import Answer, Comparison, ToolCall

LABEL = {"kind": "label", "labels": ["Spam", "not spam", "1"]}
JSON = {"kind": "json"}
FIELDS = {"kind": "json", "compare": {"fields": ["a", "b"]}}
TEXT = {"kind": "text"}


def spec(given: dict[str, Any]) -> AnswerSpec:
    return AnswerSpec.model_validate(given)


def said(text: str | None, *calls: ToolCall, **more: Any) -> Answer:
    return Answer("student", "b", "m", **{"status": 200, "text": text, "tool_calls": calls, **more})


@pytest.mark.parametrize(
    ("given", "one", "other", "agree"),
    [
        (LABEL, "spam", " Spam.\n", True), (LABEL, "`Spam`", '"SPAM"', True), (LABEL, "spam", "not spam", False),
        (LABEL, "```\nspam\n```", "spam", True),
        (JSON, '{"a":1,"b":[1,2]}', '{ "b": [1, 2.0], "a": 1.0 }', True), (JSON, "[1,2]", "[2,1]", False),
        (JSON, '{"a":true}', '{"a":1}', False), (JSON, '{"a":[false]}', '{"a":[0]}', False), (JSON, "1", "1.0", True),
        (JSON, '```json\n{"a":1}\n```', '{"a":1}', True), (JSON, '{"a":1,"b":null}', '{"a":1}', False),
        (FIELDS, '{"a":1,"b":2,"c":3}', '{"a":1,"b":2}', True), (FIELDS, '{"a":1,"b":2}', '{"a":1,"b":3}', False),
        (TEXT, "The cat sat.", "the CAT, sat!", True), (TEXT, "yes", "no", False),
        ({"kind": "text", "compare": {"comparator": "exact"}}, " a b ", "a b", True),
        ({"kind": "text", "compare": {"comparator": "exact"}}, "A", "a", False),
        ({"kind": "json", "compare": {"comparator": "exact"}}, '{"a": 1}', '{"a":1}', False),
    ],
)  # fmt: skip
def test_agreement_is_symmetric_and_as_the_table_says(
    given: dict[str, Any], one: str, other: str, agree: bool
) -> None:
    assert compare(spec(given), said(one), said(other)).agree is agree
    assert compare(spec(given), said(other), said(one)).agree is agree


@pytest.mark.parametrize(
    ("given", "bad"),
    [
        (LABEL, "maybe"), (LABEL, "spam, I think"), (LABEL, ""), (LABEL, None), (JSON, "{"), (JSON, ""), (JSON, "[" * 100_000),
        (FIELDS, '{"a":1}'), (FIELDS, "[1]"), (TEXT, "  "), (TEXT, None), (JSON, '{"a":1} trailing'),
    ],
)  # fmt: skip
def test_an_answer_without_the_form_is_not_comparable_and_the_fault_is_named(
    given: dict[str, Any], bad: str | None
) -> None:
    good = {"label": "spam", "json": '{"a":1,"b":2}', "text": "yes"}[given["kind"]]
    found = compare(spec(given), said(bad), said(good))
    assert (found.agree, found.comparable, found.student_form_ok) == (None, False, False)
    found = compare(spec(given), said(good), said(bad))
    assert (found.agree, found.comparable, found.student_form_ok) == (None, False, True)


def test_fields_are_told_one_by_one() -> None:
    found = compare(spec(FIELDS), said('{"a":1,"b":2}'), said('{"a":1,"b":3}'))
    assert found == Comparison("json", False, 0.5, {"a": True, "b": False})


def test_a_failed_answer_is_not_compared() -> None:
    assert not compare(spec(TEXT), said("a", error="timeout"), said("a")).comparable
    assert not compare(spec(TEXT), said("a", status=500), said("a")).comparable


def test_tool_calls_agree_in_any_key_order_and_any_order_of_calls() -> None:
    calls = spec({"kind": "tool_call"})
    a, same = ToolCall("f", '{"x":1,"y":2}', "id1"), ToolCall("f", '{"y": 2, "x": 1}', "id2")
    b, other = ToolCall("g"), ToolCall("f", '{"x":1}')
    assert compare(calls, said(None, a, b), said(None, b, same)).agree is True
    assert compare(calls, said(None, a), said(None, other)).agree is False
    assert compare(calls, said(None, a), said(None, a, a)).agree is False
    assert compare(calls, said("text"), said("text")).agree is True  # both called nothing
    assert not compare(calls, said(None, ToolCall("f", "{")), said(None, a)).student_form_ok
    text = '<tool_call>{"name":"f","arguments":{"y":2,"x":1}}</tool_call>'
    assert compare(calls, said(text), said(None, a)).agree is True
    assert compare(calls, said("no tool helps"), said(None, a)).agree is False
    assert compare(calls, said("no tool helps"), said("I cannot do that")).agree is True
    assert not compare(calls, said(text[:30]), said(None, a)).student_form_ok
    empty = ToolCall("f", "")
    assert compare(calls, said(None, empty), said(None, ToolCall("f", "{}"))).agree is True


def test_rouge_l_is_that_of_the_reference_implementation() -> None:
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    rng = random.Random(7)
    words = ["the", "cat", "sat", "on", "a", "mat", "running", "runs", "42", "Dog"]
    for _ in range(200):
        a, b = (" ".join(rng.choices(words, k=rng.randint(0, 15))) for _ in range(2))
        if a and b:
            expected = scorer.score(a, b)["rougeL"].fmeasure
            assert rouge_l(a, b) == pytest.approx(expected), (a, b)


def test_rouge_l_reads_words_of_any_script_and_the_threshold_counts_as_agreement() -> None:
    assert rouge_l("grüße aus köln", "Grüße aus Köln!") == 1.0
    assert rouge_l("мир", "война") == 0.0
    assert rouge_l("", "") == 1.0
    assert rouge_l("", "a") == 0.0
    half = spec({"kind": "text", "compare": {"threshold": 0.5}})
    assert compare(half, said("a b"), said("a c")).agree is True


@pytest.mark.parametrize(
    ("text", "plain"),
    [("```json\n{}\n```", "{}"), ("```\nx\n```", "x"), ("```x```", "x"), ("``````", ""), ("```", "```"), (" a ", "a"), ("a ```b``` c", "a ```b``` c")],
)  # fmt: skip
def test_unfenced(text: str, plain: str) -> None:
    assert unfenced(text) == plain


def test_a_label_is_given_back_as_the_policy_writes_it() -> None:
    assert parse(spec(LABEL), "SPAM") == "Spam"


@pytest.mark.parametrize("comparator", ["embedding", "judge"])
def test_what_costs_too_much_for_a_request_is_left_to_the_monitor(comparator: str) -> None:
    text = spec({"kind": "text", "compare": {"comparator": comparator}})
    left = compare_online(text, said("by card"), said("in cash"))
    assert left == Comparison(comparator)
    assert left.is_left
    no_text = compare_online(text, said(" "), said("in cash"))
    assert not no_text.is_left
    assert (no_text.comparable, no_text.student_form_ok) == (False, False)
    assert compare(text, said("by card"), said("by card")) == Comparison("rouge_l", True, 1.0)
    label = spec(LABEL)
    assert compare_online(label, said("spam"), said("Spam")).agree is True
