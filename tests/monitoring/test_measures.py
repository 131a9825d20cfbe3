"""Disagreement, flags and drift on records and on the shipped tickets."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from monitoring import disagreement, drift, flags
from monitoring.descriptors import Vocabulary, describe
from monitoring.windows import Row
from router.policy import Flags
from router.records import Feedback
from tests.monitoring.conftest import SPEC, answer, record

A, B = '{"kind":"a"}', '{"kind":"b"}'
TICKETS = Path(__file__).parents[2] / "examples" / "tickets"


def test_disagreement_form_and_noise_are_apart() -> None:
    records = [
        *(record(n, A, A) for n in range(60)),
        *(record(100 + n, B, A) for n in range(20)),
        *(record(200 + n, A, "sorry") for n in range(5)),
        *(record(300 + n, A, None) for n in range(5)),
    ]
    again = [record(400 + n, A) for n in range(10)]
    records += [
        record(
            500 + n, A, answers=(*r.answers, answer("teacher", B if n < 2 else A, purpose="noise"))
        )
        for n, r in enumerate(again)
    ]
    (found,) = disagreement.measure(records, SPEC)
    assert (found.rate.count, found.rate.rows) == (20, 80)
    assert (found.form_failures.count, found.form_failures.rows) == (5, 85)
    assert found.fields["kind"].count == 20
    assert found.noise_floor is not None
    assert (found.noise_floor.count, found.noise_floor.rows) == (2, 10)
    assert found.confusion == {"a": {"a": 60}, "b": {"a": 20}}
    assert found.kappa == pytest.approx(0.0)
    worst = found.slices[0]
    assert (worst.name, worst.value) == ("teacher's class", "b")
    assert worst.p_value < 1e-6


def test_each_flag_has_its_reason_and_a_record_has_one() -> None:
    bad = (Feedback("r4", 1.0, score=0.0, comment="wrong"),)
    records = [
        record(1, A, B, confidence=0.3),
        record(2, A, A, confidence=0.99),
        record(3, A, A, confidence=0.4),
        record(4, A, B, feedback=bad),
        record(5, A, A, confidence=0.99),
    ]
    found = {
        f.record_id: f for f in flags.find(records, Flags(low_confidence=0.5), outliers=["r5"])
    }
    assert {i: f.kind for i, f in found.items()} == {
        "r1": "disagreement", "r3": "low_confidence", "r4": "feedback", "r5": "drift_outlier",
    }  # fmt: skip
    assert found["r1"].reason == "student and teacher differ in kind, student's confidence 0.30"
    assert found["r4"].reason == "feedback: wrong"
    assert found["r1"].score > found["r5"].score


def test_flags_are_capped_an_hour_and_the_same_next_time() -> None:
    records = [record(n, A, B, confidence=n / 100) for n in range(80)]
    found = flags.find(records, Flags(per_hour=10))
    assert len(found) == 10
    assert [f.id for f in flags.find(records, Flags(per_hour=10))] == [f.id for f in found]


def test_a_rule_that_is_off_flags_nothing() -> None:
    rule = Flags(disagreement=False, guard=False, drift_outlier=False, feedback="off")
    assert flags.find([record(n, A, B) for n in range(5)], rule) == []


def ticket_rows(name: str) -> list[Row]:
    rows = [json.loads(line) for line in (TICKETS / name).read_text().splitlines()]
    return [Row(r["id"], r["text"], r["gold"]["intent"]) for r in rows]


@pytest.mark.slow
def test_windows_without_drift_rarely_alarm() -> None:
    rows = ticket_rows("tickets.jsonl")
    alarms = 0
    for seed in range(20):
        random.Random(seed).shuffle(rows)
        alarms += drift.measure(rows[:240], rows[240:360], seed=seed).drifted
    assert alarms <= 3


def test_another_product_line_alarms_and_the_report_is_kept(tmp_path: Path) -> None:
    usual, other = ticket_rows("tickets.jsonl"), ticket_rows("shifted.jsonl")
    path = tmp_path / "drift.html"
    found = drift.measure(usual[:500], [*usual[560:], *other], html_path=path)
    assert found.drifted
    assert found.columns[0].adjusted < 0.01
    assert path.stat().st_size > 100_000
    assert found.columns[0].distance is not None
    strange = set(found.outliers) & {r.id for r in other}
    assert len(strange) > len(found.outliers) / 2


def test_a_new_template_alarms_and_its_rows_are_those_that_moved_most() -> None:
    usual = ticket_rows("tickets.jsonl")
    sent = [Row(f"app{r.id}", f"[app 3.2] {r.text}", r.answer_class) for r in usual[700:740]]
    found = drift.measure(usual[:500], [*usual[500:660], *sent])
    columns = {c.name: c for c in found.columns}
    assert columns["template"].drifted
    assert columns["template"].moved_share == pytest.approx(0.2, abs=0.01)
    assert all(name.startswith("app") for name in found.outliers)
    assert found.html is None


def test_few_rows_say_that_they_are_few() -> None:
    rows = ticket_rows("shifted.jsonl")
    found = drift.measure(rows[:20], rows[20:])
    assert (found.enough, found.drifted) == (False, False)
    assert found.why_not == "not enough reference rows: 20, wanted 60"


def test_descriptors() -> None:
    found = describe("HELLO you there! Is 5 ok?", Vocabulary.of(["hello you is ok"]))
    assert (found["words"], found["sentences"]) == (5.0, 2.0)
    assert found["unknown_word_share"] == pytest.approx(1 / 5)
    assert describe("", Vocabulary.of([]))["characters"] == 0.0


def test_a_remark_alone_is_no_complaint() -> None:
    said = (Feedback("r1", 1.0, comment="thanks"),)
    assert flags.find([record(1, A, A, confidence=0.99, feedback=said)], Flags(audit=0)) == []
    (found,) = flags.find([record(1, A, A, feedback=said)], Flags(audit=0, feedback="any"))
    assert found.reason == "feedback: thanks"


def test_class_mixes_are_tested_exactly() -> None:
    def p(before: list[str], now: list[str]) -> float:
        return drift.class_mix_p_value(before, now, np.random.default_rng(0))

    assert p(["a"] * 50, ["a"] * 50) == 1.0
    assert p(["a", "b"] * 50, ["a", "b"] * 30) == 1.0
    assert p(["a"] * 50, ["a"] * 40 + ["new"] * 10) < 0.01
    before, now = ["a"] * 18 + ["b"] * 2, ["a"] * 11 + ["b"] * 9
    fisher = stats.fisher_exact([[18, 2], [11, 9]]).pvalue
    assert p(before, now) == pytest.approx(fisher, abs=0.02)
