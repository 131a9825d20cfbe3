"""Curation by meaning: paraphrases apart from look-alikes, and a ranking by a judge's sample."""

import json
from pathlib import Path

import numpy as np
import pytest

from training.curate import rank, semantic
from training.curate.config import Rank, Semantic
from training.dataset import Example
from training.errors import DataError


class Fixed:
    """An encoder whose vectors are given by text."""

    id = "fixed"

    def __init__(self, by_text: dict[str, tuple[float, float]]) -> None:
        self.by_text = by_text

    def vectors(self, texts: list[str]) -> np.ndarray:
        found = np.array([self.by_text[text] for text in texts], dtype=float)
        return found / np.linalg.norm(found, axis=1, keepdims=True)


def row(name: str, text: str, answer: str = "a", gold: str | None = None) -> Example:
    said = ({"role": "user", "content": text},)
    return Example(name, "t", said, answer, teacher=answer, gold=gold)


HERE, ALIKE, AWAY = (1.0, 0.0), (1.0, 0.1), (0.0, 1.0)


def apply(
    *rows: Example, held: tuple[Example, ...] = (), action: str = "drop"
) -> tuple[list[str], dict]:  # type: ignore[type-arg]
    vectors = {
        e.messages[-1]["content"]: HERE if e.id.startswith("x") else ALIKE for e in (*rows, *held)
    }
    config = Semantic.model_validate({"min_cosine": 0.9, "action": action})
    outcome = semantic.apply(config, rows, held, Fixed(vectors))  # type: ignore[arg-type]
    return [e.id for e in outcome.kept], outcome.report


def test_a_paraphrase_with_the_same_answer_leaves_and_gold_stays() -> None:
    kept, report = apply(
        row("x", "Where is my parcel?"), row("y", "My order has not come", gold="a")
    )
    assert kept == ["x", "y"], "one negates, so it is only a look-alike"
    kept, report = apply(
        row("x", "Where is my parcel?"), row("y", "Has my order been sent?", gold="a")
    )
    assert kept == ["y"]
    assert report["found"] == [{"id": "x", "like": "y", "cosine": pytest.approx(0.995, abs=1e-3)}]


@pytest.mark.parametrize(
    ("one", "other", "answers", "why"),
    [
        pytest.param("It has arrived", "It has not arrived", "aa", "negation", id="negated"),
        pytest.param("Refund order 17", "Refund order 18", "aa", "other numbers", id="numbers"),
        pytest.param("It broke", "It is broken", "ab", "other answer", id="answers"),
    ],
)
def test_near_texts_of_other_meaning_stay(one: str, other: str, answers: str, why: str) -> None:
    kept, report = apply(row("x", one, answers[0]), row("y", other, answers[1]))
    assert kept == ["x", "y"]
    assert report["look_alikes"] == {why: 1}


def test_a_pair_with_a_nearer_contrary_row_stays() -> None:
    kept, report = apply(row("x", "It broke"), row("y", "It is broken"), row("x2", "It brake", "b"))
    assert kept == ["x", "y", "x2"]
    assert report["look_alikes"]["nearer to a row with another answer"] == 1


def test_flagging_changes_nothing_and_a_held_out_twin_leaves() -> None:
    kept, report = apply(row("x", "Where is it?"), row("y", "Has it been sent?"), action="flag")
    assert (kept, report["duplicates"]) == (["x", "y"], 1)
    kept, _ = apply(row("x", "Where is it?"), held=(row("y", "Has it been sent?"),))
    assert kept == []


def judged(count: int = 60) -> tuple[list[Example], dict[str, float]]:
    """Rows of which every other one is sloppy; the judge saw the first half."""
    rows = [
        row(
            f"r{i}", f"{'teh plese asap!!' if i % 2 else 'Kindly check'} ticket about topic {i % 7}"
        )
        for i in range(count)
    ]
    scores = {f"id:r{i}": 1.0 if i % 2 else 5.0 for i in range(count // 2 + 10)}
    return rows, scores


def test_the_worst_rows_go_whether_judged_or_predicted_and_gold_stays() -> None:
    rows, scores = judged()
    rows[1] = row("r1", "teh plese asap!! ticket", gold="a")
    config = Rank.model_validate({"files": ["f"], "drop_share": 0.45})
    outcome = rank.apply(config, rows, scores)
    gone = {e.row.id for e in outcome.entries}
    assert len(gone) == 27
    assert all(int(name[1:]) % 2 for name in gone)
    assert "r1" not in gone
    assert any(int(name[1:]) >= 40 for name in gone), "rows that the judge never saw"
    assert outcome.report["agreement"] > 0.8


def test_a_judge_that_scores_at_random_is_refused() -> None:
    rows, _ = judged()
    draw = np.random.default_rng(0)
    scores = {f"id:r{i}": float(draw.integers(1, 6)) for i in range(60)}
    with pytest.raises(DataError, match="do not follow the texts"):
        rank.apply(Rank.model_validate({"files": ["f"], "drop_share": 0.3}), rows, scores)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        pytest.param({"id:r1": 1.0}, "at least 30", id="too few"),
        pytest.param({f"id:r{i}": 3.0 for i in range(60)}, "nothing to rank by", id="all alike"),
    ],
)
def test_a_sample_that_says_nothing_is_refused(scores: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        rank.apply(Rank.model_validate({"files": ["f"], "drop_share": 0.3}), judged()[0], scores)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ('{"id": "a", "score": "good"}', "allowed: a number"),
        ('{"id": "a", "score": "nan"}', "a finite number"),
        ('{"score": 3}', "an 'id', a 'text' or 'messages'"),
    ],
)
def test_a_bad_line_of_scores_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "scores.jsonl"
    file.write_text(line)
    with pytest.raises(DataError, match=message):
        rank.load([file])


def test_scores_are_read_by_id_and_by_input_and_as_a_teachers_text(tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    file.write_text(json.dumps({"id": "a", "text": "hi", "teacher": "4"}) + "\n")
    found = rank.load([file])
    assert found["id:a"] == 4.0
    assert len(found) == 2


@pytest.mark.slow
def test_the_real_encoder_finds_a_paraphrase_and_is_not_believed_alone(tmp_path: Path) -> None:
    """MiniLM, fetched by pip: the negated text is nearer than the paraphrase, which is why cosine does not decide."""
    from training import encoder

    loaded = encoder.load("minilm", tmp_path)
    texts = ["I want my money back", "Please refund what I paid", "My parcel has arrived", "My parcel has not arrived yet"]  # fmt: skip
    vectors = loaded.vectors(texts)
    cosines = vectors @ vectors.T
    assert np.allclose(np.diag(cosines), 1, atol=1e-5)
    assert cosines[0, 1] > cosines[0, 2] + 0.2
    assert cosines[2, 3] > cosines[0, 1]
    rows = [row(str(i), text) for i, text in enumerate(texts)]
    config = Semantic.model_validate({"min_cosine": 0.4, "action": "drop"})
    outcome = semantic.apply(config, rows, [], loaded)
    assert {e.row.id for e in outcome.entries} == {"0"}
    assert outcome.report["look_alikes"] == {"negation": 1}
    assert encoder.load("minilm", tmp_path).id == loaded.id, "the second time from the folder"


def test_an_encoder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    from training import encoder

    with pytest.raises(DataError, match="allowed: minilm, or a folder"):
        encoder.load(str(tmp_path / "none"), tmp_path)
