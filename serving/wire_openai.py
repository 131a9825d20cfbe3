"""OpenAI's dialect, inwards: bodies of chat and text completions and their bounds. Pure.

Follows OpenAI where LoRAX differs (`stop` as a string, `max_completion_tokens`, log-probabilities, one choice for each
`n`); takes LoRAX's extra fields too. Fields not named here are ignored.
"""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from serving.errors import InvalidRequest
from serving.generation import Sampling
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


class JsonSchema(msgspec.Struct):
    """`response_format.json_schema`."""

    schema: dict[str, Any] | None = None
    name: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    """OpenAI's form, and LoRAX's with the schema directly in it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema: dict[str, Any] | str | None = None


class StructuredOutputs(msgspec.Struct):
    """vLLM's field; only `choice` and `json`."""

    choice: list[str] | None = None
    json: dict[str, Any] | str | None = None


class StreamOptions(msgspec.Struct):
    """`stream_options`."""

    include_usage: bool | None = None


class _Common(msgspec.Struct, kw_only=True):
    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    ignore_eos_token: bool | None = None
    ignore_eos: bool | None = None
    """vLLM's name for it."""
    structured_outputs: StructuredOutputs | None = None
    response_format: ResponseFormat | None = None

    @property
    def wants_stream_usage(self) -> bool:
        """Whether the stream ends with a chunk that holds the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class Message(msgspec.Struct):
    """One chat message; its content is a text, parts, or null."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None


class ChatRequest(_Common, kw_only=True):
    """Body of `/v1/chat/completions`."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    functions: list[dict[str, Any]] | None = None
    """What `tools` was called before."""


class CompletionRequest(_Common, kw_only=True):
    """Body of `/v1/completions`."""

    prompt: str | list[str]
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None


def chat_ask(request: ChatRequest, limits: Limits, base_id: str) -> Ask:
    """The checked request; raises InvalidRequest."""
    check(bool(request.messages), "messages: at least one message is needed")
    check(
        not (request.tools or request.functions) or request.tool_choice == "none",
        "tools: not supported by this server; ask for JSON by response_format instead",
    )
    check(
        request.top_logprobs is None or bool(request.logprobs),
        "top_logprobs: needs logprobs: true",
    )
    alternatives = request.top_logprobs or 0
    check(0 <= alternatives <= 20, f"top_logprobs: {alternatives}; allowed: 0 to 20")
    tokens = request.max_completion_tokens
    if tokens is None:
        tokens = request.max_tokens
    return _ask(request, limits, base_id, tokens, alternatives)


def completion_ask(request: CompletionRequest, limits: Limits, base_id: str) -> Ask:
    """The checked request; raises InvalidRequest."""
    single_prompt(request)
    alternatives = request.logprobs or 0
    check(0 <= alternatives <= 5, f"logprobs: {alternatives}; allowed: 0 to 5")
    check(
        request.best_of is None or request.best_of == (request.n or 1),
        f"best_of: {request.best_of}; allowed: the same as n",
    )
    # OpenAI's own default for this route is 16 tokens; LoRAX's is as many as fit.
    tokens = 16 if request.max_tokens is None else request.max_tokens
    return _ask(request, limits, base_id, tokens, alternatives)


def single_prompt(request: CompletionRequest) -> str:
    """The one prompt of a text completion; raises InvalidRequest when there are more."""
    prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    check(len(prompts) == 1, f"prompt: {len(prompts)} prompts; allowed: one a request")
    return prompts[0]


def _ask(
    request: _Common,
    limits: Limits,
    base_id: str,
    max_tokens: int | None,
    alternatives: int,
) -> Ask:
    num = 1 if request.n is None else request.n
    check(1 <= num <= limits.max_choices, f"n: {num}; allowed: 1 to {limits.max_choices}")
    check(max_tokens is None or max_tokens > 0, f"max_tokens: {max_tokens}; allowed: 1 or more")
    temperature = 1.0 if request.temperature is None else request.temperature
    check(0 <= temperature <= 2, f"temperature: {temperature:g}; allowed: 0 to 2")
    top_p = 1.0 if request.top_p is None else request.top_p
    check(0 < top_p <= 1, f"top_p: {top_p:g}; allowed: more than 0, at most 1")
    check(request.top_k is None or request.top_k > 0, "`top_k` must be strictly positive")
    repetition = 1.0 if request.repetition_penalty is None else request.repetition_penalty
    # A number that is next to nothing would make scores infinite, and that a failure of ours.
    check(1e-6 <= repetition <= 1e6, f"repetition_penalty: {repetition:g}; allowed: 1e-06 to 1e+06")
    check_penalties(request.frequency_penalty, request.presence_penalty)
    check_seed(request.seed)
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    check(
        len(stop) <= limits.max_stop_sequences and all(stop),
        f"stop: at most {limits.max_stop_sequences} texts, none of them empty; given: {len(stop)}",
    )
    schema, choices = _constraint(request, limits)
    return Ask(
        adapter_id=adapter_or_base(request.model, base_id),
        sampling=Sampling(
            max_new_tokens=0,
            do_sample=temperature > 0,
            temperature=temperature,
            top_k=request.top_k,
            top_p=None if top_p == 1 else top_p,
            repetition_penalty=repetition,
            frequency_penalty=request.frequency_penalty or 0.0,
            presence_penalty=request.presence_penalty or 0.0,
            seed=request.seed,
            stop=tuple(stop),
            ignore_eos=bool(request.ignore_eos_token or request.ignore_eos),
            json_schema=schema,
            choices=choices,
            num_alternatives=alternatives,
        ),
        max_new_tokens=max_tokens,
        num_sequences=num,
    )


def _constraint(request: _Common, limits: Limits) -> tuple[str | None, tuple[str, ...]]:
    """The schema that the output must satisfy, and the texts of which it must be one; at most one of them."""
    schema = _schema(request.response_format, limits)
    wanted = request.structured_outputs or StructuredOutputs()
    if wanted.json is not None:
        check(schema is None, "response_format: not together with structured_outputs.json")
        schema = schema_text(wanted.json, limits)
    choices = allowed_texts("structured_outputs.choice", wanted.choice, limits)
    check(
        not (choices and schema), "structured_outputs: choice and a JSON schema exclude each other"
    )
    return schema, choices


def _schema(form: ResponseFormat | None, limits: Limits) -> str | None:
    if form is None or form.type == "text":
        return None
    schema: Any = form.schema
    if schema is None and form.json_schema is not None:
        schema = form.json_schema.schema
    if schema is None:
        if form.type == "json_schema":
            raise InvalidRequest("response_format.json_schema.schema: missing")
        schema = {"type": "object"}
    return schema_text(schema, limits)


def text_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages with their content as one text; raises InvalidRequest for parts that are not text."""
    found = []
    for number, message in enumerate(messages):
        content = message.content or ""
        if not isinstance(content, str):
            for part in content:
                check(
                    part.get("type") == "text" and isinstance(part.get("text"), str),
                    f"messages[{number}].content: part of type {part.get('type')!r}; allowed: text",
                )
            content = "\n".join(part["text"] for part in content)
        found.append({"role": message.role, "content": content})
    return found
