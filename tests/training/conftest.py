"""A dataset with two fields, and a tiny base model with its tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from router.answer_spec import AnswerSpec, Compare
from router.policy import Policy, Route, Student, Teacher
from serving import base_model
from serving.base_model import BaseModel
from tests.tiny import tiny_model
from tests.words import LABELS, sentence
from training import build
from training.dataset import Dataset


def route(**student: object) -> Route:
    """A route whose answers are `{"kind": "refund" | "order"}`."""
    return Route(
        teacher=Teacher(backend="t"),
        student=Student(backend="s", adapter="mail", prompt="Mail: {input}\nAnswer:", **student),  # type: ignore[arg-type]
        answer=AnswerSpec(
            kind="json",
            schema={"type": "object", "properties": {"kind": {"enum": list(LABELS)}}},
            compare=Compare(fields=("kind",)),
        ),
    )


def write_policy(path: Path, name: str, student: dict[str, Any], answer: dict[str, Any]) -> None:
    """A whole policy with one route; nothing is ever asked over it."""
    spec = {
        "version": 1,
        "backends": {
            "t": {"kind": "openai", "base_url": "http://127.0.0.1:9/v1"},
            "s": {"kind": "lorax", "base_url": "http://127.0.0.1:9"},
        },
        "routes": {
            name: {
                "match": {"model": name},
                "teacher": {"backend": "t", "model": "teacher-1"},
                "student": {"backend": "s", "adapter": name, **student},
                "mode": "teacher",
                "answer": answer,
            }
        },
        "default": {"teacher": {"backend": "t"}},
    }
    Policy.model_validate(spec)
    path.write_text(yaml.safe_dump(spec))


def rows(count: int, first: int = 0) -> list[build.Row]:
    """Teacher-answered rows."""
    found = []
    for n in range(first, first + count):
        text, label = sentence(n)
        messages = ({"role": "user", "content": text},)
        answer = json.dumps({"kind": label})
        found.append(build.Row(f"r{n}", messages, answer, None, "traffic", "teacher-1", float(n)))
    return found


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """80 rows with train, validation and test."""
    return build.build(rows(80), route(), "mail", tmp_path / "datasets", query={})


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base model on disk."""
    folder = tmp_path_factory.mktemp("base") / "model"
    tiny_model(folder, num_layers=3)
    return folder


@pytest.fixture
def base(base_folder: Path, tmp_path: Path) -> BaseModel:
    """The tiny base model, loaded anew: training lays adapters on it."""
    return base_model.load(str(base_folder), tmp_path)
