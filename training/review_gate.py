"""What people's reviews say before a student is published: doubts still open, and how it does on rows that people have judged.

Reads the monitor's review store; changes nothing in it. Reviewed rows that the student was trained on say nothing and are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from monitoring import store as monitor_store
from monitoring.review import ReviewQueue
from router.answer_spec import AnswerSpec
from training.dataset import Dataset, Example
from training.errors import DataError
from training.gates import Gate, outcome
from training.metrics import figures
from training.predict import Predictor

MOST_ASKED = 200
"""Reviewed rows that the student is asked at most; it answers some six a second on a CPU."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What is asked of the reviews."""

    max_open: int = 200
    """Flags of the route that may still be open."""
    min_reviewed: int = 0
    """Records of the route that a person must have judged."""
    min_agreement: float = 0.5
    """Share of reviewed held-out rows on which the student must be right. Flagged rows are the hard ones: half is not little."""
    min_rows: int = 20
    """Reviewed held-out rows below which no share is read."""


@dataclass(frozen=True, slots=True)
class Reviews:
    """What the store holds of a route."""

    open_flags: int
    labels: dict[str, str | None]
    """Record id to the right answer; None was discarded."""


def read(url: str, route: str) -> Reviews | None:
    """The route's reviews; None where no monitor has run yet.

    Raises:
        DataError: the store cannot be read.
    """
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        return None
    try:
        queue = ReviewQueue(monitor_store.open_store(url))
    except monitor_store.StoreError as why:  # type: ignore[attr-defined]
        raise DataError(f"--database: {why}") from why
    waiting = queue.count(route, "open") + queue.count(route, "claimed")
    return Reviews(waiting, {one.record_id: one.answer for one in queue.labels(route=route)})


def judged(dataset: Dataset, reviews: Reviews) -> list[tuple[Example, str]]:
    """Held-out rows with the answer that a person gave them, in stored order."""
    held = [*dataset.of("test"), *dataset.of("validation")]
    found = []
    for example in held:
        label = reviews.labels.get(example.id)
        if label is not None:
            found.append((example, label))
    return found[:MOST_ASKED]


def gates(
    reviews: Reviews | None, dataset: Dataset, student: Predictor, limits: Limits
) -> list[Gate]:
    """Three lines: flags open, records reviewed, right on reviewed rows."""
    wanted = (
        f"at most {limits.max_open}",
        f"at least {limits.min_reviewed}",
        f"at least {100 * limits.min_agreement:.0f} %",
    )
    names = ("open flags", "reviewed records", "right on reviewed rows")
    if reviews is None:
        none = "no review store: the monitor has not run here"
        states = ["not measured", outcome(limits.min_reviewed == 0), "not measured"]
        return [
            Gate(name, "failed" if state == "failed" else "not measured", none, limit, "verdict")
            for name, state, limit in zip(names, states, wanted, strict=True)
        ]
    people = len(reviews.labels)
    return [
        Gate(names[0], outcome(reviews.open_flags <= limits.max_open), str(reviews.open_flags), wanted[0], "verdict"),
        Gate(names[1], outcome(people >= limits.min_reviewed), str(people), wanted[1], "verdict"),
        _agreement(judged(dataset, reviews), dataset, student, limits, wanted[2]),
    ]  # fmt: skip


def _agreement(
    rows: Sequence[tuple[Example, str]],
    dataset: Dataset,
    student: Predictor,
    limits: Limits,
    wanted: str,
) -> Gate:
    name = "right on reviewed rows"
    if len(rows) < max(1, limits.min_rows):
        figure = f"{len(rows)} reviewed rows are held out, {limits.min_rows} are needed"
        return Gate(name, "not measured", figure, wanted, "verdict")
    spec = AnswerSpec.model_validate(dataset.info.answer)
    answers = [p.text for p in student.predict([example for example, _ in rows])]
    right = figures(spec, answers, [label for _, label in rows]).accuracy
    figure = f"{100 * right.share:.1f} % [{100 * right.low:.1f}, {100 * right.high:.1f}] of {len(rows)} held-out rows"
    return Gate(name, outcome(right.share >= limits.min_agreement), figure, wanted, "verdict")
