"""The shipped tickets and policies: as many as promised, of every kind, and no two the same."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from examples.tasks import INTENTS, URGENCIES, find_jigsaw, jigsaw, tickets
from router import policy_file
from training.split import near_duplicate_groups

ROOT = Path(__file__).parents[1]
HAS_JIGSAW = any(
    (d / "test.balanced.csv").is_file()
    for d in (ROOT / "data" / "jigsaw", *ROOT.parent.glob("*/data/jigsaw"))
)


def rows(name: str) -> list[dict[str, Any]]:
    path = ROOT / "examples" / "tickets" / name
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_there_are_enough_tickets_of_every_class() -> None:
    found = rows("tickets.jsonl")
    assert len(found) >= 600
    assert len(rows("shifted.jsonl")) >= 60
    counts = Counter(r["gold"]["intent"] for r in found)
    assert set(counts) == set(INTENTS)
    assert min(counts.values()) >= 40
    assert {r["gold"]["urgency"] for r in found} == set(URGENCIES)


def test_every_row_has_a_text_a_gold_answer_and_a_teachers_answer() -> None:
    for row in [*rows("tickets.jsonl"), *rows("shifted.jsonl")]:
        said = json.loads(row["teacher"])
        assert row["text"].strip()
        assert set(said) == set(row["gold"]) == {"intent", "urgency"}
        assert said["intent"] in INTENTS
        assert said["urgency"] in URGENCIES


def test_no_two_tickets_are_near_duplicates() -> None:
    texts = [r["text"] for r in [*rows("tickets.jsonl"), *rows("shifted.jsonl")]]
    groups = near_duplicate_groups(texts, threshold=0.6)
    doubles = len(texts) - len(set(groups))
    assert doubles <= 3, [t for t, g in zip(texts, groups, strict=True) if groups.count(g) > 1]


def test_tickets_vary_in_length_and_opening() -> None:
    texts = [r["text"] for r in rows("tickets.jsonl")]
    lengths = sorted(len(t.split()) for t in texts)
    assert lengths[len(lengths) // 10] < 12
    assert lengths[-len(lengths) // 10] > 60
    openings = Counter(t.split()[0].lower() for t in texts)
    assert openings.most_common(1)[0][1] < 0.08 * len(texts)


def test_no_ticket_holds_an_address_that_could_be_somebodys() -> None:
    texts = " ".join(r["text"] for r in [*rows("tickets.jsonl"), *rows("shifted.jsonl")])
    assert all(
        a.endswith(("example.com", "example.org")) for a in re.findall(r"[\w.+-]+@[\w.-]+\w", texts)
    )


def test_the_task_asks_no_test_row_and_trains_on_no_live_row() -> None:
    task = tickets()
    parts = [{r.id for r in part} for part in (task.traffic, task.test, task.live, task.shifted)]
    assert [len(p) for p in parts][:2] == [500, 180]
    assert len(set.union(*parts)) == sum(map(len, parts))


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples" / "policies").glob("*.yaml")), ids=lambda p: p.stem
)
def test_example_policies_hold(path: Path) -> None:
    assert policy_file.load(path).policy.routes


def test_the_playbooks_data_is_a_task_where_it_is_there() -> None:
    if not HAS_JIGSAW:  # it is not the project's to ship: then the message says what to give
        with pytest.raises(FileNotFoundError, match="--jigsaw PATH"):
            find_jigsaw(None)
        return
    task = jigsaw(find_jigsaw(None))
    assert (len(task.traffic), len(task.test)) == (1000, 400)
    assert sum(r.gold == '{"is_bad":1}' for r in task.test) == 200
