"""What every route needs: worker, registry, prompts, limits, metrics. Built by `app.create_app`."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field

from starlette.responses import StreamingResponse

from serving import headers, sse
from serving.exchange import Meter
from serving.generation import Finished
from serving.metrics import ServingMetrics
from serving.prompts import Prompts
from serving.registry import AdapterRef, Registry
from serving.settings import AppSettings
from serving.wire import Limits, adapter_or_base
from serving.worker import Worker


@dataclass(slots=True)
class State:
    """The parts, and whether the server drains."""

    worker: Worker
    registry: Registry
    prompts: Prompts
    limits: Limits
    metrics: ServingMetrics
    settings: AppSettings
    base_id: str
    started_at: int
    is_draining: bool = field(default=False)

    def meter(self) -> Meter:
        """A meter for a request that starts now."""
        return Meter(self.metrics, self.worker)

    async def resolve(self, name: str | None) -> AdapterRef | None:
        """The version that a name means now; None for the base model.

        Raises:
            AdapterFailed: from the registry's own error, which says whether the name is unknown.
        """
        return await self.worker.resolve(adapter_or_base(name, self.base_id))

    def headers(
        self, meter: Meter, ends: Sequence[Finished], prompt_characters: int
    ) -> dict[str, str]:
        """LoRAX's headers of a whole reply."""
        return headers.identity(self.base_id, ends[0].adapter_id) | headers.timing(
            ends,
            prompt_characters=prompt_characters,
            total_seconds=meter.seconds,
            validation_seconds=meter.validation_seconds,
            first_token_seconds=meter.first_token_seconds,
        )

    def stream(self, events: AsyncGenerator[bytes], fields: Mapping[str, str]) -> StreamingResponse:
        """A reply of server-sent events."""
        return StreamingResponse(
            sse.kept_alive(events, self.settings.keep_alive_seconds),
            media_type="text/event-stream",
            headers={**fields, "x-accel-buffering": "no", "cache-control": "no-cache"},
        )
