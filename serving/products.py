"""Products with weights that never change, laid out once for the CPU at hand.

A step of eight rows reads every weight for very little arithmetic; torch's plain `linear` then spends more time on the
weights' layout than on the product. oneDNN keeps weights in the order that its kernels read: 2 to 4 times as fast for
1 to 16 rows, 1.2 times for hundreds (Zen 4, fp32; `benchmarks/engine/README.md`). The operators are those that
torch.compile's own CPU code calls; where a build lacks them, or they give another result, plain `linear` is used.
"""

import functools
import os
from collections.abc import Callable
from typing import Any, Protocol, get_args

import torch
from torch.nn import functional

from serving.errors import OperatorError
from serving.settings import Precision

# oneDNN, and torch's layer over it, keep what they made for each product and number of rows, a thousand of them: 0.8 MB each,
# after some hundred different batches more than the model itself. Making one again takes 0.1 ms. Read at the first product.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
os.environ.setdefault("LRU_CACHE_CAPACITY", "64")

_MOST = 127
_SMALLEST = 1e-30
"""For rows and weights that are all zero."""

_ROWS = 16
"""The number of rows that the layout is chosen for; others use the same layout."""


class Linear(Protocol):
    """`x @ weight.T + bias` for a frozen weight."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[n, inputs] to [n, outputs]."""

    def onto(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """The product plus `other` [n, outputs]; `other` is left as it is."""


def product_of(precision: Precision) -> Callable[..., Linear]:
    """What makes a product of a weight [outputs, inputs] fp32 and a bias or None.

    Raises:
        OperatorError: no such precision, or this machine and build do not compute it.
    """
    if precision not in get_args(Precision):
        allowed = ", ".join(get_args(Precision))
        raise OperatorError(f"weights {precision!r} are not served; allowed: {allowed}")
    if precision == "float32":
        return Product
    if not _can_take_int8():
        raise OperatorError("weights 'int8' cannot be computed by this torch; allowed: float32")
    return Int8Product


class Product:
    """In fp32, laid out for the CPU."""

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


class Int8Product:
    """Weights as int8 with a scale for each output; inputs as two digits of 8 bits with a scale for each row.

    A quarter of the memory. One digit is not enough: some inputs of a language model are a hundred times as large as the others of their
    row, which would be left with a bit or two. A row's scale is its own, so that what it is batched with does not change its
    answer.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """`weight` is [outputs, inputs] fp32; it is not kept."""
        self._bias = bias
        scales = weight.abs().amax(1).clamp_min_(_SMALLEST) / _MOST
        whole = (weight / scales[:, None]).round_().to(torch.int8)
        self._weight: Any = torch.ops.onednn.qlinear_prepack(whole, None)
        self._scales = scales
        self._zeros = torch.zeros(len(scales), dtype=torch.int32)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[n, inputs] to [n, outputs]."""
        largest = x.abs().amax(1, keepdim=True).clamp_min_(_SMALLEST)
        scaled = x * (_MOST / largest)
        high = scaled.round()
        low = scaled.sub_(high).mul_(2 * _MOST).round_()
        # Unsigned, around 128: oneDNN has no quick kernel for signed inputs.
        digits = torch.cat([high, low]).add_(128).to(torch.uint8)
        both: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            digits, 1 / _MOST, 128, self._weight, self._scales, self._zeros, None,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        out = both[: len(x)].add_(both[len(x) :], alpha=1 / (2 * _MOST))
        out.mul_(largest)  # NaN where a row has one: it fails as it does in fp32
        return out if self._bias is None else out.add_(self._bias)

    def onto(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """The product plus `other` [n, outputs]; `other` is left as it is."""
        return self(x).add_(other)


@functools.cache
def _can_take_int8() -> bool:
    """Whether this build has the operators and they compute what `linear` computes, nearly."""
    draw = torch.Generator().manual_seed(0)
    weight, x = torch.randn(96, 64, generator=draw), torch.randn(3, 64, generator=draw)
    try:
        with torch.inference_mode():
            found = Int8Product(weight)(x)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    wanted = functional.linear(x, weight)
    return bool((found - wanted).norm() < 0.03 * wanted.norm())


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
