"""An LLM as judge of two answers, asked in both orders over the OpenAI API.

Judges favour a place: whoever is shown first or second. So the student counts as worse only when the judge says so in both
orders; answers that contradict each other are a tie, and how many do is reported. A judge is not the truth: what its
verdicts are worth is measured against people's labels (`monitoring.judge_calibration`).
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from monitoring.text_pairs import TextPair

Said = Literal["A", "B", "tie"]
Winner = Literal["student", "teacher", "tie"]
TRIES, WAIT_SECONDS = 3, 0.5
RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504, 529})
INSTRUCTION = (
    "Two assistants answered the same request. Say which answer serves the asker better: judge what is right and complete, "
    "not style or length. Where both are as good, say tie. Answer with one JSON object and nothing else: "
    '{"better": "A"}, {"better": "B"} or {"better": "tie"}.'
)
_WORD = re.compile(r'"?better"?\s*[:=]\s*"?(A|B|tie)\b', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Judged:
    """What the judge said of one pair. `winner` is None when one of the two orders got no answer that can be read."""

    pair: TextPair
    winner: Winner | None
    is_consistent: bool = True
    """Whether both orders said the same."""

    @property
    def is_worse(self) -> bool:
        """The student is."""
        return self.winner == "teacher"


def messages(pair: TextPair, student_first: bool) -> list[dict[str, str]]:
    """The chat that asks about one pair in one order."""
    first, second = (pair.student, pair.teacher) if student_first else (pair.teacher, pair.student)
    asked = f"Request:\n{pair.text}\n\nAnswer A:\n{first}\n\nAnswer B:\n{second}"
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": asked}]


def said_of(text: str) -> Said | None:
    """The verdict in a reply; None when there is none."""
    try:
        value = json.loads(text)
        word = str(value["better"]) if isinstance(value, dict) else text
    except (ValueError, KeyError):
        found = _WORD.search(text)
        word = found[1] if found else text.strip(" .\"'`")
    return {"a": "A", "b": "B", "tie": "tie"}.get(word.lower())  # type: ignore[return-value]


def settled(pair: TextPair, student_first: Said | None, teacher_first: Said | None) -> Judged:
    """Both orders' verdicts as one."""
    if student_first is None or teacher_first is None:
        return Judged(pair, None)
    one: Winner = {"A": "student", "B": "teacher", "tie": "tie"}[student_first]  # type: ignore[assignment]
    two: Winner = {"A": "teacher", "B": "student", "tie": "tie"}[teacher_first]  # type: ignore[assignment]
    return Judged(pair, one) if one == two else Judged(pair, "tie", is_consistent=False)


async def judged(
    client: httpx.AsyncClient,
    model: str,
    pairs: Sequence[TextPair],
    *,
    concurrency: int = 8,
    tell: Callable[[int, int], None] = lambda done, total: None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> list[Judged]:
    """Ask about every pair in both orders.

    Args:
        client: with the API's base URL, `/v1` included, and its key.

    Raises:
        httpx.HTTPStatusError: the judge refuses us (401, 403, 404): so it would every other request.
    """
    gate, done = asyncio.Semaphore(concurrency), 0

    async def one(pair: TextPair) -> Judged:
        nonlocal done
        async with gate:
            said = [
                await _ask(client, model, messages(pair, order), sleep) for order in (True, False)
            ]
        done += 1
        tell(done, len(pairs))
        return settled(pair, *said)

    return list(await asyncio.gather(*(one(pair) for pair in pairs)))


async def _ask(
    client: httpx.AsyncClient,
    model: str,
    chat: list[dict[str, str]],
    sleep: Callable[[float], Awaitable[None]],
) -> Said | None:
    body: dict[str, Any] = {"model": model, "messages": chat, "temperature": 0, "max_tokens": 50}
    for number in range(TRIES):
        if number:
            await sleep(WAIT_SECONDS * 2**number)
        try:
            reply = await client.post("chat/completions", json=body)
        except httpx.TransportError:
            continue
        if reply.status_code in RETRIED:
            continue
        reply.raise_for_status()
        try:
            return said_of(str(reply.json()["choices"][0]["message"]["content"]))
        except (ValueError, KeyError, IndexError, TypeError):
            return None
    return None
