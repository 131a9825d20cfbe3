"""Pairs of a better and a worse answer: from which source, into which split, and what is left out."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from monitoring.review import ReviewQueue
from monitoring.store import open_store
from router.answer_spec import AnswerSpec
from router.records import Answer, Feedback, Record
from tests.training.conftest import rows
from training import preference
from training.cli import app
from training.dataset import Dataset
from training.errors import DataError
from training.preference import Judgement

REFUND, ORDER = '{"kind":"refund"}', '{"kind":"order"}'


def judged(dataset: Dataset, split: Any, source: Any = "gold", better: str = REFUND) -> Judgement:
    """A judgement on the first row of a split."""
    example = dataset.of(split)[0]
    worse = ORDER if better == REFUND else REFUND
    return Judgement(example.id, source, example.messages, better, worse)


def record(number: int, *answers: tuple[str, str], feedback: Feedback | None = None) -> Record:
    """A logged request whose first answer is the reply."""
    text = rows(1, first=number)[0].messages
    return Record(
        id=f"q{number}", at=1.0, route="mail", mode="dark_launch", policy_digest="d", arm="student",
        served_by=answers[0][0],  # type: ignore[arg-type]
        reason="", status=200,
        answers=tuple(Answer(role=r, backend="b", model="m", status=200, text=t) for r, t in answers),  # type: ignore[arg-type]
        request=msgspec.Raw(json.dumps({"messages": text}).encode()),
        feedback=(feedback,) if feedback else (),
    )  # fmt: skip


def test_pairs_keep_the_datasets_splits_and_never_take_a_test_row(dataset: Dataset) -> None:
    asked = [judged(dataset, split) for split in ("train", "validation", "test")]
    found, dropped = preference.pair_up(asked, dataset.info, dataset.examples)
    assert [pair.split for pair in found] == ["train", "validation"]
    assert dropped == {"input of a test set": 1}


@pytest.mark.parametrize(
    ("better", "worse", "rule"),
    [
        pytest.param(REFUND, '{ "kind": "refund" }', "both answers are the same", id="spelling alone differs"),
        pytest.param("refund", ORDER, "better answer does not fit the answer spec", id="better one has no form"),
        pytest.param(REFUND, "  ", "worse answer is empty", id="nothing was said"),
    ],
)  # fmt: skip
def test_what_is_no_pair_is_left_out(dataset: Dataset, better: str, worse: str, rule: str) -> None:
    example = dataset.of("train")[0]
    asked = [Judgement(example.id, "edit", example.messages, better, worse)]
    assert preference.pair_up(asked, dataset.info, dataset.examples) == ([], {rule: 1})


def test_the_more_trusted_source_decides_and_a_pair_is_there_once(dataset: Dataset) -> None:
    asked = [
        judged(dataset, "train", "thumb", ORDER),
        judged(dataset, "train", "vote", REFUND),
        judged(dataset, "train", "gold", REFUND),
    ]
    found, dropped = preference.pair_up(asked, dataset.info, dataset.examples)
    assert [(pair.source, pair.chosen) for pair in found] == [("gold", REFUND)]
    assert dropped == {"the same pair from another source": 1, "decided otherwise before": 1}


def test_a_thumb_decides_between_the_reply_and_the_other_answer() -> None:
    both = (("student", ORDER), ("teacher", REFUND))
    down = record(1, *both, feedback=Feedback("q1", 2.0, score=0.0))
    up = record(2, *both, feedback=Feedback("q2", 2.0, score=1.0))
    fixed = record(3, both[0], feedback=Feedback("q3", 2.0, correction=REFUND))
    alone = record(4, both[0], feedback=Feedback("q4", 2.0, score=0.0))
    unsure = record(5, *both, feedback=Feedback("q5", 2.0, score=0.5))
    found = preference.from_feedback([down, up, fixed, alone, unsure])
    assert [(j.id, j.source, j.chosen, j.rejected) for j in found] == [
        ("q1", "thumb", REFUND, ORDER),
        ("q2", "thumb", ORDER, REFUND),
        ("q3", "edit", REFUND, ORDER),
    ]


def test_votes_prefer_the_majority_and_ties_nothing(dataset: Dataset) -> None:
    spec = AnswerSpec.model_validate(dataset.info.answer)
    messages = dataset.examples[0].messages
    voted = [("a", messages, [REFUND, ORDER, REFUND]), ("b", messages, [REFUND, ORDER])]
    found = preference.from_votes(spec, voted)
    assert [(j.id, j.chosen, j.rejected) for j in found] == [("a", REFUND, ORDER)]


def test_saved_pairs_are_read_back_and_nothing_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    found, dropped = preference.pair_up(
        [judged(dataset, "train"), judged(dataset, "validation")], dataset.info, dataset.examples
    )
    saved = preference.save(tmp_path, found, dropped, dataset.info)
    assert preference.load(saved.path) == saved
    assert saved.info.counts == {"gold": {"train": 1, "validation": 1}}
    with pytest.raises(DataError, match="no pairs"):
        preference.save(tmp_path, [], {}, dataset.info)


def test_the_command_counts_pairs_by_source(dataset: Dataset, tmp_path: Path) -> None:
    from router.traffic import TrafficLog

    home = tmp_path / "home"
    reviewed = record(900, ("student", ORDER), ("teacher", REFUND))
    thumbed = record(
        902, ("student", ORDER), ("teacher", REFUND), feedback=Feedback("q902", 2.0, score=0.1)
    )
    log = TrafficLog(home / "traffic")
    for line in (reviewed, thumbed):
        log.append(line)
    log.close()
    store = open_store(f"sqlite:///{home / 'graduate.db'}")
    flag = {
        "id": "f", "record_id": "q900", "route": "mail", "kind": "k", "reason": "", "score": 1.0,
        "status": "open", "at": 1.0, "record_at": 1.0, "input_text": "",
        "teacher_text": REFUND, "student_text": ORDER,
    }  # fmt: skip
    store.add_flags([flag])
    ReviewQueue(store).decide("f", "accept_teacher", by="me")
    votes = tmp_path / "votes.jsonl"
    row = dataset.of("train")[0]
    votes.write_text(json.dumps({"id": row.id, "votes": [REFUND, REFUND, ORDER]}))
    ran = CliRunner().invoke(
        app, ["pairs", "--dataset", str(dataset.path), "--home", str(home), "--votes", str(votes), "--json"]
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    counts = json.loads(ran.stdout)["counts"]
    assert {name: sum(split.values()) for name, split in counts.items()} == {
        "edit": 1, "vote": 1, "thumb": 1,
    }  # fmt: skip


def test_without_any_judgement_the_command_says_so(dataset: Dataset, tmp_path: Path) -> None:
    ran = CliRunner().invoke(
        app, ["pairs", "--dataset", str(dataset.path), "--home", str(tmp_path), "--no-traffic"]
    )
    assert ran.exit_code == 2
    assert "no pairs" in ran.output
