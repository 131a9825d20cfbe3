"""A worker that fails on demand, for what clients are to make of it: faults that a sound engine does not have."""

from collections.abc import AsyncIterator
from pathlib import Path

from serving.callers import Item
from serving.errors import GenerationFailed
from serving.generation import Job
from serving.registry import ManifestFields, Registry
from serving.worker import Worker
from tests.tiny import random_adapter, tiny_model

BREAKS, ENDS, FAILS = "order", "refund", "where"
"""Words in a prompt: a mistake in the code, a stream that ends without an end, a step that failed. After the first token."""


class FaultyWorker(Worker):
    """Fails after the first token when the prompt says so, at once when it says so twice."""

    async def submit(self, job: Job) -> AsyncIterator[Item]:
        """As `Worker.submit`, or one of the faults."""
        text = self.tokenizer.decode(list(job.prompt_ids))
        items = super().submit(job)
        first = True
        try:
            async for item in items:
                if first and any(text.count(fault) > 1 for fault in (BREAKS, ENDS, FAILS)):
                    first = False
                else:
                    yield item
                if BREAKS in text:
                    raise RuntimeError("a mistake")
                if ENDS in text:
                    return
                if FAILS in text:
                    raise GenerationFailed("a step failed: injected")
        finally:
            await items.aclose()  # type: ignore[attr-defined]


def publish_foreign(root: Path) -> None:
    """`foreign/1`, made for another base model than the one that will be served."""
    tiny_model(root / "other", num_layers=1)
    fields = ManifestFields(
        base_model="other", base_model_digest="0" * 16, rank=4, alpha=16, target_modules=("q_proj",)
    )
    folder = random_adapter(root / "other", root / "foreign", 0, ["q_proj"])
    Registry(root / "registry").publish("foreign", folder, fields, {})
