"""Parity of training and a really running server: same prompt ids, same greedy answers, and an adapter that is served."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from tests.serving.http.conftest import PROMPT, LiveServer, running
from tests.training.conftest import route, rows
from training import build, dataset, parity
from training.cli import app
from training.parity import Expected, Limits, Served

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def row(answer: str, base: str = "base") -> Expected:
    return Expected(answer, "p", (1, 2), answer, base)


@pytest.mark.parametrize(
    ("served", "message"),
    [
        pytest.param([Served("ab", (1, 2)), Served("cd", (1, 2))], None, id="equal"),
        pytest.param([Served("ab", None), Served("cd", None)], None, id="ids not told"),
        pytest.param([Served("ab", (9, 1, 2)), Served("cd", (1, 2))], "prompt ids differ in 1 of 2", id="a token before"),
        pytest.param([Served("ab", (1, 2)), Served("cx", (1, 2))], "row cd: trained 'cd', served 'cx'", id="another answer"),
        pytest.param([Served("base", (1, 2)), Served("base", (1, 2))], "the adapter is not served", id="the base model"),
    ],
)  # fmt: skip
def test_what_differs_is_said(served: list[Served], message: str | None) -> None:
    found = parity.compare([row("ab"), row("cd")], served)
    wrong = found.wrong(Limits(0.9, 0.9))
    assert all(gate.stops == "always" for gate in found.gates(Limits()))
    assert wrong == [] if message is None else any(message in sentence for sentence in wrong)


def test_a_close_call_may_turn() -> None:
    found = parity.compare([row("ab"), row("cd")], [Served("ab", (1, 2)), Served("cx", (1, 2))])
    assert found.wrong(Limits(0.5, 0.7)) == []
    assert found.prefix_share == 0.75
    assert "mean prefix 0.75" in found.wrong(Limits(0.5, 0.8))[0]


def test_what_the_server_does_not_tell_is_not_measured() -> None:
    found = parity.compare([row("base")], [Served("base", None)])
    assert [gate.state for gate in found.gates(Limits())] == ["not measured", "passed", "not measured"]  # fmt: skip


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with running(tmp_path_factory.mktemp("parity") / "server") as server:
        yield server


@pytest.fixture
def run(live: LiveServer, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A run whose adapter is the server's `mail/1`, over a dataset with its template and cut."""
    server = Path(next(tmp_path_factory.getbasetemp().glob("parity*"))) / "server"
    made = build.build(rows(60), route(), "mail", tmp_path / "datasets", query={})
    info = replace(made.info, prompt=PROMPT, max_input_chars=8)
    saved = dataset.save(tmp_path / "data", info, made.examples)
    folder = tmp_path / "runs" / "mail-1"
    folder.mkdir(parents=True)
    (folder / "adapter").symlink_to(server / "adapter-3")
    origin = {
        "dataset": str(saved.path), "dataset_digest": info.digest, "base_model": live.base_id,
        "base_model_digest": "0", "model": str(server / "model"),
    }  # fmt: skip
    (folder / "origin.json").write_text(json.dumps(origin))
    return folder


def asked(live: LiveServer, run: Path, adapter: str, kind: str = "lorax") -> tuple[int, str]:
    command = ["parity", "--server-url", live.url, "--adapter", adapter, "--run", str(run)]
    command += ["--home", str(run.parent), "--kind", kind, "--rows", "4", "--json"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    return done.exit_code, done.output


@pytest.mark.parametrize(("kind", "told"), [("lorax", 4), ("openai", 0)])
def test_the_served_adapter_answers_as_it_was_trained(
    live: LiveServer, run: Path, kind: str, told: int
) -> None:
    status, output = asked(live, run, live.prompted, kind)
    assert status == 0, output
    found = json.loads((run / "evaluation" / "parity.json").read_text())
    assert (found["answers_equal"], found["rows"]) == (4, 4)
    assert (found["prompts_told"], found["prompts_equal"]) == (told, told)
    assert found["wrong"] == []


def test_another_adapter_is_noticed(live: LiveServer, run: Path) -> None:
    status, output = asked(live, run, live.adapters[0])
    assert status == 2
    assert "of 4 answers are equal, 90% are needed" in output
    assert "; row " in output


@pytest.mark.parametrize(
    ("adapter", "kind", "message"),
    [
        pytest.param("nobody/7", "lorax", "nobody/7", id="unknown adapter"),
        pytest.param("mail/1", "tgi", "--kind 'tgi': allowed: lorax, openai", id="unknown dialect"),
    ],
)
def test_bad_input_is_refused(
    live: LiveServer, run: Path, adapter: str, kind: str, message: str
) -> None:
    status, output = asked(live, run, adapter, kind)
    assert status == 2
    assert message in output
