"""Rows to a dataset: what is kept, what the ledger says, and splits that stay."""

import json
from pathlib import Path

import msgspec
import pytest

from router.records import Answer, Record
from tests.training.conftest import route, rows
from tests.words import sentence
from training import build, split
from training.commands import counted
from training.dataset import Dataset, class_of
from training.errors import DataError


def rules(dataset: Dataset) -> dict[str, str]:
    return {d.id: d.rule for d in dataset.info.dropped}


def test_a_dataset_is_read_as_it_was_written(dataset: Dataset) -> None:
    again = Dataset.load(dataset.path)
    assert again == dataset
    assert {e.completion for e in again.examples} == {'{"kind":"refund"}', '{"kind":"order"}'}
    assert again.info.teachers == ("teacher-1",)
    assert set(again.info.counts) == {"train", "validation", "test", "test_balanced"}


def test_the_same_rows_give_the_same_digest_and_a_changed_file_is_noticed(
    dataset: Dataset, tmp_path: Path
) -> None:
    again = build.build(rows(80), route(), "mail", tmp_path / "datasets", query={})
    assert again.info.digest == dataset.info.digest
    other = build.build(rows(79), route(), "mail", tmp_path / "other", query={})
    assert other.info.digest != dataset.info.digest
    examples = dataset.path / "examples.parquet"
    examples.write_bytes((other.path / "examples.parquet").read_bytes())
    with pytest.raises(DataError, match="digest"):
        Dataset.load(dataset.path)


def test_rows_keep_their_split_when_data_grows(dataset: Dataset, tmp_path: Path) -> None:
    grown = build.build(rows(200), route(), "mail", tmp_path / "datasets", query={})
    before = {e.id: e.split for e in dataset.examples}
    after = {e.id: e.split for e in grown.examples}
    assert all(after[i] == s for i, s in before.items() if s == "test")
    assert {i: after[i] for i in before if i in after and before[i] != "test_balanced"} == {
        i: s for i, s in before.items() if i in after and s != "test_balanced"
    }


def test_by_time_the_newest_rows_are_tests(tmp_path: Path) -> None:
    options = build.BuildOptions(test_share=0.2, validation_share=0.1, split_by="time")
    made = build.build(rows(60), route(), "mail", tmp_path, query={}, options=options)
    at = {name: [e.at for e in made.of(name)] for name in ("train", "validation", "test")}
    assert max(at["train"]) < min(at["validation"])
    assert max(at["validation"]) < min(at["test"])
    assert 10 <= len(at["test"]) <= 14
    later = build.build(rows(80), route(), "mail", tmp_path, query={}, options=options)
    tests = {e.id for e in later.of("test")}
    assert {e.id for e in made.of("test")} <= tests
    assert "r79" in tests


def test_a_group_is_as_old_as_its_newest_row() -> None:
    groups, keys = [0, 1, 2, 0, 3], ["a", "b", "c", "d", "e"]
    found = split.assign_by_time(groups, keys, test_share=0.4, validation_share=0.2)
    assert found == ["test", "train", "validation", "test", "test"]
    frozen = split.assign_by_time(
        groups, keys, test_share=0.4, validation_share=0.2, frozen={"a": "train"}
    )
    assert frozen == ["train", "validation", "test", "train", "test"]


def test_no_near_duplicate_is_on_both_sides(tmp_path: Path) -> None:
    twins = []
    for row in rows(60):
        text = row.messages[0]["content"] + " again"
        twins.append(
            build.Row(
                f"{row.id}-twin", ({"role": "user", "content": text},), row.teacher, None, "traffic"
            )
        )
    made = build.build([*rows(60), *twins], route(), "mail", tmp_path, query={})
    place = {e.id: e.split for e in made.examples if e.split != "test_balanced"}
    assert len(place) == 120
    assert all(place[f"r{n}"] == place[f"r{n}-twin"] for n in range(60))
    assert len(set(place.values())) == 3


def test_the_ledger_names_what_was_dropped_and_why(tmp_path: Path) -> None:
    good = rows(20)
    bad = [
        build.Row("none", ({"role": "user", "content": "no answer at all"},), None, None, "traffic"),
        build.Row("form", ({"role": "user", "content": "not json"},), "sorry", None, "traffic"),
        build.Row("empty", ({"role": "user", "content": "  "},), good[0].teacher, None, "traffic"),
        build.Row("old", good[3].messages, good[3].teacher, None, "traffic", at=-1.0),
        build.Row("said", ({"role": "user", "content": "thrown out"},), good[0].teacher, None, "traffic", discard=True),
    ]  # fmt: skip
    made = build.build([*good, *bad], route(), "mail", tmp_path, query={})
    assert rules(made) == {
        "none": "no answer",
        "form": "answer does not fit the route's answer spec",
        "empty": "empty input",
        "old": "same input as another row",
        "said": "discarded in review",
    }


def test_a_review_is_gold_and_stays_beside_the_teacher(tmp_path: Path) -> None:
    asked = rows(20)
    reviewed = build.with_reviews(
        asked, [build.Reviewed("r3", '{"kind": "refund"}'), build.Reviewed("r4", None)]
    )
    made = build.build(reviewed, route(), "mail", tmp_path, query={})
    example = next(e for e in made.examples if e.id == "r3")
    assert example.completion == '{"kind":"refund"}'
    assert example.gold == '{"kind": "refund"}'
    assert example.teacher == '{"kind": "order"}'
    assert rules(made) == {"r4": "discarded in review"}


def test_traffic_gives_teacher_answers_seen_and_unseen() -> None:
    def record(number: int, *answers: Answer, text: bool = True) -> Record:
        body = json.dumps({"messages": [{"role": "user", "content": f"hello {number}"}]}).encode()
        return Record(
            id=f"r{number}", at=float(number), route="mail", mode="canary", policy_digest="d", arm="student",
            served_by="student", reason="", status=200, answers=answers,
            **({"request": msgspec.Raw(body)} if text else {}),
        )  # fmt: skip

    student = Answer(role="student", backend="s", model="mail", status=200, text="x")
    audit = Answer(role="teacher", backend="t", model="gpt", purpose="audit", status=200, text="y")
    failed = Answer(role="teacher", backend="t", model="gpt", status=500, error="status")
    found = list(
        build.rows_from_traffic(
            [
                record(1, student, audit),
                record(2, student),
                record(3, failed),
                record(4, audit, text=False),
            ]
        )
    )
    assert [(r.id, r.teacher, r.teacher_model) for r in found] == [("r1", "y", "gpt")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param("{", "line 2: not JSON", id="not JSON"),
        pytest.param("[1]", "line 2: allowed: a JSON object", id="a list"),
        pytest.param(
            '{"txt": "a"}', "'text' must be a text; this row has the keys: txt", id="wrong column"
        ),
        pytest.param('{"text": 7}', "'text' must be a text", id="input is a number"),
        pytest.param('{"text": "a", "teacher": 7}', "'teacher' = 7", id="answer is a number"),
        pytest.param('{"messages": "a"}', "'messages' must be a list", id="messages are text"),
    ],
)
def test_a_bad_file_row_names_file_line_and_key(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f'{{"text": "fine", "teacher": "x"}}\n{line}\n')
    with pytest.raises(DataError, match=message) as caught:
        list(build.rows_from_file(file))
    assert str(file) in str(caught.value)


def test_nothing_to_train_on_is_refused_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the log has no teacher answer"):
        build.build([], route(), "mail", tmp_path, query={})
    bad = [build.Row("a", ({"role": "user", "content": "a"},), "no json", None, "traffic")]
    with pytest.raises(DataError, match="does not fit"):
        build.build(bad, route(), "mail", tmp_path, query={})


def test_the_balanced_set_has_as_many_of_each_class(tmp_path: Path) -> None:
    made = build.build(rows(200), route(), "mail", tmp_path, query={})
    classes = [class_of(e.completion, made.info.answer) for e in made.of("test_balanced")]
    assert classes.count("refund") == classes.count("order") > 5


def test_near_duplicates_are_grouped_and_others_are_not() -> None:
    texts = [sentence(n)[0] for n in range(40)]
    groups = split.near_duplicate_groups([*texts, texts[0] + "!", texts[1].upper()])
    assert groups[40] == groups[0]
    assert groups[41] == groups[1]
    assert len(set(groups)) == 40


def test_a_twin_of_a_held_out_row_is_dropped_and_the_test_set_stays_the_files(
    tmp_path: Path,
) -> None:
    asked = rows(40)
    text = asked[3].messages[0]["content"] + " again"
    held = build.Row(
        "held",
        ({"role": "user", "content": text},),
        asked[3].teacher,
        asked[3].teacher,
        "file",
        fixed="test",
    )
    options = build.BuildOptions(test_share=0)
    made = build.build([*asked, held], route(), "mail", tmp_path, query={}, options=options)
    assert [e.id for e in made.of("test")] == ["held"]
    assert rules(made) == {"r3": "near-duplicate of a held-out row"}


def test_progress_is_told_to_the_last_row(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    build.build(rows(30), route(), "mail", tmp_path, query={}, tell=lambda *now: told.append(now))
    assert told[-1] == (30, 30)
    counts: list[tuple[str, int, int]] = []
    passed = list(counted(range(450), "rows", lambda phase, done, total, _: counts.append((phase, done, total))))  # fmt: skip
    assert passed == list(range(450))
    assert counts == [("rows", 200, 200), ("rows", 400, 400), ("rows", 450, 450)]
