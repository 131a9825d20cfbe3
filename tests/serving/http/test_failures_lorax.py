"""Every error class of lorax-client 0.6.3, from both of its clients: which failures of the server become it, and which never do."""

import asyncio
from collections.abc import Callable
from typing import Any

import lorax
import pytest
from lorax import errors

from tests.serving.faulty import ENDS, FAILS

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")

NEVER = {
    errors.ShardNotReadyError: 424,
    errors.ShardTimeoutError: 504,
    errors.RateLimitExceededError: 429,
    errors.UnprocessableEntityError: 422,
}
"""Made of statuses without an `error_type`, as gateways send them; LoRAX and this server always send one with these."""
LOCAL = {errors.NotSupportedError}
"""Raised by the client's code for another service."""

TABLE: list[tuple[Callable[[Any, str], Any], str, type[Exception], str]] = [
    (lambda c, _: c.generate("x", top_k=3, seed=2**70), "", errors.ValidationError, "`seed` must be"),
    (lambda c, _: c.generate("x", adapter_id="foreign/1"), "", errors.GenerationError, "made for base model other"),
    (lambda c, _: c.generate(FAILS), "", errors.GenerationError, "Server error: a step failed"),
    (lambda c, _: c.generate(ENDS), "", errors.IncompleteGenerationError, "Incomplete generation"),
    (lambda c, _: c.embed("x"), "", errors.NotFoundError, "POST /embed is not served"),
    (lambda c, _: c.generate("x"), "/health", errors.UnknownError, "Error status 405"),
]  # fmt: skip


def name(row: tuple[Any, str, type[Exception], str]) -> str:
    return f"{row[2].__name__}: {row[3]}"


@pytest.mark.parametrize(("call", "path", "error", "part"), TABLE, ids=map(name, TABLE))
def test_a_failure_becomes_its_class(
    faulty_server: Any,
    call: Callable[[Any, str], Any],
    path: str,
    error: type[Exception],
    part: str,
) -> None:
    url = faulty_server.url + path
    with pytest.raises(error) as caught:
        call(lorax.Client(url, timeout=20), path)
    assert part in str(caught.value)
    with pytest.raises(error) as caught:
        asyncio.run(call(lorax.AsyncClient(url, timeout=1), path))
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "error"),
    [(FAILS, errors.GenerationError), (ENDS, errors.IncompleteGenerationError)],
)
def test_a_stream_that_fails_later_has_given_its_tokens_first(
    faulty_server: Any, prompt: str, error: type[Exception]
) -> None:
    """One token is held back until the next item, because the last one's event carries the end."""
    seen: list[Any] = []
    stream = lorax.Client(faulty_server.url, timeout=20).generate_stream(f"hello {prompt}")
    with pytest.raises(error):
        seen.extend(stream)
    assert all(event.generated_text is None for event in seen)

    async def story() -> list[Any]:
        client = lorax.AsyncClient(faulty_server.url, timeout=1)
        return [event async for event in client.generate_stream(f"hello {prompt}")]

    with pytest.raises(error):
        asyncio.run(story())


def test_a_full_queue_is_overloaded_in_a_stream_too(crowded_server: Any) -> None:
    async def story() -> list[object]:
        client = lorax.AsyncClient(crowded_server.url, timeout=1)

        async def ask() -> list[Any]:
            stream = client.generate_stream("hello", max_new_tokens=60, ignore_eos_token=True)
            return [event async for event in stream]

        return list(await asyncio.gather(*(ask() for _ in range(12)), return_exceptions=True))

    found = asyncio.run(story())
    assert {type(each) for each in found} == {list, errors.OverloadedError}


def test_every_class_is_accounted_for() -> None:
    classes = {
        each for each in vars(errors).values() if isinstance(each, type) and each is not dict
    }
    reached = {error for _, _, error, _ in TABLE} | {errors.OverloadedError, errors.BadRequestError}
    assert {each for each in classes if issubclass(each, Exception)} == reached | set(NEVER) | LOCAL
    for error, status in NEVER.items():
        assert type(errors.parse_error(status, {"error": "x"})) is error


def test_half_a_character_is_a_bad_request(faulty_server: Any) -> None:
    """A lone surrogate is no JSON. Such bodies are refused in plain text as LoRAX does, which the async client cannot read."""
    with pytest.raises(errors.BadRequestError):
        lorax.Client(faulty_server.url, timeout=20).generate("\ud800")
