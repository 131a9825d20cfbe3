"""The operators' application: health, readiness, metrics and the policy in force, on a port of its own.

It is never exposed with the callers' port: policy and metrics are not for everybody. With one worker it looks at that
process's router, with several it sits in their parent and reads what they left in files.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from router import policy_file
from router.app import Router
from router.state import PolicyState


@dataclass(frozen=True, slots=True)
class AdminView:
    """What the pages show, wherever it comes from."""

    state: PolicyState
    registry: CollectorRegistry | Collector
    refresh: Callable[[], None]
    """Called before the registry is read."""
    breakers: Callable[[], dict[str, str]]
    log_trouble: Callable[[], tuple[int, str | None]]
    """Lines that the disk refused, and why the last was; None when it takes them."""

    @classmethod
    def of(cls, router: Router) -> "AdminView":
        """The view of one process."""
        log = router.services.log
        return cls(
            router.state, router.services.metrics.registry, router.publish, router.breakers,
            lambda: (log.dropped, log.last_error),
        )  # fmt: skip


def admin_app(view: AdminView) -> FastAPI:
    """The application."""
    app = FastAPI(title="Graduate router: admin", version="1", docs_url="/docs", redoc_url=None)
    state = view.state

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
        dropped, why = view.log_trouble()
        if why:
            body |= {"log_error": why, "log_dropped": dropped}
        return JSONResponse(body)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus text."""
        view.refresh()
        return Response(generate_latest(view.registry), media_type=CONTENT_TYPE_LATEST)

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
            "breakers": view.breakers(),
        }

    @app.get("/schema")
    async def schema() -> dict[str, Any]:
        """JSON Schema of policy.yaml."""
        return policy_file.json_schema()

    return app
