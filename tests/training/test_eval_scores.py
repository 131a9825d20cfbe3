"""Areas under the ROC against scikit-learn, and when there is none."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from router.answer_spec import AnswerSpec
from training.eval_scores import roc, scores
from training.predict import Prediction

SPEC = AnswerSpec(kind="label", labels=("yes", "no", "maybe"))


def test_the_area_and_the_curve_are_scikit_learns() -> None:
    draw = np.random.default_rng(0)
    wanted = ["yes" if draw.random() < 0.3 else "no" for _ in range(200)]
    said = [w if draw.random() < 0.8 else {"yes": "no", "no": "yes"}[w] for w in wanted]
    sure = draw.uniform(0.5, 1, 200).round(2)
    answers = [Prediction(text, float(c)) for text, c in zip(said, sure, strict=True)]
    right = [a == w for a, w in zip(said, wanted, strict=True)]
    found = scores(SPEC, answers, wanted, right)
    points = [p.confidence if p.text == "yes" else 1 - p.confidence for p in answers]
    is_yes = [w == "yes" for w in wanted]
    assert found.class_name == "yes"
    assert found.of_class is not None
    assert found.of_confidence is not None
    assert found.of_class.value == pytest.approx(roc_auc_score(is_yes, points))
    assert found.of_confidence.value == pytest.approx(roc_auc_score(right, sure))
    assert found.of_class.low < found.of_class.value < found.of_class.high
    false, true, _ = roc_curve(is_yes, points, drop_intermediate=False)
    assert np.allclose(roc(points, is_yes), list(zip(false, true, strict=True)))


def test_what_says_neither_class_says_nothing() -> None:
    answers = [Prediction(t, 0.9) for t in ("yes", "no", "what", "no")]
    found = scores(SPEC, [*answers[:3], Prediction("no", 0.6)], ["yes", "no", "no", "no"], [True, True, False, True])  # fmt: skip
    assert (0.0, 1.0) in found.curve
    assert found.of_class is not None
    assert found.of_class.value == 1.0


@pytest.mark.parametrize(
    ("references", "confidence"),
    [
        pytest.param(["yes", "no", "maybe"], [0.5, 0.6, 0.7], id="three classes"),
        pytest.param(["yes", "yes", "yes"], [0.5, 0.6, 0.7], id="one class"),
        pytest.param(["yes", "no", "no"], [1.0, 1.0, 1.0], id="equally sure of all"),
    ],
)
def test_no_curve_where_scores_cannot_give_one(
    references: list[str], confidence: list[float]
) -> None:
    answers = [Prediction(r, c) for r, c in zip(references, confidence, strict=True)]
    found = scores(SPEC, answers, references, [True] * 3)
    assert (found.of_class, found.curve, found.of_confidence) == (None, (), None)
