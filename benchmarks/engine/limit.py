"""The machine's own limit: what the linear layers of a request cost, over the rate at which it multiplies matrices.

Run as a process of its own (`python -m benchmarks.engine.limit THREADS`): prints floating-point operations per second of fp32
products of the base model's shapes, at some numbers of rows, by the quicker of torch's `linear` and weights laid out once.
"""

import json
import sys
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """SmolLM2-135M's linear layers."""

    hidden: int = 576
    query: int = 576
    key_value: int = 192
    inner: int = 1536
    layers: int = 30
    vocabulary: int = 49_152

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's products."""
        qkv = self.hidden * (self.query + 2 * self.key_value)
        return qkv + self.query * self.hidden + 3 * self.hidden * self.inner

    def operations(self, tokens: int, heads: int) -> float:
        """Floating-point operations of the linear layers for so many tokens, `heads` of them with logits."""
        head = self.hidden * self.vocabulary
        return 2.0 * (tokens * self.layers * self.layer_weights + heads * head)


ROWS = (1, 8, 32, 64, 480)


def rates(threads: int) -> dict[int, float]:
    """Operations per second at each number of rows: all of a model's layers in turn, so that weights come from memory."""
    import torch

    from serving.products import Product

    torch.set_num_threads(threads)
    shape = Shape()
    sizes = (
        (shape.query + 2 * shape.key_value, shape.hidden), (shape.hidden, shape.query),
        (2 * shape.inner, shape.hidden), (shape.hidden, shape.inner),
    )  # fmt: skip
    weights = [torch.randn(size) for _ in range(shape.layers) for size in sizes]
    laid_out = [Product(weight) for weight in weights]
    found = {}
    with torch.inference_mode():
        for rows in ROWS:
            inputs = {width: torch.randn(rows, width) for width in (shape.hidden, shape.inner)}
            best = float("inf")
            for _ in range(6):
                began = time.perf_counter()
                for weight in weights:
                    torch.nn.functional.linear(inputs[weight.shape[1]], weight)
                plain = time.perf_counter()
                for weight, product in zip(weights, laid_out, strict=True):
                    product(inputs[weight.shape[1]])
                best = min(best, plain - began, time.perf_counter() - plain)
            found[rows] = shape.operations(rows, 0) / best
    return found


if __name__ == "__main__":
    print(json.dumps(rates(int(sys.argv[1]))))
