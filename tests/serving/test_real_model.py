"""The real small model: out of its wheel, converted from GGUF, and token for token as transformers and PEFT give it."""

import asyncio
import random
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from serving import base_model
from serving.generation import Job, Sampling, TokenOut
from serving.registry import ManifestFields, Registry

with warnings.catch_warnings():
    # llguidance's torch part makes torch import what torch deprecates.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
    from serving.settings import WorkerSettings
    from serving.worker import Worker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning"),  # gguf's reader, on read-only arrays
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
BEGINNINGS = (
    "The capital of France is",
    "Once upon a time there was a",
    "def fibonacci(n):\n",
    "Ticket: my card was charged twice, please give it back.\nAnswer:",
    "Q: What is 2 + 2?\nA:",
    "Dear Sir or Madam,",
    "Sort this message into spam, billing, delivery, praise or other: the parcel came broken.\nLabel:",
    "Ingredients: butter, sugar, flour.\n1.",
    "The three largest rivers of Africa are",
    "SELECT name FROM users WHERE",
)
TAILS = ("", " Please", " I", " And then", " (see")
MODULES = (
    ["q_proj", "v_proj"],
    ["q_proj", "k_proj", "v_proj", "o_proj"],
    ["gate_proj", "up_proj", "down_proj"],
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
)
NUM_ADAPTERS, COUNT = 16, 12


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def generate(
    worker: Worker, asked: Sequence[tuple[str | None, tuple[int, ...]]], count: int
) -> list[list[int]]:
    """Greedy tokens, all asked for at once."""

    async def one(adapter: str | None, ids: tuple[int, ...]) -> list[int]:
        items = [item async for item in worker.submit(Job(ids, Sampling(count), adapter))]
        return [item.id for item in items if isinstance(item, TokenOut)]

    async def run() -> list[list[int]]:
        await worker.start()
        found = await asyncio.gather(*(one(adapter, ids) for adapter, ids in asked))
        await worker.stop()
        return list(found)

    return asyncio.run(run())


def alone(model: Any, ids: tuple[int, ...], count: int, eos: int) -> list[int]:
    """Greedy tokens by transformers' own `generate`."""
    out = model.generate(
        input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=count, do_sample=False, pad_token_id=eos,
    )  # fmt: skip
    tokens: list[int] = out[0, len(ids) :].tolist()
    return tokens


def test_smollm2_is_fetched_converted_once_and_generates_as_transformers(cache: Path) -> None:
    base = base_model.load("smollm2", cache)
    began = time.perf_counter()
    again = base_model.load("smollm2", cache)
    assert time.perf_counter() - began < 15  # from safetensors, not from GGUF again
    assert (base.id, base.digest) == (again.id, again.digest)
    assert base.id == "SmolLM2-135M-Instruct"
    prompts = [tuple(base.tokenizer.encode(p, add_special_tokens=False)) for p in BEGINNINGS[:6]]
    worker = Worker(base, Registry(cache / "none"), WorkerSettings())
    found = generate(worker, [(None, ids) for ids in prompts], 24)
    plain: Any = AutoModelForCausalLM.from_pretrained(again.path, dtype=torch.float32).eval()
    eos = base.tokenizer.eos_token_id
    assert found == [alone(plain, ids, 24, eos) for ids in prompts]


def publish_adapters(base: base_model.BaseModel, root: Path) -> list[str]:
    """Sixteen adapters of ranks 4 and 8 over four sets of modules, B drawn so that answers change."""
    registry, ids = Registry(root / "registry"), []
    for number in range(NUM_ADAPTERS):
        torch.manual_seed(number)
        modules, rank = MODULES[number % len(MODULES)], (4, 8)[number // 4 % 2]
        plain: Any = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
        config = LoraConfig(r=rank, lora_alpha=16, target_modules=modules, task_type="CAUSAL_LM")
        adapted = get_peft_model(plain, config)
        for name, weights in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weights, std=0.05)
        adapted.save_pretrained(root / f"a{number}")
        fields = ManifestFields(
            base_model=base.id, base_model_digest=base.digest, rank=rank, alpha=16,
            target_modules=tuple(modules),
        )  # fmt: skip
        ids.append(registry.publish(f"a{number}", root / f"a{number}", fields, {}).id)
    return ids


def test_fifty_prompts_over_sixteen_adapters_and_the_base_give_what_peft_gives_alone(
    cache: Path, tmp_path: Path
) -> None:
    base = base_model.load("smollm2", cache)
    eos = base.tokenizer.eos_token_id
    adapters = [None, *publish_adapters(base, tmp_path)]
    texts = [beginning + tail for beginning in BEGINNINGS for tail in TAILS]
    prompts = [tuple(base.tokenizer.encode(t, add_special_tokens=False)) for t in texts]
    asked = [(adapters[i % len(adapters)], ids) for i, ids in enumerate(prompts)]

    wanted: dict[int, list[int]] = {}
    for adapter in adapters:
        model: Any = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32).eval()
        if adapter is not None:
            folder = tmp_path / adapter.partition("/")[0]
            model = PeftModel.from_pretrained(model, str(folder)).eval()
        for number, (name, ids) in enumerate(asked):
            if name == adapter:
                wanted[number] = alone(model, ids, COUNT, eos)
    assert len({tuple(wanted[n]) for n in range(50)}) > 25  # adapters and prompts do matter

    registry = Registry(tmp_path / "registry")
    for seed, max_batch in ((0, 1), (1, 7), (2, 32)):
        order = list(range(50))
        random.Random(seed).shuffle(order)
        fresh = base_model.load_weights("smollm2", cache)
        worker = Worker(fresh, registry, WorkerSettings(max_batch=max_batch, max_prefill_tokens=90))
        found = generate(worker, [asked[n] for n in order], COUNT)
        differing = [
            (adapters[n % 17], texts[n], tokens, wanted[n])
            for n, tokens in zip(order, found, strict=True)
            if tokens != wanted[n]
        ]
        assert not differing, f"batches of up to {max_batch}"


def test_int8_weights_say_nearly_what_fp32_says(cache: Path) -> None:
    answers = []
    for weights in ("float32", "int8"):
        base = base_model.load_weights("smollm2", cache)
        prompts = [
            tuple(base.tokenizer.encode(beginning + tail, add_special_tokens=False))
            for beginning in BEGINNINGS
            for tail in TAILS
        ]
        settings = WorkerSettings(weights=weights)  # type: ignore[arg-type]
        worker = Worker(base, Registry(cache / "none"), settings)
        answers.append(generate(worker, [(None, ids) for ids in prompts], COUNT))
    first = sum(a[0] == b[0] for a, b in zip(*answers, strict=True)) / len(answers[0])
    whole = sum(a == b for a, b in zip(*answers, strict=True)) / len(answers[0])
    assert first > 0.8  # 0.9 when this was written; 0.72 with inputs of one digit
    assert whole < 1  # it is not fp32 by another name
