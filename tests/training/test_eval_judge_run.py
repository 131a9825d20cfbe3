"""Judges over a test set: JSON rows that gold speaks of, a cap, and judges that say nothing."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.answer_spec import AnswerSpec
from router.policy import Price
from tests.training.judges import judge_app
from tests.training.labelling import Sleeps
from tests.training.test_evaluate import Guesser, gold_dataset
from training import evaluate
from training.errors import DataError
from training.eval_judge_run import JudgeOptions, judged, pairs_of
from training.label import Job
from training.label_cache import Cache
from training.label_teacher import Asked, Asker, Budget

URL = "http://judge/v1"


def asker(app: Any, folder: Path, usd: float = 1.0) -> Callable[[Sequence[Job]], Asked]:
    """Asks the app under a cap."""

    def ask(jobs: Sequence[Job]) -> Asked:
        async def run() -> Asked:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
                cache = Cache(folder / "cache.db")
                try:
                    return await Asker(client, cache, Budget(usd), sleep=Sleeps()).ask(jobs)
                finally:
                    cache.close()

        return asyncio.run(run())

    return ask


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[evaluate.TestReport, AnswerSpec]:
    made = gold_dataset(tmp_path_factory.mktemp("judged") / "d")
    report = evaluate.evaluate(made, Guesser(3))
    return report.tests[0], AnswerSpec.model_validate(made.info.answer)


def options(rows: int = 1000, price: float = 0.0) -> JudgeOptions:
    return JudgeOptions(("judge-1",), URL, Price(input=price, output=price), rows)


def test_gold_answers_are_peoples_words_on_json_rows(
    scored: tuple[evaluate.TestReport, AnswerSpec], tmp_path: Path
) -> None:
    """A judge that likes "refund" is right by chance alone; gold knows better."""
    test, spec = scored
    app = judge_app(lambda text: 1 + text.count("refund"))
    (found,) = judged(test, spec, options(), {}, (), asker(app, tmp_path))
    same = sum(p.student == p.teacher for p in pairs_of(test, spec, 1000))
    assert found.human_labels == {"gold": test.rows - same}
    assert found.agreement is not None
    student, teacher = (test.line(name).figures.right for name in ("student", "teacher"))
    worse = [t and not s for s, t in zip(student, teacher, strict=True)]
    assert found.agreement.caught.rows == sum(worse)
    assert not found.may_gate
    assert found.pairwise.equal == same > 0
    assert found.pairwise.consistent.rows == test.rows - same


def test_rows_are_spread_and_the_cost_is_what_the_replies_took(
    scored: tuple[evaluate.TestReport, AnswerSpec], tmp_path: Path
) -> None:
    test, spec = scored
    app = judge_app(lambda text: 3.0)
    (found,) = judged(test, spec, options(rows=8, price=1.0), {}, (), asker(app, tmp_path))
    assert found.rows == 8
    assert found.usd == pytest.approx(len(app.state.asked) * 110 / 1e6)
    (again,) = judged(test, spec, options(rows=8, price=1.0), {}, (), asker(app, tmp_path))
    assert again == found, "paid for once: the second run asks nothing"
    assert len(pairs_of(test, spec, 8)) == 8


def test_the_cap_ends_it(scored: tuple[evaluate.TestReport, AnswerSpec], tmp_path: Path) -> None:
    test, spec = scored
    ask = asker(judge_app(lambda text: 3.0), tmp_path, usd=0.001)
    with pytest.raises(DataError, match=r"the cap was reached with .* greater --judge-max-usd"):
        judged(test, spec, options(price=1.0), {}, (), ask)


@pytest.mark.parametrize(
    ("app", "why"),
    [
        pytest.param(judge_app(lambda _: 3.0, form="no idea"), "no reply has a verdict", id="mumbles"),
        pytest.param(judge_app(lambda _: 3.0, status=404), "HTTP 404: no such key", id="is not there"),
    ],
)  # fmt: skip
def test_a_judge_without_a_verdict_is_refused(
    scored: tuple[evaluate.TestReport, AnswerSpec], tmp_path: Path, app: Any, why: str
) -> None:
    test, spec = scored
    with pytest.raises(DataError, match=f"judge judge-1 at {URL}: {why}"):
        judged(test, spec, options(rows=4), {}, (), asker(app, tmp_path))
