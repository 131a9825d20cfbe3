"""Each stage of curation alone, on rows made by hand."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from router.answer_spec import AnswerSpec
from tests.words import sentence
from training.curate import balance, duplicates, gold, rules, suspects, users, votes
from training.curate.config import Balance, Duplicates, Gold, PowerUsers, Rule, Suspects, Votes
from training.dataset import Example, sha256_of
from training.errors import DataError
from training.import_formats import Facts
from training.language import language_of
from training.split import shingles, similarity

TICKETS = Path(__file__).parents[2] / "examples" / "tickets"
LABEL = AnswerSpec(kind="label", labels=("refund", "order"))
FORM = LABEL.model_dump(mode="json", by_alias=True)


def example(name: str, text: str, answer: str = "refund", **rest: Any) -> Example:
    messages = ({"role": "user", "content": text},)
    return Example(
        id=name, task="mail", messages=messages, completion=answer,
        **({"teacher": answer, "sha256": sha256_of(messages, answer)} | rest),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        pytest.param({"max_chars": 5}, ("123456", "refund"), ("12345", "refund"), id="too long"),
        pytest.param({"min_chars": 2}, (" a ", "refund"), ("ab", "refund"), id="too short"),
        pytest.param({"max_chars": 5, "of": "answer"}, ("a", "refund"), ("a", "order"), id="answer too long"),
        pytest.param({"allow": "^Mail"}, ("Post", "order"), ("Mail", "order"), id="not allowed"),
        pytest.param({"deny": "(?i)test"}, ("a Test", "order"), ("a", "order"), id="denied"),
        pytest.param({"language": ["en"]}, ("das ist nicht mein Geld und ich bitte", "order"), ("this is not my money and I ask", "order"), id="language", marks=pytest.mark.slow),
        pytest.param({"language": ["en"]}, ("wo ist das Geld für die Rechnung", "order"), ("Not renewing", "order"), id="unknown language stays", marks=pytest.mark.slow),
        pytest.param({"refusal": True}, ("a", "I'm sorry, I cannot help"), ("a", "sorry state"), id="refusal"),
        pytest.param({"empty": True}, ("a", "  "), ("a", "b"), id="empty answer"),
        pytest.param({"pii": ["email"]}, ("write to jo@example.com", "order"), ("write to jo", "order"), id="pii"),
        pytest.param({"pii": ["email"], "of": "both"}, ("a", "jo@example.com"), ("a", "jo"), id="pii in the answer"),
    ],
)  # fmt: skip
def test_a_rule_takes_the_row_that_breaks_it_and_no_other(
    rule: dict[str, Any], bad: tuple[str, str], good: tuple[str, str]
) -> None:
    found = rules.apply(
        [Rule(id="r", **rule)], [example("bad", *bad), example("good", *good)], LABEL, {}
    )
    assert [e.id for e in found.kept] == ["good"]
    assert [(e.row.id, e.rule, e.stage) for e in found.entries] == [("bad", "r", "rules")]


@pytest.mark.slow
def test_the_shipped_tickets_are_english() -> None:
    """What the threshold was chosen on: no English ticket counts as another language, 16 of 17 foreign ones do."""

    def texts(name: str) -> list[str]:
        lines = (TICKETS / name).read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["text"] for line in lines]

    foreign = [t for t in texts("tickets.jsonl") if language_of(t)[0] not in ("en", None)]
    assert [text[:10] for text in foreign] == ["Jag undrar"]
    assert sum(language_of(t)[0] not in ("en", None) for t in texts("shifted.jsonl")) == 16


def test_json_and_truncation_rules_read_the_schema_and_the_log() -> None:
    spec = AnswerSpec(kind="json", schema={"type": "object", "required": ["kind"]})
    found = rules.apply(
        [Rule(json=True), Rule(truncated=True)],
        [
            example("a", "x", "{}"),
            example("b", "y", '{"kind": 1}'),
            example("c", "z", '{"kind": 1}'),
        ],
        spec,
        {"b": Facts(finish_reason="length"), "c": Facts(finish_reason="stop")},
    )
    assert [e.id for e in found.kept] == ["c"]
    assert [(e.row.id, e.rule) for e in found.entries] == [("a", "json"), ("b", "truncated")]


def test_rules_are_counted_apart_though_the_first_takes_the_row() -> None:
    found = rules.apply(
        [Rule(deny="a"), Rule(max_chars=2)], [example("x", "aaa"), example("y", "bbb")], LABEL, {}
    )
    assert found.report["breaks"] == {"deny": 1, "max_chars": 2}
    assert Counter(e.rule for e in found.entries) == {"deny": 1, "max_chars": 1}


def test_of_exact_duplicates_the_gold_one_stays_and_roles_matter() -> None:
    asked = example("sys", "hello")
    system = Example(
        id="role",
        task="mail",
        messages=({"role": "system", "content": "x"}, *asked.messages),
        completion="refund",
    )
    found = duplicates.exact(
        [
            example("new", "Hello  there", at=9.0),
            example("gold", "hello there", "order", gold="order"),
            asked,
            system,
        ]
    )
    assert [e.id for e in found.kept] == ["gold", "sys", "role"]
    assert [(e.row.id, e.score, e.detail) for e in found.entries] == [
        ("new", 1.0, "of gold, other answer")
    ]


def test_near_duplicates_go_but_not_those_that_mean_something_else() -> None:
    long = "my parcel with the two green lamps that I ordered on Monday has {}arrived at the office"
    chosen = [
        example("one", long.format(""), at=1.0), example("two", long.format("") + "!", at=2.0),
        example("not", long.format("not "), "order", at=3.0), example("far", "please bill me in euro"),
    ]  # fmt: skip
    found = duplicates.near(chosen, [], Duplicates(near=0.8))
    assert [e.id for e in found.kept] == ["two", "not", "far"]
    assert found.report["conflicts"] == 2
    strict = duplicates.near(chosen, [], Duplicates(near=0.8, conflicts="drop"))
    assert [e.id for e in strict.kept] == ["not", "far"]
    curve = [p["rows"] for p in strict.report["curve"]]
    assert curve == sorted(curve, reverse=True)
    assert curve[-1] == 1


def test_pairs_are_those_of_a_comparison_of_all_with_all() -> None:
    texts = [sentence(n)[0] for n in range(40)]
    texts += [
        f"{text} {extra}" for text in texts[:20] for extra in ("again", "and some more words")
    ]
    sets = [shingles(t) for t in texts]
    wanted = {
        (i, j) for j in range(len(sets)) for i in range(j) if similarity(sets[i], sets[j]) >= 0.6
    }
    found = {(i, j) for i, j, s in duplicates.pairs(texts) if s >= 0.6}
    assert found <= wanted
    assert len(found) >= 0.97 * len(wanted) > 20


def test_power_users_are_capped_and_the_effective_number_is_kishs() -> None:
    chosen = [example(f"a{n}", f"text {n}") for n in range(8)] + [
        example("b", "x"),
        example("c", "y"),
    ]
    facts = {f"a{n}": Facts("heavy") for n in range(8)} | {"b": Facts("u2"), "c": Facts("u3")}
    found = users.apply(PowerUsers(max_rows=2), chosen, facts)
    assert Counter(facts[e.id].user for e in found.kept) == {"heavy": 2, "u2": 1, "u3": 1}
    assert found.report["effective_users_before"] == pytest.approx(100 / 66, abs=0.01)
    assert found.report["effective_users_after"] == pytest.approx(16 / 6, abs=0.01)
    weighed = users.apply(PowerUsers(max_share=0.2, how="weight"), chosen, facts)
    assert sum(e.weight for e in weighed.kept if facts[e.id].user == "heavy") == pytest.approx(2.0)
    assert len(weighed.kept) == 10
    with pytest.raises(DataError, match="no row's user is in `records`"):
        users.apply(PowerUsers(max_rows=2), chosen, {})


def test_templates_are_texts_without_what_varies() -> None:
    one, other = 'Order 17 of "Ann" is late', "order 99123 of 'Bo B' is late"
    assert users.template_of(one) == users.template_of(other) != users.template_of("order is late")


def mixed() -> list[Example]:
    return [example(f"r{n}", f"t{n}", "refund" if n < 90 else "order") for n in range(100)]


@pytest.mark.parametrize(
    ("config", "mix"),
    [
        pytest.param({}, {"refund": 10, "order": 10}, id="even"),
        pytest.param({"target": {"refund": 3, "order": 1}}, {"refund": 30, "order": 10}, id="a ratio"),
        pytest.param({"strength": 0}, {"refund": 90, "order": 10}, id="as it is"),
        pytest.param({"strength": 0.5}, {"refund": 30, "order": 10}, id="half way: sqrt(9)"),
        pytest.param({"how": "oversample"}, {"refund": 90, "order": 40}, id="at most four copies"),
        pytest.param({"how": "oversample", "max_repeat": 9}, {"refund": 90, "order": 90}, id="repeated"),
    ],
)  # fmt: skip
def test_the_mix_is_the_target(config: dict[str, Any], mix: dict[str, int]) -> None:
    found = balance.apply(Balance(**config), mixed(), FORM)
    assert Counter(e.completion for e in found.kept) == mix
    assert len({e.id for e in found.kept}) == len(found.kept)


def test_weights_give_the_mix_without_losing_rows() -> None:
    found = balance.apply(Balance(how="weight"), mixed(), FORM)
    total = Counter[str]()
    for e in found.kept:
        total[e.completion] += e.weight  # type: ignore[assignment]
    assert total["refund"] == pytest.approx(50, abs=0.01) == total["order"]
    assert found.report["effective_rows_after"] == pytest.approx(
        100**2 / (90 * 0.556**2 + 10 * 25), rel=0.01
    )


def test_a_target_that_does_not_fit_the_classes_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"no ratio for 'order'; classes: refund \(90\), order \(10\)"
    ):
        balance.apply(Balance(target={"refund": 1}), mixed(), FORM)
    with pytest.raises(DataError, match="no rows of 'spam'"):
        balance.apply(Balance(target={"refund": 1, "order": 1, "spam": 1}), mixed(), FORM)
    with pytest.raises(DataError, match="have no classes"):
        balance.apply(Balance(), mixed(), {"kind": "text"})


@pytest.mark.slow
def test_flipped_labels_are_suspects_and_gold_ones_are_never_dropped() -> None:
    flipped = {3, 8, 21, 34, 47, 52}
    chosen = []
    for n in range(120):
        text, label = sentence(n)
        given = label if n not in flipped else ("order" if label == "refund" else "refund")
        chosen.append(example(f"r{n}", text, given, gold=given if n == 3 else None))
    found = suspects.find(chosen, FORM, folds=4)
    hit = {s.row for s in found} & flipped
    assert len(hit) >= 5
    assert len(found) <= 12
    assert {s.row for s in found[:4]} <= flipped
    dropped = suspects.apply(Suspects(action="drop", max_share=0.5, folds=4), chosen, FORM)
    gone = {e.row.id for e in dropped.entries}
    assert len(gone & {f"r{n}" for n in flipped}) >= 4
    assert "r3" not in gone
    assert all(0 <= (e.score or 0) < 0.5 for e in dropped.entries)
    with pytest.raises(DataError, match="have no classes to judge"):
        suspects.find(chosen, {"kind": "text"}, folds=4)


@pytest.mark.parametrize(
    ("errors", "learned"),
    [
        pytest.param("replace", {"a": "order", "b": "refund", "c": "refund"}, id="gold is learned"),
        pytest.param("drop", {"b": "refund", "c": "refund"}, id="errors go"),
        pytest.param("teacher", {"a": "refund", "b": "refund", "c": "refund"}, id="the teacher is learned"),
    ],
)  # fmt: skip
def test_teacher_errors_against_gold(errors: Any, learned: dict[str, str]) -> None:
    chosen = [
        example("a", "x", "order", teacher="Refund.", gold="order"),
        example("b", "y", "refund", teacher="refund", gold="refund"),
        example("c", "z", "refund"),
    ]
    found = gold.apply(Gold(errors=errors), chosen, LABEL)
    assert {e.id: e.completion.strip(".").lower() for e in found.kept} == learned
    assert (found.report["rows_with_gold"], found.report["teacher_errors"]) == (2, 1)
    assert found.report["by_class"] == {
        "order": {"errors": 1, "rows": 1},
        "refund": {"errors": 0, "rows": 1},
    }
    low, high = found.report["interval"]
    assert low == pytest.approx(0.0945, abs=1e-3)
    assert high == pytest.approx(0.9055, abs=1e-3)


def test_votes_are_counted_by_value_and_ties_are_no_answer() -> None:
    spec = AnswerSpec(kind="json", compare={"fields": ["kind"]})  # type: ignore[arg-type]
    same = votes.tally(
        spec, ['{"kind": "a", "why": 1}', '{"kind":"a"}', "no json", '{"kind": "b"}']
    )
    assert (json.loads(same.answer or "")["kind"], same.agreement, same.num_votes) == ("a", 0.5, 4)
    assert same.entropy_bits == pytest.approx(1.5)
    tie = votes.tally(LABEL, ["refund", "order"])
    assert (tie.answer, tie.is_tie, tie.entropy_bits) == (None, True, 1.0)
    assert votes.tally(LABEL, ["x", "y"]).answer is None


def test_votes_filter_relabel_and_weigh(tmp_path: Path) -> None:
    file = tmp_path / "votes.jsonl"
    cast = {
        "sure": ["order", "order", "order"],
        "torn": ["order", "refund", "spam"],
        "tie": ["order", "refund"],
    }
    lines = [{"id": name, "votes": v} for name, v in cast.items()] + [
        {"text": "by  text", "votes": ["order"]}
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    chosen = [
        example("sure", "a"), example("torn", "b"), example("tie", "c"), example("x", "by text"), example("none", "d"),
    ]  # fmt: skip
    found = votes.apply(Votes(files=(file,)), chosen, votes.load([file]), LABEL)
    assert {e.id: e.completion for e in found.kept} == {
        "sure": "order",
        "x": "order",
        "none": "refund",
    }
    assert {e.row.id: e.rule for e in found.entries if e.kind == "removed"} == {
        "torn": "tie",
        "tie": "tie",
    }
    weighed = votes.apply(Votes(files=(file,), use="weight"), chosen, votes.load([file]), LABEL)
    assert {e.id: round(e.weight, 2) for e in weighed.kept}["torn"] == 0.33
    assert len(weighed.kept) == 5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param("{", "line 1: not JSON", id="not JSON"),
        pytest.param('{"id": "a"}', "votes = None: allowed: a list of answers", id="no votes"),
        pytest.param('{"votes": ["a"]}', "allowed: an 'id', a 'text' or 'messages'", id="no key"),
    ],
)
def test_bad_votes_name_file_line_and_field(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "votes.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        votes.load([file])
