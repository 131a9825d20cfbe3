"""Bits per byte: against the model's own loss, with the adapter and without."""

import math
from pathlib import Path

import pytest
import torch

from serving.base_model import BaseModel
from tests.tiny import random_adapter
from training import eval_bits, lora
from training.dataset import Dataset
from training.encode import encode
from training.eval_bits import MOST_ANSWER_TOKENS, batches, measure, spread
from training.predict import greedy

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@torch.no_grad()
def bits_by_hand(model: object, tokenizer: object, dataset: Dataset, rows: list[object]) -> float:
    """By transformers' own loss, a row at a time, the prompt's labels masked."""
    total, size = 0.0, 0
    for example in rows:
        row = encode(example, tokenizer, dataset.info.prompt, dataset.info.max_input_chars)  # type: ignore[arg-type]
        ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]])
        labels = ids.clone()
        labels[:, : len(row.prompt_ids)] = -100
        loss = float(model(input_ids=ids, labels=labels).loss)  # type: ignore[operator]
        total += loss * len(row.completion_ids) / math.log(2)
        size += len(example.completion.encode())  # type: ignore[attr-defined]
    return total / size


def test_bits_are_the_models_own_loss_over_the_answers_bytes(
    dataset: Dataset, base: BaseModel, base_folder: Path, tmp_path: Path
) -> None:
    rows = list(dataset.of("test"))
    plain = bits_by_hand(base.model, base.tokenizer, dataset, rows)  # type: ignore[arg-type]
    folder = random_adapter(base_folder, tmp_path / "a", 1, ["q_proj", "v_proj"])
    adapted = lora.load_adapter(base.model, folder)
    with_adapter = bits_by_hand(adapted, base.tokenizer, dataset, rows)  # type: ignore[arg-type]
    told: list[int] = []
    found = measure(adapted, base.tokenizer, dataset, rows, told.append)
    assert found.base.bits_per_byte == pytest.approx(plain, rel=1e-4)
    assert found.student.bits_per_byte == pytest.approx(with_adapter, rel=1e-4)
    assert found.student.bits_per_byte != pytest.approx(found.base.bits_per_byte, rel=1e-3)
    assert found.student.low < found.student.bits_per_byte < found.student.high
    assert found.saved == pytest.approx(plain - with_adapter, rel=1e-3, abs=1e-4)
    assert found.saved_low <= found.saved <= found.saved_high
    nats_a_token = plain * found.answer_bytes * math.log(2) / found.answer_tokens
    assert found.base.perplexity == pytest.approx(math.exp(nats_a_token), rel=1e-3)
    assert sum(told) == 2 * len(rows) == 2 * found.rows


def test_what_the_model_would_say_itself_costs_it_less(
    dataset: Dataset, base: BaseModel, base_folder: Path, tmp_path: Path
) -> None:
    """Greedy answers are the most probable ones token by token: fewer bits a token than the gold answers."""
    folder = random_adapter(base_folder, tmp_path / "a", 1, ["q_proj"])
    adapted = lora.load_adapter(base.model, folder)
    rows = list(dataset.of("test"))[:4]
    prompts = [encode(e, base.tokenizer, dataset.info.prompt, None).prompt_ids for e in rows]
    own = [p.confidence for p in greedy(adapted, base.tokenizer, prompts, 5)]
    found = measure(adapted, base.tokenizer, dataset, rows)
    assert -sum(map(math.log, own)) / 20 < math.log(found.student.perplexity)


def test_batches_hold_every_row_once_and_not_too_many_answer_tokens(
    dataset: Dataset, base: BaseModel
) -> None:
    rows = [encode(e, base.tokenizer, dataset.info.prompt, None) for e in dataset.examples] * 3
    found = batches(rows)
    assert sorted(i for batch in found for i in batch) == list(range(len(rows)))
    assert all(len(b) <= eval_bits.MOST_ROWS for b in found)
    assert all(sum(len(rows[i].completion_ids) for i in b) <= MOST_ANSWER_TOKENS for b in found)


def test_a_sample_is_spread_over_the_rows(dataset: Dataset) -> None:
    rows = dataset.of("train")
    assert [e.id for e in spread(rows, 3)] == [rows[i * len(rows) // 3].id for i in range(3)]
    assert spread(rows, 10_000) == list(rows)
