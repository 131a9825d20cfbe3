"""A tiny base model with adapters of several shapes, in our worker and in PEFT, for the tests of the engine and around it."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    LlamaForCausalLM,
)

from serving import base_model
from serving.decoder import Decoder
from serving.generation import Finished, Job, Sampling, TokenOut
from serving.lora import load_lora
from serving.registry import ManifestFields, Registry
from tests.tiny import random_adapter, tiny_model

with warnings.catch_warnings():
    # llguidance's torch part makes torch import what torch deprecates.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
    from serving.settings import WorkerSettings
    from serving.worker import Worker

MODULES = (
    ["q_proj", "v_proj"],
    ["q_proj", "k_proj", "v_proj", "o_proj"],
    ["gate_proj", "up_proj", "down_proj"],
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
)
WORDS = [
    "hello",
    "world",
    "where",
    "is",
    "my",
    "order",
    "I",
    "want",
    "a",
    "refund",
    "now",
    "please",
    "ticket",
]
"""What prompts are drawn from."""


class Place:
    """A tiny base model, four adapters of different ranks and modules in a registry, and the same in PEFT."""

    def __init__(self, root: Path) -> None:
        tiny_model(root / "model", num_layers=3)
        self.root = root
        self.base = base_model.load(str(root / "model"), root / "cache")
        self.registry = Registry(root / "registry")
        self.folders: dict[str, Path] = {}
        self.references: dict[str | None, Any] = {}
        for number, modules in enumerate(MODULES):
            rank = (4, 8)[number % 2]
            folder = random_adapter(root / "model", root / f"a{number}", number, modules, rank)
            ref = self.registry.publish(f"a{number}", folder, self.fields(rank, modules), {})
            self.folders[ref.id] = folder

    def fields(self, rank: int, modules: list[str], digest: str | None = None) -> ManifestFields:
        return ManifestFields(
            base_model=self.base.id,
            base_model_digest=digest or self.base.digest,
            rank=rank,
            alpha=16,
            target_modules=tuple(modules),
        )

    def ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.base.tokenizer.encode(text, add_special_tokens=False))

    def reference(self, adapter: str | None) -> Any:
        """The adapter in PEFT, loaded once."""
        if adapter not in self.references:
            model: Any = LlamaForCausalLM.from_pretrained(self.root / "model").eval()
            if adapter is not None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", FutureWarning)
                    model = PeftModel.from_pretrained(model, str(self.folders[adapter])).eval()
            self.references[adapter] = model
        return self.references[adapter]

    @torch.no_grad()
    def alone(self, adapter: str | None, prompt: tuple[int, ...], count: int) -> list[int]:
        """Greedy tokens of one adapter alone, by transformers and PEFT."""
        model = self.reference(adapter)
        ids = list(prompt)
        for _ in range(count):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == self.base.tokenizer.eos_token_id:
                break
        return ids[len(prompt) :]

    def size(self, *adapters: str) -> int:
        """Bytes that adapters take in memory."""
        places = Decoder(base_model.load(self.base.path, self.root / "cache").model).places()
        return sum(load_lora(a, self.folders[a], places).num_bytes for a in adapters)

    def worker(self, **settings: Any) -> Worker:
        fresh = base_model.load_weights(str(self.root / "model"), self.root / "cache")
        return Worker(fresh, self.registry, WorkerSettings(**settings))


async def whole(worker: Worker, job: Job) -> tuple[list[TokenOut], Finished]:
    items = [item async for item in worker.submit(job)]
    assert isinstance(items[-1], Finished)
    return [item for item in items if isinstance(item, TokenOut)], items[-1]


def job(place: Place, text: str, adapter: str | None, count: int = 12, **more: Any) -> Job:
    return Job(place.ids(text), Sampling(count, **more), adapter)
