"""Tools and calls on their way into a dataset: read from every source, checked against their schemas, kept with the row."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

from router.answer_spec import AnswerSpec
from router.records import Answer, Record, ToolCall
from tests.training.tool_rows import SPEC, TOOLS, call, tool_route, tool_rows, wanted
from training import build, imports
from training.dataset import Dataset
from training.encode import canonical
from training.errors import DataError
from training.form import misfit
from training.tools import tools_of

ASKED = [{"role": "user", "content": "pay 7 back"}]
CALLS = [{"id": "c1", "type": "function", "function": {"name": "refund", "arguments": '{"order": 7}'}}]  # fmt: skip
SAID = {"role": "assistant", "content": None, "tool_calls": CALLS}


def test_arguments_come_in_the_order_of_their_schema_and_words_beside_a_call_go() -> None:
    said = 'I do so. <tool_call>{"name": "refund", "arguments": {"why": "late", "order": 7}}</tool_call>'
    form = SPEC.model_dump(mode="json", by_alias=True)
    assert canonical(said, form, TOOLS) == call("refund", order=7, why="late").replace(
        ": ", ":"
    ).replace(", ", ",")
    assert canonical(" no tool helps\n", form, TOOLS) == "no tool helps"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        pytest.param(call("refund", order=7), None, id="a right call"),
        pytest.param("no tool helps", None, id="words"),
        pytest.param("[]", None, id="no call and no words"),
        pytest.param(call("delete"), "'delete': allowed: refund, order", id="an unknown tool"),
        pytest.param(call("refund", order="7"), 'refund.order: "7" is not of type "integer"', id="a value of another type"),
        pytest.param(call("refund", why="x"), 'refund: "order" is a required property', id="an argument is missing"),
        pytest.param(call("refund", order=1, x=2), "refund: Additional properties", id="one too many"),
        pytest.param(call("order", item="plum"), 'order.item: "plum" is not one of', id="outside an enum"),
        pytest.param("<tool_call>{", "'<tool_call>{': allowed: calls", id="no call"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_call_is_said(answer: str, problem: str | None) -> None:
    found = misfit(SPEC, answer, TOOLS)
    assert found == problem if problem is None else problem in str(found)


def test_without_tools_the_routes_own_schema_of_arguments_holds() -> None:
    spec = AnswerSpec(kind="tool_call", schema={"required": ["order"]})
    assert misfit(spec, call("anything", order=1)) is None
    assert 'anything: "order" is a required' in str(misfit(spec, call("anything")))
    assert misfit(SPEC, call("anything", x=1)) is None


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        pytest.param({}, r"^f: line 1: tools = {}: allowed: a list of", id="an object"),
        pytest.param(["look"], r"^f: line 1: tools\[0\] = 'look': allowed: a list of", id="a name"),
        pytest.param([TOOLS[0], {"type": "function"}], r"tools\[1\] = .* allowed: a list of", id="no function"),
        pytest.param([{"type": "function", "function": {"name": ""}}], r"tools\[0\]", id="no name"),
        pytest.param([{"type": "function", "function": {"name": "f", "parameters": 5}}], r"tools\[0\]: parameters = 5: allowed: a JSON Schema", id="parameters that are a number"),
        pytest.param([{"type": "function", "function": {"name": "f", "parameters": {"type": "objekt"}}}], r'tools\[0\]: parameters: not a JSON Schema: "objekt"', id="no JSON Schema"),
        pytest.param([{"type": "function", "function": {"name": "f", "parameters": {"$ref": "http://127.0.0.1:9/x"}}}], r"not a JSON Schema: .*whole in itself", id="a schema elsewhere"),
    ],
)  # fmt: skip
def test_tools_that_are_none_are_refused_by_place(tools: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        tools_of("f: line 1", tools)


def test_flat_tools_become_those_of_chat_completions_and_other_types_stay() -> None:
    flat = {"type": "function", **TOOLS[0]["function"], "strict": True}
    other = {"type": "web_search"}
    assert tools_of("", [flat, other]) == (TOOLS[0], other)
    assert tools_of("", None) == ()


CHAT = {"messages": [*ASKED, SAID], "tools": TOOLS, "tool_choice": "auto"}
STORED = {"object": "chat.completion", "id": "s", "messages": ASKED, "tools": TOOLS, "tool_choice": "auto", "choices": [{"message": SAID, "finish_reason": "tool_calls"}]}  # fmt: skip
EVALS = {"object": "eval.run.output_item", "id": "e", "item": {"messages": ASKED, "tools": TOOLS, "tool_choice": "auto"}, "sample": {"output": [SAID]}}  # fmt: skip
LANGFUSE = {"id": "l", "traceId": "t", "type": "GENERATION", "input": {"messages": ASKED, "tools": TOOLS, "tool_choice": "auto"}, "output": SAID}  # fmt: skip
LITELLM = {"id": "m", "call_type": "acompletion", "messages": ASKED, "response": {"choices": [{"message": SAID}]}, "model_parameters": {"tools": TOOLS, "tool_choice": "auto"}}  # fmt: skip
OWN = {"id": "o", "text": "pay 7 back", "teacher": CALLS, "tools": TOOLS, "tool_choice": "auto"}


def lines(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(CHAT, id="openai-chat"),
        pytest.param(STORED, id="openai-stored"),
        pytest.param(STORED | {"messages": [*ASKED, SAID]}, id="openai-stored with the answer among its messages"),
        pytest.param(EVALS, id="openai-evals"),
        pytest.param(LANGFUSE, id="langfuse"),
        pytest.param(LANGFUSE | {"output": {"tool_calls": CALLS}}, id="langfuse, the calls alone"),
        pytest.param(LITELLM, id="litellm"),
        pytest.param(OWN, id="our own"),
    ],
)  # fmt: skip
def test_every_format_keeps_calls_and_tools(tmp_path: Path, entry: dict[str, Any]) -> None:
    (row,) = imports.read(lines(tmp_path / "rows.jsonl", entry)).rows
    assert [m["role"] for m in row.messages] == ["user"]
    assert (row.tools, row.tool_choice) == (tuple(TOOLS), "auto")
    form = SPEC.model_dump(mode="json", by_alias=True)
    assert canonical(str(row.teacher), form, row.tools) == '<tool_call>\n{"name":"refund","arguments":{"order":7}}\n</tool_call>'  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        pytest.param(CHAT | {"messages": [*ASKED, {"role": "assistant", "tool_calls": [{"id": "1"}]}]}, r"line 1: messages\[-1\].tool_calls\[0\] = {'id': '1'}: allowed: a \"function\"", id="a call without a function"),
        pytest.param(CHAT | {"messages": [*ASKED, {"role": "assistant", "tool_calls": "look"}]}, r"tool_calls = 'look': allowed: a list of calls", id="calls that are a text"),
        pytest.param(CHAT | {"tools": "look"}, r"line 1: tools = 'look': allowed: a list of", id="tools that are a text"),
        pytest.param(CHAT | {"tool_choice": "perhaps"}, r"line 1: tool_choice = 'perhaps': allowed: auto, none, required", id="a choice that is none"),
        pytest.param(OWN | {"tools": [5]}, r"line 1: tools\[0\] = 5", id="our own, a tool that is a number"),
    ],
)  # fmt: skip
def test_bad_calls_and_tools_name_file_line_and_field(
    tmp_path: Path, entry: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl: .*" + message):
        imports.read(lines(tmp_path / "rows.jsonl", entry))


def record(number: int, tools: Any, *calls: ToolCall, text: str | None = None) -> Record:
    request = {"messages": [{"role": "user", "content": f"request {number}"}], "tools": tools}
    answer = Answer("teacher", "t", "gpt", status=200, text=text, tool_calls=calls)
    return Record(
        f"q{number}", float(number), "mail", "teacher", "d", "teacher", "teacher", "", 200, (answer,),
        request=msgspec.Raw(json.dumps(request).encode()),
    )  # fmt: skip


def test_logged_calls_are_kept_with_the_tools_of_their_request() -> None:
    look = ToolCall("refund", '{"order": 7}', "c1")
    called, said, odd = build.rows_from_traffic(
        [record(1, TOOLS, look), record(2, TOOLS, text="no tool helps"), record(3, "odd", look)]
    )
    assert (called.teacher, called.tools) == (call("refund", order=7), tuple(TOOLS))
    assert (said.teacher, odd.tools) == ("no tool helps", ())


def of(folder: Path, rows: list[build.Row], route: Any = None) -> Dataset:
    return build.build(rows, route or tool_route(), "mail", folder, query={})


def test_a_dataset_keeps_calls_tools_and_classes(tmp_path: Path) -> None:
    made = of(tmp_path, tool_rows(80))
    again = Dataset.load(made.path)
    assert again.examples == made.examples
    assert made.examples[0].tools == tuple(TOOLS)
    assert set(made.info.classes["train"]) == {"refund", "order", "(no call)"}
    balanced = {e.completion.count("refund") for e in made.of("test_balanced")}
    assert balanced == {0, 1}
    assert {e.completion for e in made.examples if e.id == "r1"} == {'<tool_call>\n{"name":"order","arguments":{"item":"apple"}}\n</tool_call>'}  # fmt: skip


def test_other_tools_are_another_dataset(tmp_path: Path) -> None:
    one = of(tmp_path / "a", tool_rows(40))
    rows = tool_rows(40)
    fewer = [replace(row, tools=row.tools[:2], tool_choice="auto") for row in rows]
    assert of(tmp_path / "b", fewer).info.digest == one.info.digest
    none = [replace(row, tools=()) for row in rows]
    assert of(tmp_path / "c", none).info.digest != one.info.digest


def test_a_dataset_of_the_form_before_tools_is_read(tmp_path: Path, dataset: Dataset) -> None:
    table = pq.read_table(dataset.path / "examples.parquet").drop_columns(["tools"])
    pq.write_table(table, dataset.path / "examples.parquet")
    info = json.loads((dataset.path / "dataset.json").read_text())
    (dataset.path / "dataset.json").write_text(json.dumps(info | {"schema": 1}))
    assert Dataset.load(dataset.path).examples == dataset.examples


def changed(number: int, **fields: Any) -> Callable[[list[build.Row]], list[build.Row]]:
    def change(rows: list[build.Row]) -> list[build.Row]:
        rows[number] = replace(rows[number], **{"gold": None, **fields})
        return rows

    return change


@pytest.mark.parametrize(
    ("change", "rule", "detail"),
    [
        pytest.param(changed(1, teacher=call("delete")), "answer does not fit the route's answer spec", "'delete': allowed: refund, order", id="a tool that the request has not"),
        pytest.param(changed(2, teacher=call("refund", order="x")), "answer does not fit the route's answer spec", "refund.order", id="arguments beyond the schema"),
        pytest.param(
            changed(3, messages=({"role": "user", "content": "a b c"}, SAID, {"role": "tool", "content": "paid"})),
            "asked after a tool's result", "", id="a turn after a tool's result",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_is_in_the_ledger(
    tmp_path: Path, change: Any, rule: str, detail: str
) -> None:
    (dropped,) = of(tmp_path, change(tool_rows(60))).info.dropped
    assert dropped.rule == rule
    assert detail in dropped.detail


def test_a_call_is_no_answer_of_a_route_of_text(tmp_path: Path) -> None:
    text = tool_route().model_copy(update={"answer": AnswerSpec(kind="text")})
    rows = [replace(row, gold=None) for row in tool_rows(60)]
    made = of(tmp_path, rows, text)
    assert {d.rule for d in made.info.dropped} == {"the answer calls tools"}
    assert {e.completion for e in made.examples} == {"no tool helps"}
    assert {e.tools for e in made.examples} == {()}


def test_gold_that_no_tool_takes_is_refused() -> None:
    rows = [replace(tool_rows(2)[1], gold=call("order", item="plum"))]
    with pytest.raises(DataError, match=r'^x: row r1: gold: order.item: "plum" is not one of'):
        build.check_gold(rows, SPEC)
    assert wanted(5) == "no tool helps"
