"""What is kept of one exchange: gathered on its way, then counted, charged, traced and written, once.

The record is on its way to the disk before the reply's last byte leaves: whoever replies calls `write` first.
"""

import functools
import time
from dataclasses import dataclass, field

import msgspec

from router.auth import KeyEntry
from router.compare import compare_online
from router.decide import Decision
from router.logged import logged_answer, logged_record
from router.policy import Log, Route
from router.records import Answer, Comparison, LateAnswer, Record, ServedBy
from router.services import InForce, Services
from router.tracing import Trace
from router.transport import Header
from router.wire import RequestView


@dataclass(slots=True)
class Recorder:
    """One request's record in the making. `answers` are those on the caller's way, in order."""

    services: Services
    force: InForce
    request: RequestView
    decision: Decision
    route: Route | None
    key: KeyEntry | None
    trace: Trace | None
    id: str = field(init=False)
    at: float = field(init=False)
    reason: str = field(init=False)
    answers: list[Answer] = field(default_factory=list)
    _began: float = field(init=False)
    _is_written: bool = False

    def __post_init__(self) -> None:
        self.id = self.services.next_id()
        self.at = self.services.now()
        self.reason = self.decision.reason
        self._began = time.perf_counter()

    def late(self, answer: Answer, comparison: Comparison | None) -> None:
        """Count and write an answer that settled after the reply."""
        self.services.metrics.count_answer(self.decision.route, answer)
        self.services.metrics.count_comparison(self.decision.route, comparison)
        if self.trace is not None:
            now = self.services.now()
            self.trace.answered(answer, self.request.path, self._kind(answer), now)
        if self.decision.log:
            kept = logged_answer(answer, self._log_rule)
            line = LateAnswer(self.id, self.services.now(), self.decision.route, kept, comparison)
            self.services.log.append_soon(line)

    @property
    def _log_rule(self) -> Log:
        return self.route.log if self.route else self.force.loaded.policy.default.log

    def headers(self, headers: list[Header], served_by: ServedBy) -> list[Header]:
        """A reply's headers, ours added."""
        return [
            *headers,
            (b"x-graduate-request-id", self.id.encode()),
            (b"x-graduate-route", _header_text(self.decision.route)),
            (b"x-graduate-served-by", served_by.encode()),
            (b"x-graduate-reason", _header_text(self.reason)),
        ]

    def write(self, served_by: ServedBy, status: int) -> None:
        """Write the record, once, and count."""
        if self._is_written:
            return
        self._is_written = True
        seconds = time.perf_counter() - self._began
        services, decision = self.services, self.decision
        services.metrics.count_request(decision.route, served_by, status, seconds)
        for answer in self.answers:
            services.metrics.count_answer(decision.route, answer)
        comparison = self._online_comparison()
        if comparison is not None:
            services.metrics.count_comparison(decision.route, comparison)
        self._charge()
        if not decision.log and self.trace is None:
            return
        request = self.request
        # By position, in the order of `Record`: by name msgspec takes ten times as long.
        record = Record(
            self.id, self.at, decision.route, decision.mode, self.force.loaded.digest, decision.arm, served_by,
            self.reason, status, tuple(self.answers), request.path, request.model, msgspec.Raw(request.body),
            decision.draw, decision.propensity, decision.shadow_share, decision.segment, request.conversation,
            request.user, request.caller, request.metadata, self._deciding_headers(), request.stream, seconds,
            comparison,
        )  # fmt: skip
        if self.trace is not None:
            self._traced(self.trace, record)
        if decision.log:
            services.log.append(logged_record(record, self._log_rule))

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
        if self.route is None or len(self.answers) < 2:
            return None
        student = next((a for a in self.answers if a.role == "student"), None)
        teacher = next((a for a in self.answers if a.role == "teacher" and a.ok), None)
        if student is None or teacher is None:
            return None
        return compare_online(self.route.answer, student, teacher)


@functools.lru_cache(maxsize=1024)
def _header_text(text: str) -> bytes:
    return text.encode("ascii", "replace").replace(b"\n", b" ").replace(b"\r", b" ")[:512]
