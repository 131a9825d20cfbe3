"""HTTP: the label schema of a route, second opinions, and how far two people agree."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, ConfigDict, Field

from monitoring.double_review import DoubleReview
from monitoring.review import ReviewQueue, label_schema
from monitoring.settings import MonitorSettings
from monitoring.store import FlagRow, Store
from router import policy_file
from router.answer_spec import AnswerSpec


class SecondOpinion(BaseModel):
    """Another person's verdict on a decided flag."""

    model_config = ConfigDict(extra="forbid")

    verdict: str
    """accept_teacher, accept_student, correct or discard."""
    answer: str | None = None
    """The right answer, for correct."""
    by: str = Field(min_length=1, max_length=200)
    note: str | None = Field(default=None, max_length=10_000)


def blind_body(flag: FlagRow) -> dict[str, Any]:
    """A decided flag for a second look: nothing of it says what the first verdict was, or whose."""
    names = (
        "id",
        "record_id",
        "route",
        "kind",
        "reason",
        "input_text",
        "teacher_text",
        "student_text",
    )
    return {name: getattr(flag, name) for name in names}


def double_review_routes(settings: MonitorSettings, store: Store) -> APIRouter:
    """Routes below `/api`."""
    routes = APIRouter()
    doubles, queue = DoubleReview(store), ReviewQueue(store)

    def spec_of(route: str) -> AnswerSpec:
        found = policy_file.load(settings.policy).policy.routes.get(route)
        if found is None:
            raise HTTPException(404, f"no route {route!r} in the policy")
        return found.answer

    @routes.get("/routes/{route}/label-schema")
    def schema(route: str) -> dict[str, Any]:
        """What a label of the route may hold."""
        return label_schema(spec_of(route))

    @routes.get("/routes/{route}/agreement")
    def agreement(route: str) -> dict[str, Any]:
        """Two people's reviews of one flag: agreement with interval, Cohen's kappa, and where they differ."""
        return asdict(doubles.agreement(route, spec_of(route)))

    @routes.get("/second-opinions")
    def waiting(by: str, route: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """Decided flags that `by` may look at a second time, without their verdicts."""
        return [blind_body(f) for f in doubles.waiting(by, route, max(1, min(limit, 1000)))]

    @routes.post("/flags/{flag_id}/second-opinion")
    def give(flag_id: str, opinion: SecondOpinion) -> dict[str, Any]:
        """Give a second opinion."""
        spec = spec_of(queue.get(flag_id).route)
        answer = doubles.give(
            flag_id, opinion.verdict, opinion.answer, by=opinion.by, note=opinion.note, spec=spec
        )
        return {"flag_id": flag_id, "answer": answer, "verdict": opinion.verdict}

    @routes.delete("/flags/{flag_id}/second-opinion")
    def undo(flag_id: str) -> dict[str, bool]:
        """Take a second opinion back."""
        doubles.undo(flag_id)
        return {"undone": True}

    return routes
