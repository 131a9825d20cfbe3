"""What a student must beat: answerers that need no language model, fitted on the same labels.

Each is a `Predictor`. For a JSON answer there is one classifier a compared field; the answer is put together from
them, its confidence is the product of theirs.
"""

import json
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline, make_union
from sklearn.preprocessing import StandardScaler

from router.prompt import last_user_text
from training.dataset import Example
from training.encode import canonical
from training.errors import DataError
from training.predict import Prediction, Progress
from training.token_vectors import Embed


class Classifier(Protocol):
    """A fitted text classifier of one field."""

    def probabilities(self, texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """Class names, and [texts, classes] probabilities."""


Fit = Callable[[Sequence[str], Sequence[str]], Classifier]
"""Texts and their labels → the classifier."""
EMBEDDED = "token embeddings + logistic regression"


def text_of(example: Example) -> str:
    """The input that a classifier reads."""
    return last_user_text(example.messages)


def fields_of(answer: dict[str, Any]) -> tuple[str, ...]:
    """JSON fields that are classified apart; () when the completion itself is the class."""
    if answer.get("kind") != "json":
        return ()
    compared = tuple((answer.get("compare") or {}).get("fields") or ())
    return compared or tuple(((answer.get("schema") or {}).get("properties") or {}).keys())


def value_of(completion: str, name: str | None) -> str:
    """The class of a completion: the JSON text of one field, or the completion itself."""
    if name is None:
        return completion
    try:
        value = json.loads(completion)
    except ValueError:
        return "null"
    return json.dumps(value.get(name) if isinstance(value, dict) else None)


@dataclass(frozen=True, slots=True)
class Majority:
    """Always the most frequent class."""

    counts: Counter[str]

    @classmethod
    def fit(cls, texts: Sequence[str], labels: Sequence[str]) -> "Majority":
        """Count."""
        return cls(Counter(labels))

    def probabilities(self, texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """The class shares, the same for every text."""
        names = [name for name, _ in self.counts.most_common()]
        shares = np.array([self.counts[n] for n in names]) / self.counts.total()
        return names, np.tile(shares, (len(texts), 1))


@dataclass(frozen=True, slots=True)
class Keyword:
    """The class whose characteristic words occur most; words are ranked by smoothed log-odds against the other classes."""

    words: dict[str, dict[str, float]]
    prior: Counter[str]

    @classmethod
    def fit(cls, texts: Sequence[str], labels: Sequence[str], per_class: int = 12) -> "Keyword":
        """Pick each class's words."""
        prior = Counter(labels)
        within: dict[str, Counter[str]] = {label: Counter() for label in prior}
        for text, label in zip(texts, labels, strict=True):
            within[label].update(set(re.findall(r"\w+", text.lower())))
        overall = sum(within.values(), Counter())
        words = {}
        for label, counts in within.items():
            rest = len(labels) - prior[label]
            odds = {
                w: float(
                    np.log((n + 0.5) / (prior[label] + 1))
                    - np.log((overall[w] - n + 0.5) / (rest + 1))
                )
                for w, n in counts.items()
                if n >= 3
            }
            words[label] = dict(sorted(odds.items(), key=lambda o: -o[1])[:per_class])
        return cls(words, prior)

    def probabilities(self, texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """Softmax of the summed log-odds of the words found, over the class shares."""
        names = list(self.words)
        prior = np.log(np.array([self.prior[n] for n in names]) / self.prior.total())
        rows = []
        for text in texts:
            found = set(re.findall(r"\w+", text.lower()))
            score = prior + [sum(v for w, v in self.words[n].items() if w in found) for n in names]
            weight = np.exp(score - score.max())
            rows.append(weight / weight.sum())
        return names, np.array(rows)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A scikit-learn pipeline, or one class only."""

    pipeline: Any
    only: str | None = None

    def probabilities(self, texts: Sequence[str] | np.ndarray) -> tuple[list[str], np.ndarray]:
        """As scikit-learn gives them; of texts, or of what its pipeline was fitted on."""
        if self.only is not None:
            return [self.only], np.ones((len(texts), 1))
        return list(self.pipeline.classes_), self.pipeline.predict_proba(texts)


def _features() -> Any:
    return make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True),
    )


def fit_tfidf(texts: Sequence[str], labels: Sequence[str], seed: int = 0) -> Fitted:
    """TF-IDF of words and characters with logistic regression; C from 1, 4, 16 by cross-validated accuracy."""
    return _linear(_features(), list(texts), labels, seed)


def _linear(features: Any, inputs: Any, labels: Sequence[str], seed: int) -> Fitted:
    """Logistic regression over `features` of the inputs, its C by cross-validated accuracy."""
    counts = Counter(labels)
    if len(counts) == 1:
        return Fitted(None, labels[0])
    pipeline: Pipeline = make_pipeline(
        features, LogisticRegression(max_iter=400, class_weight="balanced", random_state=seed)
    )
    folds = min(5, *counts.values())
    with warnings.catch_warnings():
        # A fold that stops at max_iter is still a baseline; its score says how good it is.
        warnings.simplefilter("ignore", ConvergenceWarning)
        if folds < 2:
            return Fitted(pipeline.fit(inputs, list(labels)))
        search = GridSearchCV(
            pipeline,
            {"logisticregression__C": [1.0, 4.0, 16.0]},
            cv=StratifiedKFold(folds, shuffle=True, random_state=seed),
        )
        return Fitted(search.fit(inputs, list(labels)).best_estimator_)


@dataclass(frozen=True, slots=True)
class Embedded:
    """A classifier over vectors of the texts."""

    embed: Embed
    fitted: Fitted

    def probabilities(self, texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """As scikit-learn gives them."""
        return self.fitted.probabilities(self.embed(texts))


def fit_embedded(embed: Embed) -> Fit:
    """How logistic regression over these vectors is fitted; C as for TF-IDF."""

    def fit(texts: Sequence[str], labels: Sequence[str]) -> Embedded:
        return Embedded(embed, _linear(StandardScaler(), embed(texts), labels, seed=0))

    return fit


def fit_knn(texts: Sequence[str], labels: Sequence[str], neighbours: int = 11) -> Fitted:
    """Nearest neighbours by cosine over TF-IDF, weighted by distance."""
    if len(set(labels)) == 1:
        return Fitted(None, labels[0])
    model = KNeighborsClassifier(
        n_neighbors=min(neighbours, len(texts)), metric="cosine", weights="distance"
    )
    return Fitted(make_pipeline(_features(), model).fit(list(texts), list(labels)))


FITS: dict[str, Fit] = {
    "majority": Majority.fit,
    "keyword": Keyword.fit,
    "kNN": fit_knn,
    "TF-IDF + logistic regression": fit_tfidf,
}
"""Name in the tables → how it is fitted."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """One classifier a field, put together into the route's form of answer."""

    name: str
    answer: dict[str, Any]
    classifiers: dict[str | None, Classifier] = field(default_factory=dict)

    @classmethod
    def fit(
        cls, name: str, examples: Sequence[Example], answer: dict[str, Any], how: Fit | None = None
    ) -> "Baseline":
        """Fit on the examples' completions.

        Args:
            how: the fit of a baseline that is not in `FITS`.

        Raises:
            DataError: no examples, or an answer kind that has no classes.
        """
        if not examples:
            raise DataError(f"baseline {name}: no examples to fit on")
        if answer.get("kind") not in ("label", "json"):
            raise DataError(
                f"baseline {name}: answers of kind {answer.get('kind')!r} have no classes"
            )
        texts = [text_of(e) for e in examples]
        fitted: dict[str | None, Classifier] = {}
        for key in fields_of(answer) or (None,):
            fitted[key] = (how or FITS[name])(
                texts, [value_of(e.completion, key) for e in examples]
            )
        return cls(name, answer, fitted)

    def predict(
        self, examples: Sequence[Example], progress: Progress | None = None
    ) -> list[Prediction]:
        """The most probable value of each field."""
        began = time.perf_counter()
        texts = [text_of(e) for e in examples]
        best: dict[str | None, list[tuple[str, float]]] = {}
        for key, classifier in self.classifiers.items():
            names, rows = classifier.probabilities(texts)
            best[key] = [(names[int(row.argmax())], float(row.max())) for row in rows]
        each = (time.perf_counter() - began) / max(1, len(examples))
        found = []
        for i in range(len(examples)):
            confidence = float(np.prod([values[i][1] for values in best.values()]))
            if None in best:
                text = best[None][i][0]
            else:
                text = canonical(
                    json.dumps({key: json.loads(values[i][0]) for key, values in best.items()}),
                    self.answer,
                )
            found.append(Prediction(text, confidence, each))
        if progress:
            progress(len(examples))
        return found


@dataclass(frozen=True, slots=True)
class Recorded:
    """The teacher's recorded answers as a predictor; an example without one is an empty answer."""

    name: str = "teacher"

    def predict(
        self, examples: Sequence[Example], progress: Progress | None = None
    ) -> list[Prediction]:
        """What the teacher said at the time."""
        return [Prediction(e.teacher or "", 1.0) for e in examples]
