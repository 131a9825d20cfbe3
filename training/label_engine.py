"""The fast path for short answers: LoRA on the top layers, over hidden states of the lower ones computed once.

Why it is fast on a CPU (measured in `training/LOG.md`): the lower layers are frozen and see the same rows each epoch,
so they run once; rows are bucketed by length; the output head runs only at the answer's positions; all in fp32,
which is faster than bf16 on CPUs without AMX. The loss is cross-entropy over the *full* vocabulary at those
positions: over the label words alone it would leave them a few per cent of the probability, and generation would print
something else.

Shapes: b rows, t tokens of the longest row of a batch, d hidden size, a answer tokens of the whole batch, v vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch.nn import functional

from training.encode import Encoded, buckets
from training.lora import lower_part, upper_part
from training.priors import Shift

Progress = Callable[[int], None]
"""Told how many more rows are done."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows ready for the upper layers."""

    states: torch.Tensor
    """[b, t, d], zero where padded."""
    mask: torch.Tensor
    """[b, t], 1 where there is a token."""
    positions: torch.Tensor
    """[a], index into the flattened [b * t] of each position that predicts an answer token."""
    targets: torch.Tensor
    """[a], the answer's token ids."""
    weights: torch.Tensor
    """[a], the rows' weights."""
    shift: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    """[s] each: index into the answer tokens, token id, nats added to that logit in the loss."""


def first_adapted_layer(adapted: PeftModel) -> int:
    """The lowest layer with LoRA weights; what lies below it is frozen."""
    config = adapted.peft_config["default"]
    assert isinstance(config, LoraConfig)
    chosen = config.layers_to_transform
    return min(chosen) if isinstance(chosen, list) and chosen else 0


@torch.no_grad()
def cache_states(
    adapted: PeftModel,
    rows: Sequence[Encoded],
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[torch.Tensor]:
    """Hidden states [tokens, d] that the frozen lower layers leave for each row, in the rows' order."""
    first = first_adapted_layer(adapted)
    cached: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    with lower_part(adapted, first) as decoder:
        for start in range(0, len(rows), batch_size):
            chosen = by_length[start : start + batch_size]
            ids, mask = padded_ids([rows[i] for i in chosen])
            if first == 0:
                states = decoder.embed_tokens(ids)
            else:
                states = decoder(
                    input_ids=ids, attention_mask=mask, use_cache=False
                ).last_hidden_state
            for position, i in enumerate(chosen):
                cached[i] = states[position, : len(rows[i])].clone()
            if progress:
                progress(len(chosen))
    return cached


def padded_ids(rows: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor([*row.prompt_ids, *row.completion_ids])
        mask[i, : len(row)] = 1
    return ids, mask


def make_batch(
    rows: Sequence[Encoded], states: Sequence[torch.Tensor], shift: Shift | None = None
) -> Batch:
    """Rows and their cached states, padded on the right; `shift` is the class mix's correction."""
    longest = max(len(row) for row in rows)
    width = states[0].shape[-1]
    padded = torch.zeros(len(rows), longest, width)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    positions: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    moved: list[tuple[int, int, float]] = []
    for i, (row, state) in enumerate(zip(rows, states, strict=True)):
        padded[i, : len(row)] = state
        mask[i, : len(row)] = 1
        start = i * longest + len(row.prompt_ids) - 1
        if shift and not row.is_second_task:
            found = shift.along(row.completion_ids)
            moved += [(len(targets) + place, token, nats) for place, token, nats in found]
        positions += range(start, start + len(row.completion_ids))
        targets += row.completion_ids
        weights += [row.weight] * len(row.completion_ids)
    correction = None
    if moved:
        places, tokens, nats = zip(*moved, strict=True)
        correction = (torch.tensor(places), torch.tensor(tokens), torch.tensor(nats))
    return Batch(
        padded,
        mask,
        torch.tensor(positions),
        torch.tensor(targets),
        torch.tensor(weights),
        correction,
    )


def answer_logits(adapted: PeftModel, decoder: Any, batch: Batch) -> torch.Tensor:
    """[a, v]: logits at the answer's positions only. `decoder` is the upper part."""
    hidden = decoder(
        inputs_embeds=batch.states, attention_mask=batch.mask, use_cache=False
    ).last_hidden_state
    chosen = hidden.reshape(-1, hidden.shape[-1])[batch.positions]
    head: Any = adapted.get_base_model().lm_head
    logits = head(chosen)
    assert isinstance(logits, torch.Tensor)
    return logits


def shifted(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """[a, v]: logits as the loss sees them, with the class mix's correction."""
    if batch.shift is None:
        return logits
    places, tokens, nats = batch.shift
    return logits.index_put((places, tokens), nats.to(logits.dtype), accumulate=True)


def loss_of(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy over the answer's tokens, weighted by the rows' weights. Nats."""
    each = functional.cross_entropy(shifted(logits, batch), batch.targets, reduction="none")
    return (each * batch.weights).sum() / batch.weights.sum()


@dataclass(frozen=True, slots=True)
class Validation:
    """What one pass over held-out rows gives."""

    loss: float
    """Mean cross-entropy over answer tokens, nats."""
    exact_share: float
    """Rows whose every answer token is the most probable one: greedy decoding would print the answer."""
    exact: tuple[bool, ...] = ()
    """The same a row, in the rows' order."""


@torch.no_grad()
def validate(
    adapted: PeftModel,
    rows: Sequence[Encoded],
    states: Sequence[torch.Tensor],
    batch_size: int,
    shift: Shift | None = None,
) -> Validation:
    """Loss (with the class mix's correction) and exact matches (without it) of held-out rows, teacher-forced."""
    total, weight = 0.0, 0.0
    exact = [False] * len(rows)
    adapted.eval()
    with upper_part(adapted, first_adapted_layer(adapted)) as decoder:
        for chosen in buckets(rows, batch_size, range(len(rows))):
            part = [rows[i] for i in chosen]
            batch = make_batch(part, [states[i] for i in chosen], shift)
            logits = answer_logits(adapted, decoder, batch)
            each = functional.cross_entropy(shifted(logits, batch), batch.targets, reduction="none")
            total += float((each * batch.weights).sum())
            weight += float(batch.weights.sum())
            right = torch.split(
                logits.argmax(-1) == batch.targets, [len(row.completion_ids) for row in part]
            )
            for i, row in zip(chosen, right, strict=True):
                exact[i] = bool(row.all())
    return Validation(total / weight, sum(exact) / len(rows), tuple(exact))


def train_epoch(
    adapted: PeftModel,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    rows: Sequence[Encoded],
    states: Sequence[torch.Tensor],
    *,
    batch_size: int,
    generator: torch.Generator,
    max_norm: float = 1.0,
    shift: Shift | None = None,
    skip_steps: int = 0,
) -> Iterator[tuple[int, float]]:
    """One pass over the rows in a fresh order; yields rows done and the batch's loss after each step.

    Args:
        shift: the class mix's correction.
        skip_steps: steps of this pass that an interrupted run has taken already; they are not yielded.
    """
    adapted.train()
    order = torch.randperm(len(rows), generator=generator).tolist()
    batches = buckets(rows, batch_size, order)
    shuffled = torch.randperm(len(batches), generator=generator).tolist()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    with upper_part(adapted, first_adapted_layer(adapted)) as decoder:
        for number in shuffled[skip_steps:]:
            chosen = batches[number]
            batch = make_batch([rows[i] for i in chosen], [states[i] for i in chosen], shift)
            loss = loss_of(answer_logits(adapted, decoder, batch), batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trained, max_norm)
            optimizer.step()
            schedule.step()
            yield len(chosen), float(loss.detach())
