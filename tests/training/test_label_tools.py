"""A teacher asked for tool calls: in process, and by the command; cached, checked, read back."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from router.policy import Price
from router.tool_calls import read
from tests.training.labelling import ask
from tests.training.test_label_command import listening, run
from tests.training.tool_rows import SPEC, TOOLS, call, teacher_app, tool_rows, wanted
from training import imports
from training.errors import ConfigError, DataError
from training.label import (
    Teacher,
    check_first,
    first_jobs,
    jobs_of,
    labelled,
    most_prompt_tokens,
    problem,
    prompt_tokens,
)
from training.label_tools import LabelTools, ToolFlags, of

URL = "http://teacher/v1"
TEACHER = LabelTools((), None).given_to(
    Teacher(URL, "gpt", Price(input=1, output=1), max_tokens=64)
)


def test_rows_are_asked_with_their_tools_and_calls_are_kept(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    rows = [replace(row, tool_choice="required" if n == 1 else None) for n, row in enumerate(tool_rows(20))]  # fmt: skip
    asked = ask(teacher_app(seen), tmp_path, jobs_of(rows, [TEACHER]))
    assert {json.dumps(body["tools"]) for body in seen} == {json.dumps(TOOLS)}
    assert [body.get("tool_choice") for body in seen].count("required") == 1
    done = labelled(rows, asked.answers, SPEC)
    assert [read(one.answer) for one in done] == [read(wanted(n)) for n in range(20)]
    assert [one.problem for one in done] == [None] * 20
    line = done[1].as_line()
    assert line["teacher"] == [{"id": "call_0", "type": "function", "function": {"name": "order", "arguments": '{"item":"apple"}'}}]  # fmt: skip
    assert (line["tools"], line["tool_choice"]) == (TOOLS, "required")
    assert done[0].as_line()["teacher"] == "no tool helps"
    ask(teacher_app(seen), tmp_path, jobs_of(rows, [TEACHER]))
    assert len(seen) == 20


def test_the_first_answers_are_held_to_the_tools(tmp_path: Path) -> None:
    rows = tool_rows(20)
    asked = ask(teacher_app([], wrong=20), tmp_path, first_jobs(jobs_of(rows, [TEACHER])))
    with pytest.raises(DataError, match=r"of the first 16 answers 4 have the form[\s\S]*'delete': allowed: refund, order"):  # fmt: skip
        check_first(SPEC, asked.answers, 0.8, [])


@pytest.mark.parametrize(
    ("text", "finish", "wrong"),
    [
        pytest.param(call("refund", order=1), "tool_calls", None, id="a call"),
        pytest.param("I'm sorry, no tool helps.", "stop", None, id="words that begin like a refusal"),
        pytest.param("", "stop", "not_empty: empty", id="nothing"),
        pytest.param(call("refund"), "length", "not_truncated: cut at the token limit", id="cut"),
        pytest.param(call("refund"), "tool_calls", 'refund: "order" is a required property', id="arguments beyond the schema"),
        pytest.param('<tool_call>[{"id": 1}]', "tool_calls", "'<tool_call>[", id="a call that is none"),
    ],
)  # fmt: skip
def test_the_form_of_a_reply(text: str, finish: str, wrong: str | None) -> None:
    found = problem(SPEC, text, finish, TOOLS)
    assert found == wrong if wrong is None else str(found).startswith(wrong)


def test_tools_count_among_the_prompts_tokens() -> None:
    row = tool_rows(1)[0]
    plain, tools = replace(TEACHER, calls_tools=False).body(row), TEACHER.body(row)
    assert prompt_tokens(tools) - prompt_tokens(plain) > len(json.dumps(TOOLS)) / 5
    assert most_prompt_tokens(tools) > most_prompt_tokens(plain) + len(json.dumps(TOOLS))


def test_a_row_without_tools_is_refused_by_name() -> None:
    rows = [replace(row, tools=()) for row in tool_rows(2)]
    with pytest.raises(DataError, match=r"^row r0: tools: none: allowed: tools in the row, or --tools"):  # fmt: skip
        jobs_of(rows, [TEACHER])
    given = LabelTools(tuple(TOOLS), "auto").given_to(TEACHER)
    assert jobs_of(rows, [given])[0].body["tool_choice"] == "auto"


@pytest.mark.parametrize(
    ("flags", "kind", "message"),
    [
        pytest.param({"tools": Path("t.json")}, "label", "^--tools t.json: answers are of kind label: allowed: with answers of kind tool_call", id="tools for labels"),
        pytest.param({"choice": "auto"}, None, "^--tool-choice auto: no row has tools", id="a choice among nothing"),
        pytest.param({"choice": "delete"}, "tool_call", "^--tool-choice 'delete': allowed: auto, none, required, order, refund", id="a tool that is none"),
        pytest.param({"extra": ("tools=[]",)}, "tool_call", "^--body 'tools=\\[\\]': allowed: --tools FILE", id="tools by hand"),
        pytest.param({"extract": "x"}, "tool_call", "^--extract 'x': allowed", id="a text to find in calls"),
        pytest.param({"tools": Path("none.json")}, None, "^none.json: cannot be read", id="a file that is not there"),
    ],
)  # fmt: skip
def test_flags_that_do_not_fit_are_refused(flags: Any, kind: Any, message: str) -> None:
    rows = [
        replace(r, tools=() if flags.get("choice") == "auto" else r.tools) for r in tool_rows(2)
    ]
    with pytest.raises((ConfigError, DataError), match=message):
        of(ToolFlags(**flags), rows, kind)


def test_what_rows_and_flags_ask_for() -> None:
    rows = tool_rows(2)
    assert of(ToolFlags(), rows, "label") is None
    assert of(ToolFlags(), rows, None) == LabelTools(())
    chosen = of(ToolFlags(choice="order"), rows, "tool_call")
    assert chosen is not None
    assert chosen.choice == {"type": "function", "function": {"name": "order"}}
    assert of(ToolFlags(), [replace(r, tools=()) for r in rows], None) is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_command_labels_and_its_rows_build(tmp_path: Path) -> None:
    source, tools, out = (tmp_path / name for name in ("rows.jsonl", "tools.json", "out.jsonl"))
    lines = [{"id": r.id, "text": r.messages[0]["content"], "gold": r.gold} for r in tool_rows(30)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tools.write_text(json.dumps(TOOLS))
    seen: list[dict[str, Any]] = []
    with listening(teacher_app(seen, wrong=2)) as url:
        command = [
            str(source), "--teacher-url", url, "--model", "gpt", "--tools", str(tools), "--input-price", "1",
            "--output-price", "1", "--yes", "--json", "--out", str(out), "--cache", str(tmp_path / "cache.db"),
        ]  # fmt: skip
        found = run(*command)
        assert found.exit_code == 0, found.output
        report = json.loads(found.stdout)
        assert (report["labelled"], report["wrong_form"], report["ceiling"][0]["right"]) == (30, 1, 29)  # fmt: skip
        again = json.loads(run(*command).stdout)
    assert (again["cached"], again["spent_usd"], len(seen)) == (30, 0, 30)
    rows = imports.read(out).rows
    assert all(list(row.tools) == TOOLS for row in rows)
    assert [read(str(row.teacher)) for row in rows[2:]] == [read(wanted(n)) for n in range(2, 30)]
    tools.write_text('{"name": "refund"}')
    wrong = run(*command)
    assert wrong.exit_code == 2
    assert f"{tools}: tools = {{'name': 'refund'}}: allowed: a list of" in " ".join(wrong.stderr.split())  # fmt: skip
