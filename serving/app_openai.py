"""OpenAI's routes: chat and text completions, models, and vLLM's two for loading adapters.

A request that cannot start gets a real status, also when it asked for a stream; a stream that fails later ends with an
error event and no `[DONE]`.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from serving import error_bodies, exchange, headers, sse, wire_openai
from serving import wire_openai_replies as replies
from serving.bodies import Body, BodyRefused, json_response, read_body, unless_gone
from serving.errors import AdapterFailed, InvalidRequest, ServingError
from serving.exchange import Generated, Item, Meter
from serving.generation import Finished, Job, Sampling, TokenOut
from serving.registry import RegistryError
from serving.state import State
from serving.wire import Ask
from serving.wire_openai import ChatRequest, CompletionRequest


class LoadAdapter(msgspec.Struct):
    """Body of `/v1/load_lora_adapter`; the path is vLLM's, here an adapter is found by its name alone."""

    lora_name: str
    lora_path: str | None = None
    load_inplace: bool | None = None


class UnloadAdapter(msgspec.Struct):
    """Body of `/v1/unload_lora_adapter`."""

    lora_name: str


@dataclass(frozen=True, slots=True)
class Flavour:
    """What chat and text completions do differently with a request that has been checked."""

    request: ChatRequest | CompletionRequest
    prompt: str
    whole: Callable[[replies.Head, Sampling, Sequence[Generated]], dict[str, Any]]
    chunk: Callable[
        [replies.Head, int, str, str | None, Sequence[TokenOut] | None, int], dict[str, Any]
    ]
    opening: Callable[[replies.Head, int], dict[str, Any] | None]
    kind: str
    wants_logprobs: bool


class OpenAiApi:
    """The endpoints."""

    def __init__(self, state: State) -> None:
        self._state = state

    def routes(self) -> list[Route]:
        """Paths and methods."""
        return [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{model:path}", self.model),
            Route("/v1/load_lora_adapter", self.load_adapter, methods=["POST"]),
            Route("/v1/unload_lora_adapter", self.unload_adapter, methods=["POST"]),
        ]

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        with self._state.meter() as meter:
            body = await self._body(request, ChatRequest, meter)
            ask = wire_openai.chat_ask(body, self._state.limits, self._state.base_id)
            messages = wire_openai.text_messages(body.messages)
            ref = await self._state.resolve(ask.adapter_id)
            text = await self._state.prompts.chat(messages, ref)
            ids = await self._state.prompts.encode(text, add_special_tokens=False)
            job = ask.job(ids, self._state.limits, ref.id if ref else None)
            return await self._answer(request, _chat(body, text), ask, job, meter)

    async def completions(self, request: Request) -> Response:
        """`POST /v1/completions`."""
        with self._state.meter() as meter:
            body = await self._body(request, CompletionRequest, meter)
            ask = wire_openai.completion_ask(body, self._state.limits, self._state.base_id)
            ref = await self._state.resolve(ask.adapter_id)
            text = wire_openai.single_prompt(body)
            ids = await self._state.prompts.encode(text, add_special_tokens=True)
            job = ask.job(ids, self._state.limits, ref.id if ref else None)
            return await self._answer(request, _completion(body, text), ask, job, meter)

    async def _body(self, request: Request, kind: type[Body], meter: Meter) -> Body:
        try:
            return await read_body(
                request, kind, self._state.settings.max_body_bytes, needs_content_type=False
            )
        except BodyRefused:
            meter.bad_request()
            raise

    async def _answer(
        self, request: Request, flavour: Flavour, ask: Ask, job: Job, meter: Meter
    ) -> Response:
        meter.admitted(job)
        jobs = exchange.copies(job, ask.num_sequences)
        head = replies.Head(
            id=f"{'chatcmpl' if flavour.kind.startswith('chat') else 'cmpl'}-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=job.adapter_id or self._state.base_id,
            fingerprint=f"graduate-{self._state.settings.version}",
        )
        if flavour.request.stream:
            return await self._stream(flavour, head, job, jobs, meter)
        found = await unless_gone(request, exchange.gathered(self._state.worker, jobs, meter))
        ends = [end for end, _ in found]
        meter.answered(ends)
        return json_response(
            flavour.whole(head, job.sampling, found),
            headers=self._state.headers(meter, ends, len(flavour.prompt)),
        )

    async def _stream(
        self, flavour: Flavour, head: replies.Head, job: Job, jobs: Sequence[Job], meter: Meter
    ) -> Response:
        """A stream, once its first token is there: what fails before it fails with a status."""
        items = exchange.merged(self._state.worker, jobs, meter)
        try:
            first = await anext(items)
        except BaseException:
            await items.aclose()
            raise
        meter.hand_over()
        return self._state.stream(
            self._chunks(flavour, head, job.sampling, first, items, meter),
            headers.identity(self._state.base_id, job.adapter_id)
            | {"x-compute-characters": str(len(flavour.prompt))},
        )

    async def _chunks(
        self,
        flavour: Flavour,
        head: replies.Head,
        sampling: Sampling,
        first: tuple[int, Item],
        items: AsyncGenerator[tuple[int, Item]],
        meter: Meter,
    ) -> AsyncGenerator[bytes]:
        shown: dict[int, replies.VisibleText] = {}
        ends: list[Finished] = []
        try:
            with meter:
                async with aclosing(items):
                    async for index, item in _after(first, items):
                        if index not in shown:
                            shown[index] = replies.VisibleText(sampling.stop)
                            if (opening := flavour.opening(head, index)) is not None:
                                yield sse.event(opening)
                        for chunk in _item_chunks(
                            flavour, head, sampling, index, item, shown[index]
                        ):
                            yield sse.event(chunk)
                        if isinstance(item, Finished):
                            ends.append(item)
                meter.answered(ends)
        except ServingError as why:
            yield sse.event(error_bodies.openai(why)[1])
            return
        if flavour.request.wants_stream_usage:
            yield sse.event(replies.usage_chunk(head, flavour.kind, ends))
        yield sse.DONE

    async def models(self, _: Request) -> Response:
        """`GET /v1/models`: the base model and every adapter version of the registry."""
        try:
            names = [ref.id for ref in await asyncio.to_thread(self._state.registry.list)]
        except RegistryError as why:
            raise AdapterFailed(str(why)) from why
        return json_response(
            replies.models(self._state.started_at, self._state.base_id, iter(names))
        )

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/ID`: one of them; `latest` is answered with the version that it means."""
        ref = await self._state.resolve(request.path_params["model"])
        names = [] if ref is None else [ref.id]
        listed = replies.models(self._state.started_at, self._state.base_id, iter(names))
        return json_response(listed["data"][-1])

    async def load_adapter(self, request: Request) -> Response:
        """`POST /v1/load_lora_adapter`: resident when this returns."""
        body = await read_body(
            request, LoadAdapter, self._state.settings.max_body_bytes, needs_content_type=False
        )
        version = await self._version(body.lora_name)
        if version in self._state.worker.resident():
            raise InvalidRequest(f"The lora adapter '{body.lora_name}' has already been loaded.")
        await self._state.worker.load(version)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    async def unload_adapter(self, request: Request) -> Response:
        """`POST /v1/unload_lora_adapter`: not resident when this returns."""
        body = await read_body(
            request, UnloadAdapter, self._state.settings.max_body_bytes, needs_content_type=False
        )
        version = await self._version(body.lora_name)
        if version not in self._state.worker.resident():
            text = f"The lora adapter '{body.lora_name}' cannot be found."
            return json_response(error_bodies.vanished(text), 404)
        if version in self._state.settings.pinned:
            raise InvalidRequest(f"The lora adapter '{body.lora_name}' is pinned.")
        await self._state.worker.unload(version)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    async def _version(self, name: str) -> str:
        ref = await self._state.resolve(name)
        if ref is None:
            raise InvalidRequest(f"lora_name: {name!r} is the base model")
        return ref.id


def _chat(body: ChatRequest, prompt: str) -> Flavour:
    def chunk(
        head: replies.Head,
        index: int,
        text: str,
        finish: str | None,
        tokens: Sequence[TokenOut] | None,
        _: int,
    ) -> dict[str, Any]:
        return replies.chat_chunk(head, index, {"content": text} if text else {}, finish, tokens)

    return Flavour(
        request=body,
        prompt=prompt,
        whole=lambda head, sampling, found: replies.chat_response(body, head, sampling, found),
        chunk=chunk,
        opening=lambda head, index: replies.chat_chunk(
            head, index, {"role": "assistant", "content": ""}
        ),
        kind="chat.completion.chunk",
        wants_logprobs=bool(body.logprobs),
    )


def _completion(body: CompletionRequest, prompt: str) -> Flavour:
    start = len(prompt) if body.echo else 0

    def chunk(
        head: replies.Head,
        index: int,
        text: str,
        finish: str | None,
        tokens: Sequence[TokenOut] | None,
        offset: int,
    ) -> dict[str, Any]:
        return replies.completion_chunk(head, index, text, finish, tokens, start + offset)

    return Flavour(
        request=body,
        prompt=prompt,
        whole=lambda head, sampling, found: replies.completion_response(
            body, head, sampling, found
        ),
        chunk=chunk,
        opening=lambda head, index: (
            replies.completion_chunk(head, index, prompt) if body.echo else None
        ),
        kind="text_completion",
        wants_logprobs=body.logprobs is not None,
    )


async def _after(
    first: tuple[int, Item], rest: AsyncGenerator[tuple[int, Item]]
) -> AsyncGenerator[tuple[int, Item]]:
    yield first
    async for item in rest:
        yield item


def _item_chunks(
    flavour: Flavour,
    head: replies.Head,
    sampling: Sampling,
    index: int,
    item: Item,
    shown: replies.VisibleText,
) -> list[dict[str, Any]]:
    """Chunks of one item: a token's visible text, or what was held back and the end."""
    if isinstance(item, Finished):
        rest = shown.rest(item, sampling)
        chunks = [flavour.chunk(head, index, rest, None, None, 0)] if rest else []
        return [*chunks, flavour.chunk(head, index, "", replies.FINISH[item.reason], None, 0)]
    offset = shown.num_fed
    text = shown.feed("" if item.special else item.text)
    tokens = [item] if flavour.wants_logprobs and not item.special else None
    return [flavour.chunk(head, index, text, None, tokens, offset)] if text or tokens else []
