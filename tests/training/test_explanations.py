"""Explanations as a second task: which rows get one, that the mix leaves them alone, and that answers are served without."""

import json
from pathlib import Path

import pytest
import torch

from serving.base_model import BaseModel
from training import config, explanations, label_engine, priors
from training.config import Explanations, FitConfig
from training.dataset import Dataset
from training.encode import encode
from training.errors import DataError
from training.train import Run


@pytest.fixture
def file(dataset: Dataset, tmp_path: Path) -> Path:
    """Explanations of three training rows by id, of one by its input, and one that is too long."""
    rows = dataset.of("train")
    lines: list[dict[str, object]] = [
        {"id": e.id, "explanation": f"it says {json.loads(e.completion)['kind']}"} for e in rows[:3]
    ]
    lines.append({"messages": rows[3].messages, "teacher": "asks for something"})
    lines.append({"id": rows[4].id, "explanation": "word " * 300})
    path = tmp_path / "why.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def test_rows_with_an_explanation_are_asked_for_it_by_another_prompt(
    dataset: Dataset, base: BaseModel, file: Path
) -> None:
    wanted = Explanations(file=file)
    found = explanations.rows(
        wanted, explanations.load(file), dataset.of("train"), base.tokenizer, dataset.info.prompt, None
    )  # fmt: skip
    assert (len(found.rows), found.too_long) == (4, 1)
    assert found.missing == len(dataset.of("train")) - 5
    first, example = found.rows[0], dataset.of("train")[0]
    answer = encode(example, base.tokenizer, dataset.info.prompt, None)
    assert base.tokenizer.decode(first.prompt_ids).startswith("Why? Mail:")
    assert first.prompt_ids[-len(answer.prompt_ids) :] == answer.prompt_ids
    assert first.completion_ids[-1] == base.tokenizer.eos_token_id
    assert first.weight == 0.5
    assert found.report()["more_tokens"] == sum(map(len, found.rows))


def test_the_declared_class_mix_moves_no_explanation(
    dataset: Dataset, base: BaseModel, file: Path
) -> None:
    answers = [encode(e, base.tokenizer, dataset.info.prompt, None) for e in dataset.of("train")]
    names = [json.loads(e.completion)["kind"] for e in dataset.of("train")]
    shift = priors.logit_shift(
        [a.completion_ids for a in answers], names, {"refund": 0.9, "order": 0.1}
    )
    row = answers[0]
    states = [torch.zeros(len(row), 4)]
    from dataclasses import replace

    assert label_engine.make_batch([row], states, shift).shift is not None
    assert label_engine.make_batch([replace(row, is_second_task=True)], states, shift).shift is None


def test_a_run_learns_both_tasks_and_validates_answers_alone(
    dataset: Dataset, base: BaseModel, file: Path, tmp_path: Path
) -> None:
    settings = FitConfig.model_validate(
        {"epochs": 1, "lora": {"top_layers": 1}, "frozen_products": "fp32", "explanations": {"file": str(file)}}
    )  # fmt: skip
    run = Run(tmp_path / "run", settings, dataset, base.model, base.tokenizer)
    result = run.fit()
    assert result.rows == len(dataset.of("train")) + 4
    assert len(run.validation) == len(dataset.of("validation"))
    kept = json.loads((tmp_path / "run" / "explanations.json").read_text())
    assert kept["rows"] == 4
    assert FitConfig.model_validate_json((tmp_path / "run" / "config.json").read_text()) == settings


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param("{", "line 1: not JSON", id="no JSON"),
        pytest.param('{"id": "a", "explanation": " "}', "a text that is not empty", id="blank"),
        pytest.param('{"explanation": "because"}', "an 'id', a 'text' or 'messages'", id="no row"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "why.jsonl"
    file.write_text(line)
    with pytest.raises(DataError, match=message):
        explanations.load(file)


def test_explanations_of_other_rows_are_no_explanations(
    dataset: Dataset, base: BaseModel, tmp_path: Path
) -> None:
    file = tmp_path / "why.jsonl"
    file.write_text('{"id": "nobody", "explanation": "because"}')
    settings = config.load(None, [f"explanations.file={file}"])
    with pytest.raises(DataError, match="no training row has an explanation"):
        Run(tmp_path / "run", settings, dataset, base.model, base.tokenizer)
