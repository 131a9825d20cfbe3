"""Other tools' exports as rows: what each format means, and what is refused where."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import graduate
from tests.words import WORDS
from training import imports
from training.build import Keys
from training.errors import ConfigError, DataError
from training.import_formats import Columns, Facts

ASKED = [{"role": "system", "content": "Sort mail."}, {"role": "user", "content": "my money"}]
SAID = {"role": "assistant", "content": "refund"}
CHOICES = [{"index": 0, "message": SAID, "finish_reason": "length"}]

CHAT: dict[str, Any] = {"messages": [*ASKED, SAID]}
STORED: dict[str, Any] = {
    "object": "chat.completion", "id": "chatcmpl-1", "created": 1738960610, "model": "gpt-4o", "choices": CHOICES,
    "metadata": {"user": "u1"}, "messages": [{**m, "id": "m"} for m in ASKED],
}  # fmt: skip
EVAL_RUN: dict[str, Any] = {
    "object": "eval.run.output_item", "id": "out-1", "created_at": 1743092076,
    "datasource_item": {"text": "my money", "gold": "order"},
    "sample": {"input": ASKED, "output": [SAID], "finish_reason": "stop", "model": "gpt-4o", "error": None},
}  # fmt: skip
EVAL_ITEM: dict[str, Any] = {
    "item": {"input": ASKED, "gold": "order"},
    "sample": {"output_text": "refund"},
}
LANGFUSE: dict[str, Any] = {
    "id": "obs-1", "traceId": "t", "type": "GENERATION", "startTime": "2026-05-29T13:46:19.963Z", "model": "gpt-4o",
    "userId": "u1", "input": {"messages": ASKED}, "output": SAID,
}  # fmt: skip
LANGFUSE_BLOB: dict[str, Any] = {
    "id": "obs-1", "trace_id": "t", "type": "GENERATION", "start_time": "2026-05-29 13:46:19.963000",
    "provided_model_name": "gpt-4o", "user_id": "u1", "input": json.dumps(ASKED), "output": json.dumps(SAID),
}  # fmt: skip
LITELLM: dict[str, Any] = {
    "id": "chatcmpl-2", "call_type": "acompletion", "status": "success", "startTime": 1738960610.5, "model": "gpt-4o",
    "messages": ASKED, "response": {"choices": CHOICES}, "end_user": "u1", "metadata": {},
}  # fmt: skip


def write(path: Path, *entries: Any) -> Path:
    path.write_text("".join(json.dumps(e) + "\n" for e in entries))
    return path


@pytest.mark.parametrize(
    ("entry", "form", "rest"),
    [
        pytest.param(CHAT, "openai-chat", ("rows-1", "", 0.0, None, "", ""), id="chat"),
        pytest.param(STORED, "openai-stored", ("chatcmpl-1", "gpt-4o", 1738960610.0, None, "u1", "length"), id="stored"),
        pytest.param(EVAL_RUN, "openai-evals", ("out-1", "gpt-4o", 1743092076.0, "order", "", "stop"), id="evals run"),
        pytest.param(EVAL_ITEM, "openai-evals", ("rows-1", "", 0.0, "order", "", ""), id="evals item"),
        pytest.param(LANGFUSE, "langfuse", ("obs-1", "gpt-4o", 1780062379.963, None, "u1", ""), id="langfuse"),
        pytest.param(LANGFUSE_BLOB, "langfuse", ("obs-1", "gpt-4o", 1780062379.963, None, "u1", ""), id="langfuse blob"),
        pytest.param(LITELLM, "litellm", ("chatcmpl-2", "gpt-4o", 1738960610.5, None, "u1", "length"), id="litellm"),
    ],
)  # fmt: skip
def test_every_format_is_recognised_and_read(
    tmp_path: Path, entry: dict[str, Any], form: str, rest: tuple[object, ...]
) -> None:
    found = imports.read(write(tmp_path / "rows.jsonl", entry))
    (row,) = found.rows
    facts = found.facts.get(row.id, Facts())
    assert found.format == form
    assert [(m["role"], m["content"]) for m in row.messages] == [
        (m["role"], m["content"]) for m in ASKED
    ]
    assert row.teacher == "refund"
    assert (row.id, row.teacher_model, row.at, row.gold, facts.user, facts.finish_reason) == rest


def test_arrays_and_api_pages_are_read_like_lines(tmp_path: Path) -> None:
    array, page = tmp_path / "a.json", tmp_path / "b.json"
    array.write_text(json.dumps([LANGFUSE, {**LANGFUSE, "id": "obs-2"}], indent=1))
    page.write_text(json.dumps({"object": "list", "data": [STORED]}))
    assert [r.id for r in imports.read(array).rows] == ["obs-1", "obs-2"]
    assert [r.id for r in imports.read(page).rows] == ["chatcmpl-1"]


def test_entries_that_are_no_rows_are_counted_by_reason(tmp_path: Path) -> None:
    silent = {"role": "assistant", "content": None}
    file = write(
        tmp_path / "rows.jsonl",
        LANGFUSE, {**LANGFUSE, "type": "SPAN"}, {**LANGFUSE, "level": "ERROR"}, {**LANGFUSE, "output": silent},
    )  # fmt: skip
    found = imports.read(file)
    assert len(found.rows) == 1
    assert found.skipped == {
        "an observation of type SPAN": 1, "the call failed": 1, "no answer text": 1,
    }  # fmt: skip
    lite = write(
        tmp_path / "l.jsonl",
        {**LITELLM, "status": "failure"},
        {**LITELLM, "call_type": "embedding"},
    )
    assert imports.read(lite).skipped == {"the call failed": 1, "a call of type embedding": 1}


def test_a_csv_has_its_columns_named(tmp_path: Path) -> None:
    file = tmp_path / "mail.csv"
    file.write_text(
        '\ufeffnr,mail,gpt,right,customer,when\n7,"two\nlines, quoted",refund,order,c9,2026-05-29\n8,b,,1,,\n'
    )
    names = Columns.parse(Keys("mail", "gpt", "right"), ["id=nr", "user=customer", "at=when"])
    found = imports.read(file, names)
    first, second = found.rows
    assert first.messages == ({"role": "user", "content": "two\nlines, quoted"},)
    assert (first.id, first.teacher, first.gold, first.at) == ("7", "refund", "order", 1780012800.0)
    assert (second.teacher, second.gold) == (None, "1")
    assert found.facts == {"7": Facts("c9")}


def test_a_csv_cell_can_become_a_json_answer(tmp_path: Path) -> None:
    file = tmp_path / "bad.csv"
    file.write_text("text,gold\na,1\nb,\n")
    names = Columns.parse(Keys(), ['gold={"is_bad": {}}'])
    assert [r.gold for r in imports.read(file, names).rows] == ['{"is_bad": 1}', None]
    with pytest.raises(ConfigError, match="for the cell"):
        Columns.parse(Keys(), ["gold=is_bad"])


def changed(entry: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**entry, **fields}


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        pytest.param(CHAT, changed(CHAT, messages=ASKED), "messages.-1..role = 'user': allowed: assistant", id="chat without answer"),
        pytest.param(CHAT, {"messages": [{"content": "x"}]}, r"messages\[0\] = .*allowed: an object with a \"role\"", id="chat without role"),
        pytest.param(STORED, {k: v for k, v in STORED.items() if k != "messages"}, "'messages' is missing.*/messages beside it", id="stored without messages"),
        pytest.param(STORED, changed(STORED, choices=[]), r"choices = \[\]: allowed: a list with one choice", id="stored without choice"),
        pytest.param(EVAL_ITEM, {"item": {"txt": "a"}}, "item: no 'text', 'input' or 'messages'; keys: txt", id="evals without input"),
        pytest.param(EVAL_RUN, changed(EVAL_RUN, sample=3), "sample = 3: allowed: an object", id="evals sample"),
        pytest.param(LANGFUSE, changed(LANGFUSE, input=None), "input = None: allowed: a text or a list of messages", id="langfuse without input"),
        pytest.param(LANGFUSE, changed(LANGFUSE, startTime="yesterday"), "startTime = 'yesterday': allowed: epoch seconds or an ISO", id="langfuse time"),
        pytest.param(LITELLM, changed(LITELLM, response={"x": 1}), r"response = \['x'\]: allowed: a text, a message", id="litellm response"),
        pytest.param(LITELLM, changed(LITELLM, messages="redacted-by-litellm"), "turn_off_message_logging", id="litellm redacted"),
    ],
)  # fmt: skip
def test_a_bad_entry_names_line_field_and_what_is_allowed(
    tmp_path: Path, good: dict[str, Any], bad: dict[str, Any], message: str
) -> None:
    file = write(tmp_path / "rows.jsonl", good, bad)
    with pytest.raises(DataError, match=message) as caught:
        imports.read(file)
    assert f"{file}: line 2: " in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("a,b\n1,2\n", "line 1: no column 'text' for the input; columns: a, b", id="column"),
        pytest.param("text,teacher\nx,y,z\n", "line 2: more cells than the 2 columns", id="more cells"),
        pytest.param("text,teacher\nx\n", "line 2: fewer cells than the 2 columns", id="fewer cells"),
        pytest.param("text,teacher\n ,y\n", "line 2: text = ' ': allowed: a text that is not blank", id="blank"),
        pytest.param('text,teacher\n"x,y\n', "line 2: not CSV", id="open quote"),
    ],
)  # fmt: skip
def test_a_bad_csv_names_its_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        imports.read(file)


def test_unknown_formats_and_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"allowed: graduate, openai-chat, .*, csv"):
        imports.read(tmp_path / "x.jsonl", form="xml")
    with pytest.raises(ConfigError, match="--column 'label=x': allowed: id=NAME"):
        Columns.parse(Keys(), ["label=x"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_build_previews_and_builds_from_exports(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "version: 1\nbackends:\n  t: {kind: openai, base_url: 'http://localhost:1/v1'}\n"
        "routes:\n  mail:\n    teacher: {backend: t}\n    student: {backend: t, adapter: mail, prompt: '{input}'}\n"
        "    answer: {kind: label, labels: [refund, order]}\ndefault: {teacher: {backend: t}}\n"
    )
    entries = [
        changed(LITELLM, id=f"c{n}", messages=f"{WORDS[n]} {WORDS[-n]} {n * 7919}")
        for n in range(12)
    ]
    file = write(tmp_path / "log.jsonl", *entries, changed(LITELLM, status="failure"))
    command = [
        "train",
        "build",
        "--route",
        "mail",
        "--home",
        str(tmp_path),
        "--policy",
        str(policy),
    ]
    command += ["--file", str(file), "--json", "--no-traffic"]
    shown = CliRunner().invoke(graduate.app, [*command, "--preview"])
    assert shown.exit_code == 0, shown.output
    (one,) = json.loads(shown.stdout)
    assert (one["format"], one["rows"], one["skipped"]) == ("litellm", 12, {"the call failed": 1})
    assert one["first"]["teacher"] == "refund"
    built = CliRunner().invoke(graduate.app, command)
    assert built.exit_code == 0, built.output
    assert sum(json.loads(built.stdout)["counts"].values()) >= 12
    bad = CliRunner().invoke(graduate.app, [*command, "--format", "xml"])
    assert bad.exit_code == 2
    assert "allowed: graduate" in bad.stderr
