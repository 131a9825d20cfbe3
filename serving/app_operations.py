"""Routes for operators: health, readiness, a first real token, what is served, metrics."""

import asyncio

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving import exchange
from serving.bodies import json_response
from serving.errors import ServingError, Unhealthy
from serving.exchange import Meter
from serving.generation import Job, Sampling
from serving.state import State


class OperationsApi:
    """The endpoints."""

    def __init__(self, state: State) -> None:
        self._state = state

    def routes(self) -> list[Route]:
        """Paths and methods."""
        return [
            Route("/", self.health),
            Route("/health", self.health),
            Route("/ping", self.health),
            Route("/ready", self.ready),
            Route("/startup", self.startup),
            Route("/info", self.info),
            Route("/metrics", self.metrics),
        ]

    async def health(self, _: Request) -> Response:
        """`GET /health`: the engine's thread lives."""
        if not self._state.worker.is_alive:
            raise Unhealthy("unhealthy")
        return Response()

    async def ready(self, _: Request) -> Response:
        """`GET /ready`: alive, and not on its way down."""
        if self._state.is_draining or not self._state.worker.is_alive:
            raise Unhealthy("unhealthy")
        return Response()

    async def startup(self, _: Request) -> Response:
        """`GET /startup`: one token was really generated; 500 when it was not, as LoRAX has it."""
        ids = await self._state.prompts.encode("Who?", add_special_tokens=True)
        job = Job(prompt_ids=tuple(ids), sampling=Sampling(max_new_tokens=1))
        meter = Meter(self._state.metrics, self._state.worker)
        try:
            async with asyncio.timeout(self._state.settings.startup_timeout_seconds):
                await exchange.whole(self._state.worker, job, meter)
        except (ServingError, TimeoutError) as why:
            body = {"error": f"unhealthy: {why or 'no token in time'}", "error_type": "healthcheck"}
            return json_response(body, 500)
        return Response()

    async def info(self, _: Request) -> Response:
        """`GET /info`: LoRAX's Info."""
        limits, worker = self._state.limits, self._state.worker
        return json_response(
            {
                "model_id": self._state.base_id,
                "model_sha": worker.info.base_model_digest,
                "model_dtype": worker.info.dtype,
                "model_device_type": "cpu",
                "model_pipeline_tag": "text-generation",
                "max_concurrent_requests": worker.info.max_concurrent_requests,
                "max_best_of": limits.max_best_of,
                "max_stop_sequences": limits.max_stop_sequences,
                "max_input_length": limits.max_input_length,
                "max_total_tokens": limits.max_total_tokens,
                "waiting_served_ratio": 0.0,
                "max_batch_total_tokens": worker.info.max_batch_total_tokens,
                "max_waiting_tokens": 0,
                "validation_workers": 1,
                "eager_prefill": True,
                "version": self._state.settings.version,
                "sha": None,
                "docker_label": None,
                "request_logger_url": None,
            }
        )

    async def metrics(self, _: Request) -> Response:
        """`GET /metrics`: Prometheus text."""
        text = await asyncio.to_thread(generate_latest, self._state.metrics.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)
