"""The callers' application: `/v1/*` and health; and one router process wired together."""

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
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, ConfigDict, Field, model_validator

from router import bodies
from router.admission import Admission
from router.cycle import Scope
from router.errors import CallerError
from router.home import Home
from router.hot import HotRoute, Receive, Send, refusal
from router.limits import Buckets
from router.metrics import RouterMetrics
from router.openapi import error_responses, hot_paths
from router.records import Feedback
from router.services import Services
from router.settings import RouterSettings
from router.shadow import ShadowSet
from router.state import PolicyState
from router.tracing import Tracing
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
        state = PolicyState(
            settings.policy, home, metrics, needs_keys=settings.needs_keys, workers=settings.workers
        )
        boot, numbers = os.urandom(6).hex(), itertools.count(1)
        services = Services(
            log,
            metrics,
            ShadowSet(workers=settings.workers),
            Admission(Buckets(home.limits)),
            lambda: f"{boot}-{next(numbers):x}",
            next_draw or random.Random().random,
            tracing=Tracing.from_environment(),
        )
        return cls(settings, state, services)

    def breakers(self) -> dict[str, str]:
        """Each backend's breaker: `closed`, `open` or `half_open`."""
        now = asyncio.get_running_loop().time()
        clients = self.state.force.backends.clients
        return {name: client.breaker.state(now) for name, client in clients.items()}

    def publish(self) -> None:
        """Set the gauges of what is looked up, not counted."""
        metrics = self.services.metrics
        metrics.flush()
        metrics.log_drops.set(self.services.log.dropped)
        for name, state in self.breakers().items():
            metrics.breaker_open.labels(name).set(state != "closed")
        for name, client in self.state.force.backends.clients.items():
            metrics.in_flight.labels(name).set(client.in_flight)

    async def watch(self) -> None:
        """Look at the policy files and the log's age, and publish; again and again, for ever."""
        while True:
            await asyncio.sleep(self.settings.reload_seconds)
            self.state.reload_if_changed()
            self.services.log.close_old()
            self.publish()

    def close(self) -> None:
        """Close the log, the callers' limits, the traces and idle connections."""
        self.services.metrics.flush()
        self.services.log.close()
        self.services.admission.close()
        if self.services.tracing is not None:
            self.services.tracing.close()
        for client in self.state.force.backends.clients.values():
            client.close()


class CallerApp:
    """`/v1/*` goes straight to the hot route, everything else to FastAPI."""

    def __init__(self, router: Router) -> None:
        settings = router.settings
        self.hot = HotRoute(router.services, lambda: router.state.force, settings.max_body_bytes)
        self._rest = _caller_rest(router)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_hot = scope["type"] == "http" and scope["path"].startswith("/v1/")
        if is_hot and scope["path"] != "/v1/feedback":
            await self.hot(scope, receive, send)
        else:
            await self._rest(scope, receive, send)


def _caller_rest(router: Router) -> FastAPI:
    app = FastAPI(title="Graduate router", version="1", docs_url="/docs", redoc_url=None)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, why: RequestValidationError) -> Response:
        error = why.errors()[0]
        field = ".".join(str(part) for part in error["loc"] if part != "body") or None
        message = f"{field or 'body'}: {error['msg']}"
        body = bodies.error_body(message, "invalid_request_error", None, field)
        return Response(body, 400, media_type="application/json")

    @app.get("/health", response_class=PlainTextResponse)
    async def health() -> str:
        """Alive."""
        return "ok"

    @app.get("/ready", response_class=PlainTextResponse)
    async def ready() -> str:
        """May have traffic."""
        return "ready"

    @app.exception_handler(CallerError)
    async def refused(request: Request, why: CallerError) -> Response:
        router.services.metrics.refusals.labels(str(why.status)).inc()
        headers, body = refusal(why)
        return Response(body, why.status, {n.decode(): v.decode() for n, v in headers})

    @app.post("/v1/feedback", status_code=202, responses=error_responses(400, 401, 429))
    async def feedback(said: FeedbackBody, request: Request) -> dict[str, bool]:
        """Say how good a reply was, by its request id."""
        services = router.services
        services.admission.admit(router.state.force.keys, request.headers, services.now())
        score = said.score
        if score is None and said.thumbs is not None:
            score = 1.0 if said.thumbs == "up" else 0.0
        line = Feedback(
            said.id, router.services.now(), score=score, correction=said.correction,
            comment=said.comment,
        )  # fmt: skip
        return {"logged": router.services.log.append(line)}

    described = app.openapi

    def with_hot_paths() -> dict[str, Any]:
        found = described()
        found["paths"].update(hot_paths())
        return found

    app.openapi = with_hot_paths  # type: ignore[method-assign]
    return app


@contextlib.asynccontextmanager
async def running(router: Router) -> AsyncIterator[None]:
    """The router's background work: watching the policy; at the end shadows are drained and the log is closed."""
    watching = asyncio.create_task(router.watch())
    try:
        yield
    finally:
        watching.cancel()
        await router.services.shadows.drain(min(5.0, router.settings.drain_seconds))
        router.close()
