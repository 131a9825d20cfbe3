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
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

import msgspec

from router import guard, wire
from router.auth import KeyEntry, permit
from router.compare import compare
from router.decide import DEFAULT, Decision, decide
from router.errors import BackendError
from router.logged import logged_answer, logged_record
from router.policy import Log, Route, Student
from router.records import Answer, Comparison, LateAnswer, Purpose, Record, ServedBy
from router.services import InForce, Services
from router.student import StudentClient
from router.teacher import TeacherClient, reply_headers
from router.tracing import Trace, trace_headers
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
    pieces: AsyncIterator[bytes] | None = None


@dataclass(slots=True)
class Exchange:
    """One request under way; gathers what its record will say."""

    services: Services
    force: InForce
    request: RequestView
    headers: tuple[Header, ...]
    id: str
    decision: Decision
    route: Route | None
    began: float
    at: float
    key: KeyEntry | None = None
    trace: Trace | None = None
    answers: list[Answer] = field(default_factory=list)
    reason: str = ""
    is_recorded: bool = False

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
        spec = self.route.teacher if self.route else self.force.loaded.policy.default.teacher
        keep = self.force.loaded.policy.keys is None
        return TeacherClient(self.force.backends[spec.backend], spec.model, keep)

    def student(self, purpose: Purpose) -> StudentClient:
        """The route's student, at the version that a rollout pins."""
        spec = self._student_spec
        rollout = self.force.loaded.rollouts.routes.get(self.decision.route)
        return StudentClient(
            self.force.backends[spec.backend],
            spec,
            self._route.answer.kind,
            rollout.version if rollout else None,
            purpose,
            trace_headers(self.headers),
        )

    async def reply(self) -> Outgoing:
        """The reply, by the decision."""
        self.reason = self.decision.reason
        if self.decision.arm == "teacher":
            return await self._from_teacher()
        if self.request.stream and self._route.guard.stream == "pass" and self._can_stream():
            return await self._from_student_stream()
        return await self._from_student()

    def _can_stream(self) -> bool:
        """Whether the student's answer may be passed on while it is written: LoRAX, a template, and no cascade."""
        spec = self._student_spec
        lorax = self.force.backends[spec.backend].config.kind == "lorax"
        cascade = self.decision.cascade_min_confidence is not None
        return lorax and spec.prompt is not None and not cascade

    # the teacher's way

    async def _from_teacher(self) -> Outgoing:
        teacher, loop = self.teacher, asyncio.get_running_loop()
        began = loop.time()
        try:
            reply = await teacher.open(self.request, self.headers)
            if reply.status == 200 and _is_stream(reply):
                headers = self._headers(reply_headers(reply.headers), "teacher")
                return Outgoing(200, headers, pieces=self._teacher_pieces(teacher, reply, began))
            body = await reply.read()
        except BackendError as why:
            self.answers.append(teacher.no_answer(self.request, why, loop.time() - began, "reply"))
            return self._no_teacher(why)
        view = read_reply(body) or EMPTY_REPLY
        answer = teacher.answer(
            self.request, view, reply.status, loop.time() - began, "reply", body
        )
        self.answers.append(answer)
        self._record("teacher", reply.status)
        self._copies(answer)
        return Outgoing(reply.status, self._headers(reply_headers(reply.headers), "teacher"), body)

    def _no_teacher(self, why: BackendError) -> Outgoing:
        """502 (504 when late) in OpenAI's form: the caller's client raises its own classes."""
        self._record("none", status := 504 if why.word == "timeout" else 502)
        body = wire.error_body(f"{why}", "api_error", f"backend_{why.word}")
        return Outgoing(status, self._headers([JSON_TYPE], "none"), body)

    async def _teacher_pieces(
        self, teacher: TeacherClient, reply: Reply, began: float
    ) -> AsyncIterator[bytes]:
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
            teacher.client.broke()
        except (GeneratorExit, asyncio.CancelledError):
            error = "cancelled"
            raise
        finally:
            view = stream.view()
            if error is None and not stream.done and stream.error is not None:
                error = "status"
            answer = teacher.answer(
                self.request, view, 200, loop.time() - began, "reply",
                wire.reassembled(view), first, error,
            )  # fmt: skip
            self.answers.append(answer)
            self._record("teacher", 499 if error == "cancelled" else 200)
        if error is not None and error != "status":
            raise BrokenStream(error)
        for piece in held:
            yield piece
        self._copies(answer)

    # the student's way

    async def _from_student(self) -> Outgoing:
        answer = await self._guarded(await self.student("reply").ask(self.request))
        self.answers.append(answer)
        why = self._why_not(answer, self._route)
        if why is not None:
            return await self._fall_back(why)
        self._record("student", 200)
        self._audit(answer)
        return self._student_reply(answer)

    def _student_reply(self, answer: Answer) -> Outgoing:
        is_chat = self.request.path.endswith("/chat/completions")
        model = self.request.model or answer.model
        if not self.request.stream:
            body = wire.chat_completion(answer, self.id, model, is_chat=is_chat)
            return Outgoing(200, self._headers([JSON_TYPE], "student"), body)
        events = wire.chat_chunks(
            answer, self.id, model, include_usage=self.request.include_usage, is_chat=is_chat
        )
        return Outgoing(200, self._headers(list(EVENTS), "student"), pieces=_each(events))

    async def _guarded(self, answer: Answer) -> Answer:
        if not answer.ok:
            return answer
        verdict = guard.check(self._route.answer, self._route.guard.rules, answer)
        if verdict.ok:
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
        last = self.answers[-1]
        if why == "confidence":
            shown = "none" if last.confidence is None else f"{last.confidence:.3f}"
            self.reason += (
                f"; confidence {shown} < {self.decision.cascade_min_confidence:g}: teacher"
            )
        elif self._route.fallback.to == "error" or why.endswith("(no fallback)"):
            self.reason += f"; student: {why}"
            self.services.metrics.fallbacks.labels(self.decision.route, "none").inc()
            self._record("none", 502)
            message = f"the student of route {self.decision.route} gave no answer: {why}"
            body = wire.error_body(message, "api_error", "student_failed")
            return Outgoing(502, self._headers([JSON_TYPE], "none"), body)
        else:
            self.reason += f"; student: {why}: teacher"
        self.services.metrics.fallbacks.labels(
            self.decision.route, why.removeprefix("guard ")
        ).inc()
        return await self._from_teacher()

    async def _from_student_stream(self) -> Outgoing:
        """Pass the student's text on as it is written; a failure before the first piece still falls back."""
        student = self.student("reply")
        try:
            stream = await student.stream(self.request)
            first = await anext(stream.pieces, None)
        except BackendError as why:
            self.answers.append(student.failure(why))
            return await self._fall_back(why.word)
        if first is None:
            self.answers.append(stream.answer or student.failure(None))
            return await self._fall_back(self.answers[-1].error or "empty")

        async def pieces() -> AsyncIterator[bytes]:
            frames = wire.ChunkFrames(
                self.id, self.request.model, is_chat=self.request.path.endswith("/chat/completions")
            )
            yield frames.opening() + frames.text(first)
            try:
                async for text in stream.pieces:
                    yield frames.text(text)
            finally:
                answer = stream.answer or student.failure(None)
                self.answers.append(await self._guarded(answer))
                self._record("student", 200 if answer.ok else 499)
            if not answer.ok:
                raise BrokenStream(answer.error or "stream")
            yield frames.closing(answer, self.request.include_usage)
            self._audit(answer)

        return Outgoing(200, self._headers(list(EVENTS), "student"), pieces=pieces())

    # copies beside it

    def _copies(self, teacher_answer: Answer) -> None:
        """Shadow and noise of a request that the teacher answered."""
        if self.route is None or not teacher_answer.ok or self._student_was_asked():
            return
        if self.decision.shadow and self._may_copy(self.route.dark_launch.max_per_minute):
            self.services.shadows.submit(lambda: self._shadow(teacher_answer))
        if self.decision.noise and self._may_copy(None):
            self.services.shadows.submit(self._noise)

    def _student_was_asked(self) -> bool:
        return any(a.role == "student" for a in self.answers)

    def _may_copy(self, max_per_minute: int | None) -> bool:
        route = self.decision.route
        refused = self.services.shadows.refusal(route, max_per_minute, time.monotonic())
        if refused:
            self.services.metrics.shadow_drops.labels(route, refused).inc()
        return refused is None

    async def _shadow(self, teacher_answer: Answer) -> None:
        answer = await self._guarded(await self.student("shadow").ask(self.request))
        self._late(answer, compare(self._route.answer, answer, teacher_answer))

    async def _noise(self) -> None:
        self._late(await self.teacher.ask(self._unstreamed(), self.headers, "noise"), None)

    def _audit(self, student_answer: Answer) -> None:
        if self.decision.audit and self._may_copy(None):
            self.services.shadows.submit(lambda: self._audited(student_answer))

    async def _audited(self, student_answer: Answer) -> None:
        answer = await self.teacher.ask(self._unstreamed(), self.headers, "audit")
        self._late(answer, compare(self._route.answer, student_answer, answer))

    def _unstreamed(self) -> RequestView:
        return self.request.unstreamed() if self.request.stream else self.request

    def _late(self, answer: Answer, comparison: Comparison | None) -> None:
        self.services.metrics.count_answer(self.decision.route, answer)
        self.services.metrics.count_comparison(self.decision.route, comparison)
        if self.trace is not None:
            now = self.services.now()
            self.trace.answered(answer, self.request.path, self._kind(answer), now)
        if self.decision.log:
            kept = logged_answer(answer, self._log_rule)
            line = LateAnswer(self.id, self.services.now(), self.decision.route, kept, comparison)
            self.services.log.append(line)

    # the record

    @property
    def _log_rule(self) -> Log:
        return self.route.log if self.route else self.force.loaded.policy.default.log

    def _headers(self, headers: list[Header], served_by: str) -> list[Header]:
        return [
            *headers,
            (b"x-graduate-request-id", self.id.encode()),
            (b"x-graduate-route", self.decision.route.encode()),
            (b"x-graduate-served-by", served_by.encode()),
            (b"x-graduate-reason", _header_text(self.reason)),
        ]

    def abandoned(self) -> None:
        """The caller went away before it had a reply: that is a record too."""
        self.reason += "; caller went away"
        self._record("none", 499)

    def _record(self, served_by: ServedBy, status: int) -> None:
        """Write the record, once, and count."""
        if self.is_recorded:
            return
        self.is_recorded = True
        seconds = time.perf_counter() - self.began
        services, decision = self.services, self.decision
        services.metrics.count_request(decision.route, served_by, status, seconds)
        for answer in self.answers:
            services.metrics.count_answer(decision.route, answer)
        comparison = self._online_comparison()
        services.metrics.count_comparison(decision.route, comparison)
        self._charge()
        if not decision.log and self.trace is None:
            return
        request = self.request
        record = Record(
            id=self.id,
            at=self.at,
            route=decision.route,
            mode=decision.mode,
            policy_digest=self.force.loaded.digest,
            arm=decision.arm,
            served_by=served_by,
            reason=self.reason,
            status=status,
            answers=tuple(self.answers),
            path=request.path,
            model=request.model,
            draw=decision.draw,
            propensity=decision.propensity,
            shadow_share=decision.shadow_share,
            segment=decision.segment,
            conversation=request.conversation,
            user=request.user,
            caller=request.caller,
            metadata=request.metadata,
            headers=self._deciding_headers(),
            stream=request.stream,
            latency_seconds=seconds,
            comparison=comparison,
        )
        if self.trace is not None:
            self._traced(self.trace, record)
        if decision.log:
            services.log.append(logged_record(record, request.body, self._log_rule))

    def _traced(self, trace: Trace, record: Record) -> None:
        """Spans of the answers on the caller's way, one after the other, and of the whole."""
        end = record.at + record.latency_seconds
        for answer in reversed(record.answers):
            trace.answered(answer, record.path, self._kind(answer), end)
            end -= answer.latency_seconds
        trace.end(record)

    def _kind(self, answer: Answer) -> str:
        return self.force.backends[answer.backend].config.kind

    def _deciding_headers(self) -> dict[str, str]:
        """The headers that the policy decides by: without them a decision cannot be computed again."""
        given = self.request.headers
        return {name: given[name] for name in self.force.loaded.deciding_headers if name in given}

    def _charge(self) -> None:
        """The reply's tokens off the caller's minute."""
        if self.key is not None and self.answers:
            last = self.answers[-1]
            chars = len(self.request.body) + len(last.text or "")
            self.services.admission.charge(self.key, last.usage, chars, self.services.now())

    def _online_comparison(self) -> Comparison | None:
        """When a fallback made both answer, they are compared at once."""
        if self.route is None:
            return None
        student = next((a for a in self.answers if a.role == "student"), None)
        teacher = next((a for a in self.answers if a.role == "teacher" and a.ok), None)
        if student is None or teacher is None:
            return None
        return compare(self.route.answer, student, teacher)


class BrokenStream(Exception):
    """The backend's stream broke after the head had gone out: the caller's connection is closed without an end."""


def begin(
    services: Services,
    force: InForce,
    request: RequestView,
    headers: Iterable[Header],
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
    return Exchange(
        services, force, request, trace.replaced(headers) if trace else tuple(headers), services.next_id(),
        decision, route, time.perf_counter(), services.now(), key, trace,
    )  # fmt: skip


def _is_stream(reply: Reply) -> bool:
    kind = reply.header(b"content-type") or b""
    return kind.startswith(b"text/event-stream")


async def _each(events: list[bytes]) -> AsyncIterator[bytes]:
    for event in events:
        yield event


def _header_text(text: str) -> bytes:
    return text.encode("ascii", "replace").replace(b"\n", b" ").replace(b"\r", b" ")[:512]
