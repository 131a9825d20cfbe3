"""A judge asked in process: both orders, length, kinship, people's labels, and when it may gate."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from monitoring.text_pairs import TextPair
from router.policy import Price
from tests.training.judges import judge_app
from tests.training.labelling import ask
from training import eval_judge
from training.errors import ConfigError, DataError
from training.eval_judge import Human, JudgeReport, asks, family_of, instructions_digest, score_of
from training.eval_judge_run import labels_of_file, options_of

URL, PRICE = "http://judge/v1", Price(input=1, output=1)


def good(text: str) -> float:
    """By the count of "good", which is what people like here."""
    return 1 + text.count("good")


def wordy(text: str) -> float:
    return len(text.split()) / 2


def pairs(count: int = 60) -> list[TextPair]:
    """The student is better, worse and equally good in turn; lengths have nothing to do with it."""
    found = []
    for n in range(count):
        student = ["good good", "bad bad", "good bad"][n % 3] + " word" * (n % 7)
        teacher = ["bad bad", "good good", "good bad"][n % 3] + " word" * (n % 5) + "."
        found.append(TextPair(f"p{n}", f"request {n}", teacher, student, None))
    return found


def people(rows: Sequence[TextPair], wrong: int = 0) -> dict[str, Human]:
    """People that go by "good", the first `wrong` of them the other way round."""
    return {
        p.id: Human((good(p.student) < good(p.teacher)) != (n < wrong), good(p.student))
        for n, p in enumerate(rows)
    }


def judged(app: Any, tmp_path: Path, rows: Sequence[TextPair], model: str = "judge-1", **more: Any) -> JudgeReport:  # fmt: skip
    asked = asks(rows, URL, model, PRICE)
    found = ask(app, tmp_path, [one.job for one in asked])
    replies = {job.hash: reply for job, reply in found.answers}
    said = eval_judge.verdicts(asked, replies)
    return eval_judge.report(model, said, replies, more.pop("human", {}), **more)


def test_a_fair_judge_that_agrees_with_people_may_gate(tmp_path: Path) -> None:
    rows, app = pairs(), judge_app(good)
    found = judged(app, tmp_path, rows, human={"labels": people(rows, wrong=3)})
    assert (found.pairwise.wins, found.pairwise.ties, found.pairwise.losses) == (20, 20, 20)
    assert found.pairwise.win_rate.value == pytest.approx(0.5)
    assert found.pairwise.consistent.share == 1.0
    assert found.pointwise.student.value == pytest.approx(2.0)
    assert found.pointwise.difference.value == pytest.approx(0.0)
    assert found.agreement is not None
    assert found.agreement.agreed.right == 57
    assert found.agreement.kappa == pytest.approx(0.4 / 0.45)
    assert found.agreement.spearman == pytest.approx(1.0)
    assert (found.may_gate, found.warnings, found.unread) == (True, (), 0)
    bodies = app.state.asked
    assert len(bodies) == 4 * 60
    assert {b["temperature"] for b in bodies} == {0}


def test_equal_answers_are_ties_that_nobody_is_asked_about(tmp_path: Path) -> None:
    same = [TextPair(f"s{n}", f"request {n}", "good", "good ", None) for n in range(5)]
    rows, app = [*pairs(6), *same], judge_app(good)
    found = judged(app, tmp_path, rows, human={"labels": people(rows)})
    assert (found.pairwise.equal, found.pairwise.ties) == (5, 7)
    assert found.pairwise.consistent.rows == 6
    assert found.human_labels == {"labels": 6}, "agreeing on them is no merit"
    contents = [b["messages"][-1]["content"] for b in app.state.asked]
    assert sum("Answer A" in content for content in contents) == 12


@pytest.mark.parametrize(("place", "word"), [(10.0, "first"), (-10.0, "second")])
def test_a_judge_that_goes_by_place_is_noticed(tmp_path: Path, place: float, word: str) -> None:
    rows = pairs()
    found = judged(judge_app(good, place), tmp_path, rows, human={"labels": people(rows)})
    assert (found.pairwise.consistent.right, found.pairwise.consistent.rows) == (0, 60)
    assert found.pairwise.ties == 60, "an answer that wins in one place only has not won"
    assert found.pairwise.favours_first.share == (1.0 if place > 0 else 0.0)
    assert any(f"mostly for the {word} answer" in w for w in found.warnings)
    assert not found.may_gate
    assert "both orders agree on 0 %" in found.why


def test_a_judge_that_likes_length_is_noticed_and_its_win_rate_is_given_at_equal_length(
    tmp_path: Path,
) -> None:
    rows = [
        TextPair(f"p{n}", f"request {n}", "word " * (2 + n % 5), "word " * (4 + n % 6), None)
        for n in range(60)
    ]
    found = judged(judge_app(wordy), tmp_path, rows)
    assert found.length.correlation is not None
    assert found.length.correlation > 0.8
    assert any("go with length" in w for w in found.warnings)
    assert found.length.words_more > 1
    assert found.length.win_rate is not None
    assert found.length.win_rate < 0.65 < 0.8 < found.pairwise.win_rate.value


@pytest.mark.parametrize(
    ("labels", "wrong", "why"),
    [
        pytest.param(0, 0, "0 of people's labels, 50 are needed", id="nobody looked"),
        pytest.param(30, 0, "30 of people's labels, 50 are needed", id="few looked"),
        pytest.param(60, 25, "0.6 is needed", id="people say otherwise"),
    ],
)
def test_a_judge_may_not_gate(tmp_path: Path, labels: int, wrong: int, why: str) -> None:
    rows = pairs()
    found = judged(judge_app(good), tmp_path, rows, human={"labels": people(rows[:labels], wrong)})
    assert not found.may_gate
    assert why in found.why
    assert found.human_labels == {"labels": labels}


def test_labels_that_are_all_alike_show_nothing(tmp_path: Path) -> None:
    rows = pairs()
    fine = {p.id: Human(False) for p in rows}
    found = judged(judge_app(lambda _: 3.0), tmp_path, rows, human={"reviews": fine})
    assert not found.may_gate
    assert "all alike" in found.why


def test_scores_and_verdicts_of_people_are_not_mixed(tmp_path: Path) -> None:
    """Verdicts are 0 and 1, scores 1 to 5: side by side a right answer without a score would look like the worst."""
    rows = pairs()
    some = {n: Human(h.is_worse, h.score if i % 2 else None) for i, (n, h) in enumerate(people(rows).items())}  # fmt: skip
    found = judged(judge_app(good), tmp_path, rows, human={"labels": some}).agreement
    assert found is not None
    assert found.spearman == pytest.approx(1.0), "by the 30 scores alone"
    few = {n: Human(h.is_worse, h.score if i < 9 else None) for i, (n, h) in enumerate(people(rows).items())}  # fmt: skip
    found = judged(judge_app(good), tmp_path / "b", rows, human={"labels": few}).agreement
    assert found is not None
    assert found.spearman is not None
    assert 0.8 < found.spearman < 1, "by all verdicts"


def test_kin_are_named(tmp_path: Path) -> None:
    others = [("teacher", "gpt-4o"), ("student", "HuggingFaceTB/SmolLM2-135M")]
    found = judged(judge_app(good), tmp_path, pairs(6), model="openai/gpt-4.1", others=others)
    assert [w for w in found.warnings if "family" in w] == [found.warnings[0]]
    assert "teacher gpt-4o" in found.warnings[0]
    assert family_of("o3-mini") == family_of("ft:gpt-4o-mini".removeprefix("ft:")) == "openai"
    assert family_of("meta-llama/Llama-3.1-8B") != family_of("claude-sonnet-4")
    assert family_of("HuggingFaceTB/SmolLM2-360M") == family_of("smollm2-1.7b")


def test_replies_without_a_verdict_are_counted(tmp_path: Path) -> None:
    found = judged(judge_app(good, form="I would rather not say."), tmp_path, pairs(6))
    assert found.unread > 0
    assert found.pairwise.consistent.rows == 0
    fenced = judged(judge_app(good, form="```json\n{}\n```"), tmp_path / "b", pairs(6))
    assert fenced.unread == 0


def test_other_instructions_are_another_series() -> None:
    assert instructions_digest("a") == instructions_digest(" a\n") != instructions_digest("b")
    asked = asks(pairs(1), URL, "m", PRICE, rubric="5: polite")
    assert "5: polite" in asked[-1].job.body["messages"][0]["content"]


@pytest.mark.parametrize(
    ("text", "score"),
    [('{"score": 4}', 4), ('{"score": "2"}', 2), ("score: 5", 5), ('{"score": 6}', None), ("5 of 5", None), ('{"score": 2.5}', None), ("3", 3),
     ('{"score": "4.0"}', 4), ("score: 4.5", None), ('{"score": true}', None), ('{"score": 1' + "0" * 400 + "}", None)],
)  # fmt: skip
def test_scores_are_read(text: str, score: int | None) -> None:
    assert score_of(text) == score


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "line 1: not JSON"),
        ("[1]", "line 1: allowed: an object"),
        ('{"input": "a", "student": "b"}', "line 1: teacher = None: allowed: a text"),
        ('{"input": "a", "student": "b", "teacher": "c", "better": "me"}', "better = 'me': allowed: student, teacher, tie"),
        ('{"input": "a", "student": "b", "teacher": "c", "better": "tie", "score": 9}', "score = 9: allowed: 1 to 5"),
        ("", "no labels"),
    ],
)  # fmt: skip
def test_bad_labels_are_refused(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        labels_of_file(path)


def test_labels_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text('{"input": "a", "student": "b", "teacher": "c", "better": "teacher", "score": 2}\n')  # fmt: skip
    ((pair, word),) = labels_of_file(path).values()
    assert (pair.text, pair.student, pair.teacher, word) == ("a", "b", "c", Human(True, 2))


@pytest.mark.parametrize(
    ("models", "url", "prices", "message"),
    [
        (["m"], None, (0, 0), "--judge-url None"),
        (["m"], "judge", (0, 0), "--judge-url 'judge': allowed: http"),
        (["m"], URL, (None, 1), "--judge-input-price"),
        (["m", "m"], URL, (0, 0), "each model once"),
    ],
)
def test_bad_options_are_refused(models: list[str], url: str | None, prices: Any, message: str) -> None:  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        options_of(models, url, prices, 10, None)
