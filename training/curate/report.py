"""What curation did, for people: tables in the terminal, `curation.json`, and the threshold curve as a picture."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from training.curate.stages import Result, samples


def as_dict(result: Result, seed: int) -> dict[str, Any]:
    """The whole report as JSON values."""
    return {
        "stages": [{"stage": s, "before": b, "after": a} for s, b, a in result.rows],
        "rules": samples(result.entries, seed),
        "reports": result.reports,
        "train_rows": len(result.train),
        "held_out_rows": len(result.held_out),
    }


def write(report: dict[str, Any], folder: Path) -> None:
    """`curation.json`, and `near_duplicates.png` where near duplicates were looked for."""
    (folder / "curation.json").write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n")
    near = report["reports"].get("near duplicates")
    if near:
        draw_curve(near["curve"], near["threshold"], folder / "near_duplicates.png")


def draw_curve(curve: list[dict[str, float]], threshold: float, path: Path) -> None:
    """Rows that would go against the threshold, the chosen one marked."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.4), dpi=130, layout="constrained")
    axes.plot([p["threshold"] for p in curve], [p["rows"] for p in curve], "o-", color="#1d4ed8")
    axes.axvline(threshold, color="#b45309", linestyle="--", label=f"chosen: {threshold:g}")
    axes.set(
        xlabel="Jaccard similarity from which rows are near duplicates", ylabel="train rows that go"
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path)
    plt.close(figure)


def show(report: dict[str, Any], out: Console) -> None:
    """Stages, rules with three samples each, and what each stage found."""
    stages = Table("stage", "train rows before", "after", "change", title="curation")
    for row in report["stages"]:
        change = row["after"] - row["before"]
        stages.add_row(
            row["stage"], str(row["before"]), str(row["after"]), f"{change:+d}" if change else "-"
        )
    out.print(stages)
    for name, rule in report["rules"].items():
        out.print(f"\n[bold]{name}[/]: {rule['count']} rows {rule['kind']}")
        for sample in rule["samples"]:
            score = "" if sample["score"] is None else f" ({sample['score']:g})"
            after = "" if sample["after"] is None else f" -> {sample['after']}"
            line = f"  {sample['id']}{score}: {sample['input']!r} {sample['answer']}{after}: {sample['detail']}"
            out.print(line, markup=False, highlight=False, soft_wrap=True)
    for line in findings(report["reports"]):
        out.print(line, highlight=False, soft_wrap=True)
    out.print(f"{report['held_out_rows']} validation and test rows stayed as they were")


Reports = dict[str, dict[str, Any]]


def findings(reports: Reports) -> list[str]:
    """One line a finding."""
    return [*_rows(reports), *_labels(reports), *_mix(reports)]


def _rows(reports: Reports) -> list[str]:
    lines = [
        f"rule {name}: {count} rows break it" for name, count in reports.get("rules", {}).get("breaks", {}).items()
    ]  # fmt: skip
    if near := reports.get("near duplicates"):
        curve = ", ".join(f"{p['threshold']:g}: {p['rows']}" for p in near["curve"])
        lines.append(f"near duplicates, rows that go by threshold: {curve}")
        if near["conflicts"]:
            lines.append(
                f"{near['conflicts']} near-duplicate pairs have different answers: look at them"
            )
    return lines


def _labels(reports: Reports) -> list[str]:
    lines: list[str] = []
    gold = reports.get("gold")
    if gold and gold["rows_with_gold"]:
        low, high = gold["interval"]
        lines.append(
            f"teacher against gold: {gold['teacher_errors']} errors in {gold['rows_with_gold']} rows "
            f"({gold['error_rate']:.1%}, 95 % interval {low:.1%} to {high:.1%})"
        )
    votes = reports.get("votes")
    if votes and votes["rows_with_votes"]:
        lines.append(
            f"votes on {votes['rows_with_votes']} rows, mean agreement {votes['mean_agreement']:.3f}"
        )
        if votes["majority_right"][1]:
            right, of = votes["majority_right"]
            lines.append(
                f"against gold: majority {right} of {of} right, first vote {votes['first_vote_right'][0]}"
            )
    if suspects := reports.get("suspects"):
        lines.append(f"{suspects['suspects']} label suspects, action {suspects['action']}")
        lines += [
            f"  {s['id']} {s['field']}: {s['given']} given, {s['likely']} likelier (p {s['probability']:.2f})"
            for s in suspects["found"][:5]
        ]
    return lines


def _mix(reports: Reports) -> list[str]:
    lines: list[str] = []
    if users := reports.get("power_users"):
        lines.append(
            f"{users['users_over']} of {users['users']} users over the cap of {users['cap']} rows; effective users "
            f"{users['effective_users_before']} before, {users['effective_users_after']} after"
        )
    if mix := reports.get("balance"):
        shares = ", ".join(f"{name} {share:.1%}" for name, share in mix["share_after"].items())
        lines.append(
            f"mix after {mix['how']}: {shares}; effective rows {mix['effective_rows_after']}"
        )
    if effect := reports.get("effect"):
        low, high = effect["interval"]
        lines.append(
            f"TF-IDF stand-in on {effect['validation_rows']} validation rows: {effect['before_accuracy']:.1%} right before, "
            f"{effect['after_accuracy']:.1%} after ({effect['difference']:+.1%}, 95 % interval {low:+.1%} to {high:+.1%}, "
            f"p {effect['p_value']:.2f}); mean over classes {effect['before_balanced_accuracy']:.1%} before, "
            f"{effect['after_balanced_accuracy']:.1%} after"
        )
        lines += [
            f"  balance strength {s['strength']:g}: {s['rows']} rows, {s['accuracy']:.1%} right, mean over classes "
            f"{s['balanced_accuracy']:.1%}"
            for s in effect["sweep"]
        ]
    return lines
