"""From score files to the study's result: thresholds from validation, figures, tests, goals, what follows in words.

The only module that reads test labels, and it counts each reading in the study's log.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from training import study_figures as core
from training import study_keep, study_plots, study_words
from training.metrics import rate
from training.statistics import paired
from training.study import RIVAL, TUNING, Place, digest_of, rows_of, set_name
from training.study_data import ARMS, GAPS, LABELS, PLAYBOOK, TESTS, ArmName, Comment, arm_rows
from training.study_fit import Fit, Recipe

MIX = {"balanced": 0.5, "indist": 0.1}
"""The declared share of "yes" where a test's answers are used; other sets count as balanced."""
RULES = ("mix", "validation")
RULE = "mix"
"""The threshold rule that is quoted, chosen on the tuning rows: the declared mix, nothing fitted."""
HANDED_OVER = 0.20
"""Share that the cascade plans to hand over; the cut is fixed on validation rows weighted to the test's mix."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A fit's scores with what is needed to judge them."""

    fit: Fit
    held: list[Comment]
    rival_held: dict[str, float]
    rival: Fit


@dataclass(slots=True)
class Study:
    """Everything that the report is made of."""

    data: Path
    place: Place
    recipe: Recipe
    arms: tuple[ArmName, ...]
    seeds: tuple[int, ...]
    sets: tuple[str, ...] = TESTS
    purpose: str = "report"
    now: Callable[[], float] = time.time
    _rows: dict[str, list[Comment]] = field(default_factory=dict)

    def rows(self, name: str) -> list[Comment]:
        """The rows of a set; the first asking is a reading of its labels, counted in the log."""
        if name not in self._rows:
            self._rows[name] = rows_of(self.data, name)
            if name != TUNING:
                line = {"at": round(self.now()), "test": set_name(name), "purpose": self.purpose,
                        "recipe": digest_of(self.recipe)}  # fmt: skip
                with (self.place.out / "test-readings.jsonl").open("a") as log:
                    log.write(json.dumps(line) + "\n")
        return self._rows[name]

    def readings(self) -> dict[str, int]:
        """Test set → how often its labels were read."""
        file = self.place.out / "test-readings.jsonl"
        counted: dict[str, int] = {}
        for line in file.read_text().splitlines() if file.exists() else ():
            name = json.loads(line)["test"]
            counted[name] = counted.get(name, 0) + 1
        return counted

    def scored(self) -> list[Scored]:
        """The fits that are done."""
        found = []
        for arm in self.arms:
            rival = self.place.rival(arm)
            names = [set_name(name) for name in self.sets]
            if not rival.has(names):
                continue
            rows = {r.id: r for r in arm_rows(self.data, arm)}
            known = rival.scores("validation")
            for seed in self.seeds:
                fit = self.place.fit(arm, seed, self.recipe)
                if fit.has(names):
                    held = [rows[i] for i in fit.scores("validation")]
                    found.append(Scored(fit, held, known, rival))
        return found


def _yes(labels: Sequence[str]) -> list[bool]:
    return [label == LABELS[1] for label in labels]


def _ordered(scores: dict[str, float], rows: Sequence[Comment]) -> list[float]:
    return [scores[r.id] for r in rows]


def trained_mix(recipe: Recipe, held: Sequence[Comment]) -> float:
    """The share of "yes" that a score of 0 is right for."""
    target = recipe.fit.target_mix
    if target:
        return target[LABELS[1]] / sum(target.values())
    return sum(_yes([r.label for r in held])) / len(held)


def thresholds(
    scores: Sequence[float], labels: Sequence[bool], trained: float, mix: float
) -> dict[str, float]:
    """Rule → threshold, from validation rows only."""
    by_mix = core.threshold_for(trained, mix)
    return {"mix": by_mix, "validation": core.best_threshold(scores, labels, mix, by_mix)}


def student_row(study: Study, scored: Scored, test: str) -> dict[str, Any]:
    """One student on one test: its figures under the quoted rule, accuracy under each, and the cascade."""
    rows, mix = study.rows(test), MIX.get(test, 0.5)
    gold = _yes([r.gold for r in rows])
    held_labels = _yes([r.label for r in scored.held])
    held = _ordered(scored.fit.scores("validation"), scored.held)
    scores = _ordered(scored.fit.scores(set_name(test)), rows)
    cuts = thresholds(held, held_labels, trained_mix(study.recipe, scored.held), mix)
    by_rule = {rule: core.outcome([s > cuts[rule] for s in scores], gold, scores) for rule in RULES}
    main = by_rule[RULE]
    rival_held = _ordered(scored.rival_held, scored.held)
    rival_scores = _ordered(scored.rival.scores(set_name(test)), rows)
    rival_cut = rival_threshold(study, scored.fit.arm, scored.rival, mix)
    teacher = [r.teacher == r.gold for r in rows] if all(r.teacher for r in rows) else None
    confidences: dict[str, tuple[core.Numbers, core.Numbers]] = {
        "student": (
            [abs(s - cuts[RULE]) for s in held],
            [abs(s - cuts[RULE]) for s in scores],
        ),
        "student and TF-IDF": (
            core.joint_confidence(held, cuts[RULE], rival_held, rival_cut),
            core.joint_confidence(scores, cuts[RULE], rival_scores, rival_cut),
        ),
    }
    cascades = {}
    for name, (on_held, on_test) in confidences.items():
        if teacher is not None:
            cut = core.cut_for(on_held, held_labels, mix, HANDED_OVER)
            cascades[name] = core.cascade(on_test, main.right, teacher, cut)
    return {
        "arm": scored.fit.arm, "seed": scored.fit.seed, "test": set_name(test), "n": len(rows),
        "accuracy": main.accuracy.share, "interval": [main.accuracy.low, main.accuracy.high],
        "threshold": cuts[RULE], "rule": RULE, "balanced_accuracy": main.balanced_accuracy, "auc": main.auc,
        "by_rule": {rule: {"threshold": cuts[rule], "accuracy": o.accuracy.share} for rule, o in by_rule.items()},
        "cascade": cascades, "right": main.right,
        "fit": json.loads(scored.fit.fitted.read_text()),
    }  # fmt: skip


def rival_threshold(study: Study, arm: ArmName, rival: Fit, mix: float) -> float:
    """TF-IDF's threshold: the best on its out-of-fold scores of the arm's own rows."""
    rows = arm_rows(study.data, arm)
    held = _ordered(rival.scores("validation"), rows)
    return core.best_threshold(
        held, _yes([r.label for r in rows]), mix, core.threshold_for(0.5, mix)
    )


def rival_row(study: Study, arm: ArmName, test: str) -> dict[str, Any]:
    """An arm's TF-IDF on one test."""
    rows, mix, rival = study.rows(test), MIX.get(test, 0.5), study.place.rival(arm)
    cut = rival_threshold(study, arm, rival, mix)
    scores = _ordered(rival.scores(set_name(test)), rows)
    found = core.outcome([s > cut for s in scores], _yes([r.gold for r in rows]), scores)
    return {
        "arm": arm, "who": RIVAL, "test": set_name(test), "n": len(rows), "accuracy": found.accuracy.share,
        "interval": [found.accuracy.low, found.accuracy.high], "threshold": cut, "rule": "validation",
        "balanced_accuracy": found.balanced_accuracy, "auc": found.auc, "right": found.right,
    }  # fmt: skip


def teacher_row(study: Study, test: str) -> dict[str, Any] | None:
    """GPT-4's recorded answers on one test, None where it was not asked."""
    rows = study.rows(test)
    if not all(r.teacher for r in rows):
        return None
    found = core.outcome(_yes([r.teacher or "" for r in rows]), _yes([r.gold for r in rows]))
    return {
        "who": "GPT-4", "test": set_name(test), "n": len(rows), "accuracy": found.accuracy.share,
        "interval": [found.accuracy.low, found.accuracy.high], "balanced_accuracy": found.balanced_accuracy,
        "right": found.right,
    }  # fmt: skip


def summary(
    arm: str, runs: Sequence[dict[str, Any]], rival: dict[str, Any], teacher: dict[str, Any] | None
) -> dict[str, Any]:
    """An arm's seeds together on one test, against TF-IDF and the teacher."""
    right = [run["right"] for run in runs]
    shares = [run["accuracy"] for run in runs]
    hits, rows = sum(map(sum, right)), len(right[0])
    pooled = rate(round(hits / len(right)), rows)
    found: dict[str, Any] = {
        "arm": arm, "test": runs[0]["test"], "seeds": len(runs), "mean": statistics.fmean(shares),
        "interval": [pooled.low, pooled.high],
        "deviation": statistics.stdev(shares) if len(shares) > 1 else None,
        "least": min(shares), "most": max(shares), "auc": statistics.fmean(run["auc"] for run in runs),
        "rival": rival["accuracy"],
        "against_rival": asdict(core.seeds_gap(right, [rival["right"]])),
        "mcnemar_rival": [paired(run["right"], rival["right"]).p_value for run in runs],
    }  # fmt: skip
    if teacher is not None:
        found["teacher"] = teacher["accuracy"]
        found["against_teacher"] = asdict(core.seeds_gap(right, [teacher["right"]]))
        found["cascade"] = {
            name: {
                "accuracy": statistics.fmean(run["cascade"][name].accuracy.share for run in runs),
                "handed_over": statistics.fmean(run["cascade"][name].handed_over for run in runs),
                "against_teacher": asdict(
                    core.seeds_gap([run["cascade"][name].right for run in runs], [teacher["right"]])
                ),
            }
            for name in runs[0]["cascade"]
        }
    return found


def report(study: Study) -> dict[str, Any]:
    """Every figure that the finished fits allow; a study that is not complete reports what is there."""
    scored = study.scored()
    runs = [student_row(study, s, test) for s in scored for test in study.sets]
    names = [set_name(name) for name in study.sets]
    arms = [arm for arm in study.arms if study.place.rival(arm).has(names)]
    rivals = [rival_row(study, arm, test) for arm in arms for test in study.sets]
    teachers = [t for t in (teacher_row(study, test) for test in study.sets) if t]
    summaries = []
    for arm in arms:
        for test in study.sets:
            mine = [r for r in runs if r["arm"] == arm and r["test"] == set_name(test)]
            rival = next(r for r in rivals if r["arm"] == arm and r["test"] == set_name(test))
            teacher = next((t for t in teachers if t["test"] == set_name(test)), None)
            if mine:
                summaries.append(summary(arm, mine, rival, teacher))
    gaps = arm_gaps([r for r in runs if r["test"] == "balanced"])
    found = {
        "study": "jigsaw", "schema": 1, "recipe": study.recipe.model_dump(mode="json"),
        "recipe_digest": digest_of(study.recipe), "rule": RULE, "planned_hand_over": HANDED_OVER,
        "arms": {name: asdict(arm) for name, arm in ARMS.items()}, "playbook": PLAYBOOK,
        "test_readings": study.readings(), "runs": runs, "rivals": rivals, "teacher": teachers,
        "summaries": summaries, "gaps": gaps, "goals": study_words.goals(summaries),
        "conclusions": study_words.conclusions(summaries, gaps),
    }  # fmt: skip
    return found


def arm_gaps(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`B-A` → B's accuracy less A's, over the seeds that both have."""
    found = {}
    for name, (first, second) in GAPS.items():
        one = {r["seed"]: r["right"] for r in runs if r["arm"] == first}
        other = {r["seed"]: r["right"] for r in runs if r["arm"] == second}
        seeds = sorted(set(one) & set(other))
        if seeds:
            gap = core.seeds_gap([one[s] for s in seeds], [other[s] for s in seeds])
            found[name] = {**asdict(gap), "seeds": len(seeds)}
    return found


def plain(found: dict[str, Any]) -> dict[str, Any]:
    """The result as JSON values: per-row vectors and whole curves left out."""

    def of(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: of(v) for k, v in value.items() if k not in ("right", "curve")}
        if isinstance(value, core.Cascade):
            return of(asdict(value))
        if isinstance(value, list | tuple):
            return [of(v) for v in value]
        return round(value, 5) if isinstance(value, float) else value

    return {key: of(value) for key, value in found.items()}


def write(
    found: dict[str, Any],
    results: Path,
    page: Path,
    images: Path,
    earlier: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], list[Path]]:
    """The result as JSON, as a page, and as pictures; the result as written, and the files.

    Args:
        earlier: a result whose other arms are kept (`study_keep`); the curves are those of the arms at hand.

    Raises:
        DataError: arms of the earlier result cannot stand beside the new ones.
    """
    shown = plain(found)
    if earlier is not None:
        shown = study_keep.merged(shown, earlier)
        shown["goals"] = study_words.goals(shown["summaries"])
        shown["conclusions"] = study_words.conclusions(shown["summaries"], shown["gaps"])
    written = [results]
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(shown, indent=1) + "\n")
    runs = [run for run in found["runs"] if run["test"] == "balanced" and run["cascade"]]
    teacher = next((t["accuracy"] for t in found["teacher"] if t["test"] == "balanced"), None)
    if runs and teacher is not None:
        study_plots.hand_over_curves(
            runs, teacher, study_words.CASCADE, images / "study-jigsaw-hand-over.png"
        )
        lines, seeds = (
            [one for one in shown[key] if one["test"] == "balanced"]
            for key in ("summaries", "runs")
        )
        said = {name: arm["playbook"] for name, arm in found["arms"].items()}
        study_plots.arms(lines, seeds, said, teacher, images / "study-jigsaw-arms.png")
        written += [images / "study-jigsaw-hand-over.png", images / "study-jigsaw-arms.png"]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(study_words.markdown(shown))
    return shown, [*written, page]
