"""Frozen weights laid out for the CPU: the same products as torch's own."""

import pytest
import torch
from torch.nn import functional

from serving.products import Product


@pytest.mark.parametrize("rows", [1, 2, 7, 16, 33])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_product_is_torchs_linear(rows: int, has_bias: bool) -> None:
    draw = torch.Generator().manual_seed(rows)
    weight, x = torch.randn(48, 80, generator=draw), torch.randn(rows, 80, generator=draw)
    bias = torch.randn(48, generator=draw) if has_bias else None
    wanted = functional.linear(x, weight, bias)
    with torch.inference_mode():
        product = Product(weight.clone(), bias)
        found = product(x)
        other = torch.randn(rows, 48, generator=draw)
        before = other.clone()
        onto = product.onto(x, other)
    assert found.shape == (rows, 48)
    assert torch.allclose(found, wanted, atol=1e-4)
    assert torch.allclose(onto, wanted + before, atol=1e-4)
    assert torch.equal(other, before)
