"""Held-out rows through the whole model, on whatever device it is: the same figures as the fast path's, for any engine.

The output head runs at the answers' positions alone. Knows no training loop.
"""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch.nn import functional

from training.encode import Encoded, buckets
from training.label_engine import Validation, padded_ids
from training.lora import decoder_of


@torch.no_grad()
def validate(adapted: PeftModel, rows: Sequence[Encoded], batch_size: int) -> Validation:
    """Loss (nats an answer token, by the rows' weights) and exact answers of held-out rows, teacher-forced."""
    was_training = adapted.training
    adapted.eval()
    total, weight = 0.0, 0.0
    exact = [False] * len(rows)
    for chosen in buckets(rows, batch_size, range(len(rows))):
        part = [rows[i] for i in chosen]
        each, right = answer_losses(adapted, part)
        place = 0
        for i, row in zip(chosen, part, strict=True):
            end = place + len(row.completion_ids)
            total += row.weight * float(each[place:end].sum())
            weight += row.weight * len(row.completion_ids)
            exact[i] = bool(right[place:end].all())
            place = end
    adapted.train(was_training)
    return Validation(total / weight, sum(exact) / len(rows), tuple(exact))


def answer_losses(adapted: PeftModel, rows: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    """[a] loss of each answer token, [a] whether it is the most probable one; rows one after another."""
    ids, mask = padded_ids(rows)
    device = adapted.device
    hidden = decoder_of(adapted)(
        input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
    ).last_hidden_state
    positions = [
        i * ids.shape[1] + len(row.prompt_ids) - 1 + step
        for i, row in enumerate(rows)
        for step in range(len(row.completion_ids))
    ]
    targets = torch.tensor([t for row in rows for t in row.completion_ids], device=device)
    chosen = hidden.reshape(-1, hidden.shape[-1])[torch.tensor(positions, device=device)]
    base: Any = adapted.get_base_model()
    logits = base.get_output_embeddings()(chosen).float()
    return functional.cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets
