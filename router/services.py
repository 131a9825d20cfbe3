"""What all exchanges of a router process share: the log, the counters, the shadows, the clock; and what is in force."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from router import guard
from router.admission import Admission
from router.auth import KeyRing
from router.backends import Backends
from router.metrics import RouterMetrics
from router.policy import Route
from router.policy_file import LoadedPolicy
from router.records import Answer, Purpose
from router.shadow import ShadowSet
from router.student import StudentClient
from router.teacher import TeacherClient
from router.tracing import Tracing
from router.traffic import TrafficLog
from router.wire import RequestView


@dataclass(frozen=True, slots=True)
class InForce:
    """A policy and the clients of its backends; a request keeps the one it began with."""

    loaded: LoadedPolicy
    backends: Backends
    keys: KeyRing | None = None
    """None when callers need no key."""
    teachers: dict[str, TeacherClient] = field(default_factory=dict)
    """Teachers by route, made when first asked."""
    students: dict[tuple[str, Purpose], StudentClient] = field(default_factory=dict)
    """Students by route and by what they are asked for, made when first asked."""

    def teacher(self, route_name: str) -> TeacherClient:
        """The route's teacher, or the default's."""
        found = self.teachers.get(route_name)
        if found is None:
            policy = self.loaded.policy
            route = policy.routes.get(route_name)
            spec = route.teacher if route else policy.default.teacher
            found = TeacherClient(self.backends[spec.backend], spec.model, policy.keys is None)
            self.teachers[route_name] = found
        return found

    def student(self, route_name: str, purpose: Purpose) -> StudentClient:
        """The student of a route that has one, at the version that a rollout pins."""
        found = self.students.get((route_name, purpose))
        if found is None:
            route = self.loaded.policy.routes[route_name]
            assert route.student is not None
            rollout = self.loaded.rollouts.routes.get(route_name)
            to_teacher = route.fallback.to == "teacher" and "overload" in route.fallback.on
            found = self.students[route_name, purpose] = StudentClient(
                self.backends[route.student.backend],
                route.student,
                route.answer.kind,
                rollout.version if rollout else None,
                purpose,
                may_wait=not (purpose == "reply" and to_teacher),
            )
        return found


@dataclass(slots=True)
class Services:
    """What all exchanges share."""

    log: TrafficLog
    metrics: RouterMetrics
    shadows: ShadowSet
    admission: Admission
    next_id: Callable[[], str]
    next_draw: Callable[[], float]
    now: Callable[[], float] = time.time
    tracing: Tracing | None = None

    async def http_guard(self, route: Route, request: RequestView, answer: Answer) -> guard.Verdict:
        """The route's `http` guard rules."""
        from router.http_guard import ask

        return await ask(route.guard.rules, request, answer)
