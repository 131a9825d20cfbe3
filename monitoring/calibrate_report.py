"""What a calibration leaves behind: JSON values, a policy patch, a difficulty model, and a picture of the curve."""

import datetime
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from monitoring import difficulty_model
from monitoring.calibrate import Calibration, Step
from monitoring.calibrate_run import Outcome
from router import policy_file
from router.policy import Policy

TEACHER, STUDENT, OTHER = "#b45309", "#1d4ed8", "#6b7280"


def write(outcome: Outcome, patch: Path, difficulty_folder: Path) -> dict[str, Path]:
    """Write the picture and, when there is a suggestion, the model and the patch; where they are.

    Raises:
        PolicyError: the policy with the patch laid over it would not hold.
    """
    files: dict[str, Path] = {}
    patch.parent.mkdir(parents=True, exist_ok=True)
    if outcome.calibration.curve:
        files["picture"] = picture(outcome, patch.with_suffix(".png"))
    if outcome.calibration.chosen is None:
        patch.unlink(missing_ok=True)  # an older promise does not hold any more
        return files
    if outcome.model is not None:
        files["difficulty model"] = difficulty_model.save(outcome.model, difficulty_folder)
    text = patch_text(outcome)
    patched(outcome.rules.policy, text)
    patch.write_text(text, encoding="utf-8")
    return {"policy patch": patch, **files}


def says(found: Calibration) -> str:
    """The promise in one sentence, or why there is none."""
    if found.chosen is None:
        return f"nothing can be promised: {found.why_not}"
    seen = found.chosen.disagreement
    shown = f"{100 * seen.value:.2f} %" if seen else "nothing"
    return (
        f"the student may answer {100 * found.chosen.share:.1f} % of requests: among those it differs from the teacher on at "
        f"most {100 * found.limit:g} %, at {100 * found.confidence:g} % confidence ({shown} of the tested pairs did)"
    )


def plain(outcome: Outcome, files: Mapping[str, Path]) -> dict[str, Any]:
    """The outcome as JSON values."""
    found = outcome.calibration
    return {
        "route": outcome.route,
        "adapter": outcome.adapter,
        "max_disagreement": found.limit,
        "confidence": found.confidence,
        "search_pairs": found.search_pairs,
        "test_pairs": found.test_pairs,
        "least_pairs": found.least_pairs,
        "weighted": found.weighted,
        "difficulty_auc": outcome.auc,
        "difficulty_model": outcome.model.name if outcome.model else None,
        "chosen": _step(outcome, found.chosen) if found.chosen else None,
        "says": says(found),
        "notes": list(outcome.notes),
        "files": {what: str(path) for what, path in files.items()},
        "curve": [_step(outcome, s) for s in found.curve],
    }


def _step(outcome: Outcome, step: Step) -> dict[str, Any]:
    chosen = outcome.calibration.chosen
    return {
        "share": step.share,
        "asked_share": step.asked_share,
        "disagreement": asdict(step.disagreement) if step.disagreement else None,
        "usd_per_1000": outcome.usd_per_1000(step),
        "min_confidence": step.point.min_confidence,
        "max_difficulty": step.point.max_difficulty,
        "p_value": step.p_value,
        "accepted": step.accepted,
        "chosen": chosen is not None and step.point == chosen.point,
    }


def patch_text(outcome: Outcome) -> str:
    """The suggestion as YAML, to be laid over policy.yaml by a person."""
    found = outcome.calibration
    assert found.chosen is not None
    point = found.chosen.point
    route: dict[str, Any] = {"mode": "hybrid"}
    if outcome.version is not None:
        route["student"] = {"version": outcome.version}
    floor, cut = point.min_confidence, point.max_difficulty
    route["hybrid"] = {
        "cascade": None if floor is None else {"min_confidence": floor},
        "difficulty": None
        if cut is None or outcome.model is None
        else {"model": outcome.model.name, "max": cut},
    }
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    head = (
        f"# Suggested by `graduate monitor calibrate {outcome.route}` on {today}; lay it over policy.yaml.\n"
        f"# {says(found)[:1].upper() + says(found)[1:]}.\n"
        f"# It holds for adapter {outcome.adapter} on traffic like that of the {found.test_pairs} pairs tested.\n"
    )
    return head + yaml.safe_dump({"routes": {outcome.route: route}}, sort_keys=False)


def patched(policy: Policy, text: str) -> Policy:
    """The policy with a patch laid over it, key by key.

    Raises:
        PolicyError: the result does not hold.
    """
    whole = _laid_over(yaml.safe_load(policy_file.dump(policy)), yaml.safe_load(text))
    return policy_file.loads(yaml.safe_dump(whole), "policy.yaml with the patch")


def _laid_over(below: Any, above: Any) -> Any:
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return {**below, **{key: _laid_over(below.get(key), value) for key, value in above.items()}}


def picture(outcome: Outcome, path: Path) -> Path:
    """Draw disagreement and token cost against the student's share; the file."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    found = outcome.calibration
    steps = [s for s in found.curve if s.disagreement is not None]
    figure, axes = plt.subplots(figsize=(6.8, 4.2), dpi=130, layout="constrained")
    axes.spines["top"].set_visible(False)
    axes.grid(alpha=0.25)
    shares = [100 * s.share for s in steps]
    rates = [s.disagreement for s in steps if s.disagreement is not None]
    axes.fill_between(
        shares, [100 * r.low for r in rates], [100 * r.high for r in rates],
        color=STUDENT, alpha=0.15, lw=0, label="95 % interval at each threshold",
    )  # fmt: skip
    axes.plot(shares, [100 * r.value for r in rates], color=STUDENT, lw=2, label="disagreement")
    axes.axhline(100 * found.limit, color=TEACHER, ls="--", lw=1.4, label="limit")
    if found.chosen is not None and found.chosen.disagreement is not None:
        x, y = 100 * found.chosen.share, 100 * found.chosen.disagreement.value
        axes.plot([x], [y], "o", color="black", zorder=5, label=f"suggested: {x:.0f} %")
    axes.set(
        xlabel="answered by the student, % of requests", ylabel="of these differ from the teacher, %",
        title=f"{outcome.route}: {outcome.adapter}, {found.test_pairs} pairs",
    )  # fmt: skip
    axes.set_ylim(0, max(300 * found.limit, *(110 * r.value for r in rates)) if rates else 1)
    costs = [outcome.usd_per_1000(s) for s in steps]
    if steps and all(c is not None for c in costs):
        right = axes.twinx()
        right.spines["top"].set_visible(False)
        right.plot(shares, [c or 0.0 for c in costs], color=OTHER, ls=":", lw=1.6)
        right.set_ylabel("tokens, USD a 1,000 requests (dotted)", color=OTHER)
        right.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(path)
    plt.close(figure)
    return path
