"""The server's answers: metrics, errors with their status, and ticks in a process of their own."""

import asyncio
import datetime
import time
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from monitoring.app import TickLoop, create_app
from monitoring.cli import app as commands
from monitoring.metrics import MonitorMetrics
from monitoring.overlay import write_rollouts
from monitoring.settings import MonitorSettings
from monitoring.store import Store
from monitoring.tick import run_tick
from router import policy_file
from router.policy import Rollouts, RouteRollout
from router.records import Record
from router.traffic import TrafficLog
from tests.monitoring.conftest import policy, record

A, B = '{"kind":"a"}', '{"kind":"b"}'


def log(settings: MonitorSettings, records: list[Record]) -> None:
    traffic = TrafficLog(settings.home.traffic)
    for one in records:
        assert traffic.append(one)
    traffic.close()


def ask(
    settings: MonitorSettings, store: Store, method: str, path: str, body: Any = None
) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(settings, store, ticking=False))
        async with httpx.AsyncClient(transport=transport, base_url="http://monitor") as client:
            return await client.request(method, path, json=body)

    return asyncio.run(run())


@pytest.fixture
def flag(settings: MonitorSettings, store: Store) -> str:
    """The id of one open flag."""
    now = time.time()
    log(settings, [record(1, A, B, at=now - 60)])
    run_tick(settings, store, now=datetime.datetime.fromtimestamp(now, datetime.UTC), html=False)
    return str(ask(settings, store, "GET", "/api/flags").json()[0]["id"])


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        pytest.param("/api/flags/nope/undo", None, 404, "no such flag", id="undo of nothing"),
        pytest.param("/api/flags/nope/claim?by=ada", None, 404, "no such flag", id="claim of nothing"),
        pytest.param("/api/flags/{flag}/undo", None, 409, "nothing to undo", id="undo of an open one"),
        pytest.param("/api/flags/{flag}/claim", None, 422, "by", id="claim by nobody"),
        pytest.param("/api/flags/{flag}/decision", {"verdict": "discard"}, 422, "by", id="decided by nobody"),
        pytest.param("/api/flags/{flag}/decision", {"verdict": "maybe", "by": "ada"}, 422, "allowed: accept_teacher", id="unknown verdict"),
        pytest.param("/api/flags/{flag}/decision", {"verdict": "discard", "by": "ada", "x": 1}, 422, "x", id="unknown field"),
    ],
)  # fmt: skip
def test_a_bad_request_is_refused_with_its_status(
    settings: MonitorSettings,
    store: Store,
    flag: str,
    path: str,
    body: Any,
    status: int,
    words: str,
) -> None:
    reply = ask(settings, store, "POST", path.format(flag=flag), body)
    assert reply.status_code == status
    assert words in reply.text


def test_somebody_elses_flag_is_a_conflict(
    settings: MonitorSettings, store: Store, flag: str
) -> None:
    assert ask(settings, store, "POST", f"/api/flags/{flag}/claim?by=ada").status_code == 200
    for path, body in (("claim?by=bob", None), ("decision", {"verdict": "discard", "by": "bob"})):
        reply = ask(settings, store, "POST", f"/api/flags/{flag}/{path}", body)
        assert (reply.status_code, "claimed by ada" in reply.text) == (409, True)
    assert len(ask(settings, store, "GET", "/api/flags?status=all").json()) == 1
    assert ask(settings, store, "GET", "/api/flags?status=open").json() == []
    assert ask(settings, store, "GET", "/api/flags?status=new").status_code == 422


def test_no_label_is_taken_while_the_policy_does_not_hold(
    settings: MonitorSettings, store: Store, flag: str
) -> None:
    settings.policy.write_text("version: 2")
    body = {"verdict": "correct", "answer": "anything", "by": "ada"}
    reply = ask(settings, store, "POST", f"/api/flags/{flag}/decision", body)
    assert (reply.status_code, "version" in reply.json()["error"]) == (503, True)
    assert ask(settings, store, "GET", "/").status_code == 200


def test_a_drift_report_outside_the_folder_is_not_served(
    settings: MonitorSettings, store: Store
) -> None:
    for route in ("mail", "other", "..%2F..%2Fpolicy"):
        path = f"/api/routes/{route}/drift.html"
        assert ask(settings, store, "GET", path).status_code == 404


@pytest.mark.slow
def test_the_loop_ticks_in_a_process_and_fills_the_gauges(
    settings: MonitorSettings, store: Store
) -> None:
    now = time.time()
    log(settings, [record(n, A, B if n < 5 else A, at=now - 60 + n) for n in range(20)])
    metrics = MonitorMetrics(CollectorRegistry())
    loop = TickLoop(settings, store, metrics)
    asyncio.run(loop.once())
    assert loop.error is None
    value = metrics.registry.get_sample_value
    labels = {"route": "mail", "adapter": "mail/1"}
    assert value("graduate_monitoring_disagreement_share", labels) == 0.25
    assert value("graduate_monitoring_flags_open", {"route": "mail"}) == 5
    assert value("graduate_monitoring_ticks_total", {"result": "ok"}) == 1
    settings.policy.write_text("version: 2")
    asyncio.run(loop.once())
    assert loop.error is not None
    assert "version" in loop.error
    assert value("graduate_monitoring_ticks_total", {"result": "error"}) == 1


def test_metrics_are_prometheus_text(settings: MonitorSettings, store: Store) -> None:
    reply = ask(settings, store, "GET", "/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    assert "# TYPE graduate_monitoring_disagreement_share gauge" in reply.text


def test_the_overlay_is_whole_at_every_moment(settings: MonitorSettings) -> None:
    settings.policy.write_text(policy("canary", canary={"steps": ["10%", "100%"]}))
    for share in (0.1, 1.0):
        state = RouteRollout(state="canary", share=share, step=int(share), version=1)
        write_rollouts(settings.home.rollouts, Rollouts(version=1, routes={"mail": state}))
        loaded = policy_file.load(settings.policy, settings.home.rollouts)
        assert loaded.rollouts.routes["mail"].share == share
    assert [p.name for p in settings.home.root.glob(".rollouts-*")] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["review", "list", "--status", "new"], "allowed: open, claimed, decided, all", id="unknown status"),
        pytest.param(["review", "undo", "nope"], "no such flag", id="undo of nothing"),
        pytest.param(["tick", "--database", "nosuch://x"], "cannot be opened", id="unknown database"),
        pytest.param(["tick", "--policy", "/no/such/policy.yaml"], "/no/such/policy.yaml", id="no policy"),
        pytest.param(["serve", "--every", "often"], "--every = 'often': allowed", id="bad pause"),
        pytest.param(["report", "--since", "3"], "--since = '3': allowed", id="span without a unit"),
    ],
)  # fmt: skip
def test_operator_errors_say_what_is_allowed(
    settings: MonitorSettings, arguments: list[str], words: str
) -> None:
    home = ["--home", str(settings.home.root)]
    found = CliRunner().invoke(commands, [*arguments, *home])
    assert found.exit_code == 2, found.output
    assert words in found.stderr
