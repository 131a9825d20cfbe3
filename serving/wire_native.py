"""LoRAX's native dialect: request bodies, their bounds, and the replies. Pure; texts of errors are LoRAX's.

Every parameter may be null (lorax-client sends all of them, always); unknown fields are ignored.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from serving.errors import AdapterFailed
from serving.generation import Finished, Sampling, TokenOut
from serving.wire import (
    Ask,
    Limits,
    adapter_or_base,
    allowed_texts,
    check,
    check_penalties,
    check_seed,
    schema_text,
)

SOURCES = ("hub", "local", "s3", "pbase")
STRATEGIES = ("linear", "ties", "dare_linear", "dare_ties")
SIGN_METHODS = ("total", "frequency")


class MergedAdapters(msgspec.Struct):
    """Adapters to merge; checked, then refused: this server does not merge."""

    ids: list[str]
    weights: list[float]
    merge_strategy: str | None = None
    density: float | None = None
    majority_sign_method: str | None = None


class ResponseFormat(msgspec.Struct):
    """A constraint on the output; `schema` left out is "any JSON object", null is no constraint."""

    type: Literal["text", "json_object", "json_schema"]
    """Must be one of these, and makes no difference."""
    schema: Any = msgspec.UNSET


class Parameters(msgspec.Struct):
    """LoRAX's `parameters`, and `choices`: the output must be one of these texts."""

    adapter_id: str | None = None
    adapter_source: str | None = None
    merged_adapters: MergedAdapters | None = None
    api_token: str | None = None
    best_of: int | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool | None = None
    max_new_tokens: int | None = None
    ignore_eos_token: bool | None = None
    return_full_text: bool | None = None
    stop: list[str] | None = None
    truncate: int | None = None
    watermark: bool | None = None
    details: bool | None = None
    decoder_input_details: bool | None = None
    return_k_alternatives: int | None = None
    apply_chat_template: bool | None = None
    seed: int | None = None
    response_format: ResponseFormat | None = None
    choices: list[str] | None = None

    @property
    def wants_details(self) -> bool:
        """Whether the reply carries `details`."""
        return bool(self.details or self.decoder_input_details)


class NativeRequest(msgspec.Struct):
    """Body of `/`, `/generate` and `/generate_stream`."""

    inputs: str
    parameters: Parameters | None = None
    stream: bool | None = None


class TokenizeRequest(msgspec.Struct):
    """Body of `/tokenize`."""

    inputs: str
    add_special_tokens: bool | None = None


def ask(request: NativeRequest, limits: Limits, base_id: str, *, streaming: bool) -> Ask:
    """The checked request.

    Raises:
        InvalidRequest: a parameter outside its bounds.
        AdapterFailed: an adapter source that does not exist.
    """
    p = request.parameters or Parameters()
    _check_adapter(p)
    best_of = 1 if p.best_of is None else p.best_of
    narrowing = (p.temperature, p.top_k, p.top_p, p.typical_p)
    samples = bool(p.do_sample) or any(value is not None for value in narrowing)
    _check_sequences(p, best_of, samples, limits, streaming)
    _check_sampling(p)
    _check_lengths(request.inputs, p, limits)
    check(not p.watermark, "`watermark` is not supported by this server")
    schema = None
    if p.response_format is not None and p.response_format.schema is not None:
        given = p.response_format.schema
        schema = schema_text({"type": "object"} if given is msgspec.UNSET else given, limits)
    choices = allowed_texts("choices", p.choices, limits)
    check(not (schema and choices), "at most one of `response_format` or `choices` may be given")
    return Ask(
        adapter_id=adapter_or_base(p.adapter_id, base_id),
        sampling=Sampling(
            max_new_tokens=0,
            # A temperature of exactly 1 does not turn sampling on by itself.
            do_sample=bool(p.do_sample) or p.temperature not in (None, 1.0) or _narrows(p),
            temperature=1.0 if p.temperature is None else p.temperature,
            top_k=p.top_k,
            top_p=None if p.top_p == 1.0 else p.top_p,
            typical_p=p.typical_p,
            repetition_penalty=1.0 if p.repetition_penalty is None else p.repetition_penalty,
            frequency_penalty=p.frequency_penalty or 0.0,
            presence_penalty=p.presence_penalty or 0.0,
            seed=p.seed,
            stop=tuple(p.stop or ()),
            ignore_eos=bool(p.ignore_eos_token),
            json_schema=schema,
            choices=choices,
            num_alternatives=p.return_k_alternatives or 0,
        ),
        max_new_tokens=p.max_new_tokens,
        num_sequences=best_of,
        want_prompt_logprobs=bool(p.decoder_input_details),
    )


def _narrows(p: Parameters) -> bool:
    return p.top_k is not None or p.typical_p is not None or p.top_p not in (None, 1.0)


def _check_adapter(p: Parameters) -> None:
    if p.adapter_source is not None and p.adapter_source.lower() not in SOURCES:
        raise AdapterFailed(f"Invalid source {p.adapter_source!r}; allowed: {', '.join(SOURCES)}")
    merged = p.merged_adapters
    if merged is None:
        return
    check(not p.adapter_id, "at most one of `adapter_id` or `adapters` may be provided")
    check(bool(merged.ids), "at least one adapter ID must be provided when setting `adapters`")
    check(
        len(merged.ids) == len(merged.weights),
        "number of adapter IDs must match number of adapter weights",
    )
    strategy = merged.merge_strategy or "linear"
    check(strategy in STRATEGIES, f"`merge_strategy` must be one of {', '.join(STRATEGIES)}")
    sign = merged.majority_sign_method or "total"
    check(sign in SIGN_METHODS, f"`majority_sign_method` must be one of {', '.join(SIGN_METHODS)}")
    check(
        False,
        "`merged_adapters` is not supported by this server: publish the merged adapter instead",
    )


def _check_sequences(
    p: Parameters, best_of: int, samples: bool, limits: Limits, streaming: bool
) -> None:
    check(
        1 <= best_of <= limits.max_best_of,
        f"`best_of` must be > 0 and <= {limits.max_best_of}. Given: {best_of}",
    )
    check(best_of == 1 or samples, "you must use sampling when `best_of` is > 1")
    check(best_of == 1 or p.seed is None, "`seed` must not be set when `best_of` > 1")
    check(best_of == 1 or not streaming, "`best_of` != 1 is not supported when streaming tokens")
    check(
        not (streaming and p.decoder_input_details),
        "`decoder_input_details` == true is not supported when streaming tokens",
    )
    stops = p.stop or []
    check(
        len(stops) <= limits.max_stop_sequences,
        f"`stop` supports up to {limits.max_stop_sequences} stop sequences. Given: {len(stops)}",
    )
    check(all(stops), "`stop` sequences cannot be empty")


def _check_sampling(p: Parameters) -> None:
    check(p.temperature is None or p.temperature >= 0, "`temperature` must be non-negative")
    check(
        p.repetition_penalty is None or p.repetition_penalty > 0,
        "`repetition_penalty` must be strictly positive",
    )
    check_penalties(p.frequency_penalty, p.presence_penalty)
    check(p.top_k is None or p.top_k > 0, "`top_k` must be strictly positive")
    check(p.top_p is None or 0 < p.top_p <= 1, "`top_p` must be > 0.0 and <= 1.0")
    check(p.typical_p is None or 0 < p.typical_p < 1, "`typical_p` must be > 0.0 and < 1.0")
    check(
        p.return_k_alternatives is None or p.return_k_alternatives > 0,
        "`return_k_alternatives` must be strictly positive",
    )
    check_seed(p.seed)


def _check_lengths(inputs: str, p: Parameters, limits: Limits) -> None:
    check(inputs != "", "`inputs` cannot be empty")
    check(
        p.max_new_tokens is None or p.max_new_tokens > 0,
        "`max_new_tokens` must be strictly positive",
    )
    check(
        p.truncate is None or 0 < p.truncate <= limits.max_input_length,
        "`truncate` must be strictly positive and less than "
        f"{limits.max_input_length}. Given: {p.truncate}",
    )


def logprob(value: float | None) -> float | None:
    """A log-probability as JSON has it: null when it is not a finite number."""
    return value if value is not None and math.isfinite(value) else None


def token(out: TokenOut) -> dict[str, Any]:
    """LoRAX's Token."""
    body: dict[str, Any] = {
        "id": out.id,
        "text": out.text,
        "logprob": logprob(out.logprob),
        "special": out.special,
        "skipped": out.skipped,
    }
    if out.alternatives:
        body["alternative_tokens"] = [
            {"id": number, "text": text, "logprob": logprob(value)}
            for number, text, value in out.alternatives
        ]
    return body


def _sequence(end: Finished, tokens: Sequence[TokenOut]) -> dict[str, Any]:
    return {
        "finish_reason": end.reason,
        "generated_tokens": end.generated_tokens,
        "seed": end.seed,
        "prefill": [
            {"id": number, "text": text, "logprob": logprob(value)}
            for number, text, value in end.prefill
        ],
        "tokens": [token(out) for out in tokens],
    }


def response(
    request: NativeRequest, sequences: Sequence[tuple[Finished, Sequence[TokenOut]]]
) -> dict[str, Any]:
    """GenerateResponse; of several sequences the first is the answer, the others are `best_of_sequences`."""
    p = request.parameters or Parameters()
    start = request.inputs if p.return_full_text else ""
    end, tokens = sequences[0]
    body: dict[str, Any] = {"generated_text": start + end.text}
    if p.wants_details:
        details = _sequence(end, tokens)
        details |= {"prompt_tokens": end.prompt_tokens, "skipped_tokens": end.skipped_tokens}
        if len(sequences) > 1:
            details["best_of_sequences"] = [
                {"generated_text": start + other.text, **_sequence(other, out)}
                for other, out in sequences[1:]
            ]
        body["details"] = details
    return body


def stream_event(
    request: NativeRequest, out: TokenOut, end: Finished | None = None
) -> dict[str, Any]:
    """One event of a native stream; the last one carries `end`."""
    p = request.parameters or Parameters()
    body: dict[str, Any] = {"token": token(out), "generated_text": None, "details": None}
    if end is not None:
        body["generated_text"] = (request.inputs if p.return_full_text else "") + end.text
        if p.wants_details:
            body["details"] = {
                "finish_reason": end.reason,
                "prompt_tokens": end.prompt_tokens,
                "generated_tokens": end.generated_tokens,
                "seed": end.seed,
            }
    return body
