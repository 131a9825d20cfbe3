"""Traces: what an OpenTelemetry collector gets of a request, and what the backends see of its context."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.router.conftest import Behaviour, Start, serving

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Spans that a collector was sent."""
    spans: list[Any] = []
    app = FastAPI()

    @app.post("/v1/traces")
    async def traces(request: Request) -> Response:
        sent = ExportTraceServiceRequest.FromString(await request.body())
        spans.extend(s for r in sent.resource_spans for scope in r.scope_spans for s in scope.spans)
        return Response(b"", media_type="application/x-protobuf")

    with serving(app) as address:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield spans


def until(spans: list[Any], count: int) -> dict[str, Any]:
    deadline = time.monotonic() + 5
    while len(spans) < count:
        assert time.monotonic() < deadline, spans
        time.sleep(0.02)
    return {span.name: span for span in spans}


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def test_a_request_and_its_answers_are_spans_below_the_callers(
    start: Start, behaviour: Behaviour, collected: list[Any]
) -> None:
    behaviour.student = ""  # the guard refuses it, the teacher answers
    live = start("student", guard={"rules": ["not_empty"]}, canary={"audit": 0})
    live.ask(headers={"traceparent": CALLER, "x-graduate-conversation": "c-1"})
    spans = until(collected, 3)
    request, student, teacher = (
        spans[n] for n in ("POST /v1/chat/completions", "chat mail/3", "chat mail")
    )
    assert request.trace_id.hex() == CALLER.split("-")[1]
    assert request.parent_span_id.hex() == CALLER.split("-")[2]
    assert student.parent_span_id == teacher.parent_span_id == request.span_id
    assert attributes(request)["graduate.served_by"] == "teacher"
    assert attributes(request)["gen_ai.conversation.id"] == "c-1"
    assert attributes(student)["graduate.guard"] == "not_empty"
    assert attributes(student)["gen_ai.provider.name"] == "lorax"
    assert attributes(teacher)["gen_ai.usage.input_tokens"] == 10
    assert attributes(teacher)["gen_ai.response.finish_reasons"].values[0].string_value == "stop"
    assert request.start_time_unix_nano <= student.start_time_unix_nano + 5_000_000
    assert student.end_time_unix_nano <= teacher.start_time_unix_nano + 5_000_000
    texts = str(collected)
    assert "teacher says" not in texts
    assert "hello" not in texts


def test_backends_are_told_the_routers_span(
    start: Start, behaviour: Behaviour, collected: list[Any]
) -> None:
    live = start("dark_launch")
    live.ask(headers={"traceparent": CALLER, "tracestate": "a=b"})
    live.records(settled=lambda record: len(record.answers) == 2)
    span = until(collected, 3)["POST /v1/chat/completions"]
    for _, headers, _ in behaviour.seen:
        assert headers["traceparent"] == f"00-{CALLER.split('-')[1]}-{span.span_id.hex()}-01"
        assert headers["tracestate"] == "a=b"


def test_without_an_endpoint_the_callers_context_passes(start: Start, behaviour: Behaviour) -> None:
    live = start("dark_launch")
    live.ask(headers={"traceparent": CALLER})
    live.records(settled=lambda record: len(record.answers) == 2)
    assert [h["traceparent"] for _, h, _ in behaviour.seen] == [CALLER, CALLER]
