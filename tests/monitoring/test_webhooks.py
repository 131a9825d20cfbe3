"""Webhooks against real HTTP servers: asked before a canary moves up, told afterwards; and Debian's Alertmanager."""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.orm import Session

from monitoring import notices, overlay, rollout_events, webhooks
from monitoring.rollout_events import Event, body
from monitoring.settings import MonitorSettings
from monitoring.store import NoticeRow, Store
from router import policy_file
from router.policy import Notify, Rollouts
from tests.monitoring.conftest import NOW
from tests.monitoring.hooks import Receiver, receiver
from tests.monitoring.test_canary import Desk, write_policy

SECRET = "GRADUATE_TEST_SECRET"


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


@pytest.fixture
def desk(settings: MonitorSettings, store: Store) -> Desk:
    write_policy(settings)
    return Desk(settings, store)


def deliver(desk: Desk, later: float) -> tuple[int, int]:
    loaded = policy_file.load(desk.settings.policy)
    done = notices.deliver(desk.store, loaded.policy, NOW + later)
    return done.sent, done.failed


def waiting(store: Store) -> list[NoticeRow]:
    with store.session() as session:
        found = session.query(NoticeRow).filter(NoticeRow.next_try_at.is_not(None))
        return list(found.order_by(NoticeRow.id))


def test_who_must_confirm_is_asked_before_an_advance(
    desk: Desk, hook: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRET, "s3cret")
    write_policy(desk.settings, confirm=[{"url": hook.url, "secret_env": SECRET}])
    desk.look(0)
    hook.status = 403
    held = desk.look(60, good=300)
    assert (held["action"], held["blocked"]) == ("hold", "confirm")
    assert "did not confirm: HTTP 403: told so" in held["reason"]
    assert (desk.state.step, len(desk.moves)) == (0, 1)
    hook.status = 204
    assert desk.look(120, good=300)["action"] == "advance"
    path, headers, asked = hook.got[-1]
    assert (path, headers["x-graduate-secret"]) == ("/hook", "s3cret")
    assert headers["x-graduate-id"] == asked["key"] == desk.moves[-1].key
    assert (asked["from"]["share"], asked["to"]["share"], asked["rows"]) == (0.1, 0.5, 300)
    assert asked["gates"][0]["state"] == "kept"
    hook.status = 403
    assert desk.look(180, bad=80)["action"] == "rollback"  # nobody is asked whether a breach is one
    assert len(hook.got) == 2


@pytest.mark.parametrize(
    ("more", "delay", "words"),
    [
        pytest.param({"timeout": "100ms"}, 0.4, "no answer within 0.1 s", id="too slow"),
        pytest.param({"secret_env": "GRADUATE_UNSET"}, 0, "GRADUATE_UNSET (secret_env) is not set", id="no secret"),
        pytest.param({"url": "http://127.0.0.1:9/x"}, 0, "ConnectError", id="nobody there"),
    ],
)  # fmt: skip
def test_no_answer_holds(
    desk: Desk, hook: Receiver, more: dict[str, Any], delay: float, words: str
) -> None:
    hook.delay_seconds = delay
    write_policy(desk.settings, confirm=[{"url": hook.url, **more}])
    desk.look(0)
    held = desk.look(60, good=300)
    assert (held["action"], held["blocked"]) == ("hold", "confirm")
    assert words in held["reason"]
    assert desk.state.step == 0


def test_each_move_is_told_once_in_order_and_again_until_it_is_taken(
    desk: Desk, hook: Receiver
) -> None:
    write_policy(desk.settings, notify=[{"url": hook.url}])
    desk.look(0)
    desk.look(60, good=300)
    assert hook.got == []  # a tick tells nobody by itself
    hook.status = 500
    assert deliver(desk, 61) == (0, 1)  # the second waits for the first
    hook.status = 200
    assert deliver(desk, 62) == (0, 0)  # and does not overtake it while it waits for its next try
    assert deliver(desk, 100) == (2, 0)
    assert deliver(desk, 1000) == (0, 0)
    told = [(b["action"], b["state"], b["actor"]) for b in hook.bodies[-2:]]
    assert told == [("begin", "canary", "monitor"), ("advance", "canary", "monitor")]
    assert hook.bodies[-1] == json.loads(json.dumps(body(desk.moves[-1])))
    assert hook.got[-1][1]["x-graduate-id"] == desk.moves[-1].key


def test_a_person_is_told_of_too(desk: Desk, hook: Receiver) -> None:
    write_policy(desk.settings, notify=[{"url": hook.url}])
    desk.look(0)
    desk.order("abort", 10, by="bob", note="it swears")
    assert deliver(desk, 20) == (2, 0)
    assert [(b["actor"], b["note"]) for b in hook.bodies] == [
        ("monitor", None),
        ("bob", "it swears"),
    ]


def test_one_sick_receiver_does_not_keep_the_others_waiting(desk: Desk, hook: Receiver) -> None:
    sick = {"url": "http://127.0.0.1:9/x"}
    write_policy(desk.settings, notify=[sick, {"url": hook.url}])
    desk.look(0)
    assert deliver(desk, 1) == (1, 1)
    (left,) = waiting(desk.store)
    assert (left.url, left.attempts, left.next_try_at) == (sick["url"], 1, NOW + 1 + 15)
    assert "ConnectError" in (left.error or "")
    assert deliver(desk, 2) == (0, 0)
    assert deliver(desk, 3 * 86400) == (0, 1)
    assert waiting(desk.store) == []  # given up after two days


class Killed(Exception):
    """Stands for a process that dies."""


class DyingStore(Store):
    """Its process dies when it wants to write down that somebody was told."""

    looked = False

    def session(self) -> Session:
        """The first one is given."""
        if self.looked:
            raise Killed
        self.looked = True
        return super().session()


def test_who_dies_after_the_answer_tells_it_again_under_the_same_id(
    desk: Desk, hook: Receiver
) -> None:
    write_policy(desk.settings, notify=[{"url": hook.url}])
    desk.look(0)
    loaded = policy_file.load(desk.settings.policy)
    with pytest.raises(Killed):
        notices.deliver(DyingStore(desk.store.engine), loaded.policy, NOW + 1)
    assert deliver(desk, 2) == (1, 0)
    assert deliver(desk, 3) == (0, 0)
    ids = [headers["x-graduate-id"] for _, headers, _ in hook.got]
    assert ids == [desk.moves[0].key] * 2


def test_a_move_whose_maker_died_before_it_was_settled_is_told_all_the_same(
    desk: Desk, hook: Receiver
) -> None:
    """Move and notices are settled in one transaction, by whoever comes next."""
    write_policy(desk.settings, notify=[{"url": hook.url}])
    desk.look(0)
    further = desk.state.model_copy(update={"share": 0.5, "step": 1, "since": "t1"})
    event = Event("mail", NOW, "advance", further, "died after the overlay")
    rollout_events.propose(desk.store, event)
    overlay.write_rollouts(desk.path, Rollouts(version=1, routes={"mail": further}))
    assert deliver(desk, 1) == (1, 0)  # the beginning; of the rest nobody knows yet
    desk.look(60)
    assert deliver(desk, 61) == (1, 0)
    assert [(b["action"], b["key"]) for b in hook.bodies][-1] == ("advance", event.key)
    assert deliver(desk, 62) == (0, 0)


def test_who_left_the_policy_is_told_no_more(desk: Desk, hook: Receiver) -> None:
    write_policy(desk.settings, notify=[{"url": hook.url}])
    desk.look(0)
    write_policy(desk.settings)
    deliver(desk, 1)
    assert (hook.got, waiting(desk.store)) == ([], [])


def test_an_alertmanager_gets_an_alert_of_its_api(desk: Desk, hook: Receiver) -> None:
    base = hook.url.removesuffix("/hook")
    write_policy(desk.settings, notify=[{"url": f"{base}/", "kind": "alertmanager"}])
    desk.look(0)
    desk.look(60, bad=80)
    assert deliver(desk, 61) == (2, 0)
    path, _, (alert,) = hook.got[-1]
    assert path == "/api/v2/alerts"
    assert alert["labels"]["severity"] == "page"
    assert (alert["labels"]["route"], alert["labels"]["action"]) == ("mail", "rollback")
    assert "80 of 80" in alert["annotations"]["description"]
    assert alert["startsAt"] < alert["endsAt"]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.slow
def test_debians_alertmanager_takes_the_alert(desk: Desk, tmp_path: Path) -> None:
    program = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    assert program, "needs Debian's prometheus-alertmanager"
    config = tmp_path / "alertmanager.yml"
    config.write_text("route: {receiver: nobody}\nreceivers: [{name: nobody}]\n")
    url = f"http://127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [
            program, f"--config.file={config}", f"--storage.path={tmp_path / 'data'}",
            f"--web.listen-address={url.removeprefix('http://')}", "--cluster.listen-address=",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        ready(url)
        write_policy(desk.settings, notify=[{"url": url, "kind": "alertmanager"}])
        desk.look(0)
        (move,) = desk.moves
        hook = Notify(url=url, kind="alertmanager")
        now = time.time()
        told = {**body(move), "action": "rollback", "at": now}
        assert webhooks.tell(hook, told, "k", now) is None
        (alert,) = httpx.get(f"{url}/api/v2/alerts", trust_env=False).json()
        assert alert["labels"]["alertname"] == "GraduateRolloutMoved"
        later = {**told, "at": now + 2 * webhooks.ALERT_SECONDS}  # it would end before it begins
        assert "HTTP 400" in (webhooks.tell(hook, later, "k", now) or "")
    finally:
        process.terminate()
        process.wait(20)


def ready(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            if httpx.get(f"{url}/-/ready", trust_env=False).is_success:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, "the Alertmanager did not start"
        time.sleep(0.1)
