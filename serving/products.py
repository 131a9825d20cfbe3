"""Products with weights that never change, laid out once for the CPU at hand.

A step of eight rows reads every weight for very little arithmetic; torch's plain `linear` then spends more time on the
weights' layout than on the product. oneDNN keeps weights in the order that its kernels read: 2 to 4 times as fast for
1 to 16 rows, 1.2 times for hundreds (Zen 4, fp32; `benchmarks/engine/README.md`). The operators are those that
torch.compile's own CPU code calls; where a build lacks them, or they give another result, plain `linear` is used.
"""

import functools
import os
from typing import Any

import torch
from torch.nn import functional

# oneDNN, and torch's layer over it, keep what they made for each product and number of rows, a thousand of them: 0.8 MB each,
# after some hundred different batches more than the model itself. Making one again takes 0.1 ms. Read at the first product.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
os.environ.setdefault("LRU_CACHE_CAPACITY", "64")

_ROWS = 16
"""The number of rows that the layout is chosen for; others use the same layout."""


class Product:
    """`x @ weight.T + bias` for a frozen weight."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """`weight` is [outputs, inputs] fp32; it is not kept where a laid-out copy serves."""
        self._bias = bias
        self._is_packed = _can_pack()
        self._weight: Any = _packed(weight) if self._is_packed else weight.contiguous()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[n, inputs] to [n, outputs]."""
        if self._is_packed:
            return _packed_linear(x, self._weight, self._bias)
        return functional.linear(x, self._weight, self._bias)

    def onto(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """The product plus `other` [n, outputs], in one operator where that can be; `other` is left as it is."""
        if self._is_packed:
            out: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
                x, other, self._weight, self._bias, "add"
            )
            return out
        return functional.linear(x, self._weight, self._bias).add_(other)


def _packed(weight: torch.Tensor) -> Any:
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)


def _packed_linear(x: torch.Tensor, weight: Any, bias: torch.Tensor | None) -> torch.Tensor:
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


@functools.cache
def _can_pack() -> bool:
    """Whether this build has the operators and they compute what `linear` computes."""
    if not torch._C._has_mkldnn:
        return False
    draw = torch.Generator().manual_seed(0)
    weight, x = torch.randn(96, 64, generator=draw), torch.randn(3, 64, generator=draw)
    bias = torch.randn(96, generator=draw)
    try:
        with torch.inference_mode():
            packed = _packed(weight)
            found = _packed_linear(x, packed, bias)
            twice = torch.ops.mkldnn._linear_pointwise.binary(x, found, packed, bias, "add")
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    wanted = functional.linear(x, weight, bias)
    return torch.allclose(found, wanted, atol=1e-4) and torch.allclose(twice, 2 * wanted, atol=2e-4)
