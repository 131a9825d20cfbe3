"""The study's result in words: which goals are met, which of the playbook's conclusions hold, as Markdown. Pure."""

from collections.abc import Sequence
from typing import Any

from training.study_data import PLAYBOOK_ARMS

CASCADE = "student and TF-IDF"
"""Whose confidence the quoted cascade goes by."""
TITLES = {
    "balanced": "Test-balanced, half of the rows toxic",
    "tuning": "Tuning rows, half of them toxic, in no test set",
}
"""Headings of the sets of rows; others go by their file's name."""


SEEDS = 3
"""Seeds an arm from which on a conclusion counts: an interval over rows says nothing of another seed."""


def _points(gap: dict[str, Any]) -> str:
    return (
        f"{100 * gap['difference']:+.1f} points [{100 * gap['low']:+.1f}, {100 * gap['high']:+.1f}], "
        f"p = {gap['p_value']:.2g}"
    )


def _of(summaries: Sequence[dict[str, Any]], arm: str, test: str) -> dict[str, Any] | None:
    return next((s for s in summaries if s["arm"] == arm and s["test"] == test), None)


def goals(summaries: Sequence[dict[str, Any]], seeds: int = SEEDS) -> list[dict[str, Any]]:
    """The study's goals, each with what was reached and whether that is it; a goal without all seeds is open."""
    found = []
    for arm, wanted in (("A", 0.87), ("E", 0.89)):
        line = _of(summaries, arm, "balanced")
        if line:
            found.append({
                "goal": f"{arm}: mean of {seeds} seeds on test-balanced at least {100 * wanted:.0f}",
                "reached": line["mean"], "interval": line["interval"], "seeds": line["seeds"],
                "met": line["mean"] >= wanted and line["seeds"] >= seeds,
            })  # fmt: skip
    tests = [s for s in summaries if s["test"] == "balanced" and s["arm"] in PLAYBOOK_ARMS]
    if tests:
        above = [
            s["arm"]
            for s in tests
            if s["against_rival"]["low"] > 0 and s["against_rival"]["p_value"] < 0.05
        ]
        found.append({
            "goal": "above TF-IDF on every subset by a paired test", "reached": above,
            "of": [s["arm"] for s in tests], "met": len(above) == len(tests) == len(PLAYBOOK_ARMS),
        })  # fmt: skip
    best = _of(summaries, "E", "balanced")
    if best and "cascade" in best:
        joint = best["cascade"][CASCADE]
        found.append({
            "goal": "E with GPT-4: at least 92 with at most 25 % handed over", "reached": joint["accuracy"],
            "handed_over": joint["handed_over"], "seeds": best["seeds"],
            "met": joint["accuracy"] >= 0.92 and joint["handed_over"] <= 0.25 and best["seeds"] >= seeds,
        })  # fmt: skip
    return found


def conclusions(summaries: Sequence[dict[str, Any]], gaps: dict[str, dict[str, Any]]) -> list[str]:
    """What the figures say about the playbook's own conclusions.

    Args:
        gaps: paired comparisons of arms by seed, such as `B-A`.
    """
    said = []
    claims = (
        ("B-A", "More rows with people's labels help (the playbook: A 87.2 to B 90.0)"),
        ("C-B", "Taking out the teacher's errors helps (the playbook: B 90.0 to C 92.0)"),
        ("C-control", "Taking out the teacher's errors, against a control of B's size"),
        ("D-B", "1,000 more toxic rows help"),
        ("E-A", "Five times the rows help (the playbook: A 87.2 to E 90.2)"),
        ("C-E", "Fewer, cleaner rows beat more (the playbook: C 92.0 against E 90.2)"),
        ("E-agreed-E", "Taking the teacher's errors out of E helps"),
        ("E-corrected-E", "Gold labels on the rows of E on which the teacher errs help"),
    )
    for key, claim in claims:
        gap = gaps.get(key)
        if gap is None:
            continue
        verdict = (
            "supported" if gap["low"] > 0 else "contradicted" if gap["high"] < 0 else "not shown either way"
        )  # fmt: skip
        seeds = gap["seeds"]
        if seeds < SEEDS:
            verdict += f" so far ({SEEDS} seeds are needed to settle it)"
        said.append(f"{claim}: {verdict}: {_points(gap)} ({seeds} seed{'s' if seeds > 1 else ''}).")
    said += [
        f"Arm {line['arm']} against GPT-4 alone: {_points(line['against_teacher'])}."
        for line in summaries
        if line["test"] == "balanced" and "against_teacher" in line
    ]
    return said


def _table(lines: Sequence[Sequence[str]]) -> list[str]:
    head, *rest = lines
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rest)]


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def markdown(found: dict[str, Any]) -> str:
    """The result as a page: table, goals, conclusions, and how it came about."""
    summaries = found["summaries"]
    text = [
        "# The playbook's case study, with a 135M student",
        "",
        "Toxic comments; SmolLM2-135M with LoRA on its top layers, trained and run on a CPU; one recipe for all arms.",
        "Right means: as people labelled it. Intervals are Wilson 95 % for the mean of the seeds' hits; gaps are paired "
        "over rows.",
        "",
    ]
    for test in dict.fromkeys(s["test"] for s in summaries if s["test"] != "indist"):
        text += _table_of(found, test)
    if any(s["test"] == "indist" for s in summaries):
        text += _indist(found)
    text += ["## Goals", ""] + [_goal(goal) for goal in found["goals"]]
    text += ["", "## What the figures say about the playbook's conclusions", ""]
    text += [f"- {sentence}" for sentence in found["conclusions"]]
    text += ["", "## How", "", *_how(found), ""]
    return "\n".join(text)


def _table_of(found: dict[str, Any], test: str) -> list[str]:
    """A test set's table, arms as rows."""
    rows = next(r["n"] for r in found["runs"] if r["test"] == test)
    text = [f"## {TITLES.get(test, test)}, {rows:,} rows", ""]
    lines = [["arm", "labels", "rows", "seeds", "student, mean [95 %]", "seeds from–to", "AUC", "TF-IDF",
              "student − TF-IDF", "with GPT-4: right at handed over", "playbook's 7B"]]  # fmt: skip
    for line in (s for s in found["summaries"] if s["test"] == test):
        run = next(r for r in found["runs"] if r["arm"] == line["arm"] and r["test"] == test)
        joint = line.get("cascade", {}).get(CASCADE)
        low, high = line["interval"]
        said = found["arms"][line["arm"]]["playbook"]
        lines.append([
            line["arm"], found["arms"][line["arm"]]["labels"], f"{run['fit']['rows'] + run['fit']['validation_rows']:,}",
            str(line["seeds"]), f"**{_percent(line['mean'])}** [{_percent(low)}–{_percent(high)}]",
            f"{_percent(line['least'])}–{_percent(line['most'])}", f"{line['auc']:.3f}", _percent(line["rival"]),
            _points(line["against_rival"]),
            f"{_percent(joint['accuracy'])} at {_percent(joint['handed_over'], 0)} %" if joint else "–",
            f"{said}" if said is not None else "–",
        ])  # fmt: skip
    text += _table(lines)
    teacher = next((t for t in found["teacher"] if t["test"] == test), None)
    if teacher:
        low, high = teacher["interval"]
        text += ["", f"GPT-4 alone: {_percent(teacher['accuracy'])} [{_percent(low)}–{_percent(high)}]. The playbook's "
                 "own figures: " + ", ".join(f"{k} {v}" for k, v in found["playbook"].items()) + "."]  # fmt: skip
    return [*text, ""]


def _indist(found: dict[str, Any]) -> list[str]:
    text = ["", "## Test-indist, 220 rows, 20 of them toxic", ""]
    lines = [["arm", "seeds", "student: right", "balanced accuracy", "AUC", "TF-IDF"]]
    for line in (s for s in found["summaries"] if s["test"] == "indist"):
        mine = [r for r in found["runs"] if r["arm"] == line["arm"] and r["test"] == "indist"]
        balanced = sum(r["balanced_accuracy"] for r in mine) / len(mine)
        low, high = line["interval"]
        lines.append([
            line["arm"], str(line["seeds"]), f"{_percent(line['mean'])} [{_percent(low)}–{_percent(high)}]",
            _percent(balanced), f"{line['auc']:.3f}", _percent(line["rival"]),
        ])  # fmt: skip
    text += _table(lines)
    text += ["", "Saying no to everything is right on 90.9 % of these rows, as GPT-4 is: read the balanced accuracy.", ""]  # fmt: skip
    return text


def _goal(goal: dict[str, Any]) -> str:
    reached = goal["reached"]
    shown = (
        f"{', '.join(reached) or 'none'} of {', '.join(goal['of'])}"
        if isinstance(reached, list)
        else _percent(reached)
    )
    if "handed_over" in goal:
        shown += f" at {_percent(goal['handed_over'])} % handed over"
    if "seeds" in goal:
        shown += f" ({goal['seeds']} seeds)"
    return f"- {'met' if goal['met'] else 'not met'}: {goal['goal']}: {shown}"


def _how(found: dict[str, Any]) -> list[str]:
    counted = (
        ", ".join(f"{name} {n} times" for name, n in found["test_readings"].items()) or "never"
    )
    return [
        f"- Recipe {found['recipe_digest']}, in full in the JSON beside this page; how it was chosen is in "
        "`jigsaw-recipe.md`. No test label was read for it.",
        f"- Threshold rule: `{found['rule']}` (the declared mix; nothing fitted). Accuracies under the other rule are in "
        "the JSON.",
        f"- The cascade hands over the least confident {100 * found['planned_hand_over']:.0f} % as planned on validation rows "
        "weighted to the test's mix; what it really hands over on the test is in the table.",
        f"- Labels of the test sets were read: {counted} (each report reads them once).",
        "- TF-IDF is fitted on all rows of an arm, the student on those less its validation rows.",
        *_kept(found.get("kept")),
    ]  # fmt: skip


def _kept(kept: dict[str, Any] | None) -> list[str]:
    """Which arms were not fitted again, and what follows."""
    if not kept or not kept["arms"]:
        return []
    return [
        f"- Arms {', '.join(kept['arms'])} have the figures of an earlier run of this study (recipe {kept['recipe_digest']}, which caps the "
        "rows seen otherwise and makes as many passes over these arms). Their scores row by row are not at hand, so they are not "
        "compared with the other arms."
    ]
