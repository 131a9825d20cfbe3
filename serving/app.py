"""The student server's ASGI app: puts the routes together, and writes every error's status and body."""

import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response

from serving import error_bodies
from serving.app_native import NativeApi
from serving.app_openai import OpenAiApi
from serving.app_operations import OperationsApi
from serving.bodies import BodyRefused, CallerGone, json_response
from serving.errors import GenerationFailed, InvalidRequest, Overloaded, ServingError
from serving.metrics import ServingMetrics
from serving.prompts import Prompts
from serving.registry import Registry, UnknownAdapter
from serving.settings import AppSettings
from serving.state import State
from serving.wire import Limits
from serving.worker import Worker

logger = logging.getLogger(__name__)


def create_app(
    worker: Worker,
    registry: Registry,
    settings: AppSettings,
    metrics_registry: CollectorRegistry | None = None,
) -> Starlette:
    """An app that starts the worker with itself and stops it when it ends."""
    state = State(
        worker=worker,
        registry=registry,
        prompts=Prompts(worker.tokenizer, registry),
        limits=Limits(
            max_input_length=worker.info.max_input_length,
            max_total_tokens=worker.info.max_total_tokens,
            max_best_of=settings.max_best_of,
            max_stop_sequences=settings.max_stop_sequences,
            max_body_bytes=settings.max_body_bytes,
        ),
        metrics=ServingMetrics(metrics_registry or CollectorRegistry()),
        settings=settings,
        base_id=worker.info.base_model,
        started_at=int(time.time()),
    )
    _watch(state)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await worker.start()
        try:
            for adapter in settings.pinned:
                await worker.load(adapter)
            yield
        finally:
            state.is_draining = True
            await worker.stop()

    apis = (NativeApi(state), OpenAiApi(state), OperationsApi(state))
    app = Starlette(
        routes=[route for api in apis for route in api.routes()],
        lifespan=lifespan,
        exception_handlers={
            ServingError: _failed,
            BodyRefused: _refused,
            CallerGone: _gone,
            ClientDisconnect: _gone,
            HTTPException: _not_served,
            Exception: _broken,
        },
    )
    app.state.serving = state
    return app


def _watch(state: State) -> None:
    """Gauges that read the worker when they are scraped, and a count of its steps."""
    watch, worker = state.metrics.watch, state.worker
    watch("lorax_queue_length", "Requests that wait.", lambda: float(worker.num_waiting))
    watch("lorax_batch_current_size", "Requests in the batch.", lambda: float(worker.num_running))
    watch(
        "lorax_batch_current_max_tokens",
        "Tokens that the batch may come to hold.",
        lambda: float(worker.running_tokens),
    )
    worker.on_step = state.metrics.stepped
    watch(
        "graduate_serving_resident_adapters",
        "Adapters in memory.",
        lambda: float(len(worker.resident())),
    )


def _is_openai(request: Request) -> bool:
    return request.url.path.startswith("/v1/")


async def _failed(request: Request, why: Exception) -> Response:
    """A failure in the dialect of its route."""
    assert isinstance(why, ServingError)
    headers = {}
    if isinstance(why, Overloaded):
        headers["retry-after"] = str(math.ceil(why.retry_after_seconds))
    if _is_openai(request):
        status, body = error_bodies.openai(why, is_unknown_model=_is_unknown(why))
    else:
        status, body = error_bodies.native(why)
    logger.info("refused", extra={"path": request.url.path, "status": status})
    return json_response(body, status, headers)


def _is_unknown(why: BaseException) -> bool:
    return isinstance(why, UnknownAdapter) or isinstance(why.__cause__, UnknownAdapter)


async def _refused(request: Request, why: Exception) -> Response:
    """A body that cannot be read: plain text on LoRAX's routes, an error object on OpenAI's."""
    assert isinstance(why, BodyRefused)
    if not _is_openai(request):
        return PlainTextResponse(str(why), why.status)
    status = 400 if why.status == 422 else why.status
    return json_response(error_bodies.openai(InvalidRequest(str(why)))[1], status)


async def _gone(_: Request, __: Exception) -> Response:
    """Nobody reads this; 499 is what proxies log for it."""
    return Response(status_code=499)


async def _broken(request: Request, why: Exception) -> Response:
    """A mistake of ours; the traceback goes to the log, and is no business of the caller's."""
    body = error_bodies.openai if _is_openai(request) else error_bodies.native
    return json_response(body(GenerationFailed(f"internal error: {type(why).__name__}"))[1], 500)


async def _not_served(request: Request, why: Exception) -> Response:
    """A path or method that is not there."""
    status = why.status_code if isinstance(why, HTTPException) else 404
    text = f"{request.method} {request.url.path} is not served"
    if _is_openai(request):
        return json_response(error_bodies.vanished(text), status)
    return json_response({"error": text, "error_type": "not_found"}, status)
