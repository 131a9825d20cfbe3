"""Boards to pictures: every panel drawn from the answers to its own queries, in its place. Not Grafana's own drawing."""

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
import matplotlib.dates as mdates
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter

from benchmarks.dashboards.prometheus import Prometheus, Series, filled
from monitoring.panels import MARKS, Board, Panel

COLOURS = {
    "green": "#3a9d5d", "yellow": "#e0b400", "orange": "#e8833a", "red": "#d1434b", "blue": "#3d71d9",
    "purple": "#8f5fd1", "gray": "#8e8e8e",
}  # fmt: skip
ROW_INCHES, COLUMN_INCHES = 0.42, 0.72
MAX_LEGENDS = 8


@dataclass(frozen=True, slots=True)
class View:
    """What is looked at: a span of time, and the variables' values."""

    prometheus: Prometheus
    start: float
    end: float
    route: str = ".*"
    adapter: str = ".*"
    interval: str = "15s"
    step_seconds: float = 1.0

    def lines(self, expr: str) -> list[Series]:
        """Over the span."""
        return self.prometheus.between(self._filled(expr), self.start, self.end, self.step_seconds)

    def now(self, expr: str) -> list[Series]:
        """At its end."""
        return self.prometheus.instant(self._filled(expr), self.end)

    def _filled(self, expr: str) -> str:
        span = f"{self.end - self.start:.0f}s"
        return filled(
            expr, interval=self.interval, span=span, route=self.route, adapter=self.adapter
        )


Named = list[tuple[str, Series]]


def draw(board: Board, view: View, path: Path) -> None:
    """Write the board as a PNG."""
    placed, height = places(board)
    figure = plt.figure(figsize=(24 * COLUMN_INCHES, (height + 1.6) * ROW_INCHES), dpi=70)
    total = height + 1.6
    figure.text(0.012, 1 - 0.9 / total, board.title, fontsize=17, fontweight="bold", va="center")
    said = f"{board.says}   (route: {view.route}; drawn by matplotlib from the panels' queries, not by Grafana)"
    figure.text(0.35, 1 - 0.9 / total, said, fontsize=10, color="#555555", va="center")
    marks = [(mark, one) for mark in MARKS for one in view.lines(mark.expr)]
    times = [(mark.colour, t / 1000) for mark, one in marks for t in sorted(set(one.values))]
    for what, left, top, width, rows in placed:
        if isinstance(what, str):
            y = 1 - (top + 1.6 + 0.65) / total
            figure.text(0.012, y, f"▾ {what}", fontsize=12, color="#333333", va="center")
            continue
        box = (
            (left + 0.75) / 24,
            1 - (top + 1.6 + rows - 1.15) / total,
            (width - 1.1) / 24,
            (rows - 2.1) / total,
        )
        axes = figure.add_axes(box)
        axes.set_title(what.title, fontsize=10.5, loc="left", fontweight="bold")
        _panel(axes, what, view, times)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white")
    plt.close(figure)


def places(board: Board) -> tuple[list[tuple[str | Panel, int, int, int, int]], int]:
    """Rows (by title) and panels with left, top, width and height in Grafana's grid, and the whole height."""
    found: list[tuple[str | Panel, int, int, int, int]] = []
    top = 0
    for row in board.rows:
        found.append((row.title, 0, top, 24, 1))
        top, left, tallest = top + 1, 0, 0
        for panel in row.panels:
            if left + panel.width > 24:
                top, left, tallest = top + tallest, 0, 0
            found.append((panel, left, top, panel.width, panel.height))
            left, tallest = left + panel.width, max(tallest, panel.height)
        top += tallest
    return found, top


def _panel(axes: Any, panel: Panel, view: View, times: Sequence[tuple[str, float]]) -> None:
    asks_range = panel.kind in ("lines", "states")
    ask = view.lines if asks_range else view.now
    named = [
        (one.named(query.legend), one)
        for query in panel.queries
        for one in ask(query.expr)
        if one.values
    ]
    kinds: dict[str, Callable[[Any, Panel, Named], None]] = {
        "lines": _lines, "number": _number, "states": _states, "bars": _bars, "table": _table,
    }  # fmt: skip
    if not named:
        axes.text(0.5, 0.5, "no data", ha="center", color="#8e8e8e", transform=axes.transAxes)
        axes.set_axis_off()
        return
    kinds[panel.kind](axes, panel, named)
    axes.tick_params(labelsize=8)
    if asks_range:
        axes.set_xlim(_time(view.start), _time(view.end))
        axes.xaxis.set_major_formatter(mdates.DateFormatter("%H:%M:%S"))  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(mdates.AutoDateLocator(minticks=2, maxticks=5))  # type: ignore[no-untyped-call]
        for colour, at in times:
            if view.start <= at <= view.end:
                axes.axvline(_time(at), color=COLOURS[colour], linewidth=0.8, linestyle=":")
    if panel.kind in ("lines", "states"):
        axes.spines[["top", "right"]].set_visible(False)


def _time(seconds: float) -> Any:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def shown(value: float, unit: str) -> str:
    """A value with its unit, as a person reads it."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "currencyUSD":
        return f"${value:.3g}"
    if unit == "s":
        return f"{1000 * value:.3g} ms" if abs(value) < 1 else f"{value:.3g} s"
    return f"{value:.3g}/s" if unit == "reqps" else f"{value:.4g}"


def _lines(axes: Any, panel: Panel, named: Named) -> None:
    if panel.is_stacked:
        moments = sorted({t for _, one in named for t in one.times})
        values = [
            [dict(zip(one.times, one.values, strict=True)).get(t, 0.0) for t in moments]
            for _, one in named
        ]
        names = [name for name, _ in named]
        axes.stackplot([_time(t) for t in moments], values, labels=names, alpha=0.75)
    else:
        for name, one in named:
            is_end = panel.band is not None and name.startswith(panel.band)
            style = {"linestyle": "--", "linewidth": 0.8} if is_end else {"linewidth": 1.5}
            axes.plot([_time(t) for t in one.times], one.values, label=name, **style)
    if panel.is_log:
        axes.set_yscale("log")
    if panel.most is not None:
        axes.set_ylim(0, panel.most * 1.02)
    elif not panel.is_log:
        low, high = axes.get_ylim()
        is_flat = not any(value for _, one in named for value in one.values)
        axes.set_ylim(*((0.0, 1.0) if is_flat else (min(0.0, low), high)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, panel.unit)))
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    axes.legend(fontsize=6.8, loc="upper left", framealpha=0.7, ncols=1 + len(named) // MAX_LEGENDS)


def _number(axes: Any, panel: Panel, named: Named) -> None:
    axes.set_axis_off()
    for number, (name, one) in enumerate(named):
        y = 1 - (number + 0.5) / len(named)
        value = one.values[-1]
        text, colour = panel.names.get(value, (shown(value, panel.unit), "blue"))
        size = min(24.0, 46.0 / len(named) ** 0.7)
        axes.text(
            0.98, y, text, fontsize=size, color=COLOURS[colour], ha="right", va="center",
            fontweight="bold", transform=axes.transAxes,
        )  # fmt: skip
        axes.text(0.02, y, name, fontsize=9, color="#555555", va="center", transform=axes.transAxes)


def _states(axes: Any, panel: Panel, named: Named) -> None:
    seen: dict[float, None] = {}
    for row, (_, one) in enumerate(named):
        for t, value in zip(one.times, one.values, strict=True):
            _, colour = panel.names.get(value, ("", "gray"))
            axes.barh(row, 1.2 / 86400, left=_time(t), color=COLOURS[colour], height=0.7)
            seen[value] = None
    axes.xaxis_date()
    axes.set_yticks(range(len(named)), [name for name, _ in named])
    axes.set_ylim(len(named) - 0.4, -0.6)
    for value in sorted(seen):
        text, colour = panel.names.get(value, (f"{value:g}", "gray"))
        axes.bar(_time(0), 0, color=COLOURS[colour], label=text)
    axes.legend(fontsize=6.8, loc="lower right", framealpha=0.8, ncols=4)
    _indent(axes, 0.16)


def _bars(axes: Any, panel: Panel, named: Named) -> None:
    named = sorted(named, key=lambda pair: pair[1].values[-1], reverse=panel.unit == "percentunit")
    values = [one.values[-1] for _, one in named]
    axes.barh(range(len(named)), values, color=COLOURS["blue"], height=0.6)
    for row, value in enumerate(values):
        axes.text(value, row, f" {shown(value, panel.unit)}", fontsize=8, va="center")
    axes.set_yticks(range(len(named)), [name for name, _ in named], fontsize=7)
    axes.yaxis.set_tick_params(pad=1)
    axes.set_ylim(len(named) - 0.4, -0.6)
    axes.set_xlim(0, 1.15 * (panel.most or max(values) or 1.0))
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_xticks([])
    _indent(axes, 0.22)


def _indent(axes: Any, part: float) -> None:
    """Leave a part of the width to the names at the left."""
    box = axes.get_position()
    left = box.x0 + box.width * part
    axes.set_position((left, box.y0, box.width * (1 - part), box.height))


def _table(axes: Any, panel: Panel, named: Named) -> None:
    axes.set_axis_off()
    windows = sorted({one.labels["window"] for _, one in named})
    columns: dict[tuple[str, str], dict[str, float]] = {}
    for _, one in named:
        key = (one.labels["route"], one.labels["column"])
        columns.setdefault(key, {})[one.labels["window"]] = one.values[-1]
    cells = [
        [*key, *(shown(found[w], panel.unit) if w in found else "" for w in windows)]
        for key, found in sorted(columns.items())
    ]
    made = axes.table(
        cells, colLabels=["route", "column", *windows], loc="upper center", cellLoc="left"
    )
    made.auto_set_font_size(False)
    made.set_fontsize(8)
