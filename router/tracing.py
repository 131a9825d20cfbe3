"""OpenTelemetry traces, when an endpoint is named: one span a request, one below it a backend's answer.

Switched on by OpenTelemetry's own variable `OTEL_EXPORTER_OTLP_ENDPOINT` (or `…_TRACES_ENDPOINT`) and the extra
`graduate[otel]`; `OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER` and the rest hold too. Attributes are those of the GenAI
semantic conventions where there is one, `graduate.*` otherwise; no text of a request or an answer is among them. Without
an endpoint the caller's W3C trace context is passed to the backends as it is.
"""

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from router.errors import SettingsError
from router.records import Answer, Record
from router.transport import Header

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

TRACE_HEADERS = (b"traceparent", b"tracestate")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def trace_headers(headers: Iterable[Header]) -> tuple[Header, ...]:
    """The W3C trace context among a request's headers."""
    return tuple(header for header in headers if header[0] in TRACE_HEADERS)


@dataclass(frozen=True, slots=True)
class Tracing:
    """The tracer of a router process."""

    provider: "TracerProvider"
    tracer: "Tracer"

    @classmethod
    def from_environment(cls) -> "Tracing | None":
        """None when no endpoint is named.

        Raises:
            SettingsError: an endpoint is named and OpenTelemetry is not installed.
        """
        named = next((name for name in _ENDPOINTS if os.environ.get(name)), None)
        if named is None:
            return None
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as why:
            raise SettingsError(
                f"{named} is set, but OpenTelemetry is not installed: pip install 'graduate[otel]'"
            ) from why
        service = os.environ.get("OTEL_SERVICE_NAME", "graduate-router")
        provider = TracerProvider(resource=Resource.create({"service.name": service}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider, provider.get_tracer("graduate.router"))

    def begin(self, path: str, headers: Mapping[str, str]) -> "Trace":
        """The span of a request, below the caller's if it sent one."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(dict(headers))
        attributes = {"http.request.method": "POST", "http.route": path}
        span = self.tracer.start_span(
            f"POST {path}", parent, SpanKind.SERVER, attributes, start_time=time.time_ns()
        )
        return Trace(self.tracer, span)

    def close(self) -> None:
        """Send what is left."""
        self.provider.shutdown()


@dataclass(frozen=True, slots=True)
class Trace:
    """One request's span."""

    tracer: "Tracer"
    span: "Span"

    def replaced(self, headers: Iterable[Header]) -> tuple[Header, ...]:
        """The headers with this span as the backends' parent."""
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, self._context())
        ours = tuple((name.encode(), value.encode()) for name, value in carrier.items())
        return (*(h for h in headers if h[0] not in TRACE_HEADERS), *ours)

    def _context(self) -> "Context":
        from opentelemetry.trace import set_span_in_context

        return set_span_in_context(self.span)

    def answered(self, answer: Answer, path: str, kind: str, end_seconds: float) -> None:
        """A span of one backend's answer.

        Args:
            kind: the backend's kind: `openai` or `lorax`.
            end_seconds: when it was there, in seconds since the epoch.
        """
        from opentelemetry.trace import SpanKind, Status, StatusCode

        operation = "chat" if path.endswith("/chat/completions") else "text_completion"
        begin = end_seconds - answer.latency_seconds
        span = self.tracer.start_span(
            f"{operation} {answer.adapter or answer.model}".strip(), self._context(), SpanKind.CLIENT,
            _of_answer(answer, operation, kind), start_time=int(begin * 1e9),
        )  # fmt: skip
        if answer.error is not None:
            span.set_status(Status(StatusCode.ERROR, answer.error))
        span.end(int(end_seconds * 1e9))

    def end(self, record: Record) -> None:
        """The request is answered."""
        from opentelemetry.trace import Status, StatusCode

        self.span.set_attributes(_of_record(record))
        if record.status >= 500:
            self.span.set_status(Status(StatusCode.ERROR))
        self.span.end(int((record.at + record.latency_seconds) * 1e9))


def _of_answer(answer: Answer, operation: str, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": kind,
        "gen_ai.request.model": answer.adapter or answer.model,
        "gen_ai.response.model": answer.model,
        "gen_ai.usage.input_tokens": answer.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": answer.usage.completion_tokens,
        "graduate.backend": answer.backend,
        "graduate.role": answer.role,
        "graduate.purpose": answer.purpose,
        "graduate.cost_usd": answer.cost_usd,
    }
    optional: dict[str, Any] = {
        "gen_ai.response.finish_reasons": [answer.finish_reason] if answer.finish_reason else None,
        "gen_ai.response.time_to_first_chunk": answer.first_token_seconds,
        "graduate.confidence": answer.confidence,
        "graduate.guard": answer.verdict,
        "error.type": answer.error,
    }
    return found | {name: value for name, value in optional.items() if value is not None}


def _of_record(record: Record) -> dict[str, Any]:
    found = {
        "http.response.status_code": record.status,
        "gen_ai.request.model": record.model,
        "graduate.request_id": record.id,
        "graduate.route": record.route,
        "graduate.mode": record.mode,
        "graduate.arm": record.arm,
        "graduate.served_by": record.served_by,
        "graduate.reason": record.reason,
        "graduate.policy_digest": record.policy_digest,
    }
    if record.conversation:
        found["gen_ai.conversation.id"] = record.conversation
    return found
