"""The measured ways as a table. Rows a second are over all steps but the first, and over the whole run with what is done once."""

from collections.abc import Mapping
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


def at_equal_loss(own: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    """Times our processor time that another way took to its last loss; None while ours has not come so low.

    Ours counts to the end of the first epoch that is as low, with its lower layers and the validations before it.
    """
    if not other["losses"] or not other["loss_cpu_seconds"]:
        return None
    wanted = other["losses"][-1][1]
    for (_, loss), spent in zip(own["losses"], own["loss_cpu_seconds"], strict=False):
        if loss <= wanted:
            return float(other["loss_cpu_seconds"][-1] / spent)
    return None


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| way | rows seen | tokens a row | rows/s, whole run | × | rows/s, steps alone | rows a processor-second | × | peak memory, GiB | nats a held-out row after rows seen | × at equal loss |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    whole = {way: rate(state) for way, state in results.items()}
    for way, name in NAMES.items():
        state = results.get(way)
        if not state or not state.get("rows_seen"):
            continue
        losses = ", ".join(f"{rows}: {loss:.3f}" for rows, loss in state["losses"])
        times = whole["fit"] / whole[way] if whole.get("fit") else 0.0
        cheaper = (
            thrift(results["fit"]) / thrift(state) if thrift(state) and "fit" in results else 0.0
        )
        equal = at_equal_loss(results["fit"], state) if way != "fit" and "fit" in results else None
        lines.append(
            f"| {name} | {state['rows_seen']} | {state['tokens_a_row']:.0f} | {whole[way]:.2f} | {times:.1f} "
            f"| {steady(state):.2f} | {thrift(state):.2f} | {cheaper:.1f} | {state['peak_mib'] / 1024:.1f} | {losses or 'not reached'} "
            f"| {'–' if equal is None else f'{equal:.1f}'} |"
        )
    return "\n".join(lines)
