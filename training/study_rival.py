"""What each arm's student must beat: TF-IDF with logistic regression on the same labels. Scores are log-odds."""

import json
import warnings
from collections.abc import Mapping, Sequence

from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline, make_union

from training.study_data import LABELS, Comment
from training.study_fit import Fit


def run(fit: Fit, rows: Sequence[Comment], sets: Mapping[str, Sequence[Comment]]) -> None:
    """Fit on all rows of the arm; leave scores of `sets`, and out-of-fold scores of the arm's own rows.

    Words 1-2 and characters 3-5 in words, classes balanced, C from 1, 4, 16 by cross-validated AUC.
    """
    texts, labels = [r.text for r in rows], [int(r.label == LABELS[1]) for r in rows]
    features = make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, min_df=2),
    )
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        # Features once for the search over C: refitting them in each fold would only cost time.
        matrix = features.fit_transform(texts)
        search = GridSearchCV(
            LogisticRegression(max_iter=400, class_weight="balanced"),
            {"C": [1.0, 4.0, 16.0]},
            scoring="roc_auc",
            cv=folds,
        ).fit(matrix, labels)
        whole = make_pipeline(
            make_union(*(t for _, t in features.transformer_list)),
            LogisticRegression(max_iter=400, class_weight="balanced", C=search.best_params_["C"]),
        )
        held = cross_val_predict(whole, texts, labels, cv=folds, method="decision_function")
    fit.fitted.write_text(
        json.dumps({"arm": fit.arm, "rows": len(rows), "C": search.best_params_["C"]})
    )
    _write(fit, "validation", rows, held)
    for name, wanted in sets.items():
        found = search.best_estimator_.decision_function(
            features.transform([r.text for r in wanted])
        )
        _write(fit, name, wanted, found)


def _write(fit: Fit, name: str, rows: Sequence[Comment], scores: Sequence[float]) -> None:
    found = {r.id: float(s) for r, s in zip(rows, scores, strict=True)}
    fit.score_file(name).write_text(json.dumps(found))
