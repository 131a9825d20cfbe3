"""What the commands say of things that are not what they should be: one line with file, field and value, status 2, no traceback."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from tests.training.conftest import route, rows, write_policy
from training import build
from training.cli import app
from training.config import FitConfig
from training.dataset import Dataset
from training.train import Run

SMALL = FitConfig.model_validate({"epochs": 1, "lora": {"top_layers": 1}, "frozen_products": "fp32"})  # fmt: skip
LOST_COLUMN, TORN_ROWS = "lost-column", "torn-rows"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    """A home with a policy, a dataset, broken copies of it, and a finished run."""
    from serving import base_model

    place = tmp_path_factory.mktemp("home")
    answer = route().answer.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    write_policy(place / "policy.yaml", "mail", {"prompt": "Mail: {input}\nAnswer:"}, answer)
    made = build.build(rows(60), route(), "mail", place / "datasets", query={})
    for name in (LOST_COLUMN, TORN_ROWS):
        shutil.copytree(made.path, place / "broken" / name)
    table = pq.read_table(made.path / "examples.parquet")
    pq.write_table(
        table.drop_columns(["completion"]), place / "broken" / LOST_COLUMN / "examples.parquet"
    )
    torn = place / "broken" / TORN_ROWS / "examples.parquet"
    torn.write_bytes(torn.read_bytes()[:-40])
    base = base_model.load(str(base_folder), place)
    run = Run(place / "runs" / "mail-1", SMALL, made, base.model, base.tokenizer)
    run.fit()
    origin = {
        "dataset": str(made.path), "dataset_digest": made.info.digest, "base_model": base.id,
        "base_model_digest": base.digest, "model": str(base_folder),
    }  # fmt: skip
    (run.folder / "origin.json").write_text(json.dumps(origin))
    return place


def said(*words: str) -> str:
    """What a command says that refuses; it must not be a traceback."""
    ran = CliRunner().invoke(app, list(words))
    assert isinstance(ran.exception, SystemExit), ran.exc_info
    assert ran.exit_code == 2, ran.output
    return " ".join(ran.output.split())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("a.jsonl", b"", "not JSON", id="an empty file"),
        pytest.param("a.jsonl", b'{"text": "caf\xe9", "teacher": "x"}', "cannot be read: 'utf-8'", id="Latin-1"),
        pytest.param("a.jsonl", b'{"text": "a\\ud800", "teacher": "x"}\n', "line 1: half a character", id="half a character"),
        pytest.param("a.jsonl", b"[" * 200_000, "not JSON", id="brackets without end"),
        pytest.param("a.jsonl", b'{"text": NaN, "teacher": "x"}\n', "'text' must be a text", id="NaN"),
        pytest.param("a.csv", b"", "no column 'text' for the input; columns: none", id="an empty CSV"),
        pytest.param("a.csv", b"body,teacher\nhi,x\n", "no column 'text' for the input; columns: body, teacher", id="wrong columns"),
        pytest.param("a.csv", b'text,teacher\nhi\n', "line 2: fewer cells than the 2 columns", id="a row too short"),
        pytest.param("a.jsonl", b'{"text": "hi", "gold": {"kind": "zzz"}}\n', 'a.jsonl: row a-1: gold: kind: "zzz" is not one of', id="gold outside the schema"),
        pytest.param("a.jsonl", b'{"text": "hi", "teacher": {"kind": "zzz"}}\n', 'the first: row a-1: kind: "zzz" is not one of', id="all answers outside the schema"),
    ],
)  # fmt: skip
def test_build_refuses(home: Path, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    assert message in said("build", "--route", "mail", "--no-traffic", "--home", str(home), "--file", str(file))  # fmt: skip


@pytest.mark.parametrize(
    ("url", "message"),
    [("nonsense://x", "nonsense://x cannot be opened"), ("sqlite:///FILE", "file is not a database")],
)  # fmt: skip
def test_reviews_that_cannot_be_read_are_said(
    home: Path, tmp_path: Path, url: str, message: str
) -> None:
    (tmp_path / "x.db").write_bytes(b"no database, but long enough to be looked at" * 9)
    where = url.replace("FILE", str(tmp_path / "x.db"))
    assert message in said("build", "--route", "mail", "--no-traffic", "--home", str(home), "--database", where)  # fmt: skip


@pytest.mark.parametrize("command", ["preflight", "fit", "pairs", "experiment", "curate"])
@pytest.mark.parametrize(
    ("broken", "message"),
    [(LOST_COLUMN, "not examples of a dataset"), (TORN_ROWS, "not a dataset"), ("none", "not a dataset")],
)  # fmt: skip
def test_a_broken_dataset_is_named(
    home: Path, tmp_path: Path, command: str, broken: str, message: str
) -> None:
    data = home / "broken" / broken
    file = tmp_path / "x.yaml"
    if command == "curate":
        file.write_text("duplicates: {}\n")
        words = [command, str(data), "--config", str(file)]
    elif command == "experiment":
        file.write_text("name: x\n")
        words = [command, str(file), "--dataset", str(data), "--home", str(home)]
    else:
        words = [command, "--dataset", str(data), "--home", str(home)]
    found = said(*words)
    assert message in found
    assert broken in found.replace(" ", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--model", "/no/such/model"], "model '/no/such/model': no such file or folder", id="no model"),
        pytest.param(["--model", "EMPTY"], "no config.json and 0 .gguf files", id="an empty folder"),
        pytest.param(["--model", "TORN"], "header", id="a model's file that was cut"),
        pytest.param(["--config", "BINARY"], "cannot be read: 'utf-8'", id="a run file that is no text"),
        pytest.param(["--set", "lora=["], "--set 'lora=[': not a YAML value", id="no YAML"),
        pytest.param(["--set", "epochs=3", "--set", "epochs.x=1"], "'epochs' was given a value before it", id="below a value"),
        pytest.param(["--set", "optimizer.learning_rate=.nan"], "optimizer.learning_rate = nan", id="a rate that is no number"),
        pytest.param(["--set", "lora.targets=[q_prj]"], "lora.targets.0 = 'q_prj'", id="an unknown module"),
        pytest.param(["--set", "stages=[{share: 2}]"], "stages.0.share = 2: input should be less than or equal to 1", id="a stage of twice the rows"),
    ],
)  # fmt: skip
def test_preflight_refuses(
    home: Path, base_folder: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    torn, binary, empty = tmp_path / "torn", tmp_path / "b.yaml", tmp_path / "empty"
    shutil.copytree(base_folder, torn)
    (torn / "model.safetensors").write_bytes(b"xx")
    binary.write_bytes(bytes(range(256)))
    empty.mkdir()
    places = {"EMPTY": str(empty), "TORN": str(torn), "BINARY": str(binary)}
    model = [] if "--model" in words else ["--model", str(base_folder)]
    dataset = next((home / "datasets").glob("mail-*"))
    assert message in said("preflight", "--home", str(home), "--dataset", str(dataset), *model, *(places.get(w, w) for w in words))  # fmt: skip


Breaking = Callable[[Path], Any]
HALF_WRITTEN: dict[str, tuple[Breaking, str]] = {
    "no origin": (lambda run: (run / "origin.json").unlink(), "not a finished run"),
    "an empty origin": (lambda run: (run / "origin.json").write_text(""), "not a finished run"),
    "another origin": (lambda run: (run / "origin.json").write_text("{}"), "origin.json: not what `train fit` wrote: no 'dataset'"),
    "no weights": (lambda run: (run / "adapter" / "adapter_model.safetensors").unlink(), "adapter"),
    "torn weights": (lambda run: (run / "adapter" / "adapter_model.safetensors").write_bytes(b"xx"), "adapter"),
    "no adapter configuration": (lambda run: (run / "adapter" / "adapter_config.json").unlink(), "adapter"),
    "a torn one": (lambda run: (run / "adapter" / "adapter_config.json").write_text("{"), "adapter"),
}  # fmt: skip


@pytest.mark.parametrize("command", ["evaluate", "mistakes", "parity", "publish"])
@pytest.mark.parametrize("broken", HALF_WRITTEN)
def test_a_run_that_is_half_there_is_named(
    home: Path, tmp_path: Path, command: str, broken: str
) -> None:
    run = tmp_path / "half"
    shutil.copytree(home / "runs" / "mail-1", run)
    if command == "publish":  # it asks for an evaluation first, whatever is in it
        (run / "evaluation").mkdir()
        (run / "evaluation" / "evaluation.json").write_text("{}")
    breaking, message = HALF_WRITTEN[broken]
    breaking(run)
    words = [command, "--run", str(run), "--home", str(home)]
    if command == "parity":
        words += ["--server-url", "http://127.0.0.1:9", "--adapter", "x"]
    found = said(*words)
    assert str(run) in found.replace(" ", "") or message in found


def test_a_state_that_was_cut_is_named_and_a_torn_log_is_not_in_the_way(
    home: Path, base_folder: Path, tmp_path: Path
) -> None:
    run, file = tmp_path / "run", tmp_path / "run.yaml"
    shutil.copytree(home / "runs" / "mail-1", run)
    file.write_text(yaml.safe_dump(SMALL.model_dump(mode="json") | {"max_cut_share": 1.0}))
    (run / "resume.pt").write_bytes(b"")
    dataset = next((home / "datasets").glob("mail-*"))
    words = [
        "fit", "--home", str(home), "--dataset", str(dataset), "--model", str(base_folder), "--run", str(run), "--config", str(file),
    ]  # fmt: skip
    assert "resume.pt: cannot be read: delete it" in said(*words)
    (run / "resume.pt").unlink()
    (run / "log.jsonl").write_text('{"epoch": 1, "ro')
    ran = CliRunner().invoke(app, [*words, "--json"])
    assert ran.exit_code == 0, ran.output


def test_answers_that_were_cut_are_asked_again(home: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(home / "runs" / "mail-1", run)
    (run / "answers-validation.json").write_text('{"of": ')
    ran = CliRunner().invoke(app, ["mistakes", "--run", str(run), "--home", str(home), "--split", "validation", "--json"])  # fmt: skip
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["rows"] == len(Dataset.load(next((home / "datasets").glob("mail-*"))).of("validation"))  # fmt: skip
