"""A judge asked: rows of a test set and pairs that people judged, cost first, answers kept, under one cap.

The shell around `eval_judge`: it knows the teachers' engine, the file of people's labels and the review queue.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monitoring.judge_calibration import HUMAN, calibrated
from monitoring.text_pairs import TextPair
from router.answer_spec import AnswerSpec
from router.policy import Price
from training.baselines import text_of
from training.encode import canonical
from training.errors import ConfigError, DataError
from training.eval_bits import spread
from training.eval_judge import RUBRIC, Human, JudgeReport, asks, report, verdicts
from training.evaluate import STUDENT, TEACHER, TestReport
from training.form import address
from training.label import Job, cost_of
from training.label_teacher import Asked

Labelled = dict[str, tuple[TextPair, Human]]
"""Id of a pair to its texts and a person's word."""
BETTER = ("student", "teacher", "tie")
MOST_REVIEWS = 500


@dataclass(frozen=True, slots=True)
class JudgeOptions:
    """Who is asked, about how many rows, and by what rubric."""

    models: tuple[str, ...]
    url: str
    price: Price
    rows: int = 100
    rubric: str = RUBRIC


def judged(
    test: TestReport,
    spec: AnswerSpec,
    options: JudgeOptions,
    labelled: Mapping[str, Labelled],
    others: Sequence[tuple[str, str]],
    ask: Callable[[Sequence[Job]], Asked],
) -> tuple[JudgeReport, ...]:
    """What each judge says of the student's answers, rows spread over the test set.

    Args:
        labelled: where people's labels come from → pairs that they judged.
        others: (whose, model name) of teacher and student.
        ask: asks the jobs and gives what came of them.

    Raises:
        DataError: no row has an answer of the teacher, or no verdict can be read.
        ConfigError: the judge does not let us in.
    """
    pairs = pairs_of(test, spec, options.rows)
    outside = {name: pair for labels in labelled.values() for name, (pair, _) in labels.items()}
    human = {source: {n: word for n, (_, word) in labels.items()} for source, labels in labelled.items()}  # fmt: skip
    if spec.kind != "text":
        human["gold"] = _by_gold(test, pairs)
    questions = {
        model: (
            asks(pairs, options.url, model, options.price, options.rubric),
            asks(outside.values(), options.url, model, options.price, options.rubric),
        )
        for model in options.models
    }
    asked = ask([one.job for both in questions.values() for part in both for one in part])
    if asked.left:
        raise DataError(
            f"judge: the cap was reached with {len(asked.left)} questions left; what is paid is kept: "
            "run again with a greater --judge-max-usd, or fewer --judge-rows"
        )
    replies = {job.hash: reply for job, reply in asked.answers}
    found = []
    for model, (main, extra) in questions.items():
        hashes = {one.job.hash for one in [*main, *extra]}
        mine = {name: reply for name, reply in replies.items() if name in hashes}
        rows = verdicts(main, mine)
        judge = report(model, rows, mine, human, verdicts(extra, mine), others, options.rubric)
        if judge.unread == len(main) + len(extra):
            why = asked.failed[0][1] if asked.failed else "no reply has a verdict"
            raise DataError(f"judge {model} at {options.url}: {why}")
        paid = {job.hash: cost_of(job, reply) for job, reply in asked.answers if job.hash in hashes}
        found.append((replace(judge, usd=sum(paid.values())), rows))
    return _beside_the_first(found)


def pairs_of(test: TestReport, spec: AnswerSpec, count: int) -> list[TextPair]:
    """Pairs of a test set with an answer of the teacher, at most `count`, spread over it.

    Both are in canonical form: a judge is to see what an answer says, not how its JSON is spaced.

    Raises:
        DataError: there are none.
    """
    has_teacher = [e for e in test.examples if e.teacher]
    if not has_teacher:
        raise DataError(f"judge: no {test.split} row has an answer of the teacher to compare with")
    said = dict(zip((e.id for e in test.examples), test.line(STUDENT).predictions, strict=True))
    form = spec.model_dump(mode="json", by_alias=True)
    return [
        TextPair(
            e.id, text_of(e), canonical(e.teacher or "", form), canonical(said[e.id].text, form), None
        )
        for e in spread(has_teacher, count)
    ]  # fmt: skip


def _by_gold(test: TestReport, pairs: Sequence[TextPair]) -> dict[str, Human]:
    """A person wrote the gold answer: the student is worse where the teacher alone said the same."""
    chosen = {pair.id for pair in pairs}
    student, teacher = test.line(STUDENT).figures.right, test.line(TEACHER).figures.right
    return {
        e.id: Human(teacher[i] and not student[i])
        for i, e in enumerate(test.examples)
        if e.id in chosen and e.gold is not None and test.reference == "gold"
    }


def _beside_the_first(
    found: Sequence[tuple[JudgeReport, Sequence[Any]]],
) -> tuple[JudgeReport, ...]:
    """Judges after the first, with their kappa with it."""
    worse = [
        {v.pair.id: v.judged.is_worse for v in rows if v.judged.winner is not None}
        for _, rows in found
    ]
    return tuple(
        one if not place else replace(one, kappa_with_first=calibrated(worse[place], worse[0]).kappa)
        for place, (one, _) in enumerate(found)
    )  # fmt: skip


def labels_of_file(path: Path) -> Labelled:
    """People's verdicts in JSON Lines: `input`, `student`, `teacher`, `better` (student, teacher or tie) and maybe `score`.

    Raises:
        DataError: the file, the line and the key that is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as why:
        raise DataError(f"{path}: cannot be read: {why}") from why
    found: Labelled = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            pair, word = _file_label(f"{path}: line {number}", number, line)
            found[pair.id] = pair, word
    if not found:
        raise DataError(f"{path}: no labels")
    return found


def _file_label(place: str, number: int, line: str) -> tuple[TextPair, Human]:
    try:
        data = json.loads(line)
    except ValueError as why:
        raise DataError(f"{place}: not JSON: {why}") from why
    if not isinstance(data, dict):
        raise DataError(f"{place}: allowed: an object")
    for key in ("input", "student", "teacher"):
        if not isinstance(data.get(key), str):
            raise DataError(f"{place}: {key} = {data.get(key)!r}: allowed: a text")
    if data.get("better") not in BETTER:
        raise DataError(f"{place}: better = {data.get('better')!r}: allowed: {', '.join(BETTER)}")
    score = data.get("score")
    is_number = isinstance(score, int | float) and not isinstance(score, bool)
    if score is not None and not (is_number and 1 <= score <= 5):
        raise DataError(f"{place}: score = {score!r}: allowed: 1 to 5")
    pair = TextPair(f"label {number}", data["input"], data["teacher"], data["student"], None)
    return pair, Human(data["better"] == "teacher", score)


def labels_of_reviews(url: str, route: str) -> Labelled:
    """Reviewed pairs of the monitor's queue: the very answers that the person saw, not what the student would say today."""
    from monitoring.review import ReviewQueue
    from monitoring.store import open_store

    store = open_store(url)
    try:
        queue = ReviewQueue(store)
        said = {label.record_id: label.verdict for label in queue.labels(route)}
        flags = queue.list(route, "decided", MOST_REVIEWS)
    finally:
        store.close()
    found: Labelled = {}
    for flag in flags:
        verdict = said.get(flag.record_id)
        if verdict in HUMAN and flag.student_text and flag.teacher_text:
            name = f"review {flag.record_id}"
            pair = TextPair(name, flag.input_text, flag.teacher_text, flag.student_text, None)
            found[name] = pair, Human(HUMAN[verdict])
    return found


def options_of(
    models: Sequence[str], url: str | None, prices: tuple[float | None, float | None], rows: int, rubric: Path | None
) -> JudgeOptions:  # fmt: skip
    """Options of the command, checked before anything takes time.

    Raises:
        ConfigError: what does not fit together.
    """
    if url is None or not url.startswith(("http://", "https://")):
        raise ConfigError(f"--judge-url {url!r}: allowed: http://… or https://…, with /v1")
    address(url, "--judge-url")
    if prices[0] is None or prices[1] is None:
        raise ConfigError(
            f"the price of {models[0]} is not known: give --judge-input-price and --judge-output-price in US dollars a "
            "million tokens (0 for a server of your own)"
        )
    if len(set(models)) < len(models):
        raise ConfigError(f"--judge {', '.join(models)}: allowed: each model once")
    text = RUBRIC
    if rubric is not None:
        try:
            text = rubric.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as why:
            raise ConfigError(f"--judge-rubric {rubric}: cannot be read: {why}") from why
        if not text.strip():
            raise ConfigError(f"--judge-rubric {rubric}: empty; allowed: what scores 1 to 5 mean")
    return JudgeOptions(tuple(models), url, Price(input=prices[0], output=prices[1]), rows, text)
