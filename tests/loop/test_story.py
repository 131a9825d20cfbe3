"""The planted story, by real processes: a good student comes all the way up, a second one breaks on a slice and goes back.

Router and monitor are `graduate`'s own, each a process, and the monitor ticks by itself. Teacher and students are one HTTP
process that answers by rules (`story_servers`), so the disagreement is planted: 3 of 100 for the first student; for the
second 1 of 100 and every mail from abroad, which is little enough to hide in the average.
"""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from graduate_up import Service, start_all
from serving.registry import ManifestFields, Registry
from tests.loop.story_servers import KINDS
from tests.loop.test_loop import free_ports
from tests.monitoring.hooks import Receiver, receiver
from tests.tiny import random_adapter, tiny_model

pytestmark = [
    pytest.mark.slow,
    # llguidance's torch part, evidently and peft use names that their own dependencies deprecate.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
ROOT = Path(__file__).parents[2]
STEPS = (0.01, 0.1, 0.5, 1.0)
ABROAD_OF = 7
"""One mail of so many is from abroad: 14 %, under the limit of the whole route."""
LABELLED = 3
"""So few mails from abroad are enough to show a breach, and a quick tick sees no more."""
PATIENCE_SECONDS, LOOK_SECONDS = 100.0, 0.2


def mail(number: int) -> tuple[str, bool]:
    """The text of a mail, and whether it is from abroad."""
    abroad = number % ABROAD_OF == 3
    place = "abroad" if abroad else "home"
    return f"number {number} asks about {KINDS[number % 3]} from {place} please help", abroad


class Story:
    """A home, its processes, and callers that ask one mail after another."""

    def __init__(self, root: Path, hook: Receiver) -> None:
        self.home, self.hook = root / "home", hook
        self.home.mkdir()
        self.policy = self.home / "policy.yaml"
        names = ("router", "admin", "monitor", "servers")
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        self._publish(root)
        self.write_policy("dark_launch", 1)
        home = ["--home", str(self.home), "--policy", str(self.policy)]
        ports = {name: str(port) for name, port in self.ports.items()}
        router = [
            "router",
            "serve",
            "--port",
            ports["router"],
            "--admin-port",
            ports["admin"],
            *home,
        ]
        monitor = ["monitor", "serve", "--port", ports["monitor"], "--every", "1s", *home]
        self.services = [
            Service(
                name, arguments, self.at(door), f"{self.at(door)}/ready", root / f"{name}.log",
                environment={"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
            )
            for name, arguments, door in (("router", router, "admin"), ("monitor", monitor, "monitor"))
        ]  # fmt: skip
        self.number = 0
        self._stop = threading.Event()
        self._callers = threading.Thread(target=lambda: asyncio.run(self._ask()), daemon=True)

    def at(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def _publish(self, root: Path) -> None:
        tiny_model(root / "model")
        adapter = random_adapter(root / "model", root / "adapter", 0, ["q_proj"])
        fields = ManifestFields(
            base_model="m", base_model_digest="d", rank=4, alpha=16, target_modules=("q_proj",)
        )
        for _ in range(2):
            Registry(self.home / "adapters").publish("mail", adapter, fields, {})

    def write_policy(self, mode: str, version: int) -> None:
        route = {
            "match": {"model": "mail"},
            "teacher": {"backend": "teacher", "model": "story-teacher"},
            "student": {
                "backend": "students", "adapter": "mail", "version": version, "prompt": "{input}",
            },
            "mode": mode,
            "answer": {"kind": "label", "labels": list(KINDS)},
            "guard": {"rules": ["label", "not_empty"]},
            "segments": {"abroad": {"metadata": {"from": "abroad"}}},
            "flags": {"per_hour": 1000},
            "canary": {
                "steps": list(STEPS), "hold": "0s", "audit": "100%",
                "gates": {"disagreement": {"max": "20%"}},
                "notify": [{"url": self.hook.url}],
            },
        }  # fmt: skip
        backends = {
            "teacher": {"kind": "openai", "base_url": f"{self.at('servers')}/v1"},
            "students": {"kind": "lorax", "base_url": self.at("servers")},
        }
        policy = {
            "version": 1,
            "backends": backends,
            "routes": {"mail": route},
            "default": {"teacher": {"backend": "teacher"}},
        }
        fresh = self.policy.with_suffix(".new")
        fresh.write_text(yaml.safe_dump(policy))
        fresh.replace(self.policy)

    def start(self) -> None:
        start_all(self.services, 60)
        self._callers.start()

    def stop(self) -> None:
        self._stop.set()
        if self._callers.ident is not None:
            self._callers.join(20)
        for service in reversed(self.services):
            service.stop()

    async def _ask(self) -> None:
        async with httpx.AsyncClient(
            base_url=self.at("router"), trust_env=False, timeout=30
        ) as client:

            async def one(number: int) -> None:
                text, abroad = mail(number)
                body = {
                    "model": "mail", "user": f"u{number}", "messages": [{"role": "user", "content": text}],
                    "metadata": {"from": "abroad" if abroad else "home"},
                }  # fmt: skip
                reply = await client.post("/v1/chat/completions", json=body)
                assert reply.status_code == 200, reply.text

            while not self._stop.is_set():
                await asyncio.gather(*(one(self.number + n) for n in range(10)))
                self.number += 10
                await asyncio.sleep(0.2)

    def get(self, name: str, path: str, **query: Any) -> Any:
        reply = httpx.get(f"{self.at(name)}{path}", params=query, trust_env=False)
        return reply.json() if reply.is_success else None

    def in_force(self) -> tuple[str, float]:
        """State and share that the router goes by."""
        found = self.get("admin", "/policy")["rollouts"]["routes"]["mail"]
        return found["state"], found["share"]

    def moves(self, version: int) -> list[Any]:
        return [
            e for e in self.get("monitor", "/api/rollouts") if e["adapter"] == f"mail/{version}"
        ]

    def until(self, what: str, is_so: Callable[[], bool]) -> None:
        """Wait for it. Looks are counted, not time: a machine that stands still in between is no failure."""
        for _ in range(int(PATIENCE_SECONDS / LOOK_SECONDS)):
            if is_so():
                return
            time.sleep(LOOK_SECONDS)
        said = self.get("monitor", "/ready"), self.get("monitor", "/api/routes/mail/report")
        raise AssertionError(f"{what}: not so in time; {said}")


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    with receiver() as hook:
        told = Story(tmp_path, hook)
        servers = subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).with_name("story_servers.py")),
                str(told.ports["servers"]),
            ]
        )
        try:
            told.start()
            yield told
        finally:
            told.stop()
            servers.terminate()
            servers.wait(20)


def test_the_planted_story(story: Story) -> None:
    in_the_dark(story)
    all_the_way_up(story)
    the_second_goes_back(story)
    flags = its_flags_come_first(story)
    labels_are_in_the_next_dataset(story, flags)
    everybody_was_told(story)


def in_the_dark(story: Story) -> None:
    """3 % planted disagreement is what the monitor says."""

    def pairs() -> int:
        report = story.get("monitor", "/api/routes/mail/report")
        return report["disagreement"][0]["pairs"] if report and report["disagreement"] else 0

    story.until("400 pairs are compared in the dark", lambda: pairs() >= 400)
    report = story.get("monitor", "/api/routes/mail/report")
    rate = report["disagreement"][0]["rate"]
    assert report["mode"] == "dark_launch"
    assert rate["share"] == pytest.approx(0.03, abs=0.006)
    assert rate["low"] < 0.03 < rate["high"]
    assert set(report["served_by"]) == {"teacher"}


def all_the_way_up(story: Story) -> None:
    story.write_policy("canary", 1)
    story.until("the first student is promoted", lambda: [
        e["action"] for e in story.moves(1)] == ["begin", "advance", "advance", "advance", "promote"])  # fmt: skip
    moves = story.moves(1)
    assert [e["share"] for e in moves] == [*STEPS, 1.0]
    for move in moves[1:]:
        assert {g["state"] for g in move["gates"]} == {"kept"}
        assert {g["name"] for g in move["gates"]} == {"disagreement", "disagreement in abroad"}
        assert (move["actor"], move["alpha"]) == ("monitor", pytest.approx(0.05))
    story.until("the router has promoted it", lambda: story.in_force() == ("promoted", 1.0))


def the_second_goes_back(story: Story) -> None:
    """On average it is within the limit; on the mails from abroad it is not."""
    story.write_policy("canary", 2)
    story.until("the second student is rolled back", lambda: "rollback" in [
        e["action"] for e in story.moves(2)])  # fmt: skip
    back = story.moves(2)[-1]
    breached = [g["name"] for g in back["gates"] if g["state"] == "breached"]
    assert breached == ["disagreement in abroad"]
    assert back["share"] == 0.0
    story.until("the router has taken it back", lambda: story.in_force() == ("rolled_back", 0.0))


def its_flags_come_first(story: Story) -> list[Any]:
    # The tick that rolled it back has flagged what it saw.
    flags: list[Any] = story.get("monitor", "/api/flags", limit=20)
    first = flags[:LABELLED]
    assert len(first) == LABELLED
    assert {flag["adapter"] for flag in first} == {"mail/2"}
    assert all("abroad" in flag["input_text"] for flag in first)
    return first


def labels_are_in_the_next_dataset(story: Story, flags: list[Any]) -> None:
    for flag in flags:
        decided = httpx.post(
            f"{story.at('monitor')}/api/flags/{flag['id']}/decision",
            json={"verdict": "accept_teacher", "by": "ada"}, trust_env=False,
        )  # fmt: skip
        assert decided.status_code == 200, decided.text
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "graduate",
        "train",
        "build",
        "--route",
        "mail",
        "--json",
    ]
    done = subprocess.run(
        [*command, "--home", str(story.home), "--policy", str(story.policy)],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    built = json.loads(done.stdout)
    assert built["gold"] == len(flags)

    import pyarrow.parquet as pq

    rows = pq.read_table(Path(built["path"]) / "examples.parquet").to_pylist()
    gold = {row["messages"]: row["gold"] for row in rows if row["gold"] is not None}
    for flag in flags:
        (label,) = (x for messages, x in gold.items() if flag["input_text"] in str(messages))
        assert label == flag["teacher_text"]


def everybody_was_told(story: Story) -> None:
    def told() -> list[Any]:
        return [(b["adapter"], b["action"], b["share"]) for b in story.hook.bodies]

    moves = story.get("monitor", "/api/rollouts")
    wanted = [(m["adapter"], m["action"], m["share"]) for m in moves]
    story.until("the webhook was told of all moves", lambda: len(told()) >= len(wanted))
    assert told() == wanted
