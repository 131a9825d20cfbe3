"""Rows and pairs in the form that TRL's trainers take once their own preparation is done: token ids, nothing left to cut.

TRL would tokenise prompt and answer as one text and cut what is too long at its end, where the answer is. Here the ids are
those of `encode`, so that training, evaluation and serving see the same prompt, and a row that is too long was refused
by preflight. Knows no trainer.
"""

from collections.abc import Sequence

from datasets import Dataset as Table

from training.encode import Encoded
from training.preference import EncodedPair

NO_LOSS = -100
"""The label that torch's cross-entropy passes over."""


def sft_table(rows: Sequence[Encoded]) -> Table:
    """`input_ids`, `labels` (the answer and its end; nothing else has a loss), and `weight` with a mean of 1 an answer token.

    The mean of 1 keeps a step's loss in nats a token whatever unit the weights have.
    """
    tokens = sum(len(row.completion_ids) for row in rows)
    total = sum(row.weight * len(row.completion_ids) for row in rows)
    unit = tokens / total if total else 1.0
    return Table.from_dict(
        {
            "input_ids": [[*row.prompt_ids, *row.completion_ids] for row in rows],
            "labels": [[*[NO_LOSS] * len(row.prompt_ids), *row.completion_ids] for row in rows],
            "weight": [row.weight * unit for row in rows],
        }
    )


def pair_table(pairs: Sequence[EncodedPair]) -> Table:
    """`prompt_ids`, `chosen_ids`, `rejected_ids`, as TRL's preference collator wants them."""
    return Table.from_dict(
        {
            "prompt_ids": [list(pair.prompt_ids) for pair in pairs],
            "chosen_ids": [list(pair.chosen_ids) for pair in pairs],
            "rejected_ids": [list(pair.rejected_ids) for pair in pairs],
        }
    )
