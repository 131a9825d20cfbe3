"""`graduate train evaluate` on a run of a tiny model, with judges that listen and people's labels of both kinds."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from monitoring.review import ReviewQueue
from monitoring.store import open_store
from router.answer_spec import AnswerSpec
from tests.tiny import random_adapter
from tests.training.conftest import route, rows
from tests.training.judges import judge_app
from tests.training.test_label_command import listening
from training import build
from training.cli import app
from training.config import FitConfig
from training.dataset import Dataset

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def text_rows(count: int) -> list[build.Row]:
    """Short sentences: what the tiny model says instead is long and nonsense."""
    return [
        build.Row(
            r.id,
            r.messages,
            "good good answer",
            "a good answer",
            "traffic",
            "judge-0-teacher",
            r.at,
        )
        for r in rows(count)
    ]


def run_of(dataset: Dataset, base_folder: Path, home: Path) -> Path:
    """A run folder as `fit` leaves it, its adapter random."""
    folder = home / "runs" / "mail-1"
    random_adapter(base_folder, folder / "adapter", 3, ["q_proj", "v_proj"])
    origin = {"dataset": str(dataset.path), "model": str(base_folder), "base_model": "tiny"}
    (folder / "origin.json").write_text(json.dumps(origin))
    (folder / "config.json").write_text(FitConfig().model_dump_json())
    return folder


@pytest.fixture
def text_run(base_folder: Path, tmp_path: Path) -> Path:
    spec = {"answer": AnswerSpec(kind="text")}
    made = build.build(text_rows(60), route().model_copy(update=spec), "mail", tmp_path / "d", query={})  # fmt: skip
    return run_of(made, base_folder, tmp_path)


def invoke(home: Path, *words: str) -> Any:
    quick = ["--no-zero-shot", "--few-shot", "0", "--home", str(home)]
    return CliRunner().invoke(app, ["evaluate", *quick, *words])


def good(text: str) -> float:
    return 1 + text.count("good")


def labels(path: Path, count: int) -> Path:
    pair = {"input": "what?", "student": "bad", "teacher": "good"}
    other = {"input": "what?", "student": "good", "teacher": "bad"}
    lines = [
        json.dumps({**pair, "input": f"what {n}?", "better": "teacher", "score": 1}) if n % 2
        else json.dumps({**other, "input": f"what {n}?", "better": "student", "score": 2})
        for n in range(count)
    ]  # fmt: skip
    path.write_text("\n".join(lines))
    return path


def review(home: Path, count: int) -> None:
    """The queue with `count` decided flags of the route; the texts are what the person saw."""
    store = open_store(f"sqlite:///{home / 'graduate.db'}")
    queue = ReviewQueue(store)
    store.add_flags([{
        "id": f"f{n}", "record_id": f"seen{n}", "route": "mail", "kind": "disagreement", "reason": "", "score": 1.0,
        "status": "open", "at": float(n), "record_at": float(n), "adapter": "mail/1", "input_text": f"asked {n}",
        "teacher_text": "good", "student_text": "bad",
    } for n in range(count)])  # fmt: skip
    for n in range(count):
        queue.decide(f"f{n}", "accept_teacher", by="ann")
    store.close()


def test_two_judges_people_and_every_figure(text_run: Path, tmp_path: Path) -> None:
    review(tmp_path, 10)
    file = labels(tmp_path / "labels.jsonl", 44)
    with listening(judge_app(good)) as url:
        done = invoke(
            tmp_path, "--judge", "judge-1", "--judge", "other-2", "--judge-url", url, "--judge-rows", "6",
            "--judge-labels", str(file), "--judge-input-price", "1", "--judge-output-price", "1", "--yes",
            "--alone-rows", "2", "--bits-rows", "5", "--json",
        )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found == json.loads((text_run / "evaluation" / "evaluation.json").read_text())
    assert found["bits"]["rows"] == 5
    assert found["waits"]["rows"] == 2
    assert found["tests"][0]["lines"][0]["text"]["rouge"].keys() == {"rouge1", "rouge2", "rougeL", "rougeLsum"}  # fmt: skip
    first, second = found["judges"]
    assert (first["rows"], first["human_labels"]) == (6, {"labels": 44, "reviews": 10})
    assert first["may_gate"], first["why"]
    assert first["agreement"]["kappa"] == 1.0
    assert first["pairwise"]["losses"] == 6
    assert second["kappa_with_first"] == 1.0
    assert any("judge-0-teacher are of one family" in w for w in first["warnings"])
    assert any(s.startswith("judge other-2 may gate") for s in found["sentences"])
    assert (tmp_path / "teacher-cache.db").exists()


@pytest.mark.slow
def test_tables_name_slices_and_judges(text_run: Path, tmp_path: Path) -> None:
    with listening(judge_app(good, place=9.0)) as url:
        done = invoke(
            tmp_path, "--judge", "judge-1", "--judge-url", url, "--judge-rows", "4", "--bits-rows", "4",
            "--judge-input-price", "0", "--judge-output-price", "0",
        )  # fmt: skip
    assert done.exit_code == 0, done.output
    for words in (
        "ROUGE against",
        "too few rows in or beside them",
        "both orders agree",
        "may not gate",
        "bits a byte",
    ):
        assert words in " ".join(done.output.split()), words
    assert "it favours a place" in " ".join(done.output.split())


@pytest.mark.slow
def test_a_judge_that_refuses_leaves_the_evaluation(text_run: Path, tmp_path: Path) -> None:
    with listening(judge_app(good, status=401)) as url:
        done = invoke(
            tmp_path, "--judge", "judge-1", "--judge-url", url,
            "--judge-input-price", "0", "--judge-output-price", "0",
        )  # fmt: skip
    assert done.exit_code == 2
    assert "no such key" in done.output
    assert json.loads((text_run / "evaluation" / "evaluation.json").read_text())["judges"] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--judge-url", "http://j/v1"), "--judge-url without --judge"),
        (("--judge", "m"), "--judge-url None"),
        (("--judge", "m", "--judge-url", "http://j/v1"), "--judge-input-price"),
        (("--judge", "m", "--judge-url", "http://j/v1", "--judge-input-price", "1", "--judge-output-price", "1"), "with --yes"),
        (("--judge", "m", "--judge-url", "http://j/v1", "--judge-input-price", "0", "--judge-output-price", "0", "--judge-labels", "none.jsonl"), "none.jsonl: cannot be read"),
        (("--judge", "m", "--judge-url", "http://j/v1", "--judge-input-price", "0", "--judge-output-price", "0", "--database", "sqlite:///none.db"), "--database sqlite:///none.db: there is no such file"),
        (("--learned-metric", "nowhere"), "--learned-metric nowhere: no config.json"),
        (("--run", "nowhere"), "nowhere: not a finished run"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_runs(
    text_run: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    done = invoke(tmp_path, *words)
    assert done.exit_code == 2
    assert message in done.output.replace("\n", " ")
    assert not (text_run / "evaluation").exists()


def test_labels_need_no_judge(base_folder: Path, tmp_path: Path) -> None:
    spec = {"answer": AnswerSpec(kind="label", labels=("good good answer", "a good answer"))}
    made = build.build(text_rows(60), route().model_copy(update=spec), "mail", tmp_path / "d", query={})  # fmt: skip
    run_of(made, base_folder, tmp_path)
    done = invoke(tmp_path, "--judge", "m", "--judge-url", "http://j/v1")
    assert done.exit_code == 2
    assert "kind label are compared exactly" in done.output.replace("\n", " ")
