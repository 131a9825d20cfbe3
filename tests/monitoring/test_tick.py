"""A tick over a home, the server over what it wrote, and the command line."""

import asyncio
import dataclasses
import datetime
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from monitoring.app import create_app
from monitoring.cli import app as commands
from monitoring.review import ReviewQueue
from monitoring.rollout_events import body
from monitoring.settings import MonitorSettings
from monitoring.store import Store, open_store
from monitoring.tick import run_tick
from router import policy_file
from router.errors import PolicyError
from router.home import Home
from router.records import Record
from router.traffic import TrafficLog
from serving.registry import ManifestFields, Registry
from tests.monitoring.conftest import NOW, policy, record
from tests.tiny import random_adapter, tiny_model

A, B = '{"kind":"a"}', '{"kind":"b"}'


def log(settings: MonitorSettings, records: list[Record]) -> None:
    traffic = TrafficLog(settings.home.traffic, now=lambda: records[0].at)
    for one in records:
        assert traffic.append(one)
    traffic.close()


def tick(settings: MonitorSettings, store: Store, later: float = 0.0) -> Any:
    now = datetime.datetime.fromtimestamp(NOW + later, datetime.UTC)
    return run_tick(settings, store, now=now, html=False)


def test_a_tick_reports_flags_and_does_nothing_twice(
    settings: MonitorSettings, store: Store
) -> None:
    log(
        settings,
        [*(record(n, A, A) for n in range(40)), *(record(50 + n, A, B) for n in range(10))],
    )
    (report,) = tick(settings, store)
    assert (report.records, report.disagreement[0].rate.count, report.flags_new) == (50, 10, 10)
    assert report.reference == "older half of the traffic"
    (again,) = tick(settings, store, 5)
    assert (again.flags_new, again.flags_open) == (0, 10)
    found = store.latest_report("mail")
    assert found is not None
    assert found["disagreement"][0]["adapter"] == "mail/1"


def test_no_traffic_is_a_report_too(settings: MonitorSettings, store: Store) -> None:
    (report,) = tick(settings, store)
    assert (report.records, report.disagreement, report.drift.enough) == (0, [], False)


def test_a_bad_policy_is_an_error_that_says_why(settings: MonitorSettings, store: Store) -> None:
    settings.policy.write_text("version: 2")
    with pytest.raises(PolicyError, match="version = 2"):
        tick(settings, store)


@pytest.fixture
def published(settings: MonitorSettings, tmp_path: Path) -> None:
    tiny_model(tmp_path / "model")
    adapter = random_adapter(tmp_path / "model", tmp_path / "adapter", 0, ["q_proj"])
    fields = ManifestFields(
        base_model="m", base_model_digest="d", rank=4, alpha=16, target_modules=("q_proj",)
    )
    Registry(settings.home.adapters).publish("mail", adapter, fields, {})


@pytest.mark.usefixtures("published")
def test_a_canary_begins_advances_and_rolls_back(settings: MonitorSettings, store: Store) -> None:
    rule = {"steps": ["10%", "100%"], "hold": "0s", "gates": {"disagreement": {"max": "10%"}}}
    settings.policy.write_text(policy("canary", canary=rule))
    log(settings, [record(n, A, A, mode="canary") for n in range(5)])
    assert tick(settings, store)[0].rollout["action"] == "begin"
    good = [record(2000 + n, A, A, mode="canary") for n in range(300)]
    log(settings, good)
    assert tick(settings, store, 2000)[0].rollout["action"] == "advance"
    loaded = policy_file.load(settings.policy, settings.home.rollouts)
    assert (loaded.rollouts.routes["mail"].share, loaded.rollouts.routes["mail"].version) == (
        1.0,
        1,
    )
    bad = [record(4000 + n, A, B, mode="canary") for n in range(60)]
    log(settings, bad)
    assert tick(settings, store, 4000)[0].rollout["action"] == "rollback"
    loaded = policy_file.load(settings.policy, settings.home.rollouts)
    assert (loaded.rollouts.routes["mail"].state, loaded.rollouts.routes["mail"].share) == (
        "rolled_back",
        0.0,
    )
    assert [e.action for e in store.rollout_events("mail")] == ["begin", "advance", "rollback"]
    assert tick(settings, store, 5000)[0].rollout["action"] == "hold"


@pytest.mark.usefixtures("published")
def test_a_report_says_what_a_canary_would_do_and_leaves_it(
    settings: MonitorSettings, store: Store
) -> None:
    rule = {"steps": ["10%", "100%"], "hold": "0s", "gates": {"disagreement": {"max": "10%"}}}
    settings.policy.write_text(policy("canary", canary=rule))
    log(settings, [record(n, A, A, mode="canary") for n in range(300)])
    now = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    (report,) = run_tick(settings, store, now=now, html=False, move=False)
    assert report.rollout is not None
    assert report.rollout["action"] == "begin"
    assert not settings.home.rollouts.exists()
    home = ["--home", str(settings.home.root), "--since", "9999d"]
    assert CliRunner().invoke(commands, ["report", *home]).exit_code == 0
    assert (settings.home.rollouts.exists(), store.rollout_events("mail")) == (False, [])
    assert CliRunner().invoke(commands, ["tick", *home]).exit_code == 0
    assert (settings.home.rollouts.exists(), len(store.rollout_events("mail"))) == (True, 1)


def test_several_logs_are_read_as_one(
    settings: MonitorSettings, store: Store, tmp_path: Path
) -> None:
    log(settings, [record(n, A, B) for n in range(3)])
    other = dataclasses.replace(settings, home=Home(tmp_path / "other"))
    log(other, [record(n, A, B) for n in range(10, 14)])
    both = (str(settings.home.traffic), str(other.home.traffic))
    (report,) = tick(dataclasses.replace(settings, logs=both), store)
    assert (report.records, report.flags_new) == (7, 7)
    command = ["report", "--home", str(settings.home.root), "--json", "--since", "9999d"]
    found = CliRunner().invoke(commands, [*command, *(f"--log={place}" for place in both)])
    assert json.loads(found.stdout)[0]["records"] == 7
    missing = CliRunner().invoke(commands, [*command, "--log", str(tmp_path / "nowhere")])
    assert missing.exit_code == 2
    assert "--log" in missing.stderr


class Killed(Exception):
    """Stands for a process that dies."""


class DyingStore(Store):
    """A store whose process dies at its n-th call: before it, or right after it was carried out."""

    def __init__(self, engine: Engine, calls: float, after: bool) -> None:
        super().__init__(engine)
        self.calls = calls
        self._after = after

    def session(self) -> Session:
        """A session."""
        if not self._after:
            self._count()
        return super().session()

    def add_flags(self, rows: Sequence[dict[str, Any]]) -> int:
        """Flags."""
        return int(self._dying(super().add_flags, rows))

    def put_report(self, *values: Any) -> None:
        """A report."""
        self._dying(super().put_report, *values)

    def add_drift_window(self, row: dict[str, Any]) -> int:
        """A window of drift over time."""
        return int(self._dying(super().add_drift_window, row))

    def add_rollout_event(self, **values: Any) -> None:
        """A move."""
        self._dying(super().add_rollout_event, **values)

    def _dying(self, call: Callable[..., Any], *values: Any, **named: Any) -> Any:
        found = call(*values, **named)
        if self._after:
            self._count()
        return found

    def _count(self) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise Killed


def stored(settings: MonitorSettings, store: Store) -> dict[str, Any]:
    """All that ticks have written, but for how many flags were new: that is of one tick, and one that died said it to nobody."""
    report = store.latest_report("mail") or {}
    overlay = settings.home.rollouts.read_text() if settings.home.rollouts.exists() else ""
    return {
        "report": {**report, "flags_new": None},
        "moves": [body(row) for row in store.rollout_events("mail")],
        "flags": [
            (f.id, f.kind, f.score, f.status) for f in ReviewQueue(store).list("mail", None, 999)
        ],
        "overlay": overlay,
    }


@pytest.mark.usefixtures("published")
@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before a write", "after a write"])
def test_a_tick_that_dies_anywhere_and_runs_again_ends_the_same(
    settings: MonitorSettings, tmp_path: Path, after: bool
) -> None:
    rule = {"steps": ["10%", "100%"], "hold": "0s", "gates": {"disagreement": {"max": "10%"}}}
    settings.policy.write_text(policy("canary", canary=rule))
    log(settings, [record(2000 + n, A, B if n % 60 == 0 else A, mode="canary") for n in range(300)])

    def ended(name: str, calls: float) -> tuple[dict[str, Any], bool, bool]:
        here = dataclasses.replace(settings, home=Home(tmp_path / name))
        here.home.root.mkdir()
        shutil.copytree(settings.home.traffic, here.home.traffic)
        shutil.copytree(settings.home.adapters, here.home.adapters)
        opened = open_store(here.home.database_url)
        tick(here, opened)  # the canary begins
        dying = DyingStore(opened.engine, calls, after)
        died = has_moved = False
        try:
            tick(here, dying, 2000)
        except Killed:
            died, has_moved = True, "share: 1.0" in here.home.rollouts.read_text()
            dying.calls = math.inf
            tick(here, dying, 2000)
        found = stored(here, opened)
        opened.close()
        return found, died, has_moved

    whole, *_ = ended("whole", math.inf)
    assert [move["action"] for move in whole["moves"]] == ["begin", "advance"]
    assert len(whole["flags"]) == 5
    moved = 0
    for calls in range(50):
        found, died, has_moved = ended(f"dies-{calls}", calls)
        if has_moved:
            # The move was made: the table has its evidence (compared below), and the tick that comes next looks at the new step.
            said = found["report"]["rollout"]
            assert (said["action"], said["state"]) == ("hold", whole["report"]["rollout"]["state"])
            found["report"]["rollout"] = whole["report"]["rollout"]
            moved += 1
        assert found == whole, f"died at call {calls}"
        if not died:
            break
    assert calls >= 3
    assert moved >= 1


def ask(
    settings: MonitorSettings, store: Store, *requests: tuple[str, str, Any]
) -> list[httpx.Response]:
    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(create_app(settings, store, ticking=False))
        async with httpx.AsyncClient(transport=transport, base_url="http://monitor") as client:
            return [await client.request(m, path, json=body) for m, path, body in requests]

    return asyncio.run(run())


def test_the_server_shows_reports_and_takes_reviews(
    settings: MonitorSettings, store: Store
) -> None:
    log(settings, [record(n, A, B, text=f"<b>look {n}</b>") for n in range(3)])
    tick(settings, store)
    health, ready, report, missing, flags, page = ask(
        settings, store, ("GET", "/health", None), ("GET", "/ready", None), ("GET", "/api/routes/mail/report", None),
        ("GET", "/api/routes/other/report", None), ("GET", "/api/flags", None), ("GET", "/", None),
    )  # fmt: skip
    assert (health.text, ready.json()["ready"], report.json()["records"], missing.status_code) == (
        "ok",
        True,
        3,
        404,
    )
    assert "&lt;b&gt;look 0&lt;/b&gt;" in page.text
    assert "<b>look" not in page.text
    first = flags.json()[0]["id"]
    path = f"/api/flags/{first}/decision"
    unknown, bad, good, again, undone = ask(
        settings, store, ("POST", "/api/flags/nope/decision", {"verdict": "discard", "by": "ada"}),
        ("POST", path, {"verdict": "correct", "answer": '{"kind":"z"}', "by": "ada"}),
        ("POST", path, {"verdict": "accept_teacher", "by": "ada"}), ("POST", path, {"verdict": "discard", "by": "ada"}),
        ("POST", f"/api/flags/{first}/undo", None),
    )  # fmt: skip
    assert [r.status_code for r in (unknown, bad, good, again, undone)] == [404, 422, 200, 409, 200]
    assert "is not one of" in bad.json()["error"]


def test_the_command_line(settings: MonitorSettings, store: Store) -> None:
    log(settings, [record(n, A, B) for n in range(3)])
    home = ["--home", str(settings.home.root)]
    run = CliRunner().invoke
    report = run(commands, ["report", *home, "--json", "--since", "9999d"])
    assert report.exit_code == 0, report.output
    assert json.loads(report.stdout)[0]["flags_new"] == 3
    assert "disagreement" in run(commands, ["report", *home, "--since", "9999d"]).stdout
    flags = json.loads(run(commands, ["review", "list", *home, "--json"]).stdout)
    decided = run(
        commands,
        ["review", "decide", flags[0]["id"], "--verdict", "accept_student", "--by", "ada", *home],
    )
    assert decided.exit_code == 0
    for bad in (
        ["report", "--route", "nope"],
        ["report", "--since", "soon"],
        ["review", "decide", "x", "--verdict", "y"],
    ):
        assert run(commands, [*bad, *home]).exit_code == 2
    answered = run(commands, ["review", *home, "--by", "ada"], input="t\nn\n")
    assert answered.exit_code == 0, answered.output
    assert len(json.loads(run(commands, ["review", "list", *home, "--json"]).stdout)) == 1
