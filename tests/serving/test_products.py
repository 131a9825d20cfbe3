"""Frozen weights laid out for the CPU: the same products as torch's own, and embeddings read off their file."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from serving.base_model import mapped
from serving.products import Product
from tests.tiny import tiny_model


@pytest.mark.parametrize("rows", [1, 2, 7, 16, 33])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_product_is_torchs_linear(rows: int, has_bias: bool) -> None:
    draw = torch.Generator().manual_seed(rows)
    weight, x = torch.randn(48, 80, generator=draw), torch.randn(rows, 80, generator=draw)
    bias = torch.randn(48, generator=draw) if has_bias else None
    wanted = functional.linear(x, weight, bias)
    with torch.inference_mode():
        found = Product(weight.clone(), bias)(x)
    assert found.shape == (rows, 48)
    assert torch.allclose(found, wanted, atol=1e-4)


def test_embeddings_are_read_off_their_file(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    found = mapped(str(tmp_path / "model"), "model.embed_tokens.weight")
    assert found is not None
    assert torch.equal(found, model.model.embed_tokens.weight.detach())
    assert mapped(str(tmp_path / "model"), "model.nobody.weight") is None
    assert mapped("an/id-of-a-hub", "model.embed_tokens.weight") is None
