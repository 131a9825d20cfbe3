"""The dashboards' files: equal to what the code makes, valid for Grafana, and asking only for what is there."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from monitoring import alerts, dashboards
from monitoring.cli import app as commands
from monitoring.metrics import MonitorMetrics
from monitoring.panels import MARKS, Board, Panel
from router.metrics import RouterMetrics

FILES = Path(__file__).parents[2] / "helm" / "graduate" / "files"
SCHEMA = json.loads((Path(__file__).parent / "grafana-panel.schema.json").read_text())
PROMETHEUS_ONLY = {"expr", "titleFormat", "useValueForTime"}

boards = pytest.mark.parametrize("board", dashboards.BOARDS, ids=lambda board: str(board.uid))
panels = pytest.mark.parametrize(
    "panel",
    [panel for board in dashboards.BOARDS for panel in board.panels],
    ids=lambda panel: str(panel.title),
)


def made(board: Board) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(dashboards.dump(board))
    return found


def shown(board: Board) -> list[dict[str, Any]]:
    return [panel for panel in made(board)["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize("name", sorted(dashboards.texts()))
def test_the_committed_file_is_what_the_code_makes(name: str) -> None:
    """Again by: graduate monitor dashboards --out helm/graduate/files."""
    assert (FILES / "dashboards" / name).read_text() == dashboards.texts()[name]


def test_nothing_else_lies_beside_them() -> None:
    assert {path.name for path in (FILES / "dashboards").iterdir()} == set(dashboards.texts())


def test_the_command_writes_dashboards_and_rules(tmp_path: Path) -> None:
    done = CliRunner().invoke(commands, ["dashboards", "--out", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    written = [Path(path) for path in json.loads(done.stdout)]
    assert {path.name for path in written} == {*dashboards.texts(), *alerts.texts()}
    assert all(path.stat().st_size > 1000 for path in written)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["--out", "{file}/x"], "cannot be written", id="a file in the way"),
        pytest.param(
            ["--out", "{file}", "--runbooks", "docs"], "--runbooks = 'docs'", id="no address"
        ),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, arguments: list[str], words: str) -> None:
    file = tmp_path / "file"
    file.write_text("")
    done = CliRunner().invoke(
        commands, ["dashboards", *(part.format(file=file) for part in arguments)]
    )
    assert done.exit_code == 2, done.output
    assert words in done.stderr


@boards
def test_every_panel_holds_against_grafanas_schema(board: Board) -> None:
    schema = jsonschema_rs.validator_for(SCHEMA)
    for panel in shown(board):
        assert [str(error) for error in schema.iter_errors(panel)] == []


def test_the_schema_finds_a_misspelt_key() -> None:
    panel = {**shown(dashboards.BOARDS[0])[0], "titel": "x"}
    assert not jsonschema_rs.validator_for(SCHEMA).is_valid(panel)


@boards
def test_the_sdk_reads_what_it_wrote(board: Board) -> None:
    """It drops keys that it does not know, so a misspelt one would be lost on the way."""
    before = made(board)
    after = json.loads(json.dumps(Dashboard.from_json(before), cls=JSONEncoder))
    for mark in before["annotations"]["list"]:
        for key in PROMETHEUS_ONLY - {"expr"}:
            del mark[key]
    assert after == before


@boards
def test_panels_have_their_own_id_and_place(board: Board) -> None:
    places = made(board)["panels"]
    assert len({panel["id"] for panel in places}) == len(places)
    for one, other in combinations([panel["gridPos"] for panel in places], 2):
        is_beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        is_above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert is_beside or is_above
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in places)


@boards
def test_every_datasource_is_the_variable(board: Board) -> None:
    found = re.findall(r'"uid": "([^"]*)"', dashboards.dump(board))
    assert set(found) == {"${datasource}", board.uid}
    names = [variable["name"] for variable in made(board)["templating"]["list"]]
    assert names == ["datasource", "route", "adapter"]


@boards
def test_titles_are_told_apart(board: Board) -> None:
    titles = [panel.title for panel in board.panels]
    assert len(set(titles)) == len(titles)


@panels
def test_a_panel_says_what_it_shows(panel: Panel) -> None:
    assert panel.says.endswith(".")
    assert panel.unit
    assert panel.queries
    assert all(query.legend for query in panel.queries)


@panels
def test_rates_are_over_the_windows_that_grafana_chooses(panel: Panel) -> None:
    for query in panel.queries:
        spans = re.findall(r"(\w+)\([^()\[]*(?:\{[^}]*\})?\[([^\]]*)\]", query.expr)
        for function, span in spans:
            assert (function, span) in {("rate", "$__rate_interval"), ("increase", "$__range")}
        assert len(spans) == query.expr.count("[")


def exported() -> set[str]:
    """Names of the router's and the monitor's series, and of the recorded ones."""
    registry = CollectorRegistry()
    RouterMetrics(registry)
    MonitorMetrics(registry)
    ends = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    names = {family.name + end for family in registry.collect() for end in ends[family.type]}
    return names | {rule["record"] for rule in alerts.recording_rules()}


def test_queries_name_metrics_that_are_exported() -> None:
    """The student server's names (`lorax_*`) are asked of a real one, in the slow test."""
    exprs = [q.expr for board in dashboards.BOARDS for panel in board.panels for q in panel.queries]
    exprs += [mark.expr for mark in MARKS] + [alert.expr for alert in alerts.ALERTS]
    exprs += [rule["expr"] for rule in alerts.recording_rules()]
    exprs += [text for board in dashboards.BOARDS for text in (board.routes_of, board.adapters_of)]
    asked = {
        name
        for expr in exprs
        for name in re.findall(r"graduate(?:_router|_monitoring|:)[a-z0-9_:]+", expr)
    }
    assert asked - exported() == set()
    assert len(asked) > 30


@panels
def test_recorded_series_are_declared(panel: Panel) -> None:
    """A panel that needs the recording rules says so, because it is empty without them."""
    assert panel.needs_rules == any("graduate:" in query.expr for query in panel.queries)
