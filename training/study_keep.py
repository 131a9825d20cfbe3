"""An earlier result of the study beside a new one: arms that were not fitted again keep the figures that they had. Pure.

A kept arm must be what the new recipe would make of it: the two recipes may differ in `fit.max_rows_seen` alone, and only where the
arm's fits make as many passes under either.
"""

import json
from pathlib import Path
from typing import Any

from training.config import epochs_for
from training.errors import DataError
from training.study_data import ARMS, GAPS
from training.study_fit import Recipe

MAY_DIFFER = "max_rows_seen"
_SAME = ("study", "schema", "rule", "planned_hand_over")


def read(file: Path) -> dict[str, Any]:
    """An earlier result.

    Raises:
        DataError: it cannot be read, or is no result of this study.
    """
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError) as why:
        raise DataError(f"--keep {file}: cannot be read: {why}") from why
    if not isinstance(found, dict) or found.get("study") != "jigsaw" or "summaries" not in found:
        raise DataError(f"--keep {file}: no result of the study jigsaw")
    return found


def merged(found: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """The new result with the earlier one's other arms; goals and conclusions are for the caller to draw again.

    Args:
        found: the new result, as JSON values.
        earlier: the earlier one.

    Raises:
        DataError: the two are not of one kind, with the key, or a kept arm's fits would be others now.
    """
    for key in _SAME:
        if found[key] != earlier.get(key):
            raise DataError(
                f"--keep: {key} was {earlier.get(key)!r}; allowed: {found[key]!r}, as in the new result"
            )
    fresh = {run["arm"] for run in found["runs"]}
    kept = [run for run in earlier["runs"] if run["arm"] not in fresh]
    _refuse_other_fits(Recipe.model_validate(found["recipe"]), earlier["recipe"], kept)
    arms = {run["arm"] for run in kept}
    gaps = {
        name: earlier["gaps"][name]
        for name, two in GAPS.items()
        if name in earlier["gaps"] and arms.issuperset(two)
    }
    together = {
        key: _in_order([*found[key], *(one for one in earlier[key] if one["arm"] in arms)])
        for key in ("runs", "rivals", "summaries")
    }
    readings = {
        test: found["test_readings"].get(test, 0) + earlier["test_readings"].get(test, 0)
        for test in {**found["test_readings"], **earlier["test_readings"]}
    }
    return {
        **found, **together, "gaps": {**gaps, **found["gaps"]}, "test_readings": readings,
        "kept": {"arms": [arm for arm in ARMS if arm in arms], "recipe_digest": earlier["recipe_digest"]},
    }  # fmt: skip


def _in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    places = list(ARMS)
    return sorted(rows, key=lambda row: places.index(row["arm"]))


def _refuse_other_fits(recipe: Recipe, earlier: dict[str, Any], kept: list[dict[str, Any]]) -> None:
    own = recipe.model_dump(mode="json")
    was = Recipe.model_validate(earlier).model_dump(mode="json")
    for part in (own, was):
        part["fit"].pop(MAY_DIFFER, None)
    if own != was:
        raise DataError(
            f"--keep: the recipes differ in more than fit.{MAY_DIFFER}; an arm is kept under one recipe only"
        )
    for run in kept:
        passes = epochs_for(recipe.fit, run["fit"]["rows"])
        if passes != run["fit"]["epochs"]:
            raise DataError(
                f"--keep: arm {run['arm']}, seed {run['seed']} made {run['fit']['epochs']} passes, the new recipe makes {passes}: "
                "fit it again"
            )
