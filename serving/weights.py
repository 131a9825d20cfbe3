"""A base model's numbers as the decoder takes them: config, tensors by name, rotations, ends of sequence.

Two ways lead here. Out of a transformers model, whatever transformers can load. And straight from a folder's one
safetensors file, for the plain shapes that most folders have: transformers' models and even their configurations bring 2,000
modules with them (torch.distributed, dynamo, sympy, scipy), two seconds of start for nothing that a server uses.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from serving.errors import OperatorError

SERVED = ("llama", "mistral", "qwen2", "qwen3")
"""Kinds of base models: transformers' `model_type`."""
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Weights:
    """What the decoder is built from; it takes the tensors out, so that none is held twice."""

    config: Any
    """The model's settings as attributes, by transformers' names."""
    tensors: dict[str, torch.Tensor]
    """By the names that transformers gives them."""
    rotations: torch.Tensor
    """[tokens, e / 2] complex: what turns position t's pairs of columns."""
    eos_ids: tuple[int, ...]


def of_model(model: Any) -> Weights:
    """A transformers model's; the model is emptied.

    Raises:
        OperatorError: it is of a kind that the decoder does not compute.
    """
    config = model.config
    if config.model_type not in SERVED:  # before anything is asked of it that only these have
        raise OperatorError(
            f"base model of type {config.model_type!r} is not served; allowed: {', '.join(SERVED)}"
        )
    width = head_width(config)
    with torch.no_grad():
        # transformers knows every rope scaling: the tables are read off its own module
        cos, sin = model.model.rotary_emb(
            torch.zeros(1, 1), torch.arange(config.max_position_embeddings)[None]
        )
    if cos.shape[-1] != width:
        raise OperatorError(
            f"base model that rotates {cos.shape[-1]} of {width} columns of a head is not served; allowed: all"
        )
    half = width // 2
    rotations = torch.complex(cos[0, :, :half].float(), sin[0, :, :half].float())
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    tensors = dict(model.state_dict())
    model.model = model.lm_head = None
    return Weights(config, tensors, rotations, _listed(ends))


def of_folder(folder: Path) -> Weights | None:
    """A folder's, as views of its file, read when used; None when it is not of the plain form that is read here."""
    file, described = folder / "model.safetensors", folder / "config.json"
    if not file.is_file() or not described.is_file():
        return None
    config = _plain_config(json.loads(described.read_text()))
    if config is None:
        return None
    tensors = _views(file)
    if tensors is None:
        return None
    if config.tie_word_embeddings:
        tensors[HEAD] = tensors.get(EMBEDDING, torch.empty(0))
    if set(tensors) != _names(config):
        return None
    generation = folder / "generation_config.json"
    settings = json.loads(generation.read_text()) if generation.is_file() else vars(config)
    return Weights(config, tensors, _plain_rotations(config), _listed(settings.get("eos_token_id")))


def mapped(file: Path, name: str) -> torch.Tensor | None:
    """A float32 tensor of a safetensors file as a view of a mapping of its own, read only where it is used; None when there is none.

    Embeddings are a fifth of a small model, and a server meets a few hundred of the rows.
    """
    import numpy as np

    if not file.is_file():
        return None
    begin, entries = _header(file)
    entry = entries.get(name)
    if entry is None or entry["dtype"] != "F32":
        return None
    at, shape = begin + entry["data_offsets"][0], tuple(entry["shape"])
    # copy-on-write, because torch wants memory that could be written to
    return torch.from_numpy(np.memmap(file, np.float32, mode="c", offset=at, shape=shape))


def head_width(config: Any) -> int:
    """Columns of one attention head."""
    width = getattr(config, "head_dim", None)
    return int(width or config.hidden_size // config.num_attention_heads)


def _listed(ids: int | list[int] | None) -> tuple[int, ...]:
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list) else (ids,)


def _plain_config(found: dict[str, Any]) -> SimpleNamespace | None:
    """A config.json whose every setting that matters is written out; None where transformers' defaults would decide."""
    needed = {
        "hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers",
        "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "vocab_size", "hidden_act",
    } | {"mistral": {"sliding_window"}, "qwen3": {"head_dim"}}.get(found.get("model_type", ""), set())  # fmt: skip
    rope = found.get("rope_parameters") or {
        "rope_type": "default" if found.get("rope_scaling") is None else "scaled",
        "rope_theta": found.get("rope_theta"),
    }
    is_plain = (
        found.get("model_type") in SERVED
        and needed <= found.keys()
        and set(rope) == {"rope_type", "rope_theta"}
        and rope["rope_type"] == "default"
        and rope["rope_theta"] is not None
        and found.get("quantization_config") is None
    )
    if not is_plain:
        return None
    unused = {"use_sliding_window": False} if found["model_type"].startswith("qwen") else {}
    return SimpleNamespace(**(unused | found | {"rope_parameters": rope}))


def _names(config: Any) -> set[str]:
    """The tensors that transformers' model of a plain config has."""
    parts = ["input_layernorm.weight", "post_attention_layernorm.weight"]
    parts += [f"self_attn.{p}_proj.weight" for p in "qkvo"]
    parts += [f"mlp.{p}_proj.weight" for p in ("gate", "up", "down")]
    if config.model_type == "qwen2":
        parts += [f"self_attn.{p}_proj.bias" for p in "qkv"]
    if config.model_type == "qwen3":
        parts += [f"self_attn.{p}_norm.weight" for p in "qk"]
    layers = {f"model.layers.{i}.{p}" for i in range(config.num_hidden_layers) for p in parts}
    return layers | {EMBEDDING, HEAD, "model.norm.weight"}


def _header(file: Path) -> tuple[int, Mapping[str, Any]]:
    """Where a safetensors file's numbers begin, and its entries."""
    with file.open("rb") as source:
        (length,) = struct.unpack("<Q", source.read(8))
        return 8 + length, json.loads(source.read(length))


def _views(file: Path) -> dict[str, torch.Tensor] | None:
    """All tensors of a file over one mapping; None where one is of another type than those that are floats here."""
    import numpy as np

    begin, entries = _header(file)
    flat = torch.from_numpy(np.memmap(file, np.uint8, mode="c"))
    found = {}
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        dtype = _DTYPES.get(entry["dtype"])
        first, last = (begin + offset for offset in entry["data_offsets"])
        if dtype is None or first % dtype.itemsize:
            return None
        found[name] = flat[first:last].view(dtype).view(entry["shape"])
    return found


def _plain_rotations(config: Any) -> torch.Tensor:
    """[tokens, e / 2] complex, as transformers computes them for rope_type "default"."""
    width = head_width(config)
    base = config.rope_parameters["rope_theta"]
    speeds = 1.0 / (base ** (torch.arange(0, width, 2, dtype=torch.float32) / width))
    angles = torch.arange(config.max_position_embeddings)[:, None].float() * speeds
    return torch.complex(angles.cos(), angles.sin())
