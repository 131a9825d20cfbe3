"""Texts as vectors out of a base model's own token embeddings: free, offline, and a fair basis for a linear baseline.

A text is the mean of its tokens' embeddings, rare tokens weighing more, less the mean and the first principal direction
of the texts that it was fitted on (SIF, Arora et al. 2017, "A simple but tough-to-beat baseline for sentence
embeddings"). Knows no labels.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch

from training.encode import Tokenizer

SMOOTHING = 1e-3
"""SIF's a: a token as frequent as this weighs half."""
Embed = Callable[[Sequence[str]], np.ndarray]
"""Texts → [texts, d]."""


def embedder(embeddings: torch.Tensor, tokenizer: Tokenizer, texts: Sequence[str]) -> Embed:
    """Fit the weights and the directions on `texts`.

    Args:
        embeddings: [vocabulary, d], the base model's input embeddings.
    """
    table = embeddings.detach().float().numpy()

    def ids_of(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    counts = Counter(token for text in texts for token in ids_of(text))
    whole = max(1, sum(counts.values()))

    def mean(text: str) -> np.ndarray:
        ids = ids_of(text)
        if not ids:
            return np.zeros(table.shape[1], dtype=np.float32)
        weights = np.asarray([SMOOTHING / (SMOOTHING + counts[i] / whole) for i in ids])
        return np.asarray(weights @ table[ids] / len(ids))

    raw = np.stack([mean(text) for text in texts])
    centre = raw.mean(axis=0)
    _, _, directions = np.linalg.svd(raw - centre, full_matrices=False)
    first = directions[0]

    def embed(wanted: Sequence[str]) -> np.ndarray:
        found = np.stack([mean(text) for text in wanted]) - centre
        return np.asarray(found - np.outer(found @ first, first))

    return embed
