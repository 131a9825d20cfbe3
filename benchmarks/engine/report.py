"""The results file as a table, the goals beside what was measured, and a picture. Medians over rounds."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.engine.limit import Shape

Rows = Sequence[dict[str, Any]]
SHARED_TOKENS = {"classify": 62, "generate": 0}
"""Prompt tokens that a prefix cache can save."""


def median(rows: Rows, key: str, **wanted: Any) -> float | None:
    """Of a figure over the rounds that have it."""
    found = [row[key] for row in rows if key in row and all(row[k] == v for k, v in wanted.items())]
    return statistics.median(found) if found else None


def _rate(
    rows: Rows, peer: str, kind: str, callers: int, models: int, resident: int
) -> float | None:
    key = "requests_per_second" if kind == "classify" else "tokens_per_second"
    return median(
        rows, key, peer=peer, kind=kind, callers=callers, models=models, resident=resident
    )


def limit(rows: Rows, kind: str) -> float | None:
    """Requests (classify) or tokens (generate) per second if linear layers at the machine's best rate were all."""
    rates = [
        rate for rows_at in (32, 64, 480)
        if (rate := median(rows, f"flops_at_{rows_at}", peer="machine")) is not None
    ]  # fmt: skip
    prompt = median(rows, "prompt_tokens", peer="ours", kind=kind, callers=8, models=8)
    output = median(rows, "output_tokens", peer="ours", kind=kind, callers=8, models=8)
    if not rates or prompt is None or output is None:
        return None
    computed = prompt - SHARED_TOKENS[kind] + output - 1
    requests = max(rates) / Shape().operations(int(computed), int(output))
    return requests if kind == "classify" else requests * output


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _ratio(one: float | None, other: float | None) -> str:
    return "–" if one is None or other is None else f"{one / other:.2f}"


def _table(rows: Rows) -> list[str]:
    lines = [
        "| work | callers | ours | vLLM-CPU | PEFT one at a time | ours / vLLM | ours / PEFT |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, unit in (("classify", "requests/s"), ("generate", "tokens/s")):
        for callers in (1, 8, 32):
            mine = _rate(rows, "ours", kind, callers, 8, 8)
            theirs = _rate(rows, "vllm", kind, callers, 8, 8)
            alone = _rate(rows, "peft", kind, 1, 8, 8)
            lines.append(
                f"| {kind}, {unit} | {callers} | {_number(mine)} | {_number(theirs)} | {_number(alone)} "
                f"| {_ratio(mine, theirs)} | {_ratio(mine, alone)} |"
            )
    return lines


def _goals(rows: Rows) -> list[str]:
    """Each goal, what was measured, and whether it is met."""
    lines = ["| goal | measured | met |", "|---|---|---|"]

    def add(goal: str, value: float | None, shown: str, is_met: bool) -> None:
        lines.append(
            f"| {goal} | {shown if value is not None else '–'} | "
            f"{'–' if value is None else 'yes' if is_met else 'no'} |"
        )

    for kind in ("classify", "generate"):
        for callers in (1, 8, 32):
            mine, theirs = (_rate(rows, peer, kind, callers, 8, 8) for peer in ("ours", "vllm"))
            ratio = None if mine is None or theirs is None else mine / theirs
            floor = 2.0 if callers == 8 else 1.0
            add(f"{kind}, {callers} callers: at least {floor:.0f}× vLLM-CPU", ratio,
                f"{ratio or 0:.2f}×", (ratio or 0) >= floor)  # fmt: skip
        eight = _rate(rows, "ours", kind, 8, 8, 8)
        base = _rate(rows, "ours", kind, 8, 0, 8)
        ratio = None if eight is None or base is None else eight / base
        goal = f"{kind}: 8 adapters within 15 % of the base model alone"
        add(goal, ratio, f"{(ratio or 0) - 1:+.1%}", (ratio or 0) >= 0.85)
        for most in (16, 64):
            many = _rate(rows, "ours", kind, 8, most, most)
            ratio = None if eight is None or many is None else many / eight
            goal = f"{kind}: {most} adapters, all asked for in turn, within 15 % of 8"
            add(goal, ratio, f"{(ratio or 0) - 1:+.1%}", (ratio or 0) >= 0.85)
    ready = median(rows, "ready_seconds", peer="start")
    add("start to ready under 5 s", ready, f"{ready or 0:.1f} s", (ready or 9) < 5)
    memory = median(rows, "memory_bytes", peer="start")
    add("memory under 1.2 GiB with 16 adapters", memory, f"{(memory or 0) / 2**30:.2f} GiB",
        (memory or 2**40) < 1.2 * 2**30)  # fmt: skip
    return lines


def _shares(rows: Rows) -> list[str]:
    lines = []
    for kind in ("classify", "generate"):
        bound, mine = limit(rows, kind), _rate(rows, "ours", kind, 8, 8, 8)
        most = _rate(rows, "ours", kind, 32, 8, 8)
        if bound is not None and mine is not None:
            lines.append(
                f"{kind}: the linear layers alone allow {bound:.1f} a second at this machine's best fp32 rate; ours reaches "
                f"{mine / bound:.0%} of it with 8 callers, {(most or 0) / bound:.0%} with 32."
            )
    return lines


def _seen(rows: Rows) -> list[str]:
    lines = []
    for peer, name in (("ours", "ours"), ("vllm", "vLLM-CPU")):
        ready, memory = (
            median(rows, "ready_seconds", peer=peer),
            median(rows, "memory_bytes", peer=peer),
        )
        if ready is not None and memory is not None:
            lines.append(
                f"{name}: ready after {ready:.1f} s, memory {memory / 2**30:.2f} GiB (PSS)."
            )
    shares = sorted(row["others_share"] for row in rows if "others_share" in row)
    if shares:
        lines.append(
            f"Other processes took {shares[len(shares) // 2]:.0%} of the processors in the middle window, "
            f"{shares[-1]:.0%} in the worst."
        )
    if median(rows, "flops_at_8", peer="machine") is None:
        return lines
    rates = [
        f"{median(rows, f'flops_at_{n}', peer='machine') or 0:.3g} at {n}"
        for n in (1, 8, 32, 64, 480)
    ]
    lines.append(f"Machine: fp32 products, operations a second by rows: {', '.join(rates)}.")
    return lines


def report(rows: Rows, plot: Path | None) -> None:
    """Print everything; draw the picture where asked for."""
    for part in (_table(rows), _goals(rows), _shares(rows), _seen(rows)):
        print("\n".join(part), end="\n\n")
    if plot is not None:
        _draw(rows, plot)


def _draw(rows: Rows, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.4), dpi=130, layout="constrained")
    colours = {"ours": "#1d4ed8", "vllm": "#b45309", "peft": "#6b7280"}
    names = {"ours": "Graduate", "vllm": "vLLM-CPU", "peft": "PEFT, one at a time"}
    for axes, (kind, unit) in zip(
        panels, (("classify", "requests/s"), ("generate", "tokens/s")), strict=True
    ):
        for place, peer in enumerate(names):
            callers = (1, 8, 32)
            values = [
                _rate(rows, peer, kind, 1 if peer == "peft" else c, 8, 8) or 0 for c in callers
            ]
            spots = [at + (place - 1) * 0.27 for at in range(3)]
            bars = axes.bar(spots, values, 0.25, color=colours[peer], label=names[peer])
            axes.bar_label(bars, fmt="%.3g", fontsize=7, padding=1)
        axes.set_xticks(range(3), ["1 caller", "8", "32"])
        axes.set(title=f"{kind}: {unit}", ylabel=unit)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    panels[0].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
