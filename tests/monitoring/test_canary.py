"""A canary in the store and the overlay: moves with their evidence, persons' orders, and processes that die in between."""

import asyncio
import dataclasses
import datetime
import json
from typing import Any

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from monitoring import canary, overlay, rollout_events
from monitoring.app import create_app
from monitoring.cli import app as commands
from monitoring.commands import out
from monitoring.errors import RolloutRefused, UnknownRoute
from monitoring.evidence import Gathering
from monitoring.orders import abort, approve, order, resume
from monitoring.review import ReviewQueue
from monitoring.rollout_events import Event
from monitoring.settings import MonitorSettings
from monitoring.store import Store
from monitoring.tick import run_tick
from router import policy_file
from router.policy import Canary, Rollouts, RouteRollout
from router.traffic import TrafficLog
from tests.monitoring.conftest import NOW, policy, record

A, B = '{"kind":"a"}', '{"kind":"b"}'
RULE = {"steps": ["10%", "50%", "100%"], "hold": "0s", "gates": {"disagreement": {"max": "10%"}}}


def at(later: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(NOW + later, datetime.UTC)


def write_policy(settings: MonitorSettings, **more: Any) -> None:
    settings.policy.write_text(policy("canary", canary={**RULE, **more}))


class Desk:
    """Ticks of one canary, the log left out: each look is given the records since the step began."""

    def __init__(self, settings: MonitorSettings, store: Store) -> None:
        self.settings, self.store = settings, store
        self.path = settings.home.rollouts

    @property
    def state(self) -> RouteRollout:
        return policy_file.load(self.settings.policy, self.path).rollouts.routes["mail"]

    @property
    def moves(self) -> list[Any]:
        return self.store.rollout_events("mail")

    def look(self, later: float, good: int = 0, bad: int = 0) -> dict[str, Any]:
        """A look `later` seconds after NOW, at pairs that were made just before it."""
        canary.settle(self.store, self.path, self.settings.policy)
        loaded = policy_file.load(self.settings.policy, self.path)
        route, state = loaded.policy.routes["mail"], loaded.rollouts.routes.get("mail")
        gathered = Gathering("mail/1")
        for n in range(good + bad):
            answer = A if n < good else B
            gathered.add(record(n, A, answer, mode="canary", at=NOW + later - 1))
        found = canary.look(
            self.store, self.path,
            canary.Standing("mail", route, state, "mail/1", 1, loaded.digest), gathered, at(later),
            policy=self.settings.policy, move=True,
        )  # fmt: skip
        self.store.put_report("mail", NOW + later, NOW + later, {})
        assert found is not None
        return found

    def order(self, word: str, later: float, by: str = "ada", note: str | None = None) -> Event:
        home = self.settings.home
        return order(
            self.store, self.settings.policy, self.path, home.adapters, "mail", word, by=by,
            note=note, now=at(later),
        )  # fmt: skip


@pytest.fixture
def desk(settings: MonitorSettings, store: Store) -> Desk:
    write_policy(settings)
    return Desk(settings, store)


def test_a_move_is_in_the_table_with_rows_bounds_error_digest_and_actor(desk: Desk) -> None:
    assert desk.look(0)["action"] == "begin"
    digest = policy_file.load(desk.settings.policy, desk.path).digest
    assert desk.look(60, good=300)["action"] == "advance"
    begin, advance = (rollout_events.body(row) for row in desk.moves)
    assert (begin["actor"], begin["rows"], begin["alpha"]) == ("monitor", None, 0)
    assert (advance["action"], advance["state"], advance["share"]) == ("advance", "canary", 0.5)
    assert (advance["actor"], advance["adapter"], advance["rows"]) == ("monitor", "mail/1", 300)
    assert advance["policy_digest"] == digest  # the one that the records of its evidence carry
    assert advance["alpha"] == pytest.approx(0.05)
    (gate,) = advance["gates"]
    assert (gate["name"], gate["state"], gate["rows"]) == ("disagreement", "kept", 300)
    assert 0 <= gate["low"] < gate["high"] < 0.1
    assert desk.look(120, bad=80)["action"] == "rollback"
    assert (desk.state.state, desk.state.share) == ("rolled_back", 0.0)


def test_a_look_that_moves_nothing_writes_nothing(desk: Desk) -> None:
    desk.look(0)
    before = desk.path.read_bytes()
    assert desk.look(60, good=3)["action"] == "hold"
    assert (desk.path.read_bytes(), len(desk.moves)) == (before, 1)


def test_a_person_approves_each_step(desk: Desk) -> None:
    write_policy(desk.settings, approval="manual")
    desk.look(0)
    assert desk.look(60, good=300)["action"] == "wait"
    again = desk.look(120, good=300)
    assert (again["action"], again["blocked"]) == ("hold", "approval")
    desk.order("approve", 130, note="read 20")
    with pytest.raises(RolloutRefused, match="step 1 of 3 is approved already"):
        desk.order("approve", 131)
    assert desk.look(180, good=300)["action"] == "advance"
    assert desk.look(240, good=300)["action"] == "wait"
    told = [(row.action, row.actor, row.note) for row in desk.moves]
    assert told == [
        ("begin", "monitor", None), ("wait", "monitor", None), ("approve", "ada", "read 20"),
        ("advance", "monitor", None), ("wait", "monitor", None),
    ]  # fmt: skip


def test_evidence_goes_on_while_a_person_is_waited_for(desk: Desk) -> None:
    write_policy(desk.settings, approval="manual")
    desk.look(0)
    desk.look(60, good=300)
    desk.order("approve", 70)
    assert canary.evidence_since(desk.state, at(999)) == at(0)
    desk.look(80, good=300)
    assert canary.evidence_since(desk.state, at(999)) == at(80)


def test_abort_is_at_once_and_resume_begins_anew(desk: Desk) -> None:
    desk.look(0)
    desk.look(60, good=300)
    desk.order("abort", 70, by="bob", note="it swears")
    assert (desk.state.state, desk.state.share) == ("rolled_back", 0.0)
    assert desk.look(120, good=300)["action"] == "hold"
    desk.order("resume", 130)
    state = desk.state
    assert (state.state, state.step, state.share) == ("canary", 0, 0.1)
    assert canary.evidence_since(state, at(999)) == at(130)
    told = [(row.action, row.actor, row.evidence) for row in desk.moves[2:]]
    assert told == [
        ("abort", "bob", "abort by bob: it swears"),
        ("resume", "ada", "resume by ada"),
    ]


@pytest.mark.parametrize(
    ("state", "word", "why"),
    [
        pytest.param(None, "approve", "not begun", id="approve before it begins"),
        pytest.param("promoted", "approve", "is promoted", id="approve when done"),
        pytest.param("canary", "approve", "automatic", id="approve what needs none"),
        pytest.param("rolled_back", "abort", "already", id="abort twice"),
        pytest.param("canary", "resume", "is canary", id="resume what runs"),
        pytest.param("promoted", "resume", "is promoted", id="resume when done"),
    ],
)
def test_an_order_that_cannot_be_is_refused(state: Any, word: str, why: str) -> None:
    now = None if state is None else RouteRollout(state=state, share=0.1, version=1)
    with pytest.raises(RolloutRefused, match=why):
        {"approve": approve, "abort": abort, "resume": resume}[word](Canary(), now, "t")


@pytest.mark.parametrize("state", ["held", "inconclusive"])
def test_what_stands_still_resumes_on_its_step(state: Any) -> None:
    rule = Canary.model_validate(RULE)
    found = resume(rule, RouteRollout(state=state, share=0.5, step=1, version=1, since="t0"), "t1")
    assert (found.state, found.step, found.share, found.step_since) == ("canary", 1, 0.5, "t1")


def test_orders_are_for_routes_with_a_canary(desk: Desk) -> None:
    home = desk.settings.home
    place = (desk.store, desk.settings.policy, desk.path, home.adapters)
    with pytest.raises(UnknownRoute, match="allowed: mail"):
        order(*place, "post", "abort", by="ada", now=at(0))
    with pytest.raises(RolloutRefused, match="allowed: approve, abort, resume"):
        desk.order("sing", 0)
    with pytest.raises(RolloutRefused, match="a name"):
        desk.order("abort", 0, by=" ")
    desk.settings.policy.write_text(policy("student"))
    with pytest.raises(RolloutRefused, match="mode student"):
        desk.order("abort", 0)
    assert desk.moves == []


def test_an_abort_before_the_first_tick_is_kept(desk: Desk) -> None:
    desk.order("abort", 0)
    assert desk.state.share == 0.0
    with overlay.locked(desk.path):  # as if the registry had known the version
        state = desk.state.model_copy(update={"version": 1})
        overlay.write_rollouts(desk.path, Rollouts(version=1, routes={"mail": state}))
    assert desk.look(60)["action"] == "hold"


def test_a_move_that_never_came_into_the_overlay_is_none(desk: Desk) -> None:
    desk.look(0)
    ghost = desk.state.model_copy(update={"share": 0.5, "step": 1, "since": "t1"})
    rollout_events.propose(desk.store, Event("mail", NOW, "advance", ghost, "died here"))
    assert [row.action for row in desk.moves] == ["begin"]
    desk.look(60)
    assert rollout_events.pending_routes(desk.store) == []
    assert [row.action for row in desk.moves] == ["begin"]


def test_a_move_that_was_carried_out_is_settled_by_who_comes_next(desk: Desk) -> None:
    write_policy(desk.settings, notify=[{"url": "http://127.0.0.1:9/x"}])
    desk.look(0)
    further = desk.state.model_copy(update={"share": 0.5, "step": 1, "since": "t1"})
    rollout_events.propose(desk.store, Event("mail", NOW, "advance", further, "died after"))
    overlay.write_rollouts(desk.path, Rollouts(version=1, routes={"mail": further}))
    for _ in range(2):
        canary.settle(desk.store, desk.path, desk.settings.policy)
    assert [row.action for row in desk.moves] == ["begin", "advance"]
    assert rollout_events.pending_routes(desk.store) == []


def test_a_move_from_a_state_that_is_gone_is_not_made(desk: Desk) -> None:
    desk.look(0)
    seen = desk.state
    desk.order("abort", 10)
    further = seen.model_copy(update={"share": 0.5, "step": 1, "since": "t1"})
    event = Event("mail", NOW, "advance", further, "too late")
    assert not canary.carry_out(desk.store, desk.path, desk.settings.policy, seen, event)
    assert desk.state.state == "rolled_back"
    assert [row.action for row in desk.moves] == ["begin", "abort"]


def test_only_reviews_of_this_version_let_it_up(desk: Desk) -> None:
    write_policy(desk.settings, steps=["50%", "100%"], min_reviews=2)
    desk.look(0)
    for version, numbers in (("mail/0", (1, 2)), ("mail/1", (3, 4))):
        rows = [flag_row(n, version) for n in numbers]
        assert desk.store.add_flags(rows) == 2
    queue = ReviewQueue(desk.store)
    for n in (1, 2, 3):
        queue.decide(f"f{n}", "accept_teacher", by="ada")
    held = desk.look(60, good=300)
    assert (held["action"], held["reason"]) == ("hold", "1 of 2 reviews before the last step")
    queue.decide("f4", "discard", by="ada")
    assert desk.look(120, good=300)["action"] == "advance"


def flag_row(number: int, adapter: str) -> dict[str, Any]:
    return {
        "id": f"f{number}", "record_id": f"r{number}", "route": "mail", "kind": "disagreement", "reason": "",
        "score": 0.5, "at": 1.0, "record_at": 1.0, "adapter": adapter, "input_text": "x", "teacher_text": A,
        "student_text": B, "status": "open",
    }  # fmt: skip


def test_stale_records_and_a_monitor_that_was_away_freeze(desk: Desk) -> None:
    write_policy(desk.settings, stale_after="10m")
    desk.look(0)
    away = desk.look(700, good=300)
    assert (away["action"], away["blocked"]) == ("hold", "away")
    assert desk.look(760, good=300)["action"] == "advance"
    desk.look(1300)
    stale = desk.look(1420)
    assert (stale["action"], stale["blocked"]) == ("hold", "stale")
    assert "no record for 660 s" in stale["reason"]
    assert desk.look(1480, bad=80)["action"] == "rollback"


def test_evidence_begins_with_the_step_however_far_the_report_looks_back(
    desk: Desk,
) -> None:
    settings = dataclasses.replace(desk.settings, since_seconds=60.0)
    run_tick(settings, desk.store, now=at(0), html=False)
    log = TrafficLog(settings.home.traffic, now=lambda: NOW)
    for n in range(300):
        assert log.append(record(1001 + n, A, A, mode="canary"))
    log.close()
    (report,) = run_tick(settings, desk.store, now=at(3000), html=False)
    assert report.rollout is not None
    assert (report.records, report.flags_open) == (0, 0)
    assert (report.rollout["action"], desk.moves[-1].rows) == ("advance", 300)


def ask(settings: MonitorSettings, store: Store, *asked: tuple[str, str, Any]) -> list[Any]:
    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(create_app(settings, store, ticking=False))
        async with httpx.AsyncClient(transport=transport, base_url="http://monitor") as client:
            return [await client.request(m, path, json=body) for m, path, body in asked]

    return asyncio.run(run())


def test_the_api_takes_a_persons_word(desk: Desk) -> None:
    desk.look(0)
    path = "/api/rollouts/mail"
    aborted, again, resumed, unknown, nobody, word = ask(
        desk.settings, desk.store, ("POST", f"{path}/abort", {"by": "ada", "note": "<i>no</i>"}),
        ("POST", f"{path}/abort", {"by": "ada"}), ("POST", f"{path}/resume", {"by": "ada"}),
        ("POST", "/api/rollouts/post/abort", {"by": "ada"}), ("POST", f"{path}/abort", {}),
        ("POST", f"{path}/sing", {"by": "ada"}),
    )  # fmt: skip
    codes = [r.status_code for r in (aborted, again, resumed, unknown, nobody, word)]
    assert codes == [200, 409, 200, 404, 422, 422]
    assert aborted.json()["state"]["state"] == "rolled_back"
    assert "already" in again.json()["error"]
    moves, page = ask(desk.settings, desk.store, ("GET", "/api/rollouts", None), ("GET", "/", None))
    assert [m["actor"] for m in moves.json()] == ["monitor", "ada", "ada"]
    assert "&lt;i&gt;no&lt;/i&gt;" in page.text
    assert "<i>no" not in page.text


def test_the_console_has_the_buttons_that_the_state_allows(desk: Desk) -> None:
    def words(state: str) -> list[str]:
        canary_now: dict[str, Any] = {"action": "hold", "reason": "x", "gates": [], "blocked": None}
        body = {
            "mode": "canary", "records": 0, "served_by": {}, "disagreement": [], "flags_open": 0, "reference": "",
            "drift": {"drifted": False, "enough": False, "current_rows": 0, "html": None, "why_not": "few", "columns": []},
            "rollout": {**canary_now, "state": {"state": state, "share": 0.1}},
        }  # fmt: skip
        desk.store.put_report("mail", 1.0, 1.0, body)
        (page,) = ask(desk.settings, desk.store, ("GET", "/", None))
        return [w for w in ("approve", "resume", "abort") if f'data-word="{w}"' in page.text]

    assert words("waiting") == ["approve", "abort"]
    assert words("canary") == ["abort"]
    assert words("inconclusive") == ["resume", "abort"]
    assert words("rolled_back") == ["resume"]


def test_the_command_line(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.look(0)
    desk.look(60, good=300)
    home = ["--home", str(desk.settings.home.root)]
    run = CliRunner().invoke
    aborted = run(
        commands, ["rollout", "abort", "mail", "--by", "ada", "--note", "no", *home, "--json"]
    )
    assert aborted.exit_code == 0, aborted.output
    assert json.loads(aborted.stdout)["state"]["share"] == 0.0
    assert (
        "resume by bob" in run(commands, ["rollout", "resume", "mail", "--by", "bob", *home]).stdout
    )
    for bad, words in (
        (["rollout", "approve", "mail", "--by", "ada"], "automatic"),
        (["rollout", "abort", "post", "--by", "ada"], "allowed: mail"),
        (["rollout", "resume", "mail", "--by", "ada"], "is canary"),
    ):
        found = run(commands, [*bad, *home])
        assert (found.exit_code, words in found.stderr) == (2, True), found.output
    moves = json.loads(run(commands, ["rollout", *home, "--json", "--route", "mail"]).stdout)
    assert [m["action"] for m in moves] == ["begin", "advance", "abort", "resume"]
    assert moves[1]["gates"][0]["rows"] == 300
    # The console took its width when it was made, by whichever test came first.
    monkeypatch.setattr(out, "_width", 400)
    table = run(commands, ["rollout", *home]).stdout
    assert "of 300 at 95 %" in table
    assert "bob" in table
    assert yaml.safe_load(desk.path.read_text())["routes"]["mail"]["state"] == "canary"
