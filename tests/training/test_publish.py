"""What publishing refuses about the route's policy, before anything is loaded."""

import json
from pathlib import Path

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from router.policy import Route
from tests.training.conftest import route, write_policy
from training import publish
from training.cli import app
from training.dataset import Dataset
from training.servers import Server


def without_prompt() -> Route:
    """A route that sends its student the chat as it is."""
    with_prompt = route()
    assert with_prompt.student is not None
    student = with_prompt.student.model_copy(update={"prompt": None})
    return with_prompt.model_copy(update={"student": student})


@pytest.mark.parametrize("server", [None, "lorax", "vllm"])
def test_a_template_that_the_policy_does_not_name_is_refused(
    dataset: Dataset, server: Server | None
) -> None:
    said = publish.template_missing(Path("p.yaml"), dataset.info, without_prompt(), server)
    assert said is not None
    assert "p.yaml: routes.mail.student.prompt = null" in said
    assert json.dumps(dataset.info.prompt) in said
    assert "--server graduate" in said


def test_the_cut_that_the_policy_needs_is_named(dataset: Dataset) -> None:
    info = replace(dataset.info, max_input_chars=120)
    said = publish.template_missing(Path("p.yaml"), info, without_prompt(), None)
    assert said is not None
    assert "max_input_chars: 120" in said


@pytest.mark.parametrize(
    ("chosen", "server"),
    [
        pytest.param(route(), None, id="the policy names the template"),
        pytest.param(without_prompt(), "graduate", id="the server reads it from the registry"),
        pytest.param(None, None, id="no such route"),
    ],
)
def test_what_is_served_as_trained_passes(
    dataset: Dataset, chosen: Route | None, server: Server | None
) -> None:
    assert publish.template_missing(Path("p.yaml"), dataset.info, chosen, server) is None


def run_folder(root: Path, dataset: Dataset) -> Path:
    """A run as far as publishing reads it before it loads a model."""
    folder = root / "runs" / "mail-1"
    (folder / "evaluation").mkdir(parents=True)
    (folder / "evaluation" / "evaluation.json").write_text(json.dumps({"tests": []}))
    origin = {
        "dataset": str(dataset.path), "dataset_digest": dataset.info.digest, "base_model": "m",
        "base_model_digest": "0", "model": "m",
    }  # fmt: skip
    (folder / "origin.json").write_text(json.dumps(origin))
    return folder


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param([], "routes.mail.student.prompt = null", id="no template in the policy"),
        pytest.param(["--server", "tgi"], "--server 'tgi': allowed: lorax", id="unknown server"),
        pytest.param(["--policy", "none.yaml"], "none.yaml", id="a policy that is not there"),
    ],
)
def test_the_command_refuses(
    dataset: Dataset, tmp_path: Path, flags: list[str], message: str
) -> None:
    write_policy(
        tmp_path / "policy.yaml", "mail", {}, {"kind": "label", "labels": ["refund", "order"]}
    )
    run = run_folder(tmp_path, dataset)
    done = CliRunner().invoke(
        app, ["publish", "--run", str(run), "--home", str(tmp_path), *flags], catch_exceptions=False
    )
    assert done.exit_code == 2
    assert message in done.output
