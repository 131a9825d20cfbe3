"""Asking a student: LoRAX's native dialect, or an OpenAI-style server that takes the adapter as `model`.

The LoRAX messages are built and read with lorax-client's `lorax.types`, its errors mapped with `lorax.errors`; our own
transport carries them. Only the native dialect gives token log-probabilities, hence a confidence. Quirks that are
handled here: LoRAX reads a bearer token as an adapter's key (none is sent), times out adapters as 424, and puts error
events into streams of status 200.
"""

import asyncio
import functools
import json
import math
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from lorax.errors import parse_error
from lorax.types import Parameters, Request, StreamResponse
from pydantic import ValidationError

from router.answer_spec import AnswerKind
from router.backends import BackendClient
from router.errors import BackendError
from router.lorax_reply import read_response
from router.policy import Student
from router.prompt import render
from router.records import NO_BODY, Answer, Purpose, ToolCall, Usage
from router.tool_calls import NO_CALL, read
from router.transport import Header, Reply, header_lines
from router.wire import RequestView, read_reply

_JSON_LINES = b"content-type: application/json\r\naccept: */*\r\n"
_NOT_TO_STUDENTS = frozenset(
    ("max_completion_tokens", "stream", "stream_options", "user", "metadata", "store")
)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_FINISH = {"length": "length", "eos_token": "stop", "stop_sequence": "stop"}
"""LoRAX's finish reasons in OpenAI's words; its own OpenAI routes call a stop sequence `content_filter`."""


@functools.lru_cache(maxsize=256)
def _native_question(adapter: str, limit: int, stream: bool) -> dict[str, Any]:
    """A request in LoRAX's form, but for its text; by far most of its fields are the same from one to the next."""
    parameters = Parameters(adapter_id=adapter, max_new_tokens=limit, details=True, do_sample=False)
    question = Request(inputs="the text", stream=stream, parameters=parameters)
    found: dict[str, Any] = question.model_dump(exclude_none=True)
    return found


def adapter_id(student: Student, pinned: int | None) -> str:
    """The adapter's id on the wire: `name/version`."""
    version = pinned if pinned is not None else student.version
    return f"{student.adapter}/{version}"


def confidence(logprobs: Sequence[float | None], kind: AnswerKind) -> float | None:
    """0-1 from natural log-probabilities: of the whole answer, or of the mean token for text. None without any."""
    known = [p for p in logprobs if p is not None]
    if not known:
        return None
    total = sum(known) if kind != "text" else sum(known) / len(known)
    return math.exp(min(0.0, total))


@dataclass(slots=True)
class StudentStream:
    """Pieces of a student's text as they come; `answer` is whole once the pieces have ended."""

    pieces: AsyncIterator[str]
    answer: Answer | None = None


@dataclass(frozen=True, slots=True)
class StudentClient:
    """One route's student behind one backend."""

    client: BackendClient
    student: Student
    kind: AnswerKind
    pinned: int | None = None
    purpose: Purpose = "reply"
    may_wait: bool = True
    """False where the teacher answers when the student asks for time: a caller has more of that than of patience."""
    _adapter: str = field(init=False, default="")

    def __post_init__(self) -> None:
        object.__setattr__(self, "_adapter", adapter_id(self.student, self.pinned))

    async def ask(self, request: RequestView, trace: tuple[Header, ...] = ()) -> Answer:
        """The student's whole answer; what went wrong is in its `error`, nothing is raised.

        Args:
            trace: the request's trace context: the only headers of a caller that a student is sent.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        path, body = self._question(request, stream=False)
        try:
            reply = await self._send(path, body, trace)
            data = await reply.read()
        except BackendError as why:
            return self._failed(why.word, loop.time() - began)
        seconds = loop.time() - began
        if reply.status != 200:
            return self._refused(reply.status, data, seconds)
        if path == b"/generate":
            return self._native(data, reply, seconds)
        return self._openai(data, reply, seconds)

    def _send(
        self, path: bytes, body: bytes, trace: tuple[Header, ...]
    ) -> Coroutine[Any, Any, Reply]:
        headers = _JSON_LINES + header_lines(trace) if trace else _JSON_LINES
        return self.client.send(b"POST", path, headers, body, may_wait=self.may_wait)

    def _question(self, request: RequestView, *, stream: bool) -> tuple[bytes, bytes]:
        """Path and body. With a template the rendered prompt goes out raw, without one the chat as it came."""
        limit = request.max_tokens or self.student.max_tokens
        if self.student.prompt is None:
            return (
                b"/v1/chat/completions"
                if self.client.config.kind == "lorax"
                else b"/chat/completions",
                (self._chat_body(request, limit)),
            )
        tools = request.tool_list if self.kind == "tool_call" else ()
        text, _ = render(self.student.prompt, request.messages, self.student.max_input_chars, tools)
        if self.client.config.kind == "openai":
            body: dict[str, Any] = {
                "model": self._adapter, "prompt": text, "max_tokens": limit, "temperature": 0, "logprobs": 1,
            }  # fmt: skip
            return b"/completions", msgspec.json.encode(body)
        path = b"/generate_stream" if stream else b"/generate"
        question = {**_native_question(self._adapter, limit, stream), "inputs": text}
        return path, msgspec.json.encode(question)

    def _chat_body(self, request: RequestView, limit: int) -> bytes:
        """The caller's chat for the student: its adapter as the model, whole and deterministic unless the caller says.

        LoRAX takes `max_tokens` only, and `stop` as a list only.
        """
        fields: dict[str, Any] = {
            name: raw for name, raw in _fields.decode(request.body).items() if name not in _NOT_TO_STUDENTS
        }  # fmt: skip
        fields |= {"model": self._adapter, "max_tokens": limit}
        fields.setdefault("temperature", 0)
        if "stop" in fields and bytes(fields["stop"]).startswith(b'"'):
            fields["stop"] = [fields["stop"]]
        return msgspec.json.encode(fields)

    def _native(self, data: bytes, reply: Reply, seconds: float) -> Answer:
        try:
            found = read_response(data)
        except ValidationError:
            return self._failed("garbage", seconds, 200)
        details = found.details
        usage, finish, known = Usage(), None, None
        if details is not None:
            usage = Usage(details.prompt_tokens, details.generated_tokens)
            finish = _FINISH.get(details.finish_reason.value)
            known = confidence([token.logprob for token in details.tokens], self.kind)
        return self._answered(
            found.generated_text.strip(), finish, usage, seconds, known, reply, data
        )

    def _openai(self, data: bytes, reply: Reply, seconds: float) -> Answer:
        found = read_reply(data)
        if found is None:
            return self._failed("garbage", seconds, 200)
        finish = found.finish_reason
        if finish == "content_filter" and self.client.config.kind == "lorax":
            finish = "stop"
        logprobs = found.logprobs if found.logprobs is not None else _completion_logprobs(data)
        known = confidence(logprobs or (), self.kind)
        text = found.text.strip() if found.text is not None else None
        return self._answered(
            text, finish, found.usage, seconds, known, reply, data, calls=found.tool_calls
        )

    async def stream(self, request: RequestView, trace: tuple[Header, ...] = ()) -> StudentStream:
        """The answer while it is written, from LoRAX's native stream; `answer.error` says what went wrong.

        The first piece is awaited, so a student that fails at once can still be replaced.

        Raises:
            BackendError: nothing came.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        path, body = self._question(request, stream=True)
        reply = await self._send(path, body, trace)
        found = StudentStream(_empty())
        if reply.status != 200:
            data = await reply.read()
            found.answer = self._refused(reply.status, data, loop.time() - began)
            return found
        found.pieces = self._pieces(reply, found, began)
        return found

    async def _pieces(self, reply: Reply, found: StudentStream, began: float) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        texts: list[str] = []
        logprobs: list[float | None] = []
        first: float | None = None
        finish, usage, error, rest = None, Usage(), "stream", b""
        try:
            async for data in reply.stream():
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    if not line.startswith(b"data:"):
                        continue
                    event = _stream_event(line[5:])
                    if event is None:
                        error = "garbage"
                        continue
                    first = first or loop.time() - began
                    logprobs.append(event.token.logprob)
                    if not event.token.special:
                        texts.append(event.token.text)
                        yield event.token.text
                    if event.details is not None:
                        finish = _FINISH.get(event.details.finish_reason.value)
                        usage = Usage(
                            event.details.prompt_tokens or 0, event.details.generated_tokens
                        )
                        error = ""
        except BackendError as why:
            error = why.word
        seconds = loop.time() - began
        text = "".join(texts)
        known = confidence(logprobs, self.kind)
        answer = self._answered(text, finish, usage, seconds, known, reply, b"", first)
        found.answer = msgspec.structs.replace(answer, error=error or None)

    def _answered(
        self,
        text: str | None,
        finish: str | None,
        usage: Usage,
        seconds: float,
        known: float | None,
        reply: Reply,
        data: bytes,
        first: float | None = None,
        calls: tuple[ToolCall, ...] = (),
    ) -> Answer:
        if self.kind == "tool_call" and not calls and text:
            # A text that begins a call and is none stays a text, for the guard to see.
            calls = read(text) or ()
            text = "" if text == NO_CALL else text
        if calls:
            text, finish = None, "tool_calls" if finish == "stop" else finish
        served = reply.header(b"x-adapter-id")
        # By position, in the order of `Answer`: by name msgspec takes ten times as long.
        return Answer(
            "student", self.client.name, self.student.adapter, served.decode() if served else self._adapter,
            self.purpose, 200, text, calls, finish, usage, seconds, first, known, None, None, self.client.cost(usage),
            msgspec.Raw(data) if data else NO_BODY,
        )  # fmt: skip

    def failure(self, why: BackendError | None) -> Answer:
        """The answer that an exception amounts to."""
        return self._failed(why.word if why else "stream", 0.0)

    def _failed(self, word: str, seconds: float, status: int = 0) -> Answer:
        return Answer(
            role="student", backend=self.client.name, model=self.student.adapter, adapter=self._adapter,
            purpose=self.purpose, status=status, latency_seconds=seconds, error=word,
        )  # fmt: skip

    def _refused(self, status: int, data: bytes, seconds: float) -> Answer:
        """An error status: LoRAX's error classes say which kind it is."""
        word = "overload" if status in (429, 503) else "status"
        try:
            payload = json.loads(data)
            if isinstance(payload, dict) and isinstance(payload.get("error"), str):
                name = type(parse_error(status, payload)).__name__
                word = {"OverloadedError": "overload", "NotReadyError": "overload"}.get(name, word)
        except ValueError:
            pass
        return self._failed(word, seconds, status)


def _completion_logprobs(data: bytes) -> tuple[float, ...] | None:
    """`choices[0].logprobs.token_logprobs` of a text completion, as vLLM gives them."""
    if b'"token_logprobs"' not in data:
        return None
    try:
        found = msgspec.json.decode(data)["choices"][0]["logprobs"]["token_logprobs"]
    except (msgspec.MsgspecError, LookupError, TypeError):
        return None
    return (
        tuple(p for p in found if isinstance(p, int | float)) if isinstance(found, list) else None
    )


def _stream_event(data: bytes) -> StreamResponse | None:
    """One native stream event; None for an error event (LoRAX sends those inside a stream of status 200)."""
    try:
        return StreamResponse.model_validate(msgspec.json.decode(data))
    except (ValidationError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


async def _empty() -> AsyncIterator[str]:
    return
    yield ""
