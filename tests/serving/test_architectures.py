"""Every architecture that is served answers token for token as transformers and PEFT do; the others are refused by name."""

import asyncio
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from serving import base_model
from serving.errors import OperatorError
from serving.generation import Job, Sampling
from serving.registry import ManifestFields, Registry
from serving.settings import WorkerSettings
from serving.worker import Worker
from tests.serving.place import whole
from tests.tiny import tokenizer

SHAPE: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "eos_token_id": 0, "initializer_range": 0.3,
}  # fmt: skip
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
COUNT = 10


def saved(folder: Path, config: Any) -> Path:
    """A random model of that configuration, biases and norms drawn too: at their beginnings they change nothing."""
    torch.manual_seed(0)
    maker: Any = AutoModelForCausalLM
    model = maker.from_config(config)
    for name, weights in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(weights, mean=float("norm" in name), std=0.3)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def adapter(base: Path, folder: Path) -> Path:
    torch.manual_seed(1)
    plain: Any = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=MODULES, task_type="CAUSAL_LM")
    with warnings.catch_warnings():  # peft asks transformers by an old name
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        adapted = get_peft_model(plain, config)
    for name, weights in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.3)
    adapted.save_pretrained(str(folder))
    return folder


@torch.no_grad()
def alone(model: Any, prompt: tuple[int, ...]) -> list[int]:
    ids = list(prompt)
    for _ in range(COUNT):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(LlamaConfig(**SHAPE), id="llama"),
        pytest.param(LlamaConfig(**SHAPE, tie_word_embeddings=True, head_dim=16), id="llama, tied"),
        pytest.param(
            LlamaConfig(
                **SHAPE, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
            ),
            id="llama, scaled rotations",
        ),
        pytest.param(MistralConfig(**SHAPE, sliding_window=None), id="mistral"),
        pytest.param(Qwen2Config(**SHAPE), id="qwen2, with biases"),
        pytest.param(Qwen3Config(**SHAPE, head_dim=8), id="qwen3, with norms of queries and keys"),
    ],
)
def test_base_and_adapter_answer_as_alone_in_peft(tmp_path: Path, config: Any) -> None:
    folder = saved(tmp_path / "model", config)
    base = base_model.load_weights(str(folder), tmp_path)
    fields = ManifestFields(
        base_model=base.id, base_model_digest=base.digest, rank=4, alpha=16,
        target_modules=tuple(MODULES),
    )  # fmt: skip
    registry = Registry(tmp_path / "registry")
    lora = adapter(folder, tmp_path / "adapter")
    name = registry.publish("mail", lora, fields, {}).id
    texts = ("hello", "where is my order? I want a refund")
    prompts = [tuple(base.tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    asked = [(each, prompt) for each in (None, name) for prompt in prompts]

    async def run() -> list[list[int]]:
        worker = Worker(base, registry, WorkerSettings())
        await worker.start()
        jobs = (Job(ids, Sampling(COUNT, ignore_eos=True), each) for each, ids in asked)
        found = await asyncio.gather(*(whole(worker, job) for job in jobs))
        await worker.stop()
        return [[token.id for token in tokens] for tokens, _ in found]

    plain: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    wanted = [alone(plain, prompt) for prompt in prompts]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        adapted = PeftModel.from_pretrained(plain, str(lora)).eval()
    wanted += [alone(adapted, prompt) for prompt in prompts]
    assert wanted[:2] != wanted[2:]  # the adapter matters
    assert asyncio.run(run()) == wanted


def test_gemma_3_is_refused_by_name(tmp_path: Path) -> None:
    """Its norms, its scaled embeddings and its two kinds of attention are another code path."""
    folder = saved(tmp_path / "model", Gemma3TextConfig(**SHAPE, head_dim=8))
    base = base_model.load_weights(str(folder), tmp_path)
    with pytest.raises(OperatorError, match="gemma3_text"):
        Worker(base, Registry(tmp_path / "registry"), WorkerSettings())
