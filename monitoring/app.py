"""The monitor's server: metrics, an API over reports and flags, and a console page. Ticks run in a process of their own.

evidently and its third of a gigabyte live only in the tick's process, which ends after each pass.
"""

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from jinja2 import Environment, FileSystemLoader, select_autoescape
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field

from monitoring import notices
from monitoring.double_review_routes import double_review_routes
from monitoring.errors import (
    FlagTaken,
    MonitoringError,
    ReviewError,
    RolloutRefused,
    UnknownFlag,
    UnknownRoute,
)
from monitoring.metrics import MonitorMetrics
from monitoring.review import ReviewQueue
from monitoring.rollout_command import evidence
from monitoring.rollout_events import body
from monitoring.rollout_routes import rollout_routes
from monitoring.settings import MonitorSettings
from monitoring.store import FlagRow, Store
from monitoring.trigger_loop import LOOK_SECONDS, TriggerWatch
from router import policy_file
from router.answer_spec import AnswerSpec
from router.errors import PolicyError

logger = logging.getLogger(__name__)


class Decision(BaseModel):
    """A reviewer's verdict on a flag."""

    model_config = ConfigDict(extra="forbid")

    verdict: str
    """accept_teacher, accept_student, correct or discard."""
    answer: str | None = None
    """The right answer, for correct."""
    by: str = Field(min_length=1, max_length=200)
    note: str | None = Field(default=None, max_length=10_000)


TICK_TIMEOUT_SECONDS = 900.0
"""A tick that takes longer hangs; it is killed and the next one begins."""


class TickLoop:
    """Runs `graduate monitor tick` again and again, and says how the last one went."""

    def __init__(self, settings: MonitorSettings, store: Store, metrics: MonitorMetrics) -> None:
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self.error: str | None = None
        """Why the last tick failed; None when it did not."""

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                await self.once()
            except (
                Exception
            ) as why:  # the outermost loop: a lost database must not end watching for good
                logger.exception("tick failed")
                self.error = f"{type(why).__name__}: {why}"
                self._metrics.ticks.labels("error").inc()
            await asyncio.sleep(self._settings.every_seconds)

    async def once(self) -> None:
        """One tick in a process of its own, then the gauges."""
        settings = self._settings
        command = [
            sys.executable, "-m", "graduate", "monitor", "tick", "--json",
            "--policy", str(settings.policy), "--home", str(settings.home.root),
            "--database", settings.database, "--since", f"{settings.since_seconds:.0f}s",
            "--drift-rows", str(settings.drift_rows), *(f"--log={log}" for log in settings.logs),
            "--no-notify",  # a slow receiver must not hold up the next tick: `_notices` tells them
        ]  # fmt: skip
        if settings.rollouts_configmap is not None:
            command.append(f"--rollouts-configmap={settings.rollouts_configmap}")
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        try:
            async with asyncio.timeout(TICK_TIMEOUT_SECONDS):
                _, said = await process.communicate()
        except (asyncio.CancelledError, TimeoutError):
            process.kill()
            await process.wait()
            raise
        if process.returncode == 0:
            self.error = None
            self._metrics.ticks.labels("ok").inc()
            self._metrics.ticked_at.set(time.time())
        else:
            self.error = said.decode(errors="replace").strip()[-2000:]
            self._metrics.ticks.labels("error").inc()
            logger.error("tick failed: %s", self.error)
        for name in route_names(settings.policy):
            report = await asyncio.to_thread(self._store.latest_report, name)
            if report is not None:
                self._metrics.show(name, report)
        with contextlib.suppress(PolicyError):  # the tick's own error says it
            self._metrics.show_policy(policy_file.load(settings.policy).policy)


def route_names(policy: Path) -> list[str]:
    """Routes with a student; [] while the policy does not hold."""
    try:
        routes = policy_file.load(policy).policy.routes
    except PolicyError:
        return []
    return [name for name, route in routes.items() if route.student is not None]


def answer_spec(policy: Path, route: str) -> AnswerSpec | None:
    """The route's answer spec; None when the policy has no such route.

    Raises:
        PolicyError: the policy does not hold, so nobody can say which answers are allowed.
    """
    found = policy_file.load(policy).policy.routes.get(route)
    return found.answer if found else None


def flag_body(flag: FlagRow) -> dict[str, Any]:
    """A flag as JSON."""
    names = (
        "id", "record_id", "route", "kind", "reason", "score", "status", "claimed_by", "at", "record_at",
        "adapter", "input_text", "teacher_text", "student_text",
    )  # fmt: skip
    return {name: getattr(flag, name) for name in names}


NOTICE_SECONDS = 2.0
"""How often moves that nobody was told of are looked for."""


async def _notices(settings: MonitorSettings, store: Store, metrics: MonitorMetrics) -> None:
    """Tell others of canaries' moves, for ever; beside the ticks, which it never holds up."""
    while True:
        try:
            policy = policy_file.load(settings.policy).policy
            done = await asyncio.to_thread(notices.deliver, store, policy, time.time())
            metrics.notices.labels("ok").inc(done.sent)
            metrics.notices.labels("error").inc(done.failed)
        except PolicyError:
            pass  # the tick says so
        except Exception:  # the outermost loop: a lost database must not end telling for good
            logger.exception("notices failed")
        await asyncio.sleep(NOTICE_SECONDS)


async def _triggers(settings: MonitorSettings, store: Store, metrics: MonitorMetrics) -> None:
    """Look again and again whether a student should be distilled again, for ever; beside the ticks."""
    watch = TriggerWatch(settings, store)
    while True:
        try:
            metrics.show_triggers(await asyncio.to_thread(watch.look))
        except PolicyError:
            pass  # the tick says so
        except Exception:  # the outermost loop: a lost database must not end looking for good
            logger.exception("triggers failed")
        await asyncio.sleep(LOOK_SECONDS)


def create_app(settings: MonitorSettings, store: Store, *, ticking: bool = True) -> FastAPI:
    """The application; with `ticking` it runs the tick loop while it lives."""
    metrics = MonitorMetrics(CollectorRegistry())
    loop = TickLoop(settings, store, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(work)
            for work in (
                (
                    loop.run(),
                    _notices(settings, store, metrics),
                    _triggers(settings, store, metrics),
                )
                if ticking
                else ()
            )
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    app = FastAPI(title="Graduate monitor", version="1", lifespan=lifespan, redoc_url=None)

    @app.exception_handler(ReviewError)
    async def refused(_: object, why: ReviewError) -> Response:
        status = {UnknownFlag: 404, FlagTaken: 409}.get(type(why), 422)
        return JSONResponse({"error": str(why)}, status)

    @app.exception_handler(MonitoringError)
    async def refused_order(_: object, why: MonitoringError) -> Response:
        status = {UnknownRoute: 404, RolloutRefused: 409}.get(type(why), 503)
        return JSONResponse({"error": str(why)}, status)

    @app.exception_handler(PolicyError)
    async def broken_policy(_: object, why: PolicyError) -> Response:
        return JSONResponse({"error": str(why)}, 503)

    app.include_router(_state_routes(loop, metrics))
    app.include_router(_report_routes(settings, store), prefix="/api")
    app.include_router(rollout_routes(settings, store), prefix="/api")
    app.include_router(_flag_routes(settings, ReviewQueue(store)), prefix="/api")
    app.include_router(double_review_routes(settings, store), prefix="/api")
    app.include_router(_console(settings, store, loop))
    return app


def _state_routes(loop: TickLoop, metrics: MonitorMetrics) -> APIRouter:
    routes = APIRouter()

    @routes.get("/health", response_class=PlainTextResponse)
    async def health() -> str:
        """Alive."""
        return "ok"

    @routes.get("/ready")
    async def ready() -> dict[str, Any]:
        """May be asked; what is wrong with the last tick is said."""
        return {"ready": True, "tick_error": loop.error}

    @routes.get("/metrics")
    def show_metrics() -> Response:
        """Prometheus text."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return routes


def _report_routes(settings: MonitorSettings, store: Store) -> APIRouter:
    routes = APIRouter()

    @routes.get("/routes")
    def names() -> list[str]:
        """Routes with a student."""
        return route_names(settings.policy)

    @routes.get("/routes/{route}/report")
    def report(route: str) -> dict[str, Any]:
        """The newest report of a route."""
        found = store.latest_report(route)
        if found is None:
            raise HTTPException(404, f"no report of route {route!r} yet")
        return found

    @routes.get("/routes/{route}/drift.html")
    def drift_html(route: str) -> FileResponse:
        """evidently's report."""
        path = settings.home.reports / f"drift-{route}.html"
        if route not in route_names(settings.policy) or not path.exists():
            raise HTTPException(404, f"no drift report of route {route!r} yet")
        return FileResponse(path, media_type="text/html")

    return routes


def _flag_routes(settings: MonitorSettings, queue: ReviewQueue) -> APIRouter:
    routes = APIRouter()

    @routes.get("/flags")
    def flags(
        route: str | None = None, status: str | None = "open", limit: int = 100
    ) -> list[dict[str, Any]]:
        """Flags, most informative first; status is open, claimed, decided or all."""
        wanted = None if status == "all" else status
        return [flag_body(f) for f in queue.list(route, wanted, max(1, min(limit, 1000)))]

    @routes.post("/flags/{flag_id}/claim")
    def claim(flag_id: str, by: str) -> dict[str, Any]:
        """Take a flag."""
        return flag_body(queue.claim(flag_id, by))

    @routes.post("/flags/{flag_id}/decision")
    def decide(flag_id: str, decision: Decision) -> dict[str, Any]:
        """Decide a flag."""
        spec = answer_spec(settings.policy, queue.get(flag_id).route)
        label = queue.decide(
            flag_id,
            decision.verdict,
            decision.answer,
            by=decision.by,
            note=decision.note,
            spec=spec,
        )
        return {"record_id": label.record_id, "answer": label.answer, "verdict": label.verdict}

    @routes.post("/flags/{flag_id}/undo")
    def undo(flag_id: str) -> dict[str, bool]:
        """Open a decided flag again."""
        queue.undo(flag_id)
        return {"open": True}

    return routes


def _console(settings: MonitorSettings, store: Store, loop: TickLoop) -> APIRouter:
    routes = APIRouter()
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "pages"), autoescape=select_autoescape()
    )

    @routes.get("/", response_class=HTMLResponse)
    def console() -> str:
        """The console: every route's state, and the queue."""
        shown = [
            {"name": name, "report": store.latest_report(name)}
            for name in route_names(settings.policy)
        ]
        return pages.get_template("console.html").render(
            routes=shown,
            flags=[flag_body(f) for f in ReviewQueue(store).list(limit=20)],
            events=[
                {**body(row), "told": evidence(body(row))}
                for row in reversed(store.rollout_events()[-20:])
            ],
            error=loop.error,
            time=lambda at: time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at)),
        )

    return routes
