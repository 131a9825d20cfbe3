"""Reports and flags for a terminal."""

from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table


def percent(share: float) -> str:
    """A share as per cent."""
    return f"{100 * share:.1f} %"


def interval(found: dict[str, Any]) -> str:
    """A share with its interval and rows."""
    return f"{percent(found['share'])} [{100 * found['low']:.1f}-{100 * found['high']:.1f}], {found['rows']} rows"


def report(console: Console, body: dict[str, Any]) -> None:
    """One route's report."""
    served = ", ".join(f"{who} {n}" for who, n in body["served_by"].items()) or "none"
    console.print(
        f"[bold]{body['route']}[/] · mode {body['mode']} · {body['records']} requests: {served}"
    )
    if not body["disagreement"]:
        console.print("no request was answered by both yet")
    if body.get("compared"):
        _compared(console, body["compared"])
    for one in body["disagreement"]:
        table = Table("", "", show_header=False, title=f"{one['adapter']} against the teacher")
        table.add_row("disagreement", interval(one["rate"]))
        for name, share in one["fields"].items():
            table.add_row(f"  in {name}", interval(share))
        table.add_row("wrong form", interval(one["form_failures"]))
        floor = one["noise_floor"]
        table.add_row("teacher against itself", interval(floor) if floor else "not asked twice")
        if one["kappa"] is not None:
            table.add_row("Cohen's kappa", f"{one['kappa']:.2f}")
        for part in one["slices"][:3]:
            shown = f"{interval(part['disagreement'])}, adjusted p {part['p_value']:.2g}"
            table.add_row(f"worst: {part['name']} = {part['value']}", shown)
        console.print(table)
    _drift(console, body["drift"], body["reference"])
    lasting = body.get("lasting")
    if lasting and lasting["windows"]:
        word = "[bold red]shown[/]" if lasting["is_drift"] else "not shown"
        console.print(
            f"drift over time: {word}: evidence {lasting['evidence']:.3g} of {lasting['wanted']:g} wanted, {lasting['windows']} windows",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    if body["rollout"]:
        state = body["rollout"]["state"]
        console.print(
            f"canary: {body['rollout']['action']}, share {percent(state['share'])}, {state['state']}: "
            f"{body['rollout'].get('reason', 'begun')}",
            highlight=False,
        )
    console.print(f"flags: {body['flags_new']} new, {body['flags_open']} open")


def _compared(console: Console, found: dict[str, Any]) -> None:
    """Pairs that the router leaves to the monitor."""
    why = f"; not now: {found['error']}" if found["error"] else ""
    console.print(
        f"compared here, by {found['comparator']}: {found['verdicts']} pairs, {found['left']} wait{why}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _drift(console: Console, found: dict[str, Any], reference: str) -> None:
    if not found["enough"]:
        console.print(f"drift: {found['why_not']}")
        return
    word = "[bold red]DRIFT[/]" if found["drifted"] else "[green]no drift[/]"
    table = Table(
        "column", "reference", "current", "adjusted p", "",
        title=f"inputs: {word}: {found['current_rows']} rows against {reference} ({found['reference_rows']} rows)",
    )  # fmt: skip
    for column in found["columns"]:
        means = [column["reference_mean"], column["current_mean"]]
        before, now = ("-" if m is None else f"{m:.3g}" for m in means)
        mark = "[red]moved[/]" if column["drifted"] else ""
        table.add_row(column["name"], before, now, f"{column['adjusted']:.2g}", mark)
    console.print(table)
    if found["html"]:
        console.print(f"evidently's report: {found['html']}", soft_wrap=True, highlight=False)


def flag(console: Console, body: dict[str, Any]) -> None:
    """One flag, teacher and student side by side."""
    console.print(
        f"[dim]{body['id']} · {body['route']} · {body['kind']}: {body['reason']}[/]",
        highlight=False,
    )
    console.print(Panel(body["input_text"], title="input", title_align="left"), markup=False)
    answers = Table("teacher", "student", expand=True)
    answers.add_row(body["teacher_text"] or "-", body["student_text"] or "-")
    console.print(answers, markup=False)
