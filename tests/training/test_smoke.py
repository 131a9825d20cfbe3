"""The smoke profile: shipped tickets and a tiny model, build to publish by the commands alone, in under a minute of CPU."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from examples.tasks import tickets
from tests.tiny import tiny_model
from tests.training.conftest import write_policy
from training.baselines import EMBEDDED
from training.cli import app

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning")]
MOST_SECONDS = 60.0
SETS = (
    "epochs=2",
    "batch_size=16",
    "lora.top_layers=2",
    "optimizer.learning_rate=0.01",
    "max_cut_share=1",
)


def files(root: Path) -> tuple[Path, Path]:
    """Rows with the teacher's answers, and test rows with gold beside them."""
    task = tickets()
    traffic, test = root / "traffic.jsonl", root / "test.jsonl"
    for path, rows, has_gold in (
        (traffic, task.traffic[:240], False),
        (test, task.test[:40], True),
    ):
        lines = [
            {"id": r.id, "text": r.text, "teacher": r.teacher, **({"gold": r.gold} if has_gold else {})}
            for r in rows
        ]  # fmt: skip
        path.write_text("\n".join(json.dumps(line) for line in lines))
    return traffic, test


@pytest.mark.parametrize("engine", ["label", "trl"])
def test_build_fit_evaluate_publish_take_less_than_a_minute(engine: str, tmp_path: Path) -> None:
    began = seconds()
    home = tmp_path / "home"
    home.mkdir()
    task = tickets()
    student = {"prompt": task.prompt, "max_input_chars": 120}
    write_policy(home / "policy.yaml", "tickets", student, task.answer)
    tiny_model(tmp_path / "model", num_layers=3)
    traffic, test = files(tmp_path)

    def run(*words: str) -> Any:
        done = CliRunner().invoke(app, [*words, "--home", str(home), "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout.strip().splitlines()[-1])

    built = run(
        "build", "--route", "tickets", "--no-traffic", "--file", str(traffic), "--test-file", str(test), "--test-share", "0",
    )  # fmt: skip
    assert built["counts"]["test"] == 40
    folder = home / "runs" / "tickets-1"
    sets = [word for one in SETS for word in ("--set", one)]
    fitted = run(
        "fit", "--engine", engine, "--model", str(tmp_path / "model"), "--run", str(folder), *sets
    )
    assert fitted["epochs"][-1]["train_loss"] < fitted["epochs"][0]["train_loss"]
    done = CliRunner().invoke(
        app, ["evaluate", "--run", str(folder), "--home", str(home), "--json"]
    )
    assert done.exit_code == 0, done.output
    names = {line["name"] for line in json.loads(done.stdout)["tests"][0]["lines"]}
    untrained = {EMBEDDED, "base model, zero-shot", "base model, 3-shot"}
    assert {"student", "teacher", "majority", *untrained} <= names
    published = run(
        "publish", "--run", str(folder), "--force", "a tiny model", "--teacher", "replay"
    )
    assert published["adapter"] == "tickets/1"
    lineage = json.loads(next((home / "adapters").rglob("lineage.json")).read_text())
    assert lineage["config"]["engine"] == engine
    assert [one["class"] for one in lineage["terms"]["checked"]] == ["allowed", "unknown"]
    assert any(gate["name"] == "reload check: as fitted" for gate in lineage["gates"])
    assert seconds() - began < MOST_SECONDS


def seconds() -> float:
    """CPU seconds of this process: what the profile costs, however busy the machine is."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
