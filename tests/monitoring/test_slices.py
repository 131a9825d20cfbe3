"""Slices of disagreement: topics among them, on a sample that does not grow."""

import json
from pathlib import Path

from monitoring import disagreement
from monitoring.slices import MIN_SLICE_ROWS, PairSample, counted, ranked, topics_of
from tests.monitoring.conftest import SPEC, record

A, B = '{"kind":"a"}', '{"kind":"b"}'
TICKETS = Path(__file__).parents[2] / "examples" / "tickets" / "tickets.jsonl"
WORDS = {
    "refund": "refund invoice charged twice card statement billing amount",
    "login": "password login locked account email reset code browser",
    "export": "export spreadsheet columns download report file format rows",
}


def text(topic: str, number: int) -> str:
    words = WORDS[topic].split()
    return " ".join(words[(number * 3 + i * (1 + number % 3)) % len(words)] for i in range(6))


def test_the_topic_on_which_the_student_errs_is_the_worst_slice() -> None:
    records = [
        record(n, A, B if topic == "login" and n % 2 else A, text=text(topic, n))
        for n, topic in enumerate(list(WORDS) * 80)
    ]
    (found,) = disagreement.measure(records, SPEC)
    worst = found.slices[0]
    assert worst.name == "topic"
    assert set(worst.value.split(", ")) <= set(WORDS["login"].split())
    assert worst.p_value < 1e-6
    assert (worst.disagreement.count, found.rate.count) == (40, 40)
    assert found.slices == disagreement.measure(records, SPEC)[0].slices


def test_topics_of_real_tickets_have_telling_names() -> None:
    texts = [json.loads(line)["text"] for line in TICKETS.read_text().splitlines()]
    found = topics_of(texts)
    assert len(set(found)) == 8
    assert all(name and len(name.split(", ")) == 3 for name in found)
    assert topics_of(["too few"] * 10) == [None] * 10
    assert topics_of(["the same words"] * 200) == [None] * 200


def test_the_sample_is_uniform_bounded_and_reads_only_texts_that_it_keeps() -> None:
    read = []

    def text_of(number: int) -> str:
        read.append(number)
        return "word " * 60

    sample = PairSample(100)
    for number in range(10_000):
        sample.add(number % 4 == 0, lambda number=number: text_of(number))  # type: ignore[misc]
    (length,) = counted("bad", [(str(pair.is_bad), pair.is_bad, 1) for pair in sample._kept])[:1]
    assert length.all_rows == 100
    assert 10 <= length.all_bad <= 42  # a quarter, within four standard deviations
    assert 300 < len(read) < 900  # 100 (1 + ln 100) = 560 are expected


def test_a_slice_is_tested_against_the_rest_of_what_it_was_cut_from() -> None:
    rows = [("x", True, 9), ("x", False, 1), ("y", True, 1), ("y", False, 99), ("z", True, 3)]
    found = ranked([*counted("part", rows), *counted("none", [(None, True, 50)])])
    assert [s.value for s in found] == ["x", "y"]
    assert MIN_SLICE_ROWS > 3
    assert found[0].disagreement.share == 0.9
    assert found[0].p_value < 1e-6
    assert found[1].p_value > 0.99
