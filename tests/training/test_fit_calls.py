"""Training a student on tool calls: preflight, a run of the tiny model, its answers read as calls, the template's tools."""

from dataclasses import replace
from pathlib import Path

import pytest

from router.policy import Price
from router.records import ToolCall
from router.tool_calls import read
from serving import base_model
from serving.base_model import BaseModel
from tests.training.test_fit import FAST
from tests.training.tool_rows import TOOLS, call, tool_route, tool_rows
from training import build, lora, preference, preflight
from training.dataset import Dataset
from training.encode import encode
from training.errors import DataError
from training.label import Teacher
from training.predict import ModelPredictor
from training.train import Run

SAYS_TWO = FAST.model_copy(update={"epochs": 14})


def two_calls(number: int) -> str:
    """A call or words, by the request's key word alone: what a tiny model can learn."""
    return call("stop") if number % 2 else "no"


def calls(folder: Path, prompt: str = "{input}\n") -> Dataset:
    rows = [replace(row, gold=None, tools=()) for row in tool_rows(80, two_calls)]
    return build.build(rows, tool_route(prompt), "mail", folder, query={})


def test_a_student_learns_to_write_calls(
    base: BaseModel, base_folder: Path, tmp_path: Path
) -> None:
    made = calls(tmp_path)
    report = preflight.preflight(made, base.model, base.tokenizer, SAYS_TWO)
    assert report.refusals == ()
    assert report.masks[0].trained.endswith("<eos>")
    run = Run(tmp_path / "run", SAYS_TWO, made, base.model, base.tokenizer).fit()
    assert run.epochs[-1].train_loss < 0.3 * run.epochs[0].train_loss
    fresh = base_model.load(str(base_folder), tmp_path).model
    adapted = lora.load_adapter(fresh, tmp_path / "run" / "adapter")
    student = ModelPredictor("student", adapted, base.tokenizer, made.info.prompt, None, 64)
    found = [read(p.text) for p in student.predict(made.of("train"))]
    assert (ToolCall("stop"),) in found


def test_a_tokenizer_that_drops_the_marks_is_refused(base: BaseModel, tmp_path: Path) -> None:
    base.tokenizer.add_special_tokens({"extra_special_tokens": ["<tool_call>", "</tool_call>"]})
    base.model.resize_token_embeddings(len(base.tokenizer), mean_resizing=False)
    one = preflight.preflight(calls(tmp_path / "one"), base.model, base.tokenizer, SAYS_TWO)
    assert one.refusals == ()  # bare JSON is read too
    many = [replace(r, teacher=f"{r.teacher}{call('stop')}", gold=None, tools=()) for r in tool_rows(80, two_calls)]  # fmt: skip
    made = build.build(many, tool_route(), "mail", tmp_path / "many", query={})
    report = preflight.preflight(made, base.model, base.tokenizer, SAYS_TWO)
    assert any("<tool_call> as text" in refusal for refusal in report.refusals)


def test_the_template_shows_the_tools_of_each_request(base: BaseModel, tmp_path: Path) -> None:
    route = tool_route("{tools}\n{input}\n")
    rows = tool_rows(40)
    rows[1:] = [replace(row, tools=tuple(TOOLS[:1]), gold=None, teacher="no") for row in rows[1:]]  # fmt: skip
    rows[0] = replace(rows[0], fixed="train")
    made = build.build(rows, route, "mail", tmp_path, query={})
    one, other = (
        base.tokenizer.decode(encode(e, base.tokenizer, made.info.prompt, None).prompt_ids)
        for e in (made.examples[0], made.examples[1])
    )
    assert ('"name":"refund"' in one, '"name":"order"' in one) == (True, True)
    assert ('"name":"refund"' in other, '"name":"order"' in other) == (True, False)
    with pytest.raises(DataError, match=r"student.prompt = .*: pairs keep no tools"):
        preference.save(tmp_path / "pairs", [], {}, made.info)


def test_a_prompt_for_the_teacher_may_name_them_too() -> None:
    row = tool_rows(1)[0]
    said = Teacher("u", "m", Price(), prompt="{tools}|{input}").body(row)["messages"][0]["content"]
    assert said.startswith('{"name":"refund"')
