"""The real small model: out of its wheel, converted from GGUF, and token for token as transformers gives it."""

import asyncio
import time
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from serving import base_model
from serving.generation import Job, Sampling, TokenOut
from serving.registry import Registry

with warnings.catch_warnings():
    # llguidance's torch part makes torch import what torch deprecates.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
    from serving.worker import Worker, WorkerSettings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning"),  # gguf's reader, on read-only arrays
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a",
    "def fibonacci(n):\n",
    "Ticket: my card was charged twice, please give it back.\nAnswer:",
    "Q: What is 2 + 2?\nA:",
    "Dear Sir or Madam,",
)


def test_smollm2_is_fetched_converted_once_and_generates_as_transformers(tmp_path: Path) -> None:
    base = base_model.load("smollm2", tmp_path)
    began = time.perf_counter()
    again = base_model.load("smollm2", tmp_path)
    assert time.perf_counter() - began < 15  # from safetensors, not from GGUF again
    assert (base.id, base.digest) == (again.id, again.digest)
    assert base.id == "SmolLM2-135M-Instruct"
    prompts = [tuple(base.tokenizer.encode(p, add_special_tokens=False)) for p in PROMPTS]

    async def run() -> list[list[int]]:
        worker = Worker(base, Registry(tmp_path / "adapters"), WorkerSettings())
        await worker.start()

        async def one(ids: tuple[int, ...]) -> list[int]:
            items = [item async for item in worker.submit(Job(ids, Sampling(24)))]
            return [item.id for item in items if isinstance(item, TokenOut)]

        found = await asyncio.gather(*(one(ids) for ids in prompts))
        await worker.stop()
        return list(found)

    found = asyncio.run(run())
    plain = AutoModelForCausalLM.from_pretrained(again.path, dtype=torch.float32).eval()
    for ids, tokens in zip(prompts, found, strict=True):
        out = plain.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=24, do_sample=False, pad_token_id=base.tokenizer.eos_token_id,
        )  # fmt: skip
        assert tokens == out[0, len(ids) :].tolist()
