"""Labels that a classifier trained on the other rows does not believe: confident learning by cleanlab (Northcutt et al. 2021).

Out-of-sample probabilities come from TF-IDF with logistic regression in cross-validation, near duplicates in one fold, one
classifier a field of a JSON answer. A suspect is a row worth a look, not an error: hard rows are suspects too.
"""

import json
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline, make_union

from training.baselines import fields_of, text_of, value_of
from training.curate.config import Suspects
from training.curate.ledger import Entry, Outcome
from training.dataset import Example
from training.errors import DataError

STAGE = "suspects"
RULE = "label suspect"
FEWEST_OF_CLASS = 5
"""A class needs so many rows to be judged; rows of rarer ones are never suspects."""
Tell = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Suspect:
    """One row's least believed field."""

    row: int
    field: str
    given: str
    likely: str
    probability: float
    """Of the given label, out of sample. 0-1."""


def probabilities(
    texts: Sequence[str],
    labels: np.ndarray,
    groups: Sequence[str],
    folds: int,
    tell: Tell | None = None,
) -> np.ndarray:
    """[rows, classes] out-of-sample probabilities; `labels` are class numbers from 0, each with at least two groups."""
    num_classes = int(labels.max()) + 1
    found = np.full((len(texts), num_classes), 1 / num_classes)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        # Few rows of a class: some fold has none of them, and then they are judged by the others' model.
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        for done, (train, test) in enumerate(splitter.split(texts, labels, groups), 1):
            model = make_pipeline(
                make_union(
                    TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
                    TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True),
                ),
                LogisticRegression(C=4.0, max_iter=400),
            )
            model.fit([texts[i] for i in train], labels[train])
            columns = model[-1].classes_
            rows = np.zeros((len(test), num_classes))
            rows[:, columns] = model.predict_proba([texts[i] for i in test])
            found[test] = rows
            if tell:
                tell(done, folds)
    return found


def find(
    examples: Sequence[Example], answer: dict[str, Any], folds: int, tell: Tell | None = None
) -> list[Suspect]:
    """Suspects of all fields, the least believed first, one entry a row.

    Raises:
        DataError: the kind of answer has no classes.
    """
    if answer.get("kind") not in ("label", "json"):
        raise DataError(
            f"suspects: answers of kind {answer.get('kind')!r} have no classes to judge"
        )
    worst: dict[int, Suspect] = {}
    fields = fields_of(answer) or (None,)
    for number, name in enumerate(fields):

        def count(done: int, total: int, before: int = number) -> None:
            if tell:
                tell(before * total + done, total * len(fields))

        for suspect in _field(examples, name, folds, count):
            known = worst.get(suspect.row)
            if known is None or suspect.probability < known.probability:
                worst[suspect.row] = suspect
    return sorted(worst.values(), key=lambda s: (s.probability, s.row))


def _field(examples: Sequence[Example], name: str | None, folds: int, tell: Tell) -> list[Suspect]:
    from cleanlab.filter import find_label_issues

    values = [value_of(e.completion, name) for e in examples]
    common = {v for v, n in Counter(values).items() if n >= FEWEST_OF_CLASS}
    rows = [i for i, v in enumerate(values) if v in common]
    groups = [examples[i].group or examples[i].id for i in rows]
    folds = min(folds, len(set(groups)))
    if len(common) < 2 or folds < 2:
        return []
    names = sorted(common)
    labels = np.array([names.index(values[i]) for i in rows])
    found = probabilities([text_of(examples[i]) for i in rows], labels, groups, folds, tell)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cleanlab warns of classes without issues
        order = find_label_issues(
            labels, found, return_indices_ranked_by="self_confidence", n_jobs=1
        )
    return [
        Suspect(
            rows[i], name or "", _plain(names[labels[i]], name), _plain(names[int(found[i].argmax())], name),
            round(float(found[i, labels[i]]), 4),
        )
        for i in order.tolist()
    ]  # fmt: skip


def _plain(value: str, name: str | None) -> str:
    return value if name is None else str(json.loads(value))


def apply(
    config: Suspects, examples: Sequence[Example], answer: dict[str, Any], tell: Tell | None = None
) -> Outcome:
    """Suspects flagged, left out or weighed; a row with a gold answer is only ever flagged, a person has seen it."""
    found = find(examples, answer, config.folds, tell)[: int(config.max_share * len(examples))]
    by_row = {s.row: s for s in found}
    outcome = Outcome([])
    for i, example in enumerate(examples):
        suspect = by_row.get(i)
        if suspect is None or config.action == "flag" or example.gold is not None:
            outcome.kept.append(example)
            continue
        detail = f"{suspect.field or 'label'}: {suspect.given} given, {suspect.likely} likelier"
        if config.action == "drop":
            outcome.entries.append(
                Entry("removed", STAGE, RULE, example, suspect.probability, detail)
            )
            continue
        weight = example.weight * max(suspect.probability, 0.01)
        changed = msgspec.structs.replace(example, weight=weight)
        outcome.entries.append(
            Entry("changed", STAGE, RULE, example, suspect.probability, detail, changed)
        )
        outcome.kept.append(changed)
    outcome.report = {
        "action": config.action, "suspects": len(found),
        "found": [
            {
                "id": examples[s.row].id, "field": s.field, "given": s.given, "likely": s.likely,
                "probability": s.probability, "has_gold": examples[s.row].gold is not None,
            }
            for s in found
        ],
    }  # fmt: skip
    return outcome
