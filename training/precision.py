"""Matrix products of the frozen weights in bf16, where the CPU multiplies bf16 faster than fp32; everything else in fp32.

Three quarters of a training step is products with frozen weights. bf16 as a whole (autocast) is slower on CPUs without
AMX, because attention, norms and the softmax suffer; the products alone gain. Whether they do is measured, not guessed:
on AVX2 machines bf16 is emulated and loses.
"""

import contextlib
import functools
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from training.config import FitConfig

FASTER_BY = 1.3
"""The gain from which the rounding is worth it."""


@functools.cache
def is_bf16_faster() -> bool:
    """Whether a product of this model's kind takes less than fp32's time in bf16; some 20 ms, once a process."""

    def seconds(dtype: torch.dtype) -> float:
        x, w = torch.randn(512, 576, dtype=dtype), torch.randn(1536, 576, dtype=dtype)
        times = []
        for _ in range(6):
            began = time.perf_counter()
            nn.functional.linear(x, w)
            times.append(time.perf_counter() - began)
        return min(times[1:])

    return seconds(torch.float32) > FASTER_BY * seconds(torch.bfloat16)


def trained_in(config: FitConfig) -> str:
    """What a fit on this machine has its frozen weights in: `fp32`, `bf16`, `fp16` or `nf4`.

    Raises:
        ConfigError: the machine has not got what the configuration asks for.
    """
    if config.engine == "trl":
        from training import trl_settings

        machine, _ = trl_settings.here(config)
        return trl_settings.precision_of(config, machine)
    wanted = config.frozen_products
    return ("bf16" if is_bf16_faster() else "fp32") if wanted == "auto" else wanted


class _Product(torch.autograd.Function):
    """x [n, i] times a frozen W [o, i], both directions in bf16, results in fp32. W gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return nn.functional.linear(x.bfloat16(), weight).float()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (weight,) = ctx.saved_tensors
        return torch.matmul(grads[0].bfloat16(), weight).float(), None


class FrozenLinear(nn.Module):
    """A linear layer whose weight is frozen, kept in bf16."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", layer.weight.detach().bfloat16(), persistent=False)
        self.bias = layer.bias
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[.., inputs] to [.., outputs], fp32."""
        assert isinstance(self.weight, torch.Tensor)
        out = _Product.apply(x, self.weight)  # type: ignore[no-untyped-call]
        assert isinstance(out, torch.Tensor)
        return out if self.bias is None else out + self.bias


@contextlib.contextmanager
def frozen_in_bf16(model: nn.Module) -> Iterator[None]:
    """Every frozen linear layer of `model` multiplies in bf16 inside; the fp32 layers are put back afterwards."""
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and not child.weight.requires_grad:
                replaced.append((parent, name, child))
    for parent, name, child in replaced:
        assert isinstance(child, nn.Linear)
        setattr(parent, name, FrozenLinear(child))
    try:
        yield
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)
