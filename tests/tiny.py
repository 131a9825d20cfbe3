"""A tiny Llama with a tokenizer made on the spot, and random adapters: what tests use where a real model is too much."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ASCII = "".join(map(chr, range(32, 127))) + "\n"
"""The whole alphabet, so that random tokens are always whole characters."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """BPE over printable ASCII, trained on a few lines, with an end-of-sequence token and a chat template."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<eos>"],
        show_progress=False,
    )
    made.train_from_iterator(
        ["hello world, where is my order? I want a refund", ASCII] * 4, trainer
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<eos>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_model(folder: Path, *, num_layers: int = 2) -> LlamaForCausalLM:
    """A small Llama with random weights, saved with its tokenizer."""
    torch.manual_seed(0)
    text = tokenizer()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(text),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=num_layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            eos_token_id=text.eos_token_id,
            bos_token_id=None,
            initializer_range=0.2,
        )
    )
    model.save_pretrained(folder)
    text.save_pretrained(folder)
    return model


def random_adapter(base: Path, folder: Path, seed: int, modules: list[str], rank: int = 4) -> Path:
    """An adapter whose B is not zero, saved by PEFT."""
    torch.manual_seed(seed)
    model: Any = LlamaForCausalLM.from_pretrained(base)
    config = LoraConfig(r=rank, lora_alpha=16, target_modules=modules, task_type="CAUSAL_LM")
    with warnings.catch_warnings():  # peft asks transformers by an old name
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        adapted = get_peft_model(model, config)
    for name, weights in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.3)
    adapted.save_pretrained(folder)
    return folder
