"""One request's way: decide, ask, guard, fall back, record, and copies beside it.

    parse → decide ─ teacher ─────────────────────────────► reply, record, shadow
                   └ student → guard, confidence ─ holds ──► reply, record, audit
                                               └ fails ──► teacher → reply, record

The record is written before the reply's last byte leaves. What is decided here is only the order of things; rules are
in `decide`, `guard` and `compare`.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import msgspec

from router import bodies, guard
from router.auth import KeyEntry, permit
from router.compare import compare_online
from router.decide import Decision, decide
from router.errors import BackendError
from router.policy import DEFAULT, Route, Student
from router.recorder import Recorder
from router.records import Answer, Purpose
from router.services import InForce, Services
from router.student import StudentClient
from router.teacher import TeacherClient, reply_headers
from router.tracing import trace_headers
from router.transport import Header, Reply
from router.wire import EMPTY_REPLY, RequestView, StreamView, read_reply

logger = logging.getLogger(__name__)

JSON_TYPE: Header = (b"content-type", b"application/json")
EVENTS: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


@dataclass(slots=True)
class Outgoing:
    """A reply on its way: `body` whole, or `pieces` as they come."""

    status: int
    headers: list[Header]
    body: bytes = b""
    pieces: AsyncGenerator[bytes, None] | None = None
    close: Callable[[], None] | None = None
    """What to call when the pieces are over or were never begun: a generator that never ran lets nothing go."""


@dataclass(slots=True)
class Exchange:
    """One request under way."""

    services: Services
    force: InForce
    request: RequestView
    headers: tuple[Header, ...]
    decision: Decision
    route: Route | None
    recorder: Recorder

    @property
    def _route(self) -> Route:
        """The route, where the way to here proves that there is one."""
        assert self.route is not None
        return self.route

    @property
    def _student_spec(self) -> Student:
        assert self._route.student is not None
        return self._route.student

    @property
    def teacher(self) -> TeacherClient:
        """The route's teacher, or the default's."""
        return self.force.teacher(self.decision.route)

    def student(self, purpose: Purpose) -> StudentClient:
        """The route's student."""
        return self.force.student(self.decision.route, purpose)

    def reply(self) -> Coroutine[Any, Any, Outgoing]:
        """The reply, by the decision, when awaited."""
        if self.decision.arm == "teacher":
            return self._from_teacher()
        if self.request.stream and self._route.guard.stream == "pass" and self._can_stream():
            return self._from_student_stream()
        return self._from_student()

    def _can_stream(self) -> bool:
        """Whether the student's answer may be passed on while it is written: LoRAX, a template, words, and no cascade."""
        spec = self._student_spec
        lorax = self.force.backends[spec.backend].config.kind == "lorax"
        cascade = self.decision.cascade_min_confidence is not None
        # Calls are written as text, which only the whole of it can be read back from.
        words = self._route.answer.kind != "tool_call"
        return lorax and words and spec.prompt is not None and not cascade

    def abandoned(self) -> None:
        """The caller went away before it had a reply: that is a record too."""
        self.recorder.reason += "; caller went away"
        self.recorder.write("none", 499)

    # the teacher's way

    async def _from_teacher(self) -> Outgoing:
        teacher, loop = self.teacher, asyncio.get_running_loop()
        began = loop.time()
        try:
            reply = await teacher.open(self.request, self.headers)
            if self.request.stream and reply.status == 200 and _is_stream(reply):
                headers = self.recorder.headers(reply_headers(reply.headers), "teacher")
                pieces = self._teacher_pieces(teacher, reply, began)
                return Outgoing(200, headers, pieces=pieces, close=reply.close)
            body = await reply.read()
        except BackendError as why:
            self.recorder.answers.append(
                teacher.no_answer(self.request, why, loop.time() - began, "reply")
            )
            return self._no_teacher(why)
        view = read_reply(body) or EMPTY_REPLY
        answer = teacher.answer(
            self.request, view, reply.status, loop.time() - began, "reply", body
        )
        self.recorder.answers.append(answer)
        self.recorder.write("teacher", reply.status)
        self._copies(answer)
        return Outgoing(
            reply.status, self.recorder.headers(reply_headers(reply.headers), "teacher"), body
        )

    def _no_teacher(self, why: BackendError) -> Outgoing:
        """502 (504 when late) in OpenAI's form: the caller's client raises its own classes."""
        self.recorder.write("none", status := 504 if why.word == "timeout" else 502)
        body = bodies.error_body(f"{why}", "api_error", f"backend_{why.word}")
        return Outgoing(status, self.recorder.headers([JSON_TYPE], "none"), body)

    async def _teacher_pieces(
        self, teacher: TeacherClient, reply: Reply, began: float
    ) -> AsyncGenerator[bytes, None]:
        """The teacher's events as they come. The piece that ends them waits until the record is on disk."""
        loop = asyncio.get_running_loop()
        stream, first, error = StreamView(), None, None
        held: list[bytes] = []
        try:
            async for piece in reply.stream():
                first = first if first is not None else loop.time() - began
                stream.feed(piece)
                if stream.done:
                    held.append(piece)
                else:
                    yield piece
        except BackendError as why:
            error = why.word
        except (GeneratorExit, asyncio.CancelledError):
            error = "cancelled"
            raise
        finally:
            view = stream.view()
            if error is None and not stream.done and stream.error is not None:
                error = "status"
            answer = teacher.answer(
                self.request, view, 200, loop.time() - began, "reply",
                bodies.reassembled(view), first, error,
            )  # fmt: skip
            self.recorder.answers.append(answer)
            self.recorder.write("teacher", 499 if error == "cancelled" else 200)
        if error is not None and error != "status":
            raise BrokenStream(error)
        for piece in held:
            yield piece
        self._copies(answer)

    # the student's way

    def _ask_student(self, purpose: Purpose) -> Coroutine[Any, Any, Answer]:
        return self.student(purpose).ask(self.request, trace_headers(self.headers))

    async def _from_student(self) -> Outgoing:
        answer = await self._guarded(await self._ask_student("reply"))
        self.recorder.answers.append(answer)
        why = self._why_not(answer, self._route)
        if why is not None:
            return await self._fall_back(why)
        self.recorder.write("student", 200)
        self._audit(answer)
        return self._student_reply(answer)

    def _student_reply(self, answer: Answer) -> Outgoing:
        is_chat = self.request.path.endswith("/chat/completions")
        model = self.request.model or answer.model
        if not self.request.stream:
            body = bodies.chat_completion(answer, self.recorder.id, model, is_chat=is_chat)
            return Outgoing(200, self.recorder.headers([JSON_TYPE], "student"), body)
        events = bodies.chat_chunks(
            answer,
            self.recorder.id,
            model,
            include_usage=self.request.include_usage,
            is_chat=is_chat,
        )
        # All of it is there, so it goes out in one write.
        return Outgoing(200, self.recorder.headers(list(EVENTS), "student"), b"".join(events))

    async def _guarded(self, answer: Answer) -> Answer:
        if not answer.ok:
            return answer
        rules = self._route.guard.rules
        verdict = guard.check(self._route.answer, rules, answer)
        if verdict.ok and guard.asks_outside(rules):
            verdict = await self.services.http_guard(self._route, self.request, answer)
        return answer if verdict.ok else msgspec.structs.replace(answer, verdict=verdict.rule)

    def _why_not(self, answer: Answer, route: Route) -> str | None:
        """Why the student's answer is not the reply; None when it is."""
        if answer.error is not None:
            kind = answer.error if answer.error in ("timeout", "overload") else "error"
            return answer.error if kind in route.fallback.on else self._fail_word(answer.error)
        if answer.verdict is not None and "guard" in route.fallback.on:
            return f"guard {answer.verdict}"
        floor = self.decision.cascade_min_confidence
        if floor is not None and (answer.confidence is None or answer.confidence < floor):
            return "confidence"
        return None

    @staticmethod
    def _fail_word(error: str) -> str:
        """An error that the policy does not let fall back still cannot be sent as an answer."""
        return f"{error} (no fallback)"

    async def _fall_back(self, why: str) -> Outgoing:
        last = self.recorder.answers[-1]
        if why == "confidence":
            shown = "none" if last.confidence is None else f"{last.confidence:.3f}"
            self.recorder.reason += (
                f"; confidence {shown} < {self.decision.cascade_min_confidence:g}: teacher"
            )
        elif self._route.fallback.to == "error" or why.endswith("(no fallback)"):
            self.recorder.reason += f"; student: {why}"
            self.services.metrics.fallbacks.labels(self.decision.route, "none").inc()
            self.recorder.write("none", 502)
            message = f"the student of route {self.decision.route} gave no answer: {why}"
            body = bodies.error_body(message, "api_error", "student_failed")
            return Outgoing(502, self.recorder.headers([JSON_TYPE], "none"), body)
        else:
            self.recorder.reason += f"; student: {why}: teacher"
        self.services.metrics.fallbacks.labels(
            self.decision.route, why.removeprefix("guard ")
        ).inc()
        return await self._from_teacher()

    async def _from_student_stream(self) -> Outgoing:
        """Pass the student's text on as it is written; a failure before the first piece still falls back."""
        student = self.student("reply")
        try:
            stream = await student.stream(self.request, trace_headers(self.headers))
            first = await anext(stream.pieces, None)
        except BackendError as why:
            self.recorder.answers.append(student.failure(why))
            return await self._fall_back(why.word)
        if first is None:
            self.recorder.answers.append(stream.answer or student.failure(None))
            return await self._fall_back(self.recorder.answers[-1].error or "empty")

        async def pieces() -> AsyncGenerator[bytes, None]:
            frames = bodies.ChunkFrames(
                self.recorder.id,
                self.request.model,
                is_chat=self.request.path.endswith("/chat/completions"),
            )
            yield frames.opening() + frames.text(first)
            try:
                async for text in stream.pieces:
                    yield frames.text(text)
            finally:
                answer = stream.answer or student.failure(None)
                self.recorder.answers.append(await self._guarded(answer))
                self.recorder.write("student", 200 if answer.ok else 499)
            if not answer.ok:
                raise BrokenStream(answer.error or "stream")
            yield frames.closing(answer, self.request.include_usage)
            self._audit(answer)

        return Outgoing(200, self.recorder.headers(list(EVENTS), "student"), pieces=pieces())

    # copies beside it

    def _copies(self, teacher_answer: Answer) -> None:
        """Shadow and noise of a request that the teacher answered."""
        if self.route is None or not (self.decision.shadow or self.decision.noise):
            return
        if not teacher_answer.ok or self._student_was_asked():
            return
        if self.decision.shadow and self._may_copy(self.route.dark_launch.max_per_minute):
            self.services.shadows.submit(lambda: self._shadow(teacher_answer))
        if self.decision.noise and self._may_copy(None):
            self.services.shadows.submit(self._noise)

    def _student_was_asked(self) -> bool:
        return any(a.role == "student" for a in self.recorder.answers)

    def _may_copy(self, max_per_minute: int | None) -> bool:
        route = self.decision.route
        refused = self.services.shadows.refusal(route, max_per_minute, time.monotonic())
        if refused:
            self.services.metrics.shadow_drops.labels(route, refused).inc()
        return refused is None

    async def _shadow(self, teacher_answer: Answer) -> None:
        answer = await self._guarded(await self._ask_student("shadow"))
        self.recorder.late(answer, compare_online(self._route.answer, answer, teacher_answer))

    async def _noise(self) -> None:
        self.recorder.late(await self.teacher.ask(self._unstreamed(), self.headers, "noise"), None)

    def _audit(self, student_answer: Answer) -> None:
        if self.decision.audit and self._may_copy(None):
            self.services.shadows.submit(lambda: self._audited(student_answer))

    async def _audited(self, student_answer: Answer) -> None:
        answer = await self.teacher.ask(self._unstreamed(), self.headers, "audit")
        self.recorder.late(answer, compare_online(self._route.answer, student_answer, answer))

    def _unstreamed(self) -> RequestView:
        return self.request.unstreamed() if self.request.stream else self.request


class BrokenStream(Exception):
    """The backend's stream broke after the head had gone out: the caller's connection is closed without an end."""


def begin(
    services: Services,
    force: InForce,
    request: RequestView,
    headers: tuple[Header, ...],
    key: KeyEntry | None = None,
) -> Exchange:
    """An exchange with its decision made.

    Raises:
        Forbidden: the caller's key is not for the route.
    """
    decision = decide(force.loaded, request, services.next_draw())
    if key is not None:
        permit(key, decision.route)
    route = None if decision.route == DEFAULT else force.loaded.policy.routes[decision.route]
    trace = services.tracing.begin(request.path, request.headers) if services.tracing else None
    passed = trace.replaced(headers) if trace else headers
    recorder = Recorder(services, force, request, decision, route, key, trace)
    return Exchange(services, force, request, passed, decision, route, recorder)


def _is_stream(reply: Reply) -> bool:
    kind = reply.header(b"content-type") or b""
    return kind.startswith(b"text/event-stream")
