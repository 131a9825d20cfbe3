"""The monitor's API over canaries: their moves, and a person's word."""

import datetime
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field

from monitoring.kube import rollouts_in_cluster
from monitoring.orders import order
from monitoring.rollout_events import body
from monitoring.settings import MonitorSettings
from monitoring.store import Store


class Word(BaseModel):
    """Who says so, and why."""

    model_config = ConfigDict(extra="forbid")

    by: str = Field(min_length=1, max_length=200)
    note: str | None = Field(default=None, max_length=10_000)


def rollout_routes(settings: MonitorSettings, store: Store) -> APIRouter:
    """Routes under `/api/rollouts`."""
    routes = APIRouter()

    @routes.get("/rollouts")
    def rollouts(route: str | None = None) -> list[dict[str, Any]]:
        """Moves of canaries with their evidence, oldest first."""
        return [body(row) for row in store.rollout_events(route)]

    @routes.post("/rollouts/{route}/{word}")
    async def say(
        route: str, word: Literal["approve", "abort", "resume"], said: Word
    ) -> dict[str, Any]:
        """Approve the step of a canary, abort it, or resume one that stands still."""

        def carry_out() -> dict[str, Any]:
            with rollouts_in_cluster(settings.home.rollouts, settings.rollouts_configmap):
                event = order(
                    store, settings.policy, settings.home.rollouts, settings.home.adapters, route,
                    word, by=said.by, note=said.note, now=datetime.datetime.now(datetime.UTC),
                )  # fmt: skip
            return {"key": event.key, "state": event.state.model_dump(mode="json")}

        return await run_in_threadpool(carry_out)

    return routes
