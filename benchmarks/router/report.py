"""The table and the goals, from the results: what was measured beside what was wanted. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.router.peers import DIRECT
from benchmarks.router.results import Results

TEACHER, DARK = "ours: teacher", "ours: dark_launch"
LITELLM, BARE = "litellm", "bare-asgi"
MEMORY_MIB, GROWTH_MIB = 120.0, 5.0


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal; `measured` is None when what it needs was not run."""

    text: str
    measured: str | None
    is_met: bool | None


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table: its head, and a row's cell."""

    head: str
    cell: Callable[[Results, str], str]


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _ratio(results: Results, name: str, other: str) -> float | None:
    """Requests/s beside another row's; None where only one of the two was measured on a quiet machine."""
    if results.noisy(name) != results.noisy(other):
        return None
    mine = results.median(name, "c32", "requests_per_second")
    theirs = results.median(other, "c32", "requests_per_second")
    return mine / theirs if mine is not None and theirs else None


def _pair(results: Results, name: str, phase: str) -> str:
    if name == DIRECT:
        return "–"
    p50, p99 = (results.added(name, DIRECT, phase, f) for f in ("p50_ms", "p99_ms"))
    return f"{_number(p50, '.2f')} / {_number(p99, '.2f')}"


def _memory(results: Results, name: str) -> str:
    after = results.memory_mib(name)
    start = results.rows[name][0].rss_start_mib
    if not after or start is None:
        return "–"
    return " → ".join(f"{value:.0f}" for value in (start, after[-1][0], after[-1][-1]))


def _failed(results: Results, name: str) -> str:
    missing = [
        r.records_missing for r in results.rows.get(name, []) if r.records_missing is not None
    ]
    return f"{results.errors(name)}" + (f" / {sum(missing)}" if missing else "")


def _plain(phase: str, figure: str, form: str) -> Callable[[Results, str], str]:
    return lambda results, name: _number(results.median(name, phase, figure), form)


def _times(other: str, form: str) -> Callable[[Results, str], str]:
    return lambda results, name: _number(_ratio(results, name, other), form)


COLUMNS = (
    Column("proxy", lambda results, name: name + (" (noisy)" if results.noisy(name) else "")),
    Column("req/s, 32 conn.", _plain("c32", "requests_per_second", ",.0f")),
    Column("× litellm", _times(LITELLM, ".1f")),
    Column("of bare-asgi", _times(BARE, ".0%")),
    Column("CPU µs a request", _plain("c32", "cpu_us", ".0f")),
    Column("the same, trace ids differ", _plain("c32t", "cpu_us", ".0f")),
    Column("calls upstream a request", _plain("c32", "upstream_calls", ".2f")),
    Column("added p50 / p99 ms, 4 conn.", lambda results, name: _pair(results, name, "c4")),
    Column("added p50 / p99 ms, 4 conn., 2 ms", lambda results, name: _pair(results, name, "c4d2")),
    Column("SSE streams/s, 32 conn.", _plain("sse32", "requests_per_second", ",.0f")),
    Column("first event added p50 / p99 ms", lambda results, name: _pair(results, name, "first4")),
    Column(
        "added p50 / p99 ms, 32 conn., 20 ms", lambda results, name: _pair(results, name, "c32d20")
    ),
    Column("req/s, 256 conn., 50 ms", _plain("c256d50", "requests_per_second", ",.0f")),
    Column("RSS MiB: start → first → last run", _memory),
    Column("errors / records missing", _failed),
)


def table(results: Results, names: list[str]) -> list[list[str]]:
    """The rows that were measured, a cell for each of `COLUMNS`."""
    return [[c.cell(results, name) for c in COLUMNS] for name in names if name in results.rows]


def markdown(results: Results, names: list[str]) -> str:
    """The table for a README."""
    lines = [[c.head for c in COLUMNS], ["---"] * len(COLUMNS), *table(results, names)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def goals(results: Results) -> list[Goal]:
    """Every goal with what was measured."""
    rate = results.median(TEACHER, "c32", "requests_per_second")
    return [
        _at_least("requests/s at 32 connections on one core ≥ 6,000", rate, 6000, ",.0f"),
        _at_least("times LiteLLM ≥ 75", _ratio(results, TEACHER, LITELLM), 75, ".1f"),
        _at_least("of the bare ASGI proxy on the same parts ≥ 70 %", _ratio(results, TEACHER, BARE), 0.7, ".0%"),
        _below("p50 added at 4 connections < 0.4 ms", _added(results, "c4", "p50_ms"), 0.4, ".2f"),
        _below("p99 added at 4 connections < 1.5 ms", _added(results, "c4", "p99_ms"), 1.5, ".2f"),
        _below("the same with a 2 ms upstream < 1.5 ms", _added(results, "c4d2", "p99_ms"), 1.5, ".2f"),
        _below("time to first event added, p50 < 0.5 ms", _added(results, "first4", "p50_ms"), 0.5, ".2f"),
        _upstream_rate(results),
        *_memory_goals(results),
        *_dark_launch(results),
        _no_errors(results),
    ]  # fmt: skip


def _added(results: Results, phase: str, figure: str) -> float | None:
    return results.added(TEACHER, DIRECT, phase, figure)


def _at_least(text: str, value: float | None, limit: float, form: str) -> Goal:
    if value is None:
        return Goal(text, None, None)
    return Goal(text, format(value, form), value >= limit)


def _below(text: str, value: float | None, limit: float, form: str) -> Goal:
    if value is None:
        return Goal(text, None, None)
    return Goal(text, format(value, form), value < limit)


def _upstream_rate(results: Results) -> Goal:
    text = "256 connections, 50 ms: of the upstream's own rate ≥ 95 %"
    mine = results.median(TEACHER, "c256d50", "requests_per_second")
    bare = results.median(DIRECT, "c256d50", "requests_per_second")
    return _at_least(text, mine / bare if mine is not None and bare else None, 0.95, ".1%")


def _memory_goals(results: Results) -> list[Goal]:
    mine = [name for name in results.rows if name.startswith("ours")]
    after = [values for name in mine for values in results.memory_mib(name)]
    most = max((max(values) for values in after), default=None)
    several = [values for values in after if len(values) > 1]
    growth = max((values[-1] - values[0] for values in several), default=None)
    return [
        _below("memory after load, worst mode < 120 MiB", most, MEMORY_MIB, ".0f"),
        _below("memory flat: growth from first to last run, worst mode < 5 MiB", growth, GROWTH_MIB, ".1f"),
    ]  # fmt: skip


def _dark_launch(results: Results) -> list[Goal]:
    """What a full dark launch costs: the caller below saturation, the throughput at it."""
    text = "dark launch at 100 %: caller's p50 at 32 connections, 20 ms, over teacher mode's < 5 %"
    p50 = [results.median(name, "c32d20", "p50_ms") for name in (DARK, TEACHER)]
    more = p50[0] / p50[1] - 1 if p50[0] is not None and p50[1] else None
    share = _ratio(results, DARK, TEACHER)
    return [
        _below(text, more, 0.05, "+.1%"),
        _at_least("dark launch at 100 %: throughput of teacher mode's ≥ 50 % (a second call)", share, 0.5, ".0%"),
        _at_least("dark launch at 100 %: calls to the upstream a request, of 2, ≥ 99 %",
                  _half(results.median(DARK, "c32", "upstream_calls")), 0.99, ".1%"),
    ]  # fmt: skip


def _half(value: float | None) -> float | None:
    return None if value is None else value / 2


def _no_errors(results: Results) -> Goal:
    mine = [name for name in results.rows if name.startswith("ours")]
    if not mine:
        return Goal("no failed request, no record missing", None, None)
    errors = sum(results.errors(name) for name in mine)
    missing = sum(run.records_missing or 0 for name in mine for run in results.rows[name])
    text = "no failed request, no record missing, in any mode"
    return Goal(text, f"{errors} failed, {missing} missing", errors == missing == 0)
