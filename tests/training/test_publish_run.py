"""Publishing as a whole, over a really running server: every gate has its line, and a failing one keeps the adapter out."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from serving import base_model
from serving.registry import AdapterRef, Registry
from tests.serving.http.conftest import PROMPT, LiveServer, running
from tests.tiny import random_adapter
from tests.training.conftest import route, rows
from tests.training.test_gates import report_of, reviewed
from training import build, dataset
from training.cli import app
from training.dataset import Dataset

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
GRADUATES = [report_of("test", True), report_of("test_balanced", True)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("publish")


@pytest.fixture(scope="module")
def live(root: Path) -> Iterator[LiveServer]:
    with running(root / "server") as server:
        yield server


@pytest.fixture
def home(root: Path, live: LiveServer, tmp_path: Path) -> Path:
    """A state folder whose registry the server reads."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "adapters").symlink_to(root / "server" / "registry")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    made = build.build(rows(150), route(), "mail", tmp_path / "datasets", query={})
    info = replace(made.info, prompt=PROMPT, max_input_chars=8)
    return dataset.save(tmp_path / "data", info, made.examples)


def run_of(root: Path, live: LiveServer, data: Dataset, tests: list[dict[str, Any]]) -> Path:
    """An evaluated run with an adapter that no server has seen."""
    folder = data.path.parent / "runs" / "mail-1"
    (folder / "evaluation").mkdir(parents=True)
    model = root / "server" / "model"
    made = random_adapter(model, data.path.parent / "fresh", 7, ["q_proj", "v_proj"])
    made.rename(folder / "adapter")
    origin = {
        "dataset": str(data.path), "dataset_digest": data.info.digest, "base_model": live.base_id,
        "base_model_digest": base_model.load(str(model), root).digest, "model": str(model), "precision": "fp32",
    }  # fmt: skip
    files = {
        "origin.json": origin, "config.json": {}, "run.json": {"best": 1, "epochs": [{"exact_share": 0.0}]},
        "evaluation/evaluation.json": {"tests": [{**t, "lines": lines(t)} for t in tests], "sentences": []},
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def lines(test: dict[str, Any]) -> list[dict[str, Any]]:
    figures = test["lines"][0]["figures"]
    figures["accuracy"]["low"] = 0.7
    return [{"name": "student", "figures": figures}]


@pytest.fixture
def run(root: Path, live: LiveServer, data: Dataset) -> Path:
    return run_of(root, live, data, GRADUATES)


def publish(run: Path, home: Path, *flags: str) -> tuple[int, dict[str, Any], str]:
    """Status, the JSON on stdout and what stderr says."""
    command = ["publish", "--run", str(run), "--home", str(home), "--rows", "4", "--name", "fresh", "--json", *flags]  # fmt: skip
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    found = json.loads(done.stdout) if done.stdout.strip().startswith("{") else {}
    return done.exit_code, found, done.stderr


def published(home: Path) -> list[AdapterRef]:
    return [ref for ref in Registry(home / "adapters").list() if ref.name.startswith("fresh")]


def states(found: dict[str, Any]) -> dict[str, str]:
    return {gate["name"]: gate["state"] for gate in found["gates"]}


def test_a_student_that_holds_is_published_with_all_that_was_asked(
    run: Path, home: Path, live: LiveServer
) -> None:
    before = len(published(home))
    status, found, said = publish(run, home, "--server-url", live.url, "--server", "graduate")
    assert status == 0, said
    assert found["verdict"] == "graduate"
    assert states(found) == {
        "serving lint": "passed", "reload check: not the base model": "passed", "reload check: as fitted": "passed",
        "parity: prompt ids": "passed", "parity: greedy answers": "passed", "parity: not the base model": "passed",
        "non-inferior on test": "passed", "non-inferior on test_balanced": "passed",
        "open flags": "not measured", "reviewed records": "not measured", "right on reviewed rows": "not measured",
        "terms of teacher teacher-1": "not measured", "terms of base model model": "not measured",
        "precision trained = precision served": "passed",
    }  # fmt: skip
    refs = published(home)
    assert len(refs) == before + 1
    assert [ref.name for ref in refs] == ["fresh"] * len(refs), "the candidate is gone"
    folder = Registry(home / "adapters").open_local(refs[-1])
    lineage = json.loads((folder / "lineage.json").read_text())
    assert lineage["parity"]["answers_equal"] == 4
    assert lineage["terms"]["accepted"] is None
    assert lineage["gates"] == found["gates"]
    card = (folder / "README.md").read_text()
    assert "| parity: greedy answers | 4 of 4" in card
    assert "no legal advice" in card
    profiles = json.loads((folder / "servers.json").read_text())
    assert set(profiles) == {"schema", "lorax", "vllm", "graduate"}
    assert profiles["graduate"]["call"]["parameters"]["adapter_id"] == "fresh/VERSION"


REFUSALS = [
    pytest.param(["--served-as", "tickets/1"], "parity: greedy answers", id="the server serves another adapter"),
    pytest.param(["--served-as", "tickets/1", "--force", "we know"], "parity: greedy answers", id="that cannot be forced"),
    pytest.param(["--served-as", "nobody/7"], "nobody/7", id="the server does not know it"),
    pytest.param(["--teacher", "gpt-4o"], "terms of teacher gpt-4o", id="the teacher's terms"),
    pytest.param(["--teacher", "gpt-4o", "--force", "we know"], "terms of teacher gpt-4o", id="force is no signature"),
    pytest.param(["--min-reviewed", "5"], "reviewed records", id="nobody has looked"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "message"), REFUSALS)
def test_a_failing_gate_keeps_it_out(
    run: Path, home: Path, live: LiveServer, flags: list[str], message: str
) -> None:
    before = published(home)
    status, found, said = publish(run, home, "--server-url", live.url, *flags)
    assert status == 2
    assert message in said
    assert published(home) == before, "neither a version nor a candidate is left"
    if found:
        assert found["adapter"] is None
        assert any(state == "failed" for state in states(found).values())
        assert json.loads((run / "evaluation" / "gates.json").read_text())["gates"] == found["gates"]  # fmt: skip


def test_an_adapter_that_does_nothing_is_refused(run: Path, home: Path) -> None:
    file = run / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({n: t * 0 if "lora_B" in n else t for n, t in tensors.items()}, file)
    status, found, said = publish(run, home, "--force", "we know")
    assert status == 2
    assert "4 of 4 answers equal the base model's: the adapter does nothing" in said
    assert states(found)["reload check: not the base model"] == "failed"


def test_the_wrong_files_are_noticed(run: Path, home: Path) -> None:
    (run / "run.json").write_text(json.dumps({"best": 1, "epochs": [{"exact_share": 0.99}]}))
    status, found, _ = publish(run, home)
    assert status == 2
    assert states(found)["reload check: as fitted"] == "failed"


def test_what_a_server_would_serve_wrongly_is_refused_for_that_server(
    run: Path, home: Path
) -> None:
    file = run / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_rslora": True}))
    status, found, said = publish(run, home)
    assert status == 2
    assert "use_rslora is set: LoRAX ignores it" in said
    status, found, said = publish(run, home, "--server", "vllm")
    assert status == 0, said
    folder = Registry(home / "adapters").open_local(published(home)[-1])
    profiles = json.loads((folder / "servers.json").read_text())
    assert set(profiles) == {"schema", "vllm", "graduate"}
    assert states(found)["precision trained = precision served"] == "failed"


def test_a_signature_is_kept(run: Path, home: Path) -> None:
    status, found, said = publish(
        run, home, "--teacher", "gpt-4o", "--accept-terms", "ada", "for our own tickets alone"
    )
    assert status == 0, said
    assert states(found)["terms of teacher gpt-4o"] == "passed"
    folder = Registry(home / "adapters").open_local(published(home)[-1])
    accepted = json.loads((folder / "lineage.json").read_text())["terms"]["accepted"]
    assert (accepted["by"], accepted["reason"]) == ("ada", "for our own tickets alone")
    assert accepted["covers"] == ["teacher gpt-4o: restricted"]
    assert "accepted by ada" in (folder / "README.md").read_text()


def test_open_flags_refuse_and_can_be_forced(run: Path, home: Path, data: Dataset) -> None:
    url = reviewed(data, home, 21, 3)
    status, found, _ = publish(run, home, "--max-open-flags", "2", "--min-agreement", "0", "--database", url)  # fmt: skip
    assert (status, found["verdict"]) == (2, "do not graduate")
    assert states(found)["open flags"] == "failed"
    status, found, said = publish(
        run, home, "--max-open-flags", "2", "--min-agreement", "0", "--force", "Ada looks at them tomorrow"
    )  # fmt: skip
    assert status == 0, said
    folder = Registry(home / "adapters").open_local(published(home)[-1])
    assert json.loads((folder / "lineage.json").read_text())["forced"] == "Ada looks at them tomorrow"  # fmt: skip
    assert "Published all the same: Ada" in (folder / "README.md").read_text()


def test_a_student_that_is_wrong_on_reviewed_rows_is_refused(
    run: Path, home: Path, data: Dataset
) -> None:
    reviewed(data, home, 21, 0)
    status, found, said = publish(run, home)
    assert status == 2
    assert states(found)["right on reviewed rows"] == "failed"
    assert "0.0 %" in said


def test_a_student_that_does_not_graduate_says_why(
    root: Path, live: LiveServer, home: Path, data: Dataset
) -> None:
    tests = [report_of("test", False, handed_over=1.0), report_of("test_balanced", True)]
    run = run_of(root, live, data, tests)
    status, found, said = publish(run, home)
    assert (status, found["verdict"]) == (2, "do not graduate")
    assert "do not graduate: non-inferior on test: -1.0 points [-9.0, +2.0]" in said
    written = json.loads((run / "evaluation" / "gates.json").read_text())
    assert written["verdict"] == "do not graduate"
    assert written["reasons"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(["--server", "http://127.0.0.1:1"], "a running server is named by --server-url", id="an address as a kind"),
        pytest.param(["--server-url", "127.0.0.1:80"], "allowed: http://HOST:PORT", id="no scheme"),
        pytest.param(["--server-url", "http://127.0.0.1:1"], "http://127.0.0.1:1", id="nobody there"),
        pytest.param(["--served-as", "x/1"], "name the running server by --server-url", id="a name without a server"),
        pytest.param(["--kind", "tgi"], "--kind 'tgi': allowed: lorax, openai", id="an unknown dialect"),
        pytest.param(["--terms", "none.yaml"], "none.yaml", id="no such register"),
        pytest.param(["--accept-terms", "ada", "ok"], "a reason of two words or more", id="no reason"),
        pytest.param(["--database", "nosuch://x"], "--database", id="no such database"),
        pytest.param(["--name", "a/b"], "allowed: letters, digits", id="not a name"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(run: Path, home: Path, flags: list[str], message: str) -> None:
    status, _, said = publish(run, home, *flags)
    assert status == 2
    assert message in said.replace("\n", "")


@pytest.mark.parametrize("name", ["run.json", "config.json"])
def test_a_file_of_the_run_that_was_cut_is_named(run: Path, home: Path, name: str) -> None:
    (run / name).write_text("{")
    status, _, said = publish(run, home)
    assert status == 2
    assert f"{name}: not what `train fit` wrote" in said.replace("\n", "")


def test_export_makes_a_folder_for_one_server(run: Path, home: Path, tmp_path: Path) -> None:
    status, _, said = publish(run, home, "--server", "vllm")
    assert status == 0, said
    ref = published(home)[-1]

    def export(*flags: str) -> Any:
        return CliRunner().invoke(app, ["export", "--home", str(home), "--json", *flags])

    to = tmp_path / "for-vllm"
    done = export("--adapter", ref.id, "--server", "vllm", "--to", str(to), "--base-model", "org/base")  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    source = Registry(home / "adapters").open_local(ref) / "adapter_model.safetensors"
    linked = to / "adapter_model.safetensors"
    assert linked.read_bytes() == source.read_bytes()
    assert found["weights"] == "copied" or linked.stat().st_ino == source.stat().st_ino
    config = json.loads((to / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base"
    assert set(config) <= {
        "peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "target_modules", "bias",
        "fan_in_fan_out", "inference_mode", "use_rslora", "rank_pattern", "alpha_pattern",
    }  # fmt: skip
    assert found["flags"][:3] == ["--enable-lora", "--max-lora-rank", "8"]
    assert found["flags"][-1] == f"fresh-{ref.version}={to}"
    assert found["call"]["model"] == f"fresh-{ref.version}"
    for flags, message in (
        (("--adapter", ref.id, "--server", "vllm", "--to", str(to)), "there is something in it"),
        (("--adapter", ref.id, "--server", "tgi", "--to", "x"), "--server 'tgi': allowed"),
        (("--adapter", "nobody", "--server", "vllm", "--to", "x"), "nobody"),
        (("--adapter", "tickets/1", "--server", "vllm", "--to", "x"), "publish the run again"),
    ):
        refused = export(*flags)
        assert refused.exit_code == 2
        assert message in refused.output.replace("\n", "")
