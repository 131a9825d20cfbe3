"""Both dialects' bodies: bounds and error texts, replies, stop sequences, framing; nothing runs here."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest

from router.prompt import render
from serving import error_bodies, sse, wire_native, wire_openai
from serving import wire_openai_replies as replies
from serving.chat import render_chat, render_prompt
from serving.errors import AdapterFailed, InvalidRequest, ServingError, TemplateFailed
from serving.generation import Finished, Sampling, TokenOut
from serving.wire import Ask, Limits
from tests.tiny import tokenizer

LIMITS = Limits(max_input_length=20, max_total_tokens=32)


def native(parameters: dict[str, Any] | None, inputs: str = "Hi", streaming: bool = False) -> Ask:
    body = msgspec.json.encode({"inputs": inputs, "parameters": parameters})
    request = msgspec.json.decode(body, type=wire_native.NativeRequest)
    return wire_native.ask(request, LIMITS, "base", streaming=streaming)


def chat(**fields: Any) -> Ask:
    body = {"model": "base", "messages": [{"role": "user", "content": "Hi"}]} | fields
    request = msgspec.json.decode(msgspec.json.encode(body), type=wire_openai.ChatRequest)
    return wire_openai.chat_ask(request, LIMITS, "base")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"best_of": 0}, "`best_of` must be > 0 and <= 2. Given: 0"),
        ({"best_of": 3, "do_sample": True}, "`best_of` must be > 0 and <= 2. Given: 3"),
        ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
        ({"best_of": 2, "do_sample": True, "seed": 1}, "`seed` must not be set when `best_of` > 1"),
        ({"temperature": -0.1}, "`temperature` must be non-negative"),
        ({"repetition_penalty": 0}, "`repetition_penalty` must be strictly positive"),
        ({"frequency_penalty": 2.1}, "`frequency_penalty` must be between -2.0 and 2.0"),
        ({"presence_penalty": -2.1}, "`presence_penalty` must be between -2.0 and 2.0"),
        ({"top_k": 0}, "`top_k` must be strictly positive"),
        ({"top_p": 0.0}, "`top_p` must be > 0.0 and <= 1.0"),
        ({"top_p": 1.1}, "`top_p` must be > 0.0 and <= 1.0"),
        ({"typical_p": 1.0}, "`typical_p` must be > 0.0 and < 1.0"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
        ({"stop": list("abcde")}, "`stop` supports up to 4 stop sequences. Given: 5"),
        ({"stop": [""]}, "`stop` sequences cannot be empty"),
        ({"truncate": 0}, "`truncate` must be strictly positive and less than 20. Given: 0"),
        ({"truncate": 21}, "`truncate` must be strictly positive and less than 20. Given: 21"),
        ({"return_k_alternatives": 0}, "`return_k_alternatives` must be strictly positive"),
        ({"seed": -1}, "`seed` must be from 0 to 18446744073709551615"),
        (
            {"choices": []},
            "`choices` must be 1 to 1000 texts, none of them empty, of at most 65536 characters together. "
            "Given: 0 of 0 characters",
        ),
        (
            {"choices": ["a"] * 1001},
            "`choices` must be 1 to 1000 texts, none of them empty, of at most 65536 characters together. "
            "Given: 1001 of 1001 characters",
        ),
        ({"watermark": True}, "`watermark` is not supported by this server"),
        (
            {"adapter_id": "a", "merged_adapters": {"ids": ["a"], "weights": [1]}},
            "at most one of `adapter_id` or `adapters` may be provided",
        ),
        (
            {"merged_adapters": {"ids": [], "weights": []}},
            "at least one adapter ID must be provided when setting `adapters`",
        ),
        (
            {"merged_adapters": {"ids": ["a"], "weights": []}},
            "number of adapter IDs must match number of adapter weights",
        ),
        (
            {"merged_adapters": {"ids": ["a"], "weights": [1], "merge_strategy": "x"}},
            "`merge_strategy` must be one of linear, ties, dare_linear, dare_ties",
        ),
        (
            {"response_format": {"type": "json_object", "schema": [1]}},
            "`response_format` schema must be a JSON Schema object",
        ),
    ],
)  # fmt: skip
def test_a_native_parameter_outside_its_bounds_is_refused(
    parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        native(parameters)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"best_of": 2, "do_sample": True},
            "`best_of` != 1 is not supported when streaming tokens",
        ),
        (
            {"decoder_input_details": True},
            "`decoder_input_details` == true is not supported when streaming tokens",
        ),
    ],
)
def test_what_a_native_stream_cannot_do(parameters: dict[str, Any], message: str) -> None:
    native(parameters)
    with pytest.raises(InvalidRequest) as caught:
        native(parameters, streaming=True)
    assert str(caught.value) == message


def test_empty_inputs_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="`inputs` cannot be empty"):
        native({}, inputs="")


def test_an_unknown_source_is_an_adapter_failure() -> None:
    with pytest.raises(AdapterFailed, match="Invalid source 'ftp'"):
        native({"adapter_source": "ftp"})
    assert native({"adapter_source": "LOCAL", "adapter_id": "a/1"}).adapter_id == "a/1"


def test_null_for_every_parameter_is_the_default() -> None:
    names = wire_native.Parameters.__struct_fields__
    assert native(dict.fromkeys(names)) == native(None) == native({})
    assert native(None).sampling == Sampling(max_new_tokens=0)


@pytest.mark.parametrize(
    ("parameters", "greedy"),
    [
        ({}, True),
        ({"temperature": 1.0}, True),
        ({"temperature": 0.7}, False),
        ({"temperature": 0.0}, True),
        ({"temperature": 0.0, "do_sample": True}, True),
        ({"do_sample": True}, False),
        ({"top_k": 5}, False),
        ({"top_p": 1.0}, True),
        ({"top_p": 0.9}, False),
    ],
)
def test_when_a_native_request_samples(parameters: dict[str, Any], greedy: bool) -> None:
    assert native(parameters).sampling.greedy is greedy


@pytest.mark.parametrize(
    ("form", "schema"),
    [
        ({"type": "json_object"}, '{"type":"object"}'),
        ({"type": "json_object", "schema": None}, None),
        ({"type": "text", "schema": {"type": "string"}}, '{"type":"string"}'),
        ({"type": "json_object", "schema": '{"type": "null"}'}, '{"type":"null"}'),
    ],
    ids=["left out is any object", "null is no constraint", "the type is ignored", "text"],
)
def test_a_native_schema(form: dict[str, Any], schema: str | None) -> None:
    assert native({"response_format": form}).sampling.json_schema == schema


@pytest.mark.parametrize(
    ("length", "wanted", "message"),
    [
        (20, 13, "`inputs` tokens + `max_new_tokens` must be <= 32. Given: 20 `inputs` tokens and 13 `max_new_tokens`"),
        (21, None, "`inputs` must have less than 20 tokens. Given: 21"),
        (21, 5, "`inputs` must have less than 20 tokens. Given: 21"),
        (0, None, "`inputs` cannot be empty"),
    ],
)  # fmt: skip
def test_lengths_are_refused_with_numbers(length: int, wanted: int | None, message: str) -> None:
    ask = native({"max_new_tokens": wanted})
    with pytest.raises(InvalidRequest) as caught:
        ask.job(range(length), LIMITS)
    assert str(caught.value) == message


def test_without_a_wish_as_many_tokens_as_fit() -> None:
    assert native({}).job(range(20), LIMITS).sampling.max_new_tokens == 12
    assert native({"max_new_tokens": 3}).job(range(20), LIMITS).sampling.max_new_tokens == 3


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"messages": []}, "messages: at least one"),
        ({"tools": [{"type": "function"}]}, "tools: not supported"),
        ({"top_logprobs": 2}, "top_logprobs: needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs: 21; allowed: 0 to 20"),
        ({"n": 9}, "n: 9; allowed: 1 to 8"),
        ({"max_tokens": 0}, "max_tokens: 0; allowed"),
        ({"max_completion_tokens": -1}, "max_tokens: -1; allowed"),
        ({"temperature": 2.1}, "temperature: 2.1; allowed: 0 to 2"),
        ({"top_p": 0}, "top_p: 0; allowed"),
        ({"stop": ["a", ""]}, "stop: at most 4"),
        ({"frequency_penalty": 3}, "`frequency_penalty`"),
        ({"repetition_penalty": 1e-30}, "repetition_penalty: 1e-30; allowed: 1e-06 to 1e+06"),
        ({"functions": [{"name": "x"}]}, "tools: not supported"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"response_format": {"type": "json_schema", "schema": {"const": "x" * 70_000}}}, "at most 65536 characters"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema: missing"),
        (
            {"structured_outputs": {"choice": ["a"]}, "response_format": {"type": "json_object"}},
            "structured_outputs: choice and a JSON schema",
        ),
    ],
)  # fmt: skip
def test_a_chat_field_outside_its_bounds_is_refused(fields: dict[str, Any], part: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    assert part in str(caught.value)


def test_a_chat_request_becomes_a_sampling() -> None:
    ask = chat(
        model="tickets/3",
        max_tokens=9,
        max_completion_tokens=4,
        stop="END",
        temperature=0,
        logprobs=True,
        top_logprobs=2,
        n=2,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"type": "array"}},
        },
    )
    assert ask == Ask(
        adapter_id="tickets/3",
        sampling=Sampling(
            max_new_tokens=0,
            temperature=0.0,
            stop=("END",),
            num_alternatives=2,
            json_schema='{"type":"array"}',
        ),
        max_new_tokens=4,
        num_sequences=2,
    )
    assert chat(model="").adapter_id is None
    assert chat().sampling.greedy is False
    assert chat(structured_outputs={"choice": ["a", "b"]}).sampling.choices == ("a", "b")


def test_only_text_parts_are_taken() -> None:
    good = wire_openai.Message(
        "user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    )
    assert wire_openai.text_messages([good]) == [{"role": "user", "content": "a\nb"}]
    bad = wire_openai.Message("user", [{"type": "image_url", "image_url": {}}])
    with pytest.raises(InvalidRequest, match=r"messages\[1\]\.content: part of type 'image_url'"):
        wire_openai.text_messages([good, bad])


def end(text: str, reason: Any = "eos_token") -> Finished:
    return Finished(text, reason, 5, 3, None, 0.1, 0.2, 0.15)


@pytest.mark.parametrize("pieces", [["abSTOP"], ["ab", "S", "T", "OP"], ["a", "bST", "OPxx"]])
def test_a_stream_shows_what_the_whole_reply_shows_when_a_stop_hits(pieces: list[str]) -> None:
    shown = replies.VisibleText(["STOP"])
    done = end("".join(pieces), "stop_sequence")
    text = "".join(shown.feed(piece) for piece in pieces) + shown.rest(
        done, Sampling(max_new_tokens=9, stop=("STOP",))
    )
    sampling = Sampling(max_new_tokens=9, stop=("STOP",))
    assert text == "ab" == replies.visible_text(done, sampling)


def test_a_held_back_beginning_of_a_stop_is_shown_at_the_end() -> None:
    shown = replies.VisibleText(["STOP"])
    assert shown.feed("ab ST") == "ab "
    assert shown.rest(end("ab ST", "length"), Sampling(max_new_tokens=9, stop=("STOP",))) == "ST"


def test_numbers_that_json_does_not_have() -> None:
    out = TokenOut(1, "a", float("-inf"), alternatives=((2, "b", float("nan")),))
    assert wire_native.token(out)["logprob"] is None
    assert wire_native.token(out)["alternative_tokens"] == [{"id": 2, "text": "b", "logprob": None}]
    assert replies.chat_logprobs([out])["content"][0]["logprob"] == replies.MIN_LOGPROB


@pytest.mark.parametrize("template", ["T: {input}\nA:", "{{x}} {system}|{conversation}|{input}"])
@pytest.mark.parametrize("max_chars", [None, 4])
def test_an_adapters_prompt_reads_as_the_router_renders_it(
    template: str, max_chars: int | None
) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": " three four "},
        {"role": "assistant", "content": "five"},
    ]
    assert render_prompt(template, messages, max_chars) == render(template, messages, max_chars)[0]


@pytest.mark.parametrize("template", ["{{ 1 // 0 }}", "{{ messages[9].content.x }}", "{% if %}"])
def test_a_template_that_does_not_render_is_said_so(template: str) -> None:
    with pytest.raises(TemplateFailed, match="Template error"):
        render_chat(tokenizer(), template, [{"role": "user", "content": "x"}])


@pytest.mark.parametrize("template", ["{other}", "{input.nothing}", "{", "{0}"])
def test_a_prompt_that_does_not_render_is_said_so(template: str) -> None:
    with pytest.raises(TemplateFailed, match="prompt does not render"):
        render_prompt(template, [{"role": "user", "content": "x"}], None)


def test_a_silent_stream_is_kept_open_and_closed_with_its_reader() -> None:
    closed = []

    async def slow() -> AsyncGenerator[bytes]:
        try:
            yield b"1"
            await asyncio.sleep(0.05)
            yield b"2"
            await asyncio.sleep(60)
        finally:
            closed.append(True)

    async def story() -> list[bytes]:
        seen: list[bytes] = []
        stream = sse.kept_alive(slow(), 0.02)
        async for item in stream:
            seen.append(item)
            if item == b"2":
                break
        await stream.aclose()
        return seen

    seen = asyncio.run(story())
    assert seen[0] == b"1"
    assert sse.KEEP_ALIVE in seen
    assert seen[-1] == b"2"
    assert closed == [True]


def test_every_failure_has_both_forms() -> None:
    for kind in ServingError.__subclasses__():
        why = kind("x")
        status, body = error_bodies.native(why)
        assert (status, body["error_type"]) == (kind.status, kind.error_type)
        assert error_bodies.openai(why)[1]["error"]["message"] == "x"
