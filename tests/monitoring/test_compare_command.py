"""`graduate monitor compare` as people call it: by a judge over HTTP, by vectors of a folder, and refused in plain words."""

import json
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from monitoring.cli import app
from monitoring.review import ReviewQueue
from monitoring.settings import MonitorSettings
from monitoring.store import Store
from router.compare import compare
from router.policy_file import load
from router.traffic import TrafficLog
from tests.monitoring.conftest import answer, policy, record
from tests.monitoring.hooks import serving
from tests.monitoring.test_canary import flag_row
from tests.monitoring.test_compare_text import judge_app

TEXT = {"kind": "text"}
PAIRS = 12


def logged(settings: MonitorSettings, url: str = "http://127.0.0.1:9/v1") -> None:
    """Pairs of texts from now; the student is WRONG in three of twelve, ROUGE-L calls nine of them different."""
    settings.policy.write_text(
        policy(answer=TEXT, teacher={"backend": "t", "model": "gpt"}).replace(
            "http://127.0.0.1:9/v1", url
        )
    )
    spec = load(settings.policy).policy.routes["mail"].answer

    log = TrafficLog(settings.home.traffic)
    for number in range(PAIRS):
        teacher = answer("teacher", "Hold the button for ten seconds, then let go.")
        said = "WRONG" if number < 3 else "Press it." if number < 9 else str(teacher.text)
        student = answer("student", said, adapter="mail/1", purpose="shadow")
        made = record(number, at=time.time() - 60 + number)
        log.append(
            msgspec.structs.replace(
                made, answers=(teacher, student), comparison=compare(spec, student, teacher)
            )
        )
    log.close()


def called(settings: MonitorSettings, *more: str) -> Any:
    home = ["--home", str(settings.home.root)]
    return CliRunner().invoke(app, ["compare", "mail", *home, *more])


def test_a_judge_is_asked_and_its_verdicts_are_held_against_people(
    settings: MonitorSettings, store: Store
) -> None:
    rows = [{**flag_row(n, "mail/1"), "record_id": f"r{n}"} for n in (0, 5)]
    assert store.add_flags(rows) == 2
    queue = ReviewQueue(store)
    queue.decide("f0", "accept_teacher", by="ada")
    queue.decide("f5", "accept_student", by="ada")
    asked: list[dict[str, Any]] = []
    with serving(judge_app(asked)) as port:
        logged(settings, f"http://127.0.0.1:{port}/v1")
        done = called(settings, "--by", "judge", "--json")
        shown = called(settings, "--by", "judge", "--sample", "4")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["by"], found["judge"], found["unread"]) == ("judge", "gpt", 0)
    assert [found["disagreement"][k] for k in ("count", "rows")] == [3, PAIRS]
    assert [found["logged_disagreement"][k] for k in ("count", "rows")] == [9, PAIRS]
    assert found["calibration"]["agreed"]["count"] == 2
    assert {body["model"] for body in asked} == {"gpt"}
    assert len(asked) == 2 * (PAIRS + 4)
    assert shown.exit_code == 0, shown.output
    assert "student is worse" in shown.stdout


@pytest.mark.parametrize(
    ("more", "words"),
    [
        pytest.param(["--by", "taste"], "--by 'taste': allowed: embedding, judge", id="no such way"),
        pytest.param(["--by", "embedding"], "holds no model.safetensors", id="no encoder"),
        pytest.param(["--threshold", "1.5"], "--threshold", id="no share"),
        pytest.param(["--by", "judge", "--backend", "nobody"], "--backend 'nobody': allowed: s, t", id="no such backend"),
        pytest.param(["--since", "1s"], "no pair of text answers in the last 1s", id="no pairs"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said(
    settings: MonitorSettings, more: list[str], words: str
) -> None:
    logged(settings)
    done = called(settings, *more)
    assert done.exit_code == 2, done.output
    assert words in done.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_vectors_of_any_folder_compare(settings: MonitorSettings) -> None:
    from tests.tiny import tiny_model

    logged(settings)
    folder: Path = settings.home.root / "encoder"
    tiny_model(folder)
    done = called(settings, "--encoder", str(folder), "--threshold", "0.999", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    # A model of random weights knows no meaning, but equal texts are equal to it.
    assert [found["disagreement"][k] for k in ("count", "rows")] == [9, PAIRS]
    assert found["threshold"] == 0.999
