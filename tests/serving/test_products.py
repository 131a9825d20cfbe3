"""Frozen weights laid out for the CPU: the same products as torch's own."""

import pytest
import torch
from torch.nn import functional

from serving.errors import OperatorError
from serving.products import Product, product_of


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


@pytest.mark.parametrize("rows", [1, 7, 33])
@pytest.mark.parametrize("has_bias", [True, False])
def test_int8_is_near_and_a_row_does_not_change_another(rows: int, has_bias: bool) -> None:
    draw = torch.Generator().manual_seed(rows)
    weight, x = torch.randn(48, 80, generator=draw), torch.randn(rows, 80, generator=draw)
    bias = torch.randn(48, generator=draw) if has_bias else None
    other = torch.randn(rows, 48, generator=draw)
    before = other.clone()
    with torch.inference_mode():
        product = product_of("int8")(weight.clone(), bias)
        found, onto = product(x), product.onto(x, other)
        beside = product(torch.cat([x, 1000 * x[:1]]))
    wanted = functional.linear(x, weight, bias)
    assert (found - wanted).norm() < 0.02 * wanted.norm()
    assert not torch.allclose(found, wanted, atol=1e-4)  # it is not fp32 by another name
    assert torch.allclose(onto, found + before)
    assert torch.equal(other, before)
    assert torch.equal(beside[:-1], found)


def test_int8_keeps_what_is_not_finite_in_its_row_and_zeros_are_zeros() -> None:
    weight = torch.randn(48, 80, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    x = torch.ones(3, 80)
    x[0, 5], x[1] = float("nan"), 0
    with torch.inference_mode():
        found = product_of("int8")(weight)(x)
    assert found[0].isnan().all()
    assert (found[1] == 0).all()
    assert found[2].isfinite().all()
    assert found[2, 3] == 0


def test_another_precision_is_refused() -> None:
    with pytest.raises(OperatorError, match="'int4' are not served; allowed: float32, int8"):
        product_of("int4")  # type: ignore[arg-type]
