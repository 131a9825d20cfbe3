"""Boards to Grafana's JSON, by grafana-foundation-sdk (Grafana 11.6's schema). Decides looks, not what is asked.

The datasource is a variable, never a uid, so that the files load into any Grafana.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from monitoring import board_drift, board_rollout, board_traffic
from monitoring.panels import MARKS, Board, Mark, Panel, Query

BOARDS = (board_rollout.BOARD, board_drift.BOARD, board_traffic.BOARD)
COLUMNS = 24
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")


class PrometheusMark(models.AnnotationQuery):
    """An annotation with the keys that Grafana's Prometheus datasource reads and the SDK's type lacks."""

    title: str = ""

    def to_json(self) -> dict[str, object]:
        """The SDK's keys, and: the value is the time, and what is written beside the line."""
        return {**super().to_json(), "useValueForTime": True, "titleFormat": self.title}


def texts() -> dict[str, str]:
    """File name → JSON, indented, of every dashboard."""
    return {f"{board.uid}.json": dump(board) for board in BOARDS}


def write(folder: Path) -> list[Path]:
    """Write the dashboards into a folder; the files' paths.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name, text in texts().items():
        (folder / name).write_text(text)
        found.append(folder / name)
    return found


def dump(board: Board) -> str:
    """One dashboard as Grafana's JSON."""
    return json.dumps(build(board), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def build(board: Board) -> models.Dashboard:
    """One dashboard as the SDK's value."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.says)
        .tags(["graduate"])
        .timezone("browser")
        .refresh("30s")
        .time("now-6h", "now")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("Graduate")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags(["graduate"])
            .include_vars(True)
            .keep_time(True)
            .as_dropdown(True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_choice("route", board.routes_of, "route"))
        .with_variable(_choice("adapter", board.adapters_of, "adapter"))
    )  # fmt: skip
    for row in _placed(board):
        made = made.with_row(row) if isinstance(row, dashboard.Row) else made.with_panel(row)
    found = made.build()
    found.annotations = models.AnnotationContainer([_mark(mark) for mark in MARKS])
    return found


def _choice(name: str, metric: str, label: str) -> dashboard.QueryVariable:
    query = f"label_values({metric}, {label})"
    return (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .datasource(SOURCE)
        .query({"query": query, "refId": name, "qryType": 1})
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
    )


def _mark(mark: Mark) -> PrometheusMark:
    made = PrometheusMark(
        name=mark.name, datasource=SOURCE, enable=True, icon_color=mark.colour, expr=mark.expr
    )
    made.title = mark.title
    return made


def _placed(board: Board) -> Iterator[Any]:
    """Builders of rows and panels with ids and places, left to right, top to bottom."""
    top, number = 0, 1
    for row in board.rows:
        place = models.GridPos(h=1, w=COLUMNS, x=0, y=top)
        yield dashboard.Row(row.title).id(number).grid_pos(place)
        top, left, tallest, number = top + 1, 0, 0, number + 1
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                top, left, tallest = top + tallest, 0, 0
            place = models.GridPos(h=panel.height, w=panel.width, x=left, y=top)
            yield _panel(panel).id(number).grid_pos(place)
            left, tallest, number = left + panel.width, max(tallest, panel.height), number + 1
        top += tallest


def _panel(panel: Panel) -> Any:
    make: dict[str, Callable[[Panel], Any]] = {
        "lines": _lines,
        "number": _number,
        "states": _states,
        "bars": _bars,
        "table": _table,
    }
    made = (
        make[panel.kind](panel)
        .title(panel.title)
        .description(panel.says)
        .datasource(SOURCE)
        .unit(panel.unit)
        .thresholds(_plain())
    )
    if panel.names:
        made = made.mappings([_names(panel)])
    if panel.most is not None:
        made = made.min(0).max(panel.most)
    is_range = panel.kind in ("lines", "states")
    for letter, query in zip("ABCDEFGH", panel.queries, strict=False):
        made = made.with_target(_target(query, letter, is_range, panel.kind == "table"))
    return made


def _target(query: Query, letter: str, is_range: bool, is_table: bool) -> prometheus.Dataquery:
    made = (
        prometheus.Dataquery()
        .expr(query.expr)
        .legend_format(query.legend)
        .ref_id(letter)
        .datasource(SOURCE)
        .format(PromQueryFormat.TABLE if is_table else PromQueryFormat.TIME_SERIES)
    )
    return made.range() if is_range else made.instant()


def _lines(panel: Panel) -> timeseries.Panel:
    made = (
        timeseries.Panel()
        .line_width(2)
        .fill_opacity(30 if panel.is_stacked else 0)
        .show_points(kinds.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(kinds.LegendDisplayMode.LIST)
            .placement(kinds.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(kinds.TooltipDisplayMode.MULTI)
            .sort(kinds.SortOrder.DESCENDING)
        )
    )
    if panel.is_stacked:
        made = made.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL))
    if panel.is_log:
        scale = common.ScaleDistributionConfig().type(kinds.ScaleDistribution.LOG).log(10)
        made = made.scale_distribution(scale)
    if panel.band is not None:
        # A field's fill reaches down to a named field, so only a panel of one series fills by name; with several
        # the ends are thin lines.
        for end in panel.band:
            thin = [
                models.DynamicConfigValue("custom.lineWidth", 1),
                models.DynamicConfigValue(
                    "custom.lineStyle", kinds.LineStyle(fill="dash", dash=[4, 6])
                ),
            ]
            made = made.override_by_regexp(f"/^{end}/", thin)
    return made


def _number(panel: Panel) -> stat.Panel:
    return (
        stat.Panel()
        .graph_mode(kinds.BigValueGraphMode.NONE)
        .color_mode(kinds.BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    )


def _states(panel: Panel) -> statetimeline.Panel:
    return (
        statetimeline.Panel()
        .merge_values(True)
        .show_value(kinds.VisibilityMode.AUTO)
        .row_height(0.8)
        .fill_opacity(80)
    )


def _bars(panel: Panel) -> bargauge.Panel:
    return (
        bargauge.Panel()
        .orientation(kinds.VizOrientation.HORIZONTAL)
        .display_mode(kinds.BarGaugeDisplayMode.BASIC)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    )


def _table(panel: Panel) -> table.Panel:
    hidden = {name: True for name in ("Time", "__name__", "instance", "job")}
    return (
        table.Panel()
        .with_transformation(models.DataTransformerConfig("merge", options={}))
        .with_transformation(
            models.DataTransformerConfig("organize", options={"excludeByName": hidden})
        )
    )


def _plain() -> dashboard.ThresholdsConfig:
    """One colour. Without steps of our own Grafana paints everything above 80 red."""
    return (
        dashboard.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value=None, color="blue")])
    )


def _names(panel: Panel) -> models.ValueMap:
    return models.ValueMap(
        options={
            f"{value:g}": models.ValueMappingResult(text=text, color=colour, index=index)
            for index, (value, (text, colour)) in enumerate(panel.names.items())
        }
    )
