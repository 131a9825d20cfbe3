"""Text answers compared anew: by vectors, by a judge in both orders, and what the verdicts are worth."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from monitoring import encoder
from monitoring.judge import judged, said_of, settled
from monitoring.judge_calibration import calibrated
from monitoring.text_pairs import TextPair, sampled
from router.records import Comparison
from tests.monitoring.conftest import answer, record

PAIRS = [
    TextPair("good", "How do I reset it?", "Hold the button.", "Keep the button pressed.", False),
    TextPair("bad", "How do I pay?", "By card.", "WRONG", False),
    TextPair("biased", "Hello?", "Hello!", "FIRST wins", True),
]


def judge_app(asked: list[dict[str, Any]], broken: int = 0) -> Starlette:
    """A judge that finds WRONG answers, and lets the first win where somebody says FIRST."""

    async def chat(request: Request) -> JSONResponse:
        body = await request.json()
        asked.append(body)
        if len(asked) <= broken:
            return JSONResponse({"error": "busy"}, 503)
        text = body["messages"][-1]["content"]
        first, second = text.split("Answer A:\n")[1].split("\n\nAnswer B:\n")
        word = "B" if first == "WRONG" else "A" if second == "WRONG" or "FIRST" in text else "tie"
        said = json.dumps({"better": word})
        return JSONResponse({"choices": [{"message": {"role": "assistant", "content": said}}]})

    return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])


def ask(app: Starlette, pairs: list[TextPair]) -> dict[str, Any]:
    async def no_wait(_: float) -> None:
        return None

    async def run() -> list[Any]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://judge/v1/") as client:
            return await judged(client, "judge", pairs, sleep=no_wait, concurrency=1)

    return {one.pair.id: one for one in asyncio.run(run())}


def test_a_student_is_worse_only_when_both_orders_say_so() -> None:
    asked: list[dict[str, Any]] = []
    found = ask(judge_app(asked, broken=1), PAIRS)
    assert {name: one.winner for name, one in found.items()} == {
        "good": "tie", "bad": "teacher", "biased": "tie",
    }  # fmt: skip
    assert [name for name, one in found.items() if not one.is_consistent] == ["biased"]
    assert [one.is_worse for one in found.values()] == [False, True, False]
    assert len(asked) == 1 + 2 * len(PAIRS)  # the 503 is asked again


def test_a_judge_that_refuses_us_is_an_error_and_one_that_is_down_gives_no_verdict() -> None:
    async def refuse(_: Request) -> JSONResponse:
        return JSONResponse({"error": "no key"}, 401)

    route = Route("/v1/chat/completions", refuse, methods=["POST"])
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        ask(Starlette(routes=[route]), PAIRS)
    assert ask(judge_app([], broken=1_000), PAIRS)["bad"].winner is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"better": "A"}', "A"),
        ('```json\n{"better": "tie"}\n```', "tie"),
        ("B", "B"),
        ("I cannot say", None),
        ("[1]", None),
    ],
)
def test_verdicts_are_read_from_what_judges_write(text: str, said: str | None) -> None:
    assert said_of(text) == said


def test_one_order_without_a_verdict_is_no_verdict() -> None:
    assert settled(PAIRS[0], "A", None).winner is None
    assert settled(PAIRS[0], "A", "B").winner == "student"
    assert settled(PAIRS[0], "A", "tie").is_consistent is False


def test_verdicts_are_held_against_peoples_labels() -> None:
    generator = np.random.default_rng(0)
    truth = {str(n): bool(generator.random() < 0.2) for n in range(2_000)}
    # The judge misses a third of the wrong answers and calls a tenth of the right ones wrong.
    bad = {n: bool(generator.random() < (2 / 3 if wrong else 0.1)) for n, wrong in truth.items()}
    labelled = {n: truth[n] for n in list(truth)[:300]}
    found = calibrated(bad, labelled)
    assert found.agreed.rows == 300
    assert found.caught.low < 2 / 3 < found.caught.high
    assert found.false_alarms.low < 0.1 < found.false_alarms.high
    assert found.corrected is not None
    assert found.corrected.low < 0.2 < found.corrected.high
    assert found.corrected.high - found.corrected.low < 0.12
    assert calibrated(bad, {}).corrected is None


def test_pairs_are_a_uniform_sample_of_those_with_text() -> None:
    def made(number: int, student: str | None) -> Any:
        answers = (answer("teacher", "yes"), answer("student", student, adapter="mail/1"))
        return msgspec.structs.replace(
            record(number), answers=answers, comparison=Comparison("rouge_l", agree=False)
        )

    records = [made(n, "no" if n % 2 else None) for n in range(400)]
    found = sampled(records, 50)
    assert len(found) == 50
    assert all(int(pair.id[1:]) % 2 for pair in found)
    assert 140 < np.mean([int(pair.id[1:]) for pair in found]) < 260
    assert found == sampled(records, 50)
    assert sampled(records, 50, adapter="mail/2") == []


def test_a_folder_without_an_encoder_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(encoder.EncoderError, match=r"holds no model\.safetensors"):
        encoder.load(tmp_path)


def test_cosines_are_of_counterparts() -> None:
    def embed(texts: Any) -> Any:
        return np.array([[1.0, 0.0] if "a" in t else [0.0, 1.0] for t in texts], dtype=np.float32)

    assert list(encoder.similarities(embed, ["a", "a"], ["a", "b"])) == [1.0, 0.0]
