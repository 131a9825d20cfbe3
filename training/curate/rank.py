"""Rows ranked by quality, the worst left out: a judge's scores of a sample, a small regression that gives every row one.

The judge is people or a teacher (`graduate train label` with a prompt that asks for a grade), its scores come in a file. The
regression reads input and answer together; how well it predicts the judge on rows that it has not seen is in the
report, and a ranking that does not is refused: it would leave rows out at random.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline, make_union

from router.prompt import last_user_text
from training.build import key_of
from training.curate.config import Rank
from training.curate.ledger import Entry, Outcome
from training.dataset import Example
from training.errors import DataError
from training.side_files import entries

STAGE = "rank"
RULE = "low rank"
FOLDS = 5
LEAST_JUDGED = 30
"""Fewer judged rows say nothing about the rest."""
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)


def load(files: Sequence[Path]) -> dict[str, float]:
    """Scores by row id and by input key; JSON Lines with `id`, `text` or `messages`, and a number in `score`.

    Raises:
        DataError: file, line, field and what is allowed.
    """
    found: dict[str, float] = {}
    for path in files:
        for place, entry, keys in entries(path):
            # A labelled file has the grade as the teacher's text.
            score = _score(place, entry.get("score", entry.get("teacher")))
            found |= dict.fromkeys(keys, score)
    return found


def _score(place: str, said: Any) -> float:
    try:
        score = float(str(said))
    except ValueError as why:
        raise DataError(f"{place}: score = {said!r:.60}: allowed: a number") from why
    if not np.isfinite(score):
        raise DataError(f"{place}: score = {said!r}: allowed: a finite number")
    return score


def text_of(example: Example) -> str:
    """What the regression reads: input and answer."""
    return f"{last_user_text(example.messages)}\n→ {example.completion}"


def _model() -> Pipeline:
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    return make_pipeline(make_union(words, letters), Ridge(alpha=1.0))


def apply(config: Rank, examples: Sequence[Example], scores: dict[str, float]) -> Outcome:
    """Rows without the worst `drop_share`; a gold answer keeps its row. Judged rows keep the judge's own score.

    Raises:
        DataError: too few judged rows, all judged alike, or a regression that does not follow the judge.
    """
    given = [scores.get(f"id:{e.id}", scores.get(f"input:{key_of(e.messages)}")) for e in examples]
    judged = [i for i, score in enumerate(given) if score is not None]
    if len(judged) < LEAST_JUDGED:
        raise DataError(
            f"rank: {len(judged)} train rows have a judge's score; at least {LEAST_JUDGED} are needed"
        )
    known = np.array([given[i] for i in judged], dtype=float)
    if known.min() == known.max():
        raise DataError(f"rank: the judge gave {known[0]:g} to every row: nothing to rank by")
    texts = [text_of(e) for e in examples]
    groups = [examples[i].group or examples[i].id for i in judged]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        folds = GroupKFold(min(FOLDS, len(set(groups))))
        unseen = cross_val_predict(
            _model(), [texts[i] for i in judged], known, groups=groups, cv=folds
        )
        agreement = float(spearmanr(unseen, known).statistic) if np.ptp(unseen) else 0.0
        if not agreement >= config.min_agreement:
            raise DataError(
                f"rank: rank correlation with the judge on unseen rows {agreement:.2f}, min_agreement "
                f"{config.min_agreement:g}: the scores do not follow the texts; judge more rows, or leave this stage out"
            )
        predicted = _model().fit([texts[i] for i in judged], known).predict(texts)
    ranked = np.array([predicted[i] if s is None else s for i, s in enumerate(given)], dtype=float)
    free = [i for i, e in enumerate(examples) if e.gold is None]
    worst = sorted(free, key=lambda i: (ranked[i], examples[i].id))
    gone = set(worst[: int(config.drop_share * len(examples))])
    outcome = Outcome([e for i, e in enumerate(examples) if i not in gone])
    for i in sorted(gone):
        detail = "the judge's score" if given[i] is not None else "predicted score"
        outcome.entries.append(
            Entry("removed", STAGE, RULE, examples[i], round(float(ranked[i]), 4), detail)
        )
    outcome.report = {
        "judged": len(judged), "agreement": round(agreement, 4), "drop_share": config.drop_share,
        "curve": [
            {"share": share, "score": round(float(np.quantile(ranked, share)), 4)} for share in SHARES
        ],
    }  # fmt: skip
    return outcome
