"""The router's two applications: callers' (`/v1/*`, health) and the operators' on a port of its own.

The operators' port is never exposed with the callers': policy, metrics and readiness are not for everybody.
"""

import asyncio
import contextlib
import itertools
import os
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from router import policy_file, wire
from router.exchange import Services
from router.home import Home
from router.hot import HotRoute, Receive, Scope, Send
from router.metrics import RouterMetrics
from router.records import Feedback
from router.settings import RouterSettings
from router.shadow import ShadowSet
from router.state import PolicyState
from router.traffic import TrafficLog


class FeedbackBody(BaseModel):
    """What a caller says about a reply."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(min_length=1, max_length=200)
    """The reply's `x-graduate-request-id`."""
    score: float | None = Field(default=None, ge=0, le=1)
    """0 bad to 1 good."""
    thumbs: Literal["up", "down"] | None = None
    """Instead of a score."""
    correction: str | None = Field(default=None, max_length=100_000)
    """The right answer."""
    comment: str | None = Field(default=None, max_length=10_000)

    @model_validator(mode="after")
    def _says_something(self) -> "FeedbackBody":
        if self.score is None and self.thumbs is None and self.correction is None:
            raise ValueError("give a score, thumbs or a correction")
        return self


@dataclass(slots=True)
class Router:
    """Everything of one router process, wired together. Made inside its event loop."""

    settings: RouterSettings
    state: PolicyState
    services: Services

    @classmethod
    def build(
        cls,
        settings: RouterSettings,
        *,
        next_draw: Callable[[], float] | None = None,
        registry: CollectorRegistry | None = None,
    ) -> "Router":
        """Read the policy, open the log.

        Raises:
            PolicyError: the policy does not hold.
            OSError: the home cannot be written.
        """
        metrics = RouterMetrics(registry or CollectorRegistry())
        home = Home(settings.home)
        log = TrafficLog(home.traffic, fsync_seconds=settings.fsync_seconds)
        state = PolicyState(settings.policy, home, metrics)
        boot, numbers = os.urandom(6).hex(), itertools.count(1)
        services = Services(
            log,
            metrics,
            ShadowSet(),
            lambda: f"{boot}-{next(numbers):x}",
            next_draw or random.Random().random,
        )
        return cls(settings, state, services)

    def close(self) -> None:
        """Close the log and idle connections."""
        self.services.log.close()
        for client in self.state.force.backends.clients.values():
            client.close()


class CallerApp:
    """`/v1/*` goes straight to the hot route, everything else to FastAPI."""

    def __init__(self, router: Router) -> None:
        settings = router.settings
        self._hot = HotRoute(router.services, lambda: router.state.force, settings.max_body_bytes)
        self._rest = _caller_rest(router)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_hot = scope["type"] == "http" and scope["path"].startswith("/v1/")
        if is_hot and scope["path"] != "/v1/feedback":
            await self._hot(scope, receive, send)
        else:
            await self._rest(scope, receive, send)


def _caller_rest(router: Router) -> FastAPI:
    app = FastAPI(title="Graduate router", version="1", docs_url="/docs", redoc_url=None)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, why: RequestValidationError) -> Response:
        error = why.errors()[0]
        field = ".".join(str(part) for part in error["loc"] if part != "body") or None
        message = f"{field or 'body'}: {error['msg']}"
        body = wire.error_body(message, "invalid_request_error", None, field)
        return Response(body, 400, media_type="application/json")

    @app.get("/health", response_class=PlainTextResponse)
    async def health() -> str:
        """Alive."""
        return "ok"

    @app.get("/ready", response_class=PlainTextResponse)
    async def ready() -> str:
        """May have traffic."""
        return "ready"

    @app.post("/v1/feedback", status_code=202)
    async def feedback(said: FeedbackBody) -> dict[str, bool]:
        """Say how good a reply was, by its request id."""
        score = said.score
        if score is None and said.thumbs is not None:
            score = 1.0 if said.thumbs == "up" else 0.0
        line = Feedback(
            said.id, router.services.now(), score=score, correction=said.correction,
            comment=said.comment,
        )  # fmt: skip
        return {"logged": router.services.log.append(line)}

    return app


def admin_app(router: Router) -> FastAPI:
    """Health, readiness, metrics and the policy in force."""
    app = FastAPI(title="Graduate router: admin", version="1", docs_url="/docs", redoc_url=None)
    state, services = router.state, router.services

    @app.get("/health", response_class=PlainTextResponse)
    async def health() -> str:
        """Alive."""
        return "ok"

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """May have traffic: a policy is in force. A log that drops lines is said here, and does not stop the calls."""
        body: dict[str, Any] = {"ready": True, "policy": state.force.loaded.digest}
        if state.error:
            body["policy_error"] = state.error
        if services.log.last_error:
            body["log_error"] = services.log.last_error
            body["log_dropped"] = services.log.dropped
        return JSONResponse(body)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus text."""
        services.metrics.log_drops.set(services.log.dropped)
        for name, client in state.force.backends.clients.items():
            is_open = client.breaker.state(_loop_time()) != "closed"
            services.metrics.breaker_open.labels(name).set(is_open)
        return Response(generate_latest(services.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/policy")
    async def policy() -> dict[str, Any]:
        """The policy and rollouts in force, their digest, and what is wrong with the files if they are bad now."""
        loaded = state.force.loaded
        return {
            "digest": loaded.digest,
            "source": loaded.source,
            "loaded_at": state.loaded_at,
            "error": state.error,
            "policy": loaded.policy.model_dump(mode="json", by_alias=True, exclude_defaults=True),
            "rollouts": loaded.rollouts.model_dump(mode="json"),
            "breakers": {
                name: client.breaker.state(_loop_time())
                for name, client in state.force.backends.clients.items()
            },
        }

    @app.get("/schema")
    async def schema() -> dict[str, Any]:
        """JSON Schema of policy.yaml."""
        return policy_file.json_schema()

    return app


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


@contextlib.asynccontextmanager
async def running(router: Router) -> AsyncIterator[None]:
    """The router's background work: watching the policy; at the end shadows are drained and the log is closed."""
    watching = asyncio.create_task(router.state.watch(router.settings.reload_seconds))
    try:
        yield
    finally:
        watching.cancel()
        await router.services.shadows.drain(min(5.0, router.settings.drain_seconds))
        router.close()
