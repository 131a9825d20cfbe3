"""When to train again: what is due, why, once; from real reports, labels and a teacher that announces its end."""

import datetime
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file
from typer.testing import CliRunner

from monitoring.cli import app
from monitoring.review import ReviewQueue
from monitoring.settings import MonitorSettings
from monitoring.store import Store, open_store
from monitoring.trigger_loop import TriggerWatch
from monitoring.trigger_store import date_of, evidence, remember, triggers
from monitoring.triggers import RouteEvidence, Trigger, TriggerRule, due
from router import policy_file
from router.home import Home
from serving.registry import ManifestFields, Registry
from tests.monitoring.conftest import policy

NOW = datetime.datetime(2026, 11, 24, tzinfo=datetime.UTC)
RULE = TriggerRule(max_disagreement=0.05, min_labels=100)


def kinds(**known: Any) -> list[str]:
    return [t.kind for t in due(RULE, RouteEvidence("mail", "mail/1", **known), NOW)]


def in_days(days: float) -> datetime.datetime:
    return NOW + datetime.timedelta(days=days)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        pytest.param({}, [], id="nothing known, nothing due"),
        pytest.param({"drifted": {"words": 0.001}}, ["drift"], id="a drifted column"),
        pytest.param({"disagreement": 0.08, "disagreement_low": 0.06, "pairs": 900}, ["disagreement"], id="shown to be too much"),
        pytest.param({"disagreement": 0.08, "disagreement_low": 0.04, "pairs": 90}, [], id="too much, and not shown"),
        pytest.param({"labels": 99}, [], id="one label short"),
        pytest.param({"labels": 100}, ["labels"], id="enough labels"),
        pytest.param({"teacher": "m", "shutdown": in_days(91)}, [], id="a shutdown far away"),
        pytest.param({"teacher": "m", "shutdown": in_days(89)}, ["shutdown"], id="a shutdown near"),
        pytest.param({"teacher": "m", "shutdown": in_days(-1)}, ["shutdown"], id="a teacher that is gone"),
        pytest.param({"labels": 500, "drifted": {"words": 0.01}, "teacher": "m", "shutdown": in_days(2)}, ["shutdown", "drift", "labels"], id="a deadline comes first"),
    ],
)  # fmt: skip
def test_what_is_due(known: dict[str, Any], expected: list[str]) -> None:
    assert kinds(**known) == expected


def test_without_a_limit_of_its_own_the_canary_gate_counts() -> None:
    found = RouteEvidence("mail", "mail/1", disagreement=0.08, disagreement_low=0.06, pairs=900)
    assert due(TriggerRule(), found, NOW) == ()
    gated = RouteEvidence(
        "mail", "mail/1", disagreement=0.08, disagreement_low=0.06, pairs=900, gate=0.03
    )
    (trigger,) = due(TriggerRule(), gated, NOW)
    assert trigger.reason == (
        "mail/1 disagrees on 8.0 % of 900 pairs, at least 6.0 % by the interval, above 3 %"
    )


def _labels(number: int, adapter: str = "mail/1") -> Trigger:
    return due(RULE, RouteEvidence("mail", adapter, labels=number), NOW)[0]


def test_an_event_is_told_once_for_its_subject(store: Store) -> None:
    assert [t.kind for t in remember(store, [_labels(100)], 1.0)] == ["labels"]
    assert remember(store, [_labels(150)], 2.0) == []
    assert len(remember(store, [_labels(200), _labels(100, "mail/2")], 3.0)) == 2
    assert [row.at for row in triggers(store, "mail")] == [1.0, 3.0, 3.0]
    assert triggers(store, "other") == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:XDG_RUNTIME_DIR")  # where the server keeps its lock
def test_postgresql_tells_once_too(postgresql: str) -> None:
    opened = open_store(postgresql)
    try:
        assert len(remember(opened, [_labels(100), _labels(200)], 1.0)) == 2
        assert remember(opened, [_labels(100)], 2.0) == []
        assert [row.evidence["labels"] for row in triggers(opened, "mail")] == [100, 200]
    finally:
        opened.close()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2026-12-01", datetime.datetime(2026, 12, 1, tzinfo=datetime.UTC)),
        ("2026-12-01T10:00:00Z", datetime.datetime(2026, 12, 1, 10, tzinfo=datetime.UTC)),
        (1_796_083_200, datetime.datetime(2026, 12, 1, tzinfo=datetime.UTC)),
        (None, None), ("soon", None), (True, None), (1e30, None), ([], None),
    ],
)  # fmt: skip
def test_dates_as_apis_write_them(value: Any, expected: datetime.datetime | None) -> None:
    assert date_of(value) == expected


@pytest.fixture
def teacher() -> Iterator[tuple[str, dict[str, Any]]]:
    """A teacher's API that lists its models; what it says can be changed."""
    body: dict[str, Any] = {"object": "list", "data": []}

    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = json.dumps(body).encode()
            self.send_response(200 if self.path == "/v1/models" else 404)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", body
    server.shutdown()
    thread.join()
    server.server_close()


def _report(rate: dict[str, float], drifted: bool) -> dict[str, Any]:
    columns = [
        {"name": "words", "adjusted": 0.002, "drifted": drifted},
        {"name": "characters", "adjusted": 0.6, "drifted": False},
    ]
    disagreement = [{"adapter": "mail/1", "rate": rate}]
    return {"drift": {"drifted": drifted, "columns": columns}, "disagreement": disagreement}


def test_the_command_reads_reports_labels_and_the_teacher(
    settings: MonitorSettings, store: Store, teacher: tuple[str, dict[str, Any]]
) -> None:
    url, models = teacher
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=30)
    models["data"] = [{"id": "old", "shutdown_date": soon.date().isoformat()}, {"id": "new"}]
    body = yaml.safe_load(policy("canary", canary={"gates": {"disagreement": {"max": "5%"}}}))
    body["backends"]["t"]["base_url"] = url
    body["routes"]["mail"]["teacher"]["model"] = "old"
    settings.policy.write_text(yaml.safe_dump(body))
    rate = {"share": 0.1, "low": 0.07, "high": 0.13, "rows": 300, "count": 30}
    store.put_report("mail", 1.0, 1.0, _report(rate, drifted=True))
    flags = [
        {
            "id": f"f{n}", "record_id": f"r{n}", "route": "mail", "kind": "disagreement", "reason": "", "score": 1.0,
            "status": "open", "at": 1.0, "record_at": 1.0, "input_text": "x", "teacher_text": '{"kind":"a"}',
        }
        for n in range(3)
    ]  # fmt: skip
    store.add_flags(flags)
    for n, verdict in enumerate(["accept_teacher", "accept_teacher", "discard"]):
        ReviewQueue(store).decide(f"f{n}", verdict, by="ada")
    command = ["triggers", "--home", str(settings.home.root), "--min-labels", "2", "--json"]
    watch = TriggerWatch(settings, store, TriggerRule(min_labels=2))
    shown = {"mail": ["shutdown", "disagreement", "drift", "labels"]}
    assert watch.look() == shown  # and remembers none: the job that trains is told first
    first = json.loads(CliRunner().invoke(app, command).stdout)
    assert first["notes"] == []
    events = {e["kind"]: e for e in first["events"]}
    assert set(events) == {"drift", "disagreement", "labels", "shutdown"}
    assert events["drift"]["evidence"] == {"columns": {"words": 0.002}}
    assert (
        events["labels"]["evidence"]["labels"] == 2
    )  # a discarded record is nothing to learn from
    assert "teacher old is shut down on" in events["shutdown"]["reason"]
    assert all(e["new"] and e["due"] for e in first["events"])
    store.put_report("mail", 2.0, 2.0, _report(rate, drifted=False))
    again = {e["kind"]: e for e in json.loads(CliRunner().invoke(app, command).stdout)["events"]}
    assert not any(e["new"] for e in again.values())
    assert (again["drift"]["due"], again["labels"]["due"]) == (False, True)


def _publish(home: Home, folder: Path) -> None:
    """The next version of `mail`: the smallest folder that the registry takes."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
    ones = np.ones((1, 1), dtype=np.float32)
    save_file(
        {"q.lora_A.weight": ones, "q.lora_B.weight": ones}, folder / "adapter_model.safetensors"
    )
    fields = ManifestFields(
        base_model="b", base_model_digest="d", rank=1, alpha=1, target_modules=("q",)
    )
    Registry(home.adapters).publish("mail", folder, fields, {})


def test_evidence_is_of_the_version_in_force(
    settings: MonitorSettings, store: Store, tmp_path: Path
) -> None:
    """A new version has no pairs and no labels yet: what is known of the old one is no reason to train again."""
    student = {"backend": "s", "adapter": "mail", "version": 2}
    settings.policy.write_text(policy("canary", student=student))
    rate = {"share": 0.1, "low": 0.07, "high": 0.13, "rows": 300, "count": 30}
    store.put_report("mail", 1.0, 1.0, _report(rate, drifted=False))
    loaded = policy_file.load(settings.policy)
    assert (
        evidence(settings, store, loaded, "mail", {}).disagreement == 0.1
    )  # no registry: the one with most pairs
    for _ in range(2):
        _publish(settings.home, tmp_path / "adapter")
    flag = {
        "id": "f", "record_id": "r", "route": "mail", "kind": "audit", "reason": "", "score": 1.0, "status": "open",
        "at": 1.0, "record_at": 1.0, "input_text": "x", "teacher_text": "{}",
    }  # fmt: skip
    store.add_flags([flag])
    ReviewQueue(store, now=lambda: 1.0).decide("f", "accept_teacher", by="ada")
    found = evidence(settings, store, loaded, "mail", {})
    assert (found.adapter, found.disagreement, found.labels) == ("mail/2", None, 0)


def test_a_teacher_that_cannot_be_asked_is_a_note_and_not_an_error(
    settings: MonitorSettings,
) -> None:
    done = CliRunner().invoke(app, ["triggers", "--home", str(settings.home.root)])
    assert done.exit_code == 0
    assert "backend t: its models cannot be asked for" in done.stderr
    assert "nothing says that a student should be trained again" in done.stdout
    refused = CliRunner().invoke(
        app, ["triggers", "--home", str(settings.home.root), "--shutdown-within", "90"]
    )
    assert refused.exit_code == 2
    assert "--shutdown-within = '90': allowed: a duration" in refused.stderr
