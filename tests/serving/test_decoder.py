"""Base models that the decoder would compute wrongly are refused."""

from typing import Any

import pytest
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from serving.decoder import Decoder
from serving.errors import (
    OperatorError,
)


@pytest.mark.parametrize(
    ("kind", "setting", "message"),
    [
        (LlamaConfig, {"attention_bias": True}, "attention_bias = True"),
        (LlamaConfig, {"mlp_bias": True}, "mlp_bias = True"),
        (MistralConfig, {"sliding_window": 32}, "sliding_window = 32"),
        (MistralConfig, {"sliding_window": 64}, None),
        (MistralConfig, {"sliding_window": None}, None),
        (Qwen2Config, {"use_sliding_window": True, "sliding_window": 32}, "use_sliding_window = True"),
        (Qwen2Config, {"use_sliding_window": False, "sliding_window": 32}, None),
    ],
)  # fmt: skip
def test_a_base_model_that_would_be_computed_wrongly_is_refused(
    kind: Any, setting: dict[str, Any], message: str | None
) -> None:
    config = kind(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, **setting,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    if message is None:
        assert Decoder(model).num_layers == 1
    else:
        with pytest.raises(OperatorError, match=message):
            Decoder(model)
