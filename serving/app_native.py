"""LoRAX's own routes: `/`, `/generate`, `/generate_stream`, `/tokenize`. Errors of their streams come inside a 200."""

import contextlib
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving import error_bodies, exchange, headers, sse, wire_native
from serving.bodies import BodyRefused, json_response, read_body, unless_gone
from serving.errors import AdapterFailed, ServingError
from serving.generation import Finished, Job, TokenOut
from serving.state import State
from serving.wire import Ask
from serving.wire_native import NativeRequest, TokenizeRequest


class NativeApi:
    """The endpoints."""

    def __init__(self, state: State) -> None:
        self._state = state

    def routes(self) -> list[Route]:
        """Paths and methods."""
        return [
            Route("/", self.compatible, methods=["POST"]),
            Route("/invocations", self.compatible, methods=["POST"]),
            Route("/generate", self.generate, methods=["POST"]),
            Route("/generate_stream", self.generate_stream, methods=["POST"]),
            Route("/tokenize", self.tokenize, methods=["POST"]),
        ]

    async def compatible(self, request: Request) -> Response:
        """`POST /`, which lorax-client uses: a stream, or a list of one response."""
        body = await self._body(request)
        if body.stream:
            return await self._stream(body)
        return await self._whole(request, body, as_list=True)

    async def generate(self, request: Request) -> Response:
        """`POST /generate`: one response; `stream` in the body is ignored."""
        return await self._whole(request, await self._body(request))

    async def generate_stream(self, request: Request) -> Response:
        """`POST /generate_stream`: events."""
        return await self._stream(await self._body(request))

    async def tokenize(self, request: Request) -> Response:
        """`POST /tokenize`: tokens and their places."""
        body = await read_body(request, TokenizeRequest, self._state.settings.max_body_bytes)
        special = True if body.add_special_tokens is None else body.add_special_tokens
        return json_response(
            await self._state.prompts.pieces(body.inputs, add_special_tokens=special)
        )

    async def _body(self, request: Request) -> NativeRequest:
        try:
            return await read_body(request, NativeRequest, self._state.settings.max_body_bytes)
        except BodyRefused:
            self._state.metrics.failed("bad_request", "unknown")
            raise

    async def _ask(self, body: NativeRequest, *, streaming: bool) -> tuple[Ask, Job]:
        ask = wire_native.ask(body, self._state.limits, self._state.base_id, streaming=streaming)
        ids = await self._state.prompts.encode(body.inputs, add_special_tokens=True)
        ref = await self._state.resolve(ask.adapter_id)
        return ask, ask.job(ids, self._state.limits, ref.id if ref else None)

    async def _whole(
        self, request: Request, body: NativeRequest, *, as_list: bool = False
    ) -> Response:
        with self._state.meter() as meter:
            ask, job = await self._ask(body, streaming=False)
            meter.admitted(job)
            jobs = exchange.copies(job, ask.num_sequences)
            found = exchange.best_first(
                await unless_gone(request, exchange.gathered(self._state.worker, jobs, meter))
            )
            meter.answered([end for end, _ in found])
        answer = wire_native.response(body, found)
        return json_response(
            [answer] if as_list else answer,
            headers=self._state.headers(meter, [end for end, _ in found], len(body.inputs)),
        )

    async def _stream(self, body: NativeRequest) -> Response:
        parameters = body.parameters or wire_native.Parameters()
        named = None  # a text of the caller's is no header value
        with contextlib.suppress(AdapterFailed):  # said by the stream itself
            ref = await self._state.resolve(parameters.adapter_id)
            named = ref.id if ref else None
        return self._state.stream(
            self._events(body),
            headers.identity(self._state.base_id, named)
            | {"x-compute-characters": str(len(body.inputs))},
        )

    async def _events(self, body: NativeRequest) -> AsyncGenerator[bytes]:
        """Events of a stream; a failure is its last event, as LoRAX has it."""
        try:
            with self._state.meter() as meter:
                _, job = await self._ask(body, streaming=True)
                meter.admitted(job)
                async with aclosing(exchange.tokens(self._state.worker, job, meter)) as items:
                    last: TokenOut | None = None
                    # The last token's event carries the end, so each token waits for the next item.
                    async for item in items:
                        if isinstance(item, Finished):
                            meter.answered([item])
                            yield self._last_event(body, last, item)
                        else:
                            if last is not None:
                                yield sse.event(wire_native.stream_event(body, last))
                            last = item
        except ServingError as why:
            yield sse.event(error_bodies.native(why)[1])

    @staticmethod
    def _last_event(body: NativeRequest, last: TokenOut | None, end: Finished) -> bytes:
        out = last or TokenOut(id=0, text="", logprob=0.0, special=True)
        return sse.event(wire_native.stream_event(body, out, end))
