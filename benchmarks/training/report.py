"""The measured ways as a table. Rows a second are over all steps but the first, and over the whole run with what is done once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NAMES = {
    "fit": "`graduate train fit`",
    "fit-trl": "`graduate train fit --engine trl`",
    "trl-tuned": "SFTTrainer, tuned",
    "trl-rate": "SFTTrainer, its learning rate set",
    "trl": "SFTTrainer as it comes",
}


def rate(state: Mapping[str, Any]) -> float:
    """Rows a second of the whole run: steps, and hidden states where they are computed once."""
    spent = sum(state["seconds"]) + state.get("once_seconds", 0.0)
    return float(state["rows_seen"]) / spent if spent else 0.0


def thrift(state: Mapping[str, Any]) -> float:
    """Rows a second of one processor's time: what is left to compare when other work is on the machine."""
    spent = state.get("cpu_seconds", 0.0)
    return float(state["rows_seen"]) / spent if spent else 0.0


def steady(state: Mapping[str, Any]) -> float:
    """Rows a second of the steps alone."""
    return float(state["rows_seen"]) / sum(state["seconds"]) if state["seconds"] else 0.0


@dataclass(frozen=True, slots=True)
class Point:
    """One validation of a way."""

    rows: int
    loss: float
    cpu_seconds: float
    """Preparation and all steps until then."""


def points(state: Mapping[str, Any]) -> list[Point]:
    """The way's curve."""
    spent = state["loss_cpu_seconds"]
    return [
        Point(rows, loss, cpu) for (rows, loss), cpu in zip(state["losses"], spent, strict=False)
    ]


@dataclass(frozen=True, slots=True)
class Level:
    """A loss that another way reached, and where ours was first measured at or below it."""

    other: Point
    own: Point | None
    is_bound: bool
    """Ours is its first measured point: it may have been there earlier."""

    @property
    def times(self) -> float | None:
        """Their processor seconds by ours."""
        return self.other.cpu_seconds / self.own.cpu_seconds if self.own else None

    @property
    def said(self) -> str:
        """The same in words."""
        if self.times is None:
            return "ours has not come so low"
        return f"{'at least ' if self.is_bound else ''}{self.times:.1f}"


def levels(own: Mapping[str, Any], other: Mapping[str, Any]) -> list[Level]:
    """Each new low of the other way's curve against ours."""
    mine, found = points(own), list[Level]()
    for point in lows(points(other)):
        first = next((p for p in mine if p.loss <= point.loss), None)
        found.append(Level(point, first, first is not None and first is mine[0]))
    return found


def lows(curve: Sequence[Point]) -> list[Point]:
    """The points that are lower than all before them."""
    found: list[Point] = []
    for point in curve:
        if not found or point.loss < found[-1].loss:
            found.append(point)
    return found


def unreached(own: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[Point, float]]:
    """Each new low of ours below all that the other way reached, and how many times our processor seconds it has spent."""
    theirs = points(other)
    if not theirs:
        return []
    lowest, spent = min(p.loss for p in theirs), theirs[-1].cpu_seconds
    return [(p, spent / p.cpu_seconds) for p in lows(points(own)) if p.loss < lowest]


def curves(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: processor seconds to each loss that SFTTrainer reached, by its ways."""
    lines: list[str] = []
    for way, name in NAMES.items():
        if way == "fit" or way not in results or "fit" not in results:
            continue
        lines += [
            "",
            f"| nats a held-out row | {name}: rows seen | processor seconds | `fit`: rows seen | its nats | processor seconds | × |",
            "|---|---|---|---|---|---|---|",
        ]
        for level in levels(results["fit"], results[way]):
            own = level.own
            mine = f"{own.rows} | {own.loss:.3f} | {own.cpu_seconds:.0f}" if own else "– | – | –"
            there = level.other
            lines.append(
                f"| {there.loss:.3f} | {there.rows} | {there.cpu_seconds:.0f} | {mine} | {level.said} |"
            )
        for point, times in unreached(results["fit"], results[way]):
            last = points(results[way])[-1]
            lines.append(
                f"| {point.loss:.3f} | not reached in {last.rows} | {last.cpu_seconds:.0f} | {point.rows} | {point.loss:.3f} "
                f"| {point.cpu_seconds:.0f} | more than {times:.1f} |"
            )
    return "\n".join(lines)


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| way | rows seen | tokens a row | rows/s, whole run | × | rows/s, steps alone | rows a processor-second | × | peak memory, GiB | nats a held-out row, last | × at its lowest loss |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    whole = {way: rate(state) for way, state in results.items()}
    for way, name in NAMES.items():
        state = results.get(way)
        if not state or not state.get("rows_seen"):
            continue
        last = ", ".join(f"{rows}: {loss:.3f}" for rows, loss in state["losses"][-1:])
        times = whole["fit"] / whole[way] if whole.get("fit") else 0.0
        cheaper = (
            thrift(results["fit"]) / thrift(state) if thrift(state) and "fit" in results else 0.0
        )
        equal = levels(results["fit"], state)[-1:] if way != "fit" and "fit" in results else []
        lines.append(
            f"| {name} | {state['rows_seen']} | {state['tokens_a_row']:.0f} | {whole[way]:.2f} | {times:.1f} "
            f"| {steady(state):.2f} | {thrift(state):.2f} | {cheaper:.1f} | {state['peak_mib'] / 1024:.1f} | {last or 'not reached'} "
            f"| {equal[0].said if equal else '–'} |"
        )
    return "\n".join(lines)
