"""`graduate` itself: help, doctor, and `up` when something is wrong."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import graduate

ROOT = Path(__file__).parents[1]


def run(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "graduate", *arguments], cwd=ROOT, capture_output=True, text=True, check=False,
        timeout=timeout,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "command",
    [
        ["up"], ["down"], ["doctor"],
        ["router", "serve"], ["router", "check"], ["router", "explain"], ["router", "schema"],
        ["router", "ship"], ["router", "keys", "add"], ["router", "keys", "list"], ["router", "keys", "revoke"],
        ["serving", "serve"], ["serving", "replay"], ["serving", "adapters", "list"],
        ["monitor", "serve"], ["monitor", "tick"], ["monitor", "report"], ["monitor", "review"], ["monitor", "rollout"],
        ["monitor", "calibrate"], ["monitor", "replay"], ["monitor", "savings"], ["monitor", "triggers"], ["monitor", "compare"], ["monitor", "dashboards"],
        ["train", "build"], ["train", "preflight"], ["train", "fit"], ["train", "evaluate"], ["train", "publish"],
        ["train", "curate", "run"], ["train", "curate", "restore"], ["train", "curate", "example"], ["train", "label"],
        ["train", "experiment"], ["train", "mistakes"], ["train", "pairs"], ["train", "study", "jigsaw"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_every_command_has_help_with_an_example(command: list[str]) -> None:
    done = CliRunner().invoke(graduate.app, [*command, "--help"])
    assert done.exit_code == 0, done.output
    assert "Example:" in done.output


@pytest.mark.slow
def test_doctor_finds_everything_installed() -> None:
    done = run("doctor", "--json")
    found = {check["check"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout
    assert found["router: lorax"]["found"] == "0.6.3"
    assert all(check["ok"] for check in found.values())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_options_are_environment_variables(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        graduate.app, ["down"], env={"GRADUATE_DOWN_HOME": str(tmp_path / "there")}
    )
    assert f"{tmp_path}/there" in done.output.replace("\n", "")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def ports() -> list[str]:
    options = ("--port", "--admin-port", "--student-port", "--monitor-port")
    return [part for option in options for part in (option, str(free_port()))]


def test_up_names_an_occupied_port_and_the_option(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("up", "--home", str(tmp_path), *ports(), "--student-port", str(port))
    assert done.returncode == 2
    assert f"port {port} of 127.0.0.1 (student) cannot be used" in done.stderr
    assert "--student-port" in done.stderr


@pytest.mark.slow
def test_up_says_which_process_died_and_its_last_words(tmp_path: Path) -> None:
    done = run("up", "--home", str(tmp_path), "--model", str(tmp_path / "no-model"), *ports())
    assert done.returncode == 1
    assert "student server ended with status 2" in done.stderr
    assert "no such file or folder" in done.stderr
    assert not (tmp_path / "up.json").exists()


def test_up_refuses_a_policy_that_is_not_there(tmp_path: Path) -> None:
    done = run("up", "--home", str(tmp_path), "--policy", str(tmp_path / "no.yaml"), *ports())
    assert done.returncode == 2
    assert "no such file" in done.stderr


def test_down_without_anything_running_says_so(tmp_path: Path) -> None:
    done = run("down", "--home", str(tmp_path))
    assert done.returncode == 0
    assert "nothing runs" in done.stderr
