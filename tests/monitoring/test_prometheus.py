"""A real Prometheus over real services: every query of every dashboard has an answer, and alerts fire on what happened."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from benchmarks.dashboards.place import Place
from benchmarks.dashboards.prometheus import NoPrometheus, Prometheus, Series, filled
from benchmarks.dashboards.story import Story, Traffic
from monitoring.dashboards import BOARDS
from monitoring.panels import MARKS, Panel

pytestmark = [
    pytest.mark.slow,
    # peft and torch use names that their own dependencies deprecate.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
PART_SECONDS = 6.0


@dataclass(frozen=True)
class Told:
    """The Prometheus after the story, while traffic goes on no longer."""

    prometheus: Prometheus
    start: float
    end: float

    def ask(self, expr: str, *, now: bool, route: str = ".*", adapter: str = ".*") -> list[Series]:
        """Series with at least one number."""
        span = f"{self.end - self.start:.0f}s"
        query = filled(expr, interval="15s", span=span, route=route, adapter=adapter)
        found = (
            self.prometheus.instant(query, self.end)
            if now
            else self.prometheus.between(query, self.start, self.end, 2)
        )
        return [one for one in found if one.values]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    place = Place(tmp_path_factory.mktemp("story"), tick_seconds=3)
    traffic = Traffic(place, per_second=20)
    try:
        place.start()
        traffic.start()
        start = time.time()
        Story(place, traffic, PART_SECONDS).run(lambda part: None)
        yield Told(place.prometheus, start, time.time())
    except NoPrometheus as why:
        pytest.fail(str(why))
    finally:
        traffic.stop()
        place.stop()


@pytest.mark.parametrize(
    "panel",
    [panel for board in BOARDS for panel in board.panels],
    ids=lambda panel: str(panel.title),
)
def test_every_query_of_a_panel_has_an_answer(told: Told, panel: Panel) -> None:
    now = panel.kind in ("number", "bars", "table")
    for query in panel.queries:
        assert told.ask(query.expr, now=now), query.expr


@pytest.mark.parametrize(
    "panel",
    [panel for board in BOARDS for panel in board.panels],
    ids=lambda panel: str(panel.title),
)
def test_every_label_of_a_legend_is_there(told: Told, panel: Panel) -> None:
    now = panel.kind in ("number", "bars", "table")
    for query in panel.queries:
        assert all("{{" not in one.named(query.legend) for one in told.ask(query.expr, now=now))


def test_variables_choose_and_leave_out(told: Told) -> None:
    for board in BOARDS:
        for name, metric in (("route", board.routes_of), ("adapter", board.adapters_of)):
            values = {
                one.labels.get(name, "")
                for one in told.ask(f"group by ({name}) ({metric})", now=True)
            }
            assert {"route": "tickets", "adapter": "tickets/1"}[name] in values
    share = "graduate_monitoring_disagreement_share"
    expr = f'{share}{{route=~"$route",adapter=~"$adapter"}}'
    assert len(told.ask(expr, now=True)) == 2
    assert len(told.ask(expr, now=True, route="tickets")) == 1
    assert told.ask(expr, now=True, route="tickets", adapter="mail/1") == []


def test_annotations_are_the_times_of_moves_and_loads(told: Told) -> None:
    moves, loads = (told.ask(mark.expr, now=False) for mark in MARKS)
    states = {one.labels["state"] for one in moves}
    assert states == {"canary", "rolled_back"}
    times = [value / 1000 for one in (*moves, *loads) for value in one.values]
    assert all(told.start - 60 < at < told.end for at in times)
    assert len({one.labels["digest"] for one in loads}) >= 4


@pytest.mark.parametrize("alert", ["GraduateRolloutRolledBack", "GraduatePolicyRefused"])
def test_what_happened_is_alerted(told: Told, alert: str) -> None:
    assert told.ask(f'ALERTS{{alertname="{alert}",alertstate="firing"}}', now=True)


@pytest.mark.parametrize(
    "alert", ["GraduateRouterGone", "GraduateMonitorStale", "GraduateTrafficLogDrops"]
)
def test_what_did_not_happen_is_not(told: Told, alert: str) -> None:
    assert told.ask(f'ALERTS{{alertname="{alert}",alertstate="firing"}}', now=False) == []


def test_rules_were_evaluated_without_errors(told: Told) -> None:
    groups = told.prometheus.client.get("/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}
