"""Whether curation helped, before any GPU hour: a TF-IDF classifier trained on the rows before and after, read on validation.

It stands in for the student and is only a hint: it learns words, not meanings. Test sets are not read. Right means right
by gold where a validation row has it, by the teacher elsewhere; for JSON answers all compared fields at once.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from training.baselines import fields_of, text_of, value_of
from training.curate import balance
from training.curate.config import Balance
from training.dataset import Example
from training.encode import canonical
from training.errors import DataError
from training.statistics import paired

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
Tell = Callable[[int, int], None]


class Stand:
    """The stand-in's rows right on validation, for one set of train rows after another."""

    def __init__(self, validation: Sequence[Example], answer: dict[str, Any]) -> None:
        """Keep the validation rows.

        Raises:
            DataError: none, or answers without classes.
        """
        if answer.get("kind") not in ("label", "json"):
            raise DataError(f"effect: answers of kind {answer.get('kind')!r} have no classes")
        if not validation:
            raise DataError("effect: the dataset has no validation rows to read it on")
        self._texts = [text_of(e) for e in validation]
        self._fields = fields_of(answer) or (None,)
        self._right = [
            e.completion if e.gold is None else canonical(e.gold, answer) for e in validation
        ]
        self.classes = [value_of(text, self._fields[0]) for text in self._right]

    def right(self, train: Sequence[Example]) -> np.ndarray:
        """[validation rows] of whether all fields are right, after training on `train` with its weights."""
        texts = [text_of(e) for e in train]
        weights = np.array([e.weight for e in train])
        right = np.ones(len(self._texts), dtype=bool)
        for name in self._fields:
            labels = np.array([value_of(e.completion, name) for e in train])
            wanted = np.array([value_of(text, name) for text in self._right])
            if len(set(labels.tolist())) == 1:
                right &= wanted == labels[0]
                continue
            # No class weights: the mix of the rows is what is being judged.
            model = make_pipeline(
                TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
                LogisticRegression(C=16.0, max_iter=400),
            )
            model.fit(texts, labels, logisticregression__sample_weight=weights)
            right &= model.predict(self._texts) == wanted
        return right

    def rates(self, right: np.ndarray) -> tuple[float, float]:
        """Accuracy, and its mean over the classes of the first field."""
        by_class: dict[str, list[bool]] = defaultdict(list)
        for name, is_right in zip(self.classes, right.tolist(), strict=True):
            by_class[name].append(is_right)
        return float(right.mean()), float(np.mean([np.mean(v) for v in by_class.values()]))


def measure(
    before: Sequence[Example], after: Sequence[Example], unbalanced: Sequence[Example] | None,
    validation: Sequence[Example], answer: dict[str, Any], mix: Balance | None, seed: int, tell: Tell | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Before against after, paired, and the sweep of the balance's strength where there is one."""
    stand = Stand(validation, answer)
    sweep = STRENGTHS if mix is not None and unbalanced is not None else ()
    total = 2 + len(sweep)
    done = 0

    def right(train: Sequence[Example]) -> np.ndarray:
        nonlocal done
        found = stand.right(train)
        done += 1
        if tell:
            tell(done, total)
        return found

    first, second = right(before), right(after)
    compared = paired(second.tolist(), first.tolist(), seed=seed)
    rates = {"before": stand.rates(first), "after": stand.rates(second)}
    rows = []
    for strength in sweep:
        assert mix is not None, "a sweep has a balance"
        assert unbalanced is not None, "and the rows before it"
        changed = mix.model_copy(update={"strength": strength})
        kept = balance.apply(changed, unbalanced, answer, seed).kept
        accuracy, balanced = stand.rates(right(kept))
        rows.append(
            {
                "strength": strength,
                "rows": len(kept),
                "accuracy": accuracy,
                "balanced_accuracy": balanced,
            }
        )
    return {
        "validation_rows": len(validation),
        **{f"{name}_accuracy": a for name, (a, _) in rates.items()},
        **{f"{name}_balanced_accuracy": b for name, (_, b) in rates.items()},
        "difference": compared.difference, "interval": [compared.low, compared.high], "p_value": compared.p_value,
        "sweep": rows,
    }  # fmt: skip
