"""Trains the scored difficulty of a request: will the student differ from the teacher? The router scores it without us.

The features and the stored form are `router.difficulty`'s; here only the weights are found, by scikit-learn's logistic
regression. Scores for the rows it was trained on come from folds that did not see them.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import StratifiedKFold

from router.difficulty import FEATURES, DifficultyModel, features

BUCKETS = 1 << 13
LEAST_OF_EACH = 20
"""Fewer disagreements, or fewer agreements, train nothing."""
LEAST_AUC = 0.6
"""A model that orders the rows less well than this is not worth a call in the router."""
FOLDS = 5
STRENGTHS = (0.3, 3.0, 30.0)
"""Inverse L2 penalties that are tried; the one with the least out-of-fold log loss is kept."""
_DIGITS = 5

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Trained:
    """A model with its out-of-fold scores on what it was trained on, and how well those order the rows."""

    model: DifficultyModel
    scores: Floats
    auc: float
    """Chance that a disagreement scores above an agreement, out of fold; 0.5 knows nothing."""
    rows: int


def train(
    texts: Sequence[str],
    wrong: Sequence[bool],
    weights: Sequence[float],
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Trained | None:
    """A difficulty model; None with too few disagreements or agreements to learn from.

    Args:
        tell: told how many of how many fits are done.
    """
    y = np.asarray(wrong, dtype=int)
    if min(int(y.sum()), int((1 - y).sum())) < LEAST_OF_EACH:
        return None
    x = _matrix(texts)
    w = np.asarray(weights, dtype=float)
    w = w / w.mean()
    total, done = len(STRENGTHS) * FOLDS + 1, 0
    best: tuple[float, float, Floats] | None = None
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(x, y))
    for strength in STRENGTHS:
        scores = np.zeros(len(y))
        for seen, held in folds:
            scores[held] = _fit(x[seen], y[seen], w[seen], strength).predict_proba(x[held])[:, 1]
            done += 1
            tell(done, total)
        loss = float(log_loss(y, scores, sample_weight=w, labels=[0, 1]))
        if best is None or loss < best[0]:
            best = loss, strength, scores
    assert best is not None
    fitted = _fit(x, y, w, best[1])
    tell(total, total)
    weights_by_slot = {
        int(slot): round(float(weight), _DIGITS)
        for slot, weight in enumerate(fitted.coef_[0])
        if abs(weight) >= 10**-_DIGITS
    }
    model = DifficultyModel(
        "", round(float(fitted.intercept_[0]), _DIGITS), weights_by_slot, BUCKETS
    )
    return Trained(model, best[2], float(roc_auc_score(y, best[2], sample_weight=w)), len(y))


def _fit(x: Any, y: Any, w: Floats, strength: float) -> Any:
    return LogisticRegression(C=strength, max_iter=500).fit(x, y, sample_weight=w)


def _matrix(texts: Sequence[str]) -> Any:
    """`[rows, BUCKETS]`, sparse, of the features that the router will compute."""
    slots: list[int] = []
    values: list[float] = []
    ends = [0]
    for text in texts:
        found = features(text, BUCKETS)
        slots += found.keys()
        values += found.values()
        ends.append(len(slots))
    return sparse.csr_matrix((values, slots, ends), shape=(len(texts), BUCKETS))


def named(model: DifficultyModel, adapter: str) -> DifficultyModel:
    """The model under a name made of the adapter's and its own content.

    A name never stands for two models: one that a policy uses must not change under the router, and a record's decision
    can be computed again only by the model that made it.
    """
    body = json.dumps([model.bias, model.buckets, sorted(model.weights.items())])
    digest = hashlib.sha256(body.encode()).hexdigest()[:8]
    return replace(model, name=f"{adapter.replace('/', '-')}-difficulty-{digest}")


def save(model: DifficultyModel, folder: Path) -> Path:
    """Write the model where the router looks for it, in one rename; its file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{model.name}.json"
    data = {
        "features": FEATURES, "name": model.name, "bias": model.bias, "buckets": model.buckets,
        "weights": {str(slot): weight for slot, weight in sorted(model.weights.items())},
    }  # fmt: skip
    with tempfile.NamedTemporaryFile(
        "w", dir=folder, prefix=".difficulty-", delete=False, encoding="utf-8"
    ) as out:
        json.dump(data, out)
        out.flush()
        os.fsync(out.fileno())
    Path(out.name).chmod(0o644)
    Path(out.name).replace(path)
    return path
