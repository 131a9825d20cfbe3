"""What a dashboard shows, as values: boards of rows of panels, each with its queries. Knows nothing of Grafana.

Queries are PromQL with the variables `$route` and `$adapter` (regular expressions) and Grafana's `$__rate_interval` and
`$__range`. The same values make the JSON (`dashboards`), the pictures and the tests that ask every query.
"""

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["lines", "number", "states", "bars", "table"]
Colour = Literal["green", "yellow", "orange", "red", "blue", "purple", "gray"]

ROUTE = 'route=~"$route"'
ADAPTER = 'adapter=~"$adapter"'
BOTH = f"{ROUTE},{ADAPTER}"


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression and the name of its series (`{{label}}` as Grafana writes it)."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture. Widths are in Grafana's 24 columns, heights in its rows of 30 pixels."""

    title: str
    says: str
    """What it shows and how to read it."""
    kind: Kind
    unit: str
    queries: tuple[Query, ...]
    width: int = 8
    height: int = 8
    names: dict[float, tuple[str, Colour]] = field(default_factory=dict)
    """Values that are states: text and colour."""
    band: tuple[str, str] | None = None
    """Legends of the lower and the upper line of an interval, which is filled."""
    is_stacked: bool = False
    is_log: bool = False
    most: float | None = None
    """Upper end of the axis; it begins at 0 when this is set."""
    needs_rules: bool = False
    """Asks for recorded series: empty where the recording rules are not loaded."""


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one question."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard."""

    uid: str
    title: str
    says: str
    routes_of: str
    """A metric whose `route` label lists the routes to choose from."""
    adapters_of: str
    """A metric whose `adapter` label lists the adapters to choose from."""
    rows: tuple[Row, ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All panels, in reading order."""
        return tuple(panel for row in self.rows for panel in row.panels)


@dataclass(frozen=True, slots=True)
class Mark:
    """Vertical lines on every panel. The query's value is a time, in milliseconds since 1970."""

    name: str
    expr: str
    title: str
    colour: Colour


MARKS = (
    Mark(
        "Rollout moves",
        f"1000 * graduate_monitoring_rollout_moved_timestamp_seconds{{{ROUTE}}}",
        "{{route}}: {{state}}",
        "purple",
    ),
    Mark(
        "Policy edits",
        "1000 * max by (digest) (graduate_router_policy_info * on (namespace, job, instance)"
        " group_left graduate_router_policy_loaded_timestamp_seconds)",
        "policy {{digest}}",
        "blue",
    ),
)
"""A rollout's move also loads: the router reads policy and rollout state as one, and has one digest for both."""


def rate(counter: str, selector: str, by: str) -> str:
    """Events of a counter a second, summed by labels."""
    return f"sum by ({by}) (rate({counter}{{{selector}}}[$__rate_interval]))"


def share(counter: str, bad: str, of: str, by: str = "route") -> str:
    """The share of a counter's events with selector `bad` among those with `of`; 0 when none was bad."""
    whole = rate(counter, f"{ROUTE},{of}" if of else ROUTE, by)
    return f"({rate(counter, f'{ROUTE},{bad}', by)} or 0 * {whole}) / ({whole} > 0)"


def quantile(q: float, histogram: str, selector: str, by: str) -> str:
    """A quantile of a histogram, by labels."""
    chosen = f"{{{selector}}}" if selector else ""
    buckets = f"sum by (le, {by}) (rate({histogram}_bucket{chosen}[$__rate_interval]))"
    return f"histogram_quantile({q:g}, {buckets})"
