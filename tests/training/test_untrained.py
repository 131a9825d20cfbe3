"""Baselines out of the base model without training: rows shown before the question, and its embeddings under a linear classifier."""

import json

import pytest

from router.prompt import render
from serving.base_model import BaseModel
from training import few_shot, token_vectors
from training.baselines import EMBEDDED, Baseline, fit_embedded, text_of
from training.dataset import Dataset


def test_shots_are_short_rows_with_different_answers(dataset: Dataset) -> None:
    train = list(dataset.of("train"))
    chosen = few_shot.shots(train, 3)
    assert len(chosen) == 3
    assert len({e.completion for e in chosen[:2]}) == 2
    lengths = sorted(len(text_of(e)) for e in train)
    assert len(text_of(chosen[0])) == lengths[0]
    assert few_shot.shots(train[::-1], 3) == chosen


@pytest.mark.parametrize("count", [0, 2])
def test_the_question_comes_after_the_shots(dataset: Dataset, count: int) -> None:
    info, train = dataset.info, list(dataset.of("train"))
    template = few_shot.template(info.prompt, 20, train, count)
    asked = dataset.of("test")[0]
    text, _ = render(template, asked.messages, 20)
    plain, _ = render(info.prompt, asked.messages, 20)
    assert text.endswith(plain)
    assert text.count("Answer:") == count + 1
    for example in few_shot.shots(train, count):
        assert f"Answer:{example.completion}\n\n" in text
        assert json.loads(example.completion)


def test_embeddings_tell_the_classes_apart(dataset: Dataset, base: BaseModel) -> None:
    learned = [*dataset.of("train"), *dataset.of("validation")]
    table = base.model.get_input_embeddings().weight
    embed = token_vectors.embedder(table, base.tokenizer, [text_of(e) for e in learned])
    assert embed(["", "apple"]).shape == (2, table.shape[1])
    made = Baseline.fit(EMBEDDED, learned, dataset.info.answer, fit_embedded(embed))
    found = made.predict(learned)
    assert sum(p.text == e.completion for p, e in zip(found, learned, strict=True)) > 0.8 * len(
        learned
    )
