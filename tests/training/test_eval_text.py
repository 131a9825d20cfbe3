"""ROUGE of free text: the library's figures on English, and words of any script."""

import random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from training.eval_text import KINDS, rouge, text_figures


def test_on_english_the_figures_are_the_librarys() -> None:
    draws = random.Random(1)
    words = ["The", "invoices,", "refunded", "on", "3", "May;", "customers", "were", "waiting\nand", "running", "orders'", "numbers", "a", "b"]  # fmt: skip
    library = RougeScorer(list(KINDS), use_stemmer=True)
    for _ in range(60):
        one, other = (" ".join(draws.choices(words, k=draws.randint(1, 25))) for _ in range(2))
        expected = {k: v.fmeasure for k, v in library.score(other, one).items()}
        assert rouge(one, other) == pytest.approx(expected), (one, other)


@pytest.mark.parametrize(
    ("answer", "reference", "kind", "score"),
    [
        pytest.param("refunding orders", "refunded order", "rouge1", 1.0, id="stems are compared"),
        pytest.param("Grüße aus Köln", "grüße aus köln!", "rouge2", 1.0, id="umlauts are letters"),
        pytest.param("мир", "война", "rougeL", 0.0, id="other scripts differ too"),
        pytest.param("b c\na", "a\nb c", "rougeLsum", 1.0, id="lines may change places"),
        pytest.param("b c\na", "a\nb c", "rougeL", 2 / 3, id="not so for the whole text"),
        pytest.param("", "", "rougeL", 1.0, id="nothing is nothing"),
        pytest.param("", "a", "rouge1", 0.0, id="nothing is not something"),
    ],
)
def test_by_hand(answer: str, reference: str, kind: str, score: float) -> None:
    assert rouge(answer, reference)[kind] == pytest.approx(score)


def test_means_have_an_interval_and_lengths_are_beside_them() -> None:
    answers, references = ["a b c", "a b", "x"] * 10, ["a b c", "a b c d", "y y"] * 10
    scores = [rouge(a, r) for a, r in zip(answers, references, strict=True)]
    found = text_figures(answers, references, scores)
    assert found.rouge["rouge1"].value == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert found.rouge["rouge1"].low < found.rouge["rouge1"].value < found.rouge["rouge1"].high
    assert (found.words.value, found.reference_words.value) == (2.0, 3.0)
    assert found.rouge["rouge2"].rows == 30
