"""LoRAX's reply headers. Pure; every time is a whole number of milliseconds."""

from collections.abc import Sequence

from serving.generation import Finished


def identity(model_id: str, adapter_id: str | None) -> dict[str, str]:
    """Which model and adapter version answer; on every reply, streaming or not."""
    headers = {"x-compute-type": "cpu", "x-model-id": model_id}
    if adapter_id is not None:
        headers |= {"x-adapter-id": adapter_id, "x-adapter-source": "local"}
    return headers


def timing(
    ends: Sequence[Finished],
    *,
    prompt_characters: int,
    total_seconds: float,
    validation_seconds: float,
    first_token_seconds: float,
) -> dict[str, str]:
    """What a whole reply took; of several sequences the slowest counts."""
    generated = sum(end.generated_tokens for end in ends)
    inference_seconds = max(end.inference_seconds for end in ends)
    longest = max(1, *(end.generated_tokens for end in ends), 1)
    after_first_seconds = max(0.0, total_seconds - first_token_seconds)
    values = {
        "x-compute-time": total_seconds,
        "x-total-time": total_seconds,
        "x-validation-time": validation_seconds,
        "x-queue-time": max(end.queue_seconds for end in ends),
        "x-inference-time": inference_seconds,
        "x-time-per-token": inference_seconds / longest,
        "x-time-to-first-token": first_token_seconds,
        "x-time-per-output-token": after_first_seconds / max(1, longest - 1),
    }
    counts = {
        "x-compute-characters": prompt_characters,
        "x-prompt-tokens": ends[0].prompt_tokens,
        "x-generated-tokens": generated,
        "x-skipped-tokens": sum(end.skipped_tokens for end in ends),
        "x-total-tokens": ends[0].prompt_tokens + generated,
    }
    return {name: str(round(seconds * 1000)) for name, seconds in values.items()} | {
        name: str(count) for name, count in counts.items()
    }
