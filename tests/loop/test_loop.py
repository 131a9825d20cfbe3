"""The whole loop by a tiny model: teacher, dataset, student, publication, dark launch, flags, reviews, canary.

The servers are real processes started by `graduate up`; the offline commands are the command line's own.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from typer.testing import CliRunner

import graduate
from tests.tiny import tiny_model
from tests.words import LABELS, sentence

pytestmark = [
    # Five processes and a run: a quarter of the quick tests' time. Each step has quick tests of its own.
    pytest.mark.slow,
    # llguidance's torch part, evidently and peft use names that their own dependencies deprecate.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
ROOT = Path(__file__).parents[2]


def rows(first: int, count: int) -> list[tuple[str, str]]:
    """Inputs with their label, alternating."""
    return [sentence(n) for n in range(first, first + count)]


TRAFFIC, TEST, LIVE = rows(0, 90), rows(1000, 20), rows(2000, 60)
WRONG = [(text, LABELS[1 - LABELS.index(label)]) for text, label in rows(3000, 4)]
"""Rows on which the recorded teacher is wrong: the student will disagree."""


class Place:
    """A home with a policy, a replayed teacher and a tiny base model, and its servers."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self.home.mkdir()
        tiny_model(root / "model", num_layers=3)
        self.model = str(root / "model")
        names = ("router", "admin", "student", "monitor", "teacher")
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.recorded = root / "recorded.jsonl"
        everything = [*TRAFFIC, *TEST, *LIVE, *WRONG]
        self.recorded.write_text(
            "\n".join(json.dumps({"text": t, "teacher": label}) for t, label in everything)
        )
        self.test_file = root / "test.jsonl"
        self.test_file.write_text(
            "\n".join(json.dumps({"text": t, "teacher": x, "gold": x}) for t, x in TEST)
        )
        self.policy = self.home / "policy.yaml"
        self.write_policy("teacher")

    def at(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def write_policy(self, mode: str, **more: Any) -> None:
        route = {
            "match": {"model": "mail"},
            "teacher": {"backend": "teacher", "model": "replay"},
            "student": {
                "backend": "students",
                "adapter": "mail",
                "prompt": "Mail: {input}\nLabel:",
            },
            "mode": mode,
            "answer": {"kind": "label", "labels": list(LABELS)},
            "guard": {"rules": ["label", "not_empty"]},
            **more,
        }
        policy = {
            "version": 1,
            "backends": {
                "teacher": {"kind": "openai", "base_url": f"{self.at('teacher')}/v1"},
                "students": {"kind": "lorax", "base_url": self.at("student")},
            },
            "routes": {"mail": route},
            "default": {"teacher": {"backend": "teacher"}},
        }
        self.policy.write_text(yaml.safe_dump(policy))

    def change_policy(self, mode: str, **more: Any) -> None:
        """Edit the policy and wait until the router has taken it."""
        self.write_policy(mode, **more)
        until(lambda: self.get("admin", "/policy")["policy"]["routes"]["mail"].get("mode") == mode)

    def get(self, name: str, path: str) -> Any:
        return httpx.get(f"{self.at(name)}{path}", trust_env=False).json()

    def ask(self, asked: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Text and who served it, by the official client."""
        client = openai.OpenAI(base_url=f"{self.at('router')}/v1", api_key="any")
        found = []
        with client:
            for number, (text, _) in enumerate(asked):
                reply = client.chat.completions.with_raw_response.create(
                    model="mail", messages=[{"role": "user", "content": text}], user=f"u{number}"
                )
                content = reply.parse().choices[0].message.content or ""
                found.append((content, reply.headers["x-graduate-served-by"]))
        return found

    def run(self, *arguments: str) -> Any:
        """A `graduate` command, its JSON."""
        done = CliRunner().invoke(graduate.app, [*arguments, "--home", str(self.home), "--json"])
        assert done.exit_code == 0, done.output or repr(done.exception)
        return json.loads(done.stdout)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def until(is_so: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "not so in time"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("loop"))
    command = [
        sys.executable, "-m", "graduate", "up", "--json", "--home", str(made.home), "--policy", str(made.policy),
        "--model", made.model, "--replay", str(made.recorded), "--port", str(made.ports["router"]),
    ]  # fmt: skip
    for name in ("admin", "student", "monitor", "teacher"):
        command += [f"--{name}-port", str(made.ports[name])]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        until(lambda: (made.home / "up.json").exists() or process.poll() is not None, 60)
        assert process.poll() is None, process.stdout.read().decode() if process.stdout else ""
        yield made
    finally:
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=40)
        assert process.returncode == 0, said.decode()
        assert not (made.home / "up.json").exists()


def test_the_whole_loop(place: Place) -> None:
    teacher_answers(place)
    built = train_and_publish(place)
    launch_in_the_dark(place)
    review_one(place, built)
    canary_advances(place)


def teacher_answers(place: Place) -> None:
    replies = place.ask(TRAFFIC)
    assert [text for text, _ in replies] == [label for _, label in TRAFFIC]
    assert {who for _, who in replies} == {"teacher"}


def build(place: Place) -> Any:
    test = ("--test-file", str(place.test_file), "--test-share", "0")
    return place.run("train", "build", "--route", "mail", *test)


def train_and_publish(place: Place) -> Any:
    """Log to dataset, dataset to student, student to registry."""
    built = build(place)
    assert built["counts"]["test"] == len(TEST)
    assert built["counts"]["train"] + built["counts"]["validation"] == len(TRAFFIC)
    sets = (
        "epochs=14",
        "patience=14",
        "lora.top_layers=2",
        "optimizer.learning_rate=0.01",
        "threads=1",
    )
    chosen = [part for each in sets for part in ("--set", each)]
    run = place.home / "runs" / "mail-1"
    fitted = place.run(
        "train",
        "fit",
        "--dataset",
        built["path"],
        "--model",
        place.model,
        "--run",
        str(run),
        *chosen,
    )
    assert fitted["epochs"][-1]["train_loss"] < fitted["epochs"][0]["train_loss"] / 2
    assert (run / "curve.png").stat().st_size > 1000
    evaluation = place.run("train", "evaluate", "--run", str(run))
    right = {line["name"]: line["figures"]["accuracy"] for line in evaluation["tests"][0]["lines"]}
    assert right["student"]["share"] > right["majority"]["share"]
    assert right["teacher"]["share"] == 1.0
    published = place.run("train", "publish", "--run", str(run), "--force", "a tiny model")
    assert published["adapter"] == "mail/1"
    return built


def launch_in_the_dark(place: Place) -> None:
    """Nobody sees the student, and its disagreements are counted."""
    place.change_policy("dark_launch", flags={"per_hour": 50})
    asked = [*LIVE[:20], *WRONG]
    assert {who for _, who in place.ask(asked)} == {"teacher"}
    until(lambda: compared(place) >= len(asked))
    report = place.run("monitor", "report", "--route", "mail")[0]
    found = report["disagreement"][0]
    assert found["adapter"] == "mail/1"
    assert found["pairs"] == len(asked)
    assert 1 <= found["rate"]["count"] <= 12


def review_one(place: Place, built: Any) -> None:
    """A person decides a flag; the label is gold in the next dataset."""
    flags = place.run("monitor", "review", "list")
    wrong = dict(WRONG)
    flag = next(f for f in flags if f["input_text"] in wrong)
    label = LABELS[1 - LABELS.index(wrong[flag["input_text"]])]
    decided = place.run(
        "monitor", "review", "decide", flag["id"], "--verdict", "correct", "--answer", label, "--by", "ada"
    )  # fmt: skip
    assert decided["answer"] == label
    again = build(place)
    assert again["gold"] == built["gold"] + 1
    assert again["digest"] != built["digest"]


def canary_advances(place: Place) -> None:
    """On evidence the monitor moves the canary by itself, and the router follows."""
    rule = {"steps": ["50%", "100%"], "hold": "0s", "audit": "100%", "confidence": "80%"}
    place.change_policy("canary", canary={**rule, "gates": {"disagreement": {"max": "70%"}}})
    place.run("monitor", "tick", "--route", "mail")
    until(lambda: "mail" in place.get("admin", "/policy")["rollouts"]["routes"])
    before = compared(place)
    served = [who for _, who in place.ask(LIVE[20:])]
    assert set(served) == {"student", "teacher"}
    until(lambda: compared(place) - before >= len(served))
    moved = place.run("monitor", "tick", "--route", "mail")[0]["rollout"]
    assert moved["action"] == "advance", moved
    until(lambda: place.get("admin", "/policy")["rollouts"]["routes"]["mail"]["share"] == 1.0)
    answered = {who for _, who in place.ask(LIVE[20:40])}
    assert "student" in answered
    events = place.run("monitor", "rollout")
    assert [e["action"] for e in events] == ["begin", "advance"]


def compared(place: Place) -> int:
    """Comparisons that the router has counted."""
    text = httpx.get(f"{place.at('admin')}/metrics", trust_env=False).text
    return sum(
        int(float(line.rsplit(" ", 1)[1]))
        for line in text.splitlines()
        if line.startswith("graduate_router_comparisons_total")
    )
