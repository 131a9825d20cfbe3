"""Why an answer is right, learned as a second task beside the answers: trained with, served without.

After Hsieh et al. 2023 (Distilling Step-by-Step): the explanation is not put before the answer, where serving would pay for
its tokens, but asked for by a prompt of its own that serving never sends. Explanations are the teacher's, or a
summary of its reasoning where its API hides that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.build import key_of
from training.config import Explanations
from training.dataset import Example
from training.encode import Encoded, Tokenizer, encode_prompt
from training.errors import DataError
from training.side_files import entries


@dataclass(frozen=True, slots=True)
class Added:
    """Rows of the second task, and what they cost."""

    rows: tuple[Encoded, ...]
    missing: int
    """Training rows without an explanation."""
    too_long: int
    """Explanations that were left out for their length."""
    tokens: int
    """Tokens that a pass over the training rows has more."""
    tokens_before: int

    def report(self) -> dict[str, Any]:
        """What the run's folder keeps of it."""
        return {
            "rows": len(self.rows), "missing": self.missing, "too_long": self.too_long, "more_tokens": self.tokens,
            "more_tokens_share": self.tokens / max(1, self.tokens_before),
        }  # fmt: skip


def load(path: Path) -> dict[str, str]:
    """Explanations by row id and by input key: JSON Lines with `id`, `text` or `messages`, and `explanation`.

    A file that `graduate train label` wrote has them as the teacher's text, under `teacher`.

    Raises:
        DataError: file, line, field and what is allowed.
    """
    found: dict[str, str] = {}
    for place, entry, keys in entries(path):
        said = entry.get("explanation", entry.get("teacher"))
        if not isinstance(said, str) or not said.strip():
            raise DataError(
                f"{place}: explanation = {said!r:.60}: allowed: a text that is not empty"
            )
        found |= dict.fromkeys(keys, said.strip())
    return found


def rows(
    config: Explanations,
    known: Mapping[str, str],
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    template: str,
    max_input_chars: int | None,
) -> Added:
    """Second-task rows of the training examples that have an explanation.

    The marker goes before the input, so that no cut takes it away, and the input keeps its length.

    Raises:
        DataError: no training row has an explanation.
    """
    made, missing, too_long, before = [], 0, 0, 0
    for example in examples:
        prompt, was_cut = encode_prompt(
            example.messages, tokenizer, template, max_input_chars, example.tools
        )
        before += (
            len(prompt) + len(tokenizer.encode(example.completion, add_special_tokens=False)) + 1
        )
        said = known.get(f"id:{example.id}") or known.get(f"input:{key_of(example.messages)}")
        if said is None:
            missing += 1
        elif len(said) > config.max_chars:
            too_long += 1
        else:
            asked = tokenizer.encode(config.marker, add_special_tokens=False)
            answer = tokenizer.encode(said, add_special_tokens=False)
            made.append(
                Encoded(
                    f"{example.id}#why", (*asked, *prompt), (*answer, tokenizer.eos_token_id), was_cut,
                    example.weight * config.weight, is_second_task=True,
                )
            )  # fmt: skip
    if not made:
        raise DataError(
            f"{config.file}: no training row has an explanation there ({missing} without, {too_long} longer than "
            f"explanations.max_chars = {config.max_chars})"
        )
    return Added(tuple(made), missing, too_long, sum(map(len, made)), before)
