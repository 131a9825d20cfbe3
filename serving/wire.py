"""What both dialects share: the server's limits, a checked request, and how lengths are refused. Pure.

Bytes come in through `wire_native` (LoRAX) and `wire_openai`; both give an `Ask`. Past here nothing knows the dialect.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from serving.errors import InvalidRequest
from serving.generation import Job, Sampling


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for; names and defaults are LoRAX's."""

    max_input_length: int
    max_total_tokens: int
    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_choices: int = 8
    max_allowed_texts: int = 1000
    max_schema_characters: int = 65_536
    """A grammar of so much is compiled in a third of a second."""
    max_body_bytes: int = 2_000_000


@dataclass(frozen=True, slots=True)
class Ask:
    """A request whose parameters hold, before its text is made into tokens."""

    adapter_id: str | None
    sampling: Sampling
    """Its `max_new_tokens` counts only once `job` has set it."""
    max_new_tokens: int | None = None
    num_sequences: int = 1
    want_prompt_logprobs: bool = False

    def job(self, prompt_ids: Sequence[int], limits: Limits, version: str | None = None) -> Job:
        """The generation to submit; `version` is what `adapter_id` means now.

        Raises:
            InvalidRequest: the prompt, or prompt and answer together, are longer than the limits; with the numbers.
        """
        length = len(prompt_ids)
        if length == 0:
            raise InvalidRequest("`inputs` cannot be empty")
        wanted = self.max_new_tokens
        if wanted is not None and length + wanted > limits.max_total_tokens:
            raise InvalidRequest(
                f"`inputs` tokens + `max_new_tokens` must be <= {limits.max_total_tokens}. "
                f"Given: {length} `inputs` tokens and {wanted} `max_new_tokens`"
            )
        if length > limits.max_input_length or length >= limits.max_total_tokens:
            allowed = min(limits.max_input_length, limits.max_total_tokens - 1)
            raise InvalidRequest(f"`inputs` must have less than {allowed} tokens. Given: {length}")
        budget = limits.max_total_tokens - length if wanted is None else wanted
        return Job(
            prompt_ids=tuple(prompt_ids),
            sampling=replace(self.sampling, max_new_tokens=budget),
            adapter_id=version,
            want_prompt_logprobs=self.want_prompt_logprobs,
        )


def check(holds: bool, message: str) -> None:
    """Nothing when it holds.

    Raises:
        InvalidRequest: with the message.
    """
    if not holds:
        raise InvalidRequest(message)


def check_penalties(frequency: float | None, presence: float | None) -> None:
    """Both penalties are from -2 to 2; raises InvalidRequest."""
    for name, value in (("frequency_penalty", frequency), ("presence_penalty", presence)):
        check(value is None or -2 <= value <= 2, f"`{name}` must be between -2.0 and 2.0")


def check_seed(seed: int | None) -> None:
    """A seed is an unsigned 64-bit number; raises InvalidRequest."""
    check(seed is None or 0 <= seed < 2**64, "`seed` must be from 0 to 18446744073709551615")


def schema_text(schema: object, limits: Limits) -> str:
    """A JSON Schema as text; an object, or text that holds one (LoRAX takes both).

    Raises:
        InvalidRequest: not a schema object, or longer than the limit.
    """
    try:
        if isinstance(schema, str):
            schema = msgspec.json.decode(schema)
        check(
            isinstance(schema, dict | bool), "`response_format` schema must be a JSON Schema object"
        )
        text = msgspec.json.encode(schema).decode()
    except msgspec.DecodeError as why:
        raise InvalidRequest(f"`response_format` schema is not JSON: {why}") from why
    except RecursionError as why:
        raise InvalidRequest("`response_format` schema is nested too deep") from why
    check(
        len(text) <= limits.max_schema_characters,
        f"`response_format` schema must have at most {limits.max_schema_characters} characters. Given: {len(text)}",
    )
    return text


def allowed_texts(name: str, texts: Sequence[str] | None, limits: Limits) -> tuple[str, ...]:
    """The texts of which the output must be one; () when there is no such wish.

    Raises:
        InvalidRequest: a wish for one of none, which must not become a free answer, or for one of too many.
    """
    if texts is None:
        return ()
    characters = sum(map(len, texts))
    check(
        1 <= len(texts) <= limits.max_allowed_texts
        and characters <= limits.max_schema_characters
        and all(texts),
        f"`{name}` must be 1 to {limits.max_allowed_texts} texts, none of them empty, of at most "
        f"{limits.max_schema_characters} characters together. Given: {len(texts)} of {characters} characters",
    )
    return tuple(texts)


def adapter_or_base(name: str | None, base_id: str) -> str | None:
    """The adapter that a name means; None for the base model."""
    return None if name in (None, "", base_id) else name
