"""LoRA on a base model: which layers, how it is laid on by PEFT, how it is saved so that LoRAX serves it.

Knows model structure (layers under `model.layers`, as in Llama, Qwen and Gemma), no data and no loop.
"""

import contextlib
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from training.config import TARGETS, Lora
from training.errors import DataError


def decoder_of(model: Any) -> Any:
    """The module that holds `layers`, `norm` and `embed_tokens`, whether `model` is PEFT's or plain."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    return plain.model


def add_lora(
    model: Any,
    *,
    rank: int,
    alpha: int,
    top_layers: int | None,
    seed: int,
    targets: Sequence[str] = TARGETS,
) -> PeftModel:
    """`model` with fresh LoRA weights on its top layers; everything else frozen.

    Args:
        top_layers: layers, counted from the head, that are adapted; None adapts all.
        targets: linear modules of a layer that are adapted.
    """
    torch.manual_seed(seed)
    count = len(decoder_of(model).layers)
    first = 0 if top_layers is None else max(0, count - top_layers)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=list(targets),
        layers_to_transform=list(range(first, count)) if first else None,
    )
    with _quiet():
        adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)
    return adapted


def lay_on(model: Any, shape: Lora, seed: int) -> PeftModel:
    """`model` with fresh LoRA weights of a run file's shape."""
    return add_lora(
        model, rank=shape.rank, alpha=shape.alpha, top_layers=shape.top_layers, seed=seed, targets=shape.targets
    )  # fmt: skip


@contextlib.contextmanager
def lower_part(model: Any, first: int) -> Iterator[Any]:
    """The decoder with only its layers below `first` and no final norm: it gives the hidden states they leave."""
    decoder = decoder_of(model)
    layers, norm = decoder.layers, decoder.norm
    decoder.layers, decoder.norm = nn.ModuleList(list(layers)[:first]), nn.Identity()
    try:
        yield decoder
    finally:
        decoder.layers, decoder.norm = layers, norm


@contextlib.contextmanager
def upper_part(model: Any, first: int) -> Iterator[Any]:
    """The decoder with only its layers from `first` on: it takes `lower_part`'s states as `inputs_embeds`."""
    decoder = decoder_of(model)
    layers = decoder.layers
    decoder.layers = nn.ModuleList(list(layers)[first:])
    try:
        yield decoder
    finally:
        decoder.layers = layers


def save_adapter(adapted: PeftModel, folder: Path) -> None:
    """PEFT's two files, with zero weights for the layers that were left out.

    LoRAX skips a module type in silence when any layer lacks it (its loader gathers a type over all layers), so an
    adapter of the top layers alone would serve as the base model there. `lora_B` = 0 makes a layer exactly the base's.
    """
    # TRL's DPO keeps the adapter that it starts from beside the trained one; that one is not saved.
    adapted.save_pretrained(str(folder), selected_adapters=["default"])
    weights_file = folder / "adapter_model.safetensors"
    tensors = load_file(weights_file)
    layers = len(decoder_of(adapted).layers)
    trained = {name: tensor.contiguous() for name, tensor in tensors.items()}
    pattern = re.compile(r"^(.*\.layers\.)(\d+)(\..*)$")
    for name, tensor in tensors.items():
        found = pattern.match(name)
        if not found:
            continue
        for layer in range(layers):
            sibling = f"{found[1]}{layer}{found[3]}"
            if sibling not in tensors:
                trained[sibling] = torch.zeros_like(tensor)
    save_file(trained, weights_file, metadata={"format": "pt"})
    config = LoraConfig.from_pretrained(str(folder))
    config.layers_to_transform = None
    config.inference_mode = True
    config.save_pretrained(str(folder))


def load_adapter(model: Any, folder: Path, *, trainable: bool = False) -> PeftModel:
    """`model` with a saved adapter, in evaluation mode; `trainable` gives its weights gradients again.

    Raises:
        DataError: the folder is no whole adapter, or not one of this base model.
    """
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            # PEFT takes a folder without it for the name of a repository, and asks the network.
            raise DataError(f"{folder}: no {name}: not a whole adapter")
    try:
        with _quiet():
            return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable).eval()
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as why:
        raise DataError(f"{folder}: not an adapter of this base model: {' '.join(str(why).split()):.300}") from why  # fmt: skip


@torch.no_grad()
def restore_adapter(adapted: PeftModel, folder: Path) -> None:
    """Put a saved adapter's weights into the model that it was trained in: its best epoch instead of its last."""
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, weights in adapted.named_parameters():
        if weights.requires_grad:
            weights.copy_(tensors[name.replace(".default", "")])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """peft 0.21 asks transformers 5 for a name that is going away; nothing of ours to change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
