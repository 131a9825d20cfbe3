"""A folder's weights read directly are those that transformers loads: tensors, rotations, digest, ends of sequence."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from serving import base_model
from serving.weights import EMBEDDING, mapped, of_folder, of_model
from tests.tiny import tiny_model, tokenizer

SHAPE: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "eos_token_id": [3, 5],
}  # fmt: skip


def saved(folder: Path, config: Any) -> Path:
    torch.manual_seed(0)
    maker: Any = AutoModelForCausalLM
    maker.from_config(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(LlamaConfig(**SHAPE), id="llama"),
        pytest.param(LlamaConfig(**SHAPE, tie_word_embeddings=True, head_dim=16), id="llama, tied"),
        pytest.param(LlamaConfig(**SHAPE, dtype="bfloat16"), id="llama in bfloat16"),
        pytest.param(MistralConfig(**SHAPE, sliding_window=None), id="mistral"),
        pytest.param(Qwen2Config(**SHAPE), id="qwen2, with biases"),
        pytest.param(Qwen3Config(**SHAPE, head_dim=8), id="qwen3, with norms"),
    ],
)
def test_a_plain_folder_gives_what_transformers_gives(tmp_path: Path, config: Any) -> None:
    folder = str(saved(tmp_path / "model", config))
    direct = base_model.load_weights(folder, tmp_path)
    by_transformers = base_model.load(folder, tmp_path)
    assert direct.model.__class__.__name__ == "Weights"
    assert direct.digest == by_transformers.digest
    wanted = of_model(by_transformers.model)
    assert direct.model.tensors.keys() == wanted.tensors.keys()
    for name, tensor in wanted.tensors.items():
        assert torch.equal(direct.model.tensors[name].float(), tensor), name
    assert torch.equal(direct.model.rotations, wanted.rotations)
    assert direct.model.eos_ids == wanted.eos_ids == (3, 5)


def test_what_is_not_plain_goes_through_transformers(tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
    scaled = saved(tmp_path / "scaled", LlamaConfig(**SHAPE, rope_parameters=rope))
    assert of_folder(scaled) is None
    assert base_model.load_weights(str(scaled), tmp_path).model.config.model_type == "llama"
    plain = saved(tmp_path / "plain", LlamaConfig(**SHAPE))
    tensors = load_file(plain / "model.safetensors")
    save_file(tensors | {"model.more.weight": torch.zeros(1)}, plain / "model.safetensors")
    assert of_folder(plain) is None
    assert of_folder(Path("an/id-of-a-hub")) is None


def test_embeddings_are_read_off_their_file(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    found = mapped(file, EMBEDDING)
    assert found is not None
    assert torch.equal(found, model.model.embed_tokens.weight.detach())
    assert mapped(file, "model.nobody.weight") is None
    assert mapped(Path("an/id-of-a-hub"), EMBEDDING) is None
