"""One calibration from records to thresholds: pairs, a difficulty model on the search part, the walk on the test part."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from monitoring import difficulty_model
from monitoring.calibrate import Bools, Calibration, Floats, Step, path
from monitoring.calibrate import calibrate as walk
from monitoring.calibration_pairs import Example, Found, arrays, gather, in_search
from router.difficulty import DifficultyModel
from router.policy_file import LoadedPolicy
from router.records import Record

Use = Literal["both", "confidence", "difficulty"]
Tell = Callable[[str, float, float], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run found; nothing is written yet."""

    route: str
    adapter: str
    version: int | None
    calibration: Calibration
    model: DifficultyModel | None
    """The difficulty model, when the suggestion uses one."""
    auc: float | None
    """Out of fold, of the model that was trained, used or not."""
    student_usd: float
    teacher_usd: float
    """Mean token cost of a call, over the pairs."""
    has_prices: tuple[bool, bool]
    """Whether the student's and the teacher's backend have a token price."""
    notes: tuple[str, ...]
    rules: LoadedPolicy

    def usd_per_1000(self, step: Step) -> float | None:
        """Token cost of 1,000 requests at one step; None without the teacher's price.

        A cascade asks both where the student is not sure; a node that is paid by the hour is not in here.
        """
        if not self.has_prices[1]:
            return None
        return 1000 * (
            self.teacher_usd * (1 - step.share) + self.student_usd * step.asked_share
        )  # a difficulty cut spares the student's call, a floor does not


def run(
    records: Iterable[Record],
    rules: LoadedPolicy,
    route: str,
    *,
    limit: float,
    confidence: float,
    use: Use = "both",
    adapter: str | None = None,
    seed: int = 0,
    tell: Tell = lambda phase, done, total: None,
) -> Outcome:
    """Calibrate one route on its logged pairs.

    Raises:
        ValueError: there are no pairs, of this adapter version or at all.
    """
    found = gather(records, rules, route, adapter)
    examples = found.examples
    if not examples:
        others = ", ".join(f"{a} ({n})" for a, n in found.other_versions.most_common(5))
        left = "; ".join(f"{n} left out: {why}" for why, n in found.left_out.most_common(3))
        about = f" of adapter {adapter}" if adapter else ""
        raise ValueError(
            f"route {route!r} has no pairs{about} to calibrate on; pairs come from dark_launch.share and canary.audit"
            + (f"; other versions with pairs: {others}" if others else "")
            + (f"; {left}" if left else "")
        )
    found_thresholds = thresholds(
        examples, limit=limit, confidence=confidence, use=use, seed=seed, tell=tell,
        adapter=found.adapter or "student",
    )  # fmt: skip
    _, _, version = (found.adapter or "").rpartition("/")
    student_usd, teacher_usd = _mean_costs(examples)
    return Outcome(
        route, found.adapter or "", int(version) if version.isdigit() else None,
        found_thresholds.calibration, found_thresholds.model, found_thresholds.auc, student_usd, teacher_usd,
        _has_prices(rules, route), (*_notes(found, rules, route), *found_thresholds.notes), rules,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The statistics of a run: `model` is the difficulty model that the suggestion uses, None when it uses none."""

    calibration: Calibration
    model: DifficultyModel | None
    auc: float | None
    notes: tuple[str, ...]


def thresholds(
    examples: Sequence[Example],
    *,
    limit: float,
    confidence: float,
    use: Use = "both",
    seed: int = 0,
    adapter: str = "student",
    tell: Tell = lambda phase, done, total: None,
) -> Thresholds:
    """Split the examples, draw the path on one part and walk it on the other."""
    searching = in_search(examples, seed)
    pairs = arrays(examples)
    if use == "difficulty":
        pairs = replace(pairs, confidence=np.full(len(pairs), np.nan))
    search, test = pairs.part(searching), pairs.part(~searching)
    trained, model, notes = None, None, []
    if use != "confidence":
        trained, why_not = _train(examples, searching, tell)
        notes += [why_not] if why_not else []
    if trained is not None and trained.auc >= difficulty_model.LEAST_AUC:
        model = difficulty_model.named(trained.model, adapter)
        search = replace(search, difficulty=trained.scores)
        test = replace(test, difficulty=_scores(model, examples, ~searching))
    points = path(search, limit, 1 - confidence)
    result = walk(search, points, test, limit=limit, confidence=confidence)
    if trained is not None and all(p.max_difficulty is None for p in points):
        notes.append(
            f"no difficulty cut: the words tell too little of who will differ (AUC {trained.auc:.2f})"
            if model is None
            else "no difficulty cut: the student's confidence alone lets it answer more"
        )
    uses_model = result.chosen is not None and result.chosen.point.max_difficulty is not None
    return Thresholds(
        result, model if uses_model else None, trained.auc if trained else None, tuple(notes)
    )


def _train(
    examples: Sequence[Example], searching: Bools, tell: Tell
) -> tuple[difficulty_model.Trained | None, str | None]:
    """The model of the search part, or why there is none."""
    chosen = [e for e, is_in in zip(examples, searching, strict=True) if is_in]
    if any(e.text is None for e in examples):
        return None, "no difficulty model: the route does not log text"
    trained = difficulty_model.train(
        [e.text or "" for e in chosen],
        [e.wrong for e in chosen],
        [1 / e.probability for e in chosen],
        lambda done, total: tell("training the difficulty model", done, total),
    )
    if trained is not None:
        return trained, None
    wrong = sum(e.wrong for e in chosen)
    return None, (
        f"no difficulty model: {wrong} of {len(chosen)} pairs disagree, and it takes "
        f"{difficulty_model.LEAST_OF_EACH} of each kind"
    )


def _scores(model: DifficultyModel, examples: Sequence[Example], where: Bools) -> Floats:
    """The router's own scores."""
    chosen = (e for e, is_in in zip(examples, where, strict=True) if is_in)
    return np.asarray([model.score(e.text or "") for e in chosen], dtype=float)


def _mean_costs(examples: Sequence[Example]) -> tuple[float, float]:
    weight = [1 / e.probability for e in examples]
    student = np.average([e.student_usd for e in examples], weights=weight)
    teacher = np.average([e.teacher_usd for e in examples], weights=weight)
    return float(student), float(teacher)


def _has_prices(rules: LoadedPolicy, route: str) -> tuple[bool, bool]:
    spec = rules.policy.routes[route]
    names = (spec.student.backend if spec.student else spec.teacher.backend, spec.teacher.backend)
    prices = [rules.policy.backends[name].price for name in names]
    return prices[0].input + prices[0].output > 0, prices[1].input + prices[1].output > 0


def _notes(found: Found, rules: LoadedPolicy, route: str) -> list[str]:
    notes = [f"{n} pairs left out: {why}" for why, n in found.left_out.most_common()]
    if found.other_versions:
        others = ", ".join(f"{a} ({n})" for a, n in found.other_versions.most_common(5))
        notes.append(f"pairs of other adapter versions do not count: {others}")
    spec = rules.policy.routes[route]
    if spec.log.redact:
        notes.append("texts are redacted in the log and not in the router: difficulty may differ")
    if not _has_prices(rules, route)[1]:
        notes.append(f"no cost: backend {spec.teacher.backend} has no token price")
    student = spec.student
    if student is not None and rules.policy.backends[student.backend].price.per_hour:
        notes.append(f"cost is without the hours of backend {student.backend}")
    return notes
