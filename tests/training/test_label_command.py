"""`graduate train label` against a replay teacher that listens."""

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from typer.testing import CliRunner

import graduate
from tests.training.labelling import URL, replay, rows
from training import imports

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def listening(app: Any) -> Iterator[str]:
    """The app on a port of its own."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", ws="none")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}/v1"
    server.should_exit = True
    thread.join(5)


@pytest.fixture
def teacher_url() -> Iterator[str]:
    with listening(replay(wrong=2)) as url:
        yield url


def run(*arguments: str) -> Any:
    return CliRunner().invoke(graduate.app, ["train", "label", *arguments])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_command_labels_resumes_and_stops_at_the_cap(teacher_url: str, tmp_path: Path) -> None:
    source, out = tmp_path / "rows.jsonl", tmp_path / "labels.jsonl"
    lines = [{"id": r.id, "text": r.messages[0]["content"], "gold": r.gold} for r in rows()]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    common = [
        str(source),
        "--teacher-url",
        teacher_url,
        "--model",
        "replay",
        "--labels",
        "refund,order",
        "--json",
    ]
    common += ["--out", str(out), "--cache", str(tmp_path / "cache.db"), "--max-tokens", "8"]
    free = run(*common)
    assert (free.exit_code, "--input-price" in free.stderr) == (2, True)
    priced = [*common, "--input-price", "10", "--output-price", "30"]
    unasked = run(*priced)
    assert (unasked.exit_code, "agree to the cost with --yes" in unasked.stderr) == (2, True)
    assert "likely $0.0" in unasked.stderr
    assert not out.exists()
    capped = run(*priced, "--yes", "--max-usd", "0.005")
    assert capped.exit_code == 1, capped.output
    partial = json.loads(capped.stdout)
    assert 0 < partial["labelled"] < 40
    assert partial["spent_usd"] <= 0.005
    assert partial["labelled"] + partial["rows_left_by_the_cap"] == 40
    whole = run(*priced, "--yes")
    assert whole.exit_code == 0, whole.output
    report = json.loads(whole.stdout)
    assert (report["labelled"], report["cached"]) == (40, partial["labelled"])
    assert report["ceiling"][0]["right"] == 38
    again = imports.read(out)
    assert (again.format, len(again.rows)) == ("graduate", 40)
    assert [r.teacher == r.gold for r in again.rows].count(False) == 2
    assert again.facts["r0"].finish_reason == "stop"
    assert {r.teacher_model for r in again.rows} == {"replay"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_route_says_who_the_teacher_is_and_what_it_costs(
    teacher_url: str, tmp_path: Path
) -> None:
    policy, source, out = (tmp_path / name for name in ("policy.yaml", "rows.jsonl", "out.jsonl"))
    text = (
        f"version: 1\nbackends:\n  t: {{kind: openai, base_url: '{teacher_url}'PRICE}}\n"
        "routes:\n  mail:\n    teacher: {backend: t, model: gpt}\n    answer: {kind: label, labels: [refund, order]}\n"
        "default: {teacher: {backend: t}}\n"
    )
    source.write_text(
        "".join(json.dumps({"text": r.messages[0]["content"]}) + "\n" for r in rows(3))
    )
    command = [
        str(source),
        "--policy",
        str(policy),
        "--route",
        "mail",
        "--out",
        str(out),
        "--yes",
        "--json",
    ]
    command += ["--cache", str(tmp_path / "cache.db")]
    policy.write_text(text.replace("PRICE", ""))
    unknown = run(*command)
    assert (unknown.exit_code, "the price of gpt is not known" in unknown.stderr) == (2, True)
    policy.write_text(text.replace("PRICE", ", price: {input: 10, output: 30}"))
    done = run(*command)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["labelled"], report["ceiling"]) == (3, [])
    assert report["spent_usd"] > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_command_compares_teachers_on_gold(teacher_url: str, tmp_path: Path) -> None:
    source, grid = tmp_path / "rows.jsonl", tmp_path / "grid.yaml"
    source.write_text(
        "".join(
            json.dumps({"text": r.messages[0]["content"], "gold": r.gold}) + "\n" for r in rows()
        )
    )
    grid.write_text(
        "models: [{name: small, input_price: 0.1, output_price: 0.4}, {name: large, input_price: 10, output_price: 30}]\n"
        "prompts: {plain: '{input}', asked: {user: 'Sort: {input}', system: be brief}}\nmax_tokens: 8\n"
    )
    common = [
        str(source),
        "--teacher-url",
        teacher_url,
        "--grid",
        str(grid),
        "--out",
        str(tmp_path / "out"),
    ]
    common += ["--cache", str(tmp_path / "c.db"), "--labels", "refund,order", "--json", "--yes"]
    stopped = run(*common, "--max-usd", "0.004")
    assert (
        stopped.exit_code,
        "settings with different rows cannot be compared" in stopped.stderr,
    ) == (2, True)
    done = run(*common)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert [s["name"] for s in report["settings"]] == [
        "small / plain / T=0", "small / asked / T=0", "large / plain / T=0", "large / asked / T=0",
    ]  # fmt: skip
    assert report["chosen"] == "small / plain / T=0"
    assert {s["accuracy"] for s in report["settings"]} == {0.95}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_bad_options_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"text": "a"}\n')
    common = [
        str(source),
        "--teacher-url",
        URL,
        "--out",
        str(tmp_path / "o"),
        "--cache",
        str(tmp_path / "c.db"),
    ]
    prices = ["--input-price", "1", "--output-price", "1"]
    for options, message in (
        ([], "give --model"),
        (["--model", "m", "--labels", "one", *prices], "two or more words"),
        (["--model", "m", "--prompt", "no place", *prices], "a text with {input}"),
        (["--model", "m", "--body", "x", *prices], "--body 'x': allowed: KEY=VALUE"),
        (["--model", "m", "--route", "r"], "--policy and --route belong together"),
        (["--model", "m", "--samples", "2", *prices], "allowed: a temperature above 0"),
    ):
        done = run(*common, *options)
        assert (done.exit_code, message in done.stderr) == (2, True), (options, done.stderr)
    shown = run("--help")
    assert "Example:" in shown.output


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """SIGKILL in the middle: nothing that was answered is paid twice."""
    served: list[str] = []
    inner = replay()

    async def counted(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            served.append(scope["path"])
            await asyncio.sleep(0.1)
        await inner(scope, receive, send)

    source, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        "".join(json.dumps({"text": r.messages[0]["content"]}) + "\n" for r in rows())
    )
    with listening(counted) as url:
        command = [
            sys.executable, "-m", "graduate", "train", "label", str(source), "--teacher-url", url, "--model", "m",
            "--labels", "refund,order", "--input-price", "1", "--output-price", "1", "--yes", "--json",
            "--out", str(out), "--cache", str(tmp_path / "cache.db"), "--concurrency", "2",
        ]  # fmt: skip
        first = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
        )
        until = time.monotonic() + 60
        while len(served) < 24 and time.monotonic() < until:
            time.sleep(0.02)
        first.kill()
        first.wait()
        assert not out.exists()
        second = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert second.returncode == 0, second.stderr
    report = json.loads(second.stdout)
    assert report["labelled"] == 40
    assert 20 <= report["cached"] < 40
    assert len(served) <= 40 + 4
