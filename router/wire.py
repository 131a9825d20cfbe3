"""Views of OpenAI bodies: what the router needs to know of a request, an answer or a stream; the rest passes untouched.

The caller's bytes are kept and forwarded as they are; nothing here is re-encoded unless a backend needs another
model name. Knows no policy and no backend.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import msgspec

from router.errors import BadRequest
from router.prompt import last_user_text, text_of
from router.records import ToolCall, Usage

MAX_METADATA = 16
"""Pairs of `metadata` that are kept, as OpenAI allows."""


_ABSENT = msgspec.Raw(b"")


class _Peek(msgspec.Struct):
    """The fields of a request body that decide anything; all others are left alone."""

    model: str = ""
    messages: msgspec.Raw = _ABSENT
    prompt: msgspec.Raw = _ABSENT
    stream: bool | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    tools: msgspec.Raw = _ABSENT
    functions: msgspec.Raw = _ABSENT
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: msgspec.Raw = _ABSENT
    stream_options: dict[str, Any] | None = None


_peek = msgspec.json.Decoder(_Peek)
_messages = msgspec.json.Decoder(list[dict[str, Any]])
_prompt = msgspec.json.Decoder(str | list[str | int | list[int]])
_top = msgspec.json.Decoder(dict[str, msgspec.Raw])


class RequestView:
    """One request as the router sees it; messages are decoded only when somebody asks."""

    def __init__(
        self, path: str, headers: Mapping[str, str], body: bytes, peek: _Peek, caller: str | None
    ) -> None:
        self.path = path
        self.headers = headers
        self.body = body
        self.caller = caller
        self.model = peek.model
        self.stream = bool(peek.stream)
        self.n = peek.n or 1
        self.max_tokens = peek.max_completion_tokens or peek.max_tokens
        self.include_usage = bool(peek.stream_options and peek.stream_options.get("include_usage"))
        self.user = headers.get("x-graduate-user") or peek.user
        self.conversation = headers.get("x-graduate-conversation")
        self.may_log = headers.get("x-graduate-log", "true").lower() != "false"
        self.metadata: dict[str, str] = {}
        if peek.metadata:
            given = [(k, v) for k, v in peek.metadata.items() if isinstance(v, str)]
            self.metadata.update(given[:MAX_METADATA])
        if task := headers.get("x-graduate-task"):
            self.metadata["task"] = task
        self._peek = peek

    @cached_property
    def tools(self) -> bool:
        """Whether the request brings tools."""
        return _present(self._peek.tools) or _present(self._peek.functions)

    @cached_property
    def tool_list(self) -> list[dict[str, Any]]:
        """The tools themselves; none where `tools` is no list of objects, which is the backend's to refuse."""
        try:
            return _messages.decode(self._peek.tools) if _present(self._peek.tools) else []
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return []

    @cached_property
    def wants_logprobs(self) -> bool:
        """Whether the caller asks for the answer's log-probabilities."""
        raw = self._peek.logprobs
        return _present(raw) and bytes(raw) != b"false"

    @cached_property
    def messages(self) -> list[dict[str, Any]]:
        """Chat messages; a completion's prompt counts as one user message.

        Raises:
            BadRequest: `messages` is not a list of objects.
        """
        if _present(self._peek.messages):
            try:
                return _messages.decode(self._peek.messages)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as why:
                raise BadRequest(f"messages: {why}", field="messages") from why
        if _present(self._peek.prompt):
            try:
                prompt = _prompt.decode(self._peek.prompt)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as why:
                raise BadRequest(f"prompt: {why}", field="prompt") from why
            return [{"role": "user", "content": _prompt_text(prompt)}]
        return []

    @cached_property
    def input_text(self) -> str:
        """The last user message."""
        return last_user_text(self.messages)

    @cached_property
    def system_text(self) -> str:
        """The system messages, joined."""
        return "\n".join(
            text_of(m.get("content"))
            for m in self.messages
            if m.get("role") in ("system", "developer")
        )

    @property
    def total_chars(self) -> int:
        """Characters of all messages' texts."""
        return sum(len(text_of(m.get("content"))) for m in self.messages)

    def unstreamed(self) -> "RequestView":
        """The same request without its streaming: for copies that nobody watches."""
        fields = _top.decode(self.body)
        fields.pop("stream", None)
        fields.pop("stream_options", None)
        return parse(self.path, self.headers, msgspec.json.encode(fields), self.caller)

    def with_model(self, model: str | None) -> bytes:
        """The body, byte for byte, unless another model is asked for."""
        if model is None or model == self.model:
            return self.body
        fields = _top.decode(self.body)
        fields["model"] = msgspec.Raw(msgspec.json.encode(model))
        return msgspec.json.encode(fields)


def _prompt_text(prompt: str | list[str | int | list[int]]) -> str:
    """A completion's prompt as text; token ids have none."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(part for part in prompt if isinstance(part, str))


def _present(raw: msgspec.Raw) -> bool:
    return bytes(raw) not in (b"", b"null", b"[]")


def parse(
    path: str, headers: Mapping[str, str], body: bytes, caller: str | None = None
) -> RequestView:
    """The view of a request body.

    Raises:
        BadRequest: not a JSON object, or a field of the wrong type, named as JSON path.
    """
    try:
        peek = _peek.decode(body)
    except msgspec.ValidationError as why:
        field = str(why).rpartition("`$.")[2].rstrip("`") if "`$." in str(why) else None
        raise BadRequest(f"the body does not hold: {why}", field=field) from why
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as why:
        raise BadRequest(f"the body is not JSON: {why}") from why
    return RequestView(path, headers, body, peek, caller)


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    id: str | None = None
    index: int | None = None
    function: _Function | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    tool_calls: list[_Call] | None = None


class _TokenLogprob(msgspec.Struct):
    logprob: float = 0.0


class _Logprobs(msgspec.Struct):
    content: list[_TokenLogprob] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    message: _Message | None = None
    delta: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Reply(msgspec.Struct):
    model: str | None = None
    choices: list[_Choice] = []
    usage: _Usage | None = None


_reply = msgspec.json.Decoder(_Reply)


def _usage(found: _Usage | None) -> Usage:
    if found is None:
        return Usage()
    return Usage(found.prompt_tokens or 0, found.completion_tokens or 0)


class ReplyView(msgspec.Struct, frozen=True):
    """What the router needs of an answer body; `logprobs` are natural logarithms, None when none were given."""

    text: str | None
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str | None
    usage: Usage
    model: str | None
    logprobs: tuple[float, ...] | None = None


EMPTY_REPLY = ReplyView(None, (), None, Usage(), None)


def read_reply(body: bytes) -> ReplyView | None:
    """The view of a chat completion or completion; None when the body is not one."""
    try:
        reply = _reply.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if not reply.choices:
        return None
    choice = reply.choices[0]
    message = choice.message
    text = message.content if message else choice.text
    calls = tuple(
        ToolCall(c.function.name or "", c.function.arguments or "{}", c.id or "")
        for c in (message.tool_calls if message else None) or ()
        if c.function
    )
    tokens = choice.logprobs.content if choice.logprobs else None
    return ReplyView(
        text,
        calls,
        choice.finish_reason,
        _usage(reply.usage),
        reply.model,
        tuple(t.logprob for t in tokens) if tokens else None,
    )


class StreamView:
    """Puts a stream of chat chunks together again: text, tool-call deltas, finish reason, usage. Of the first choice."""

    def __init__(self) -> None:
        self._rest = b""
        self._text: list[str] = []
        self._calls: dict[int, list[str]] = {}
        self._saw_text = False
        self.finish_reason: str | None = None
        self.usage = Usage()
        self.model: str | None = None
        self.done = False
        """Whether `[DONE]` came: the stream is whole."""
        self.error: str | None = None

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the event stream, cut anywhere."""
        buffer = self._rest + data
        lines = buffer.split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip())

    def _event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self.done = True
            return
        try:
            chunk = _reply.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return
        if not chunk.choices and data.startswith(b'{"error"'):
            self.error = data.decode(errors="replace")[:500]
        self.model = self.model or chunk.model
        if chunk.usage:
            self.usage = _usage(chunk.usage)
        for choice in chunk.choices:
            if choice.index:
                continue
            self.finish_reason = choice.finish_reason or self.finish_reason
            piece = choice.delta.content if choice.delta else choice.text
            if piece is not None:
                self._saw_text = True
                self._text.append(piece)
            for call in (choice.delta.tool_calls if choice.delta else None) or ():
                parts = self._calls.setdefault(call.index or 0, ["", "", ""])
                parts[0] = call.id or parts[0]
                if call.function:
                    parts[1] += call.function.name or ""
                    parts[2] += call.function.arguments or ""

    def view(self) -> ReplyView:
        """What has come so far."""
        calls = tuple(
            ToolCall(name, arguments or "{}", id_)
            for _, (id_, name, arguments) in sorted(self._calls.items())
        )
        text = "".join(self._text) if self._saw_text else None
        return ReplyView(text, calls, self.finish_reason, self.usage, self.model)
