"""JSON texts of people's files, and answers under a spec: what is refused, and in which words."""

from typing import Any

import pytest

from router.answer_spec import AnswerSpec, Compare
from tests.training.conftest import route
from training import build
from training.errors import ConfigError, DataError
from training.form import address, json_of, misfit

LABELS = AnswerSpec(kind="label", labels=("yes", "no"))
NESTED = AnswerSpec(
    kind="json",
    schema={
        "type": "object",
        "properties": {"who": {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0}}}},
    },
    compare=Compare(fields=("who",)),
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{", "rows.jsonl: line 3: not JSON", id="broken"),
        pytest.param("[" * 100_000, "rows.jsonl: line 3: not JSON", id="too deep"),
        pytest.param(r'{"text": "a\ud800"}', r"line 3: half a character: '\\ud800'", id="a lone surrogate"),
    ],
)  # fmt: skip
def test_a_text_that_is_no_json_names_its_place(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        json_of(text, "rows.jsonl: line 3")


def test_of_a_whole_file_the_line_is_told() -> None:
    with pytest.raises(DataError, match=r"^rows.json: line 2: not JSON"):
        json_of('{\n"a": }', "rows.json")


def test_a_pair_of_surrogates_is_a_character() -> None:
    assert json_of(r'"\ud83d\ude00"', "x") == "😀"


@pytest.mark.parametrize(
    ("spec", "answer", "problem"),
    [
        pytest.param(LABELS, "Yes.", None, id="a label in another spelling"),
        pytest.param(LABELS, "maybe", "'maybe': allowed: yes, no", id="a label that is none"),
        pytest.param(route().answer, '{"kind": "refund"}', None, id="JSON as the schema wants it"),
        pytest.param(route().answer, '{"kind": "zzz"}', 'kind: "zzz" is not one of "refund"', id="a value outside the schema"),
        pytest.param(route().answer, "{}", "allowed: JSON with 'kind'", id="a field is missing"),
        pytest.param(NESTED, '{"who": {"age": -1}}', "who.age: -1 is less than the minimum of 0", id="deep inside"),
        pytest.param(AnswerSpec(kind="text"), " ", "' ': allowed: an answer of kind text", id="blank text"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_answer_is_said(
    spec: AnswerSpec, answer: str, problem: str | None
) -> None:
    found = misfit(spec, answer)
    assert found == problem if problem is None else problem in str(found)


@pytest.mark.parametrize(
    "said",
    ["127.0.0.1:80", "http://", "http://[::bad", "http://h:port", "ftp://host"],
)
def test_what_is_no_address_of_a_server(said: str) -> None:
    with pytest.raises(ConfigError, match=r"^--url .* allowed: http://HOST:PORT"):
        address(said, "--url")
    assert address("http://127.0.0.1:8080/v1", "--url") == "http://127.0.0.1:8080/v1"


def row(number: int, **answers: Any) -> build.Row:
    said = ({"role": "user", "content": f"row number {number} of some rows"},)
    return build.Row(f"r{number}", said, answers.get("teacher"), answers.get("gold"), "file:rows.jsonl")  # fmt: skip


def test_gold_outside_the_schema_is_refused_with_file_row_field_and_value() -> None:
    rows = [row(1, gold='{"kind": "refund"}'), row(2), row(3, gold='{"kind": "zzz"}')]
    build.check_gold(rows[:2], route().answer)
    with pytest.raises(DataError, match=r'rows.jsonl: row r3: gold: kind: "zzz" is not one of "refund"'):  # fmt: skip
        build.check_gold(rows, route().answer)


def test_a_teachers_answer_outside_the_schema_is_dropped_and_the_ledger_says_why(
    tmp_path: Any,
) -> None:
    good = [row(n, teacher='{"kind": "order"}') for n in range(20)]
    made = build.build(
        [*good, row(99, teacher='{"kind": "zzz"}')], route(), "mail", tmp_path, query={}
    )
    ((lost,),) = [[d for d in made.info.dropped if d.id == "r99"]]
    assert lost.rule == "answer does not fit the route's answer spec"
    assert 'kind: "zzz" is not one of' in lost.detail
    with pytest.raises(DataError, match=r"no row is left .* the first: row r99: kind: \"zzz\""):
        build.build([row(99, teacher='{"kind": "zzz"}')], route(), "mail", tmp_path, query={})
