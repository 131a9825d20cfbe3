"""A learned metric of free text from a local folder: a sequence classifier with one output, such as a PyTorch port of BLEURT.

It reads reference and answer as a pair of sentences and gives a number that only its makers can explain; it compares answerers, it says
nothing by itself (Sellam et al. 2020). Nothing is downloaded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import ConfigError
from training.metrics import Mean, mean_of

BATCH_ROWS, MOST_TOKENS = 32, 512


@dataclass(frozen=True, slots=True)
class Learned:
    """One metric: its name and each answerer's mean score."""

    name: str
    means: dict[str, Mean]


@dataclass(frozen=True, slots=True)
class Scorer:
    """The loaded model."""

    name: str
    model: Any
    tokenizer: Any

    @classmethod
    def load(cls, folder: Path) -> "Scorer":
        """The model in `folder`.

        Raises:
            ConfigError: there is none, or it is no classifier with one output.
        """
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"--learned-metric {folder}: no config.json; allowed: a folder with a sequence classifier of one output and its "
                "tokenizer, such as a PyTorch port of BLEURT. Without it ROUGE is all there is"
            )  # fmt: skip
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            if config.num_labels != 1:
                raise ConfigError(
                    f"--learned-metric {folder}: {config.num_labels} outputs; allowed: 1"
                )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, local_files_only=True
            )
        except (OSError, ValueError, KeyError) as why:
            raise ConfigError(f"--learned-metric {folder}: cannot be loaded: {why}") from why
        return cls(folder.resolve().name, model.eval(), tokenizer)

    def score(
        self, answers: Sequence[str], references: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> list[float]:  # fmt: skip
        """One number a row, in order; texts beyond the model's length are cut."""
        import torch

        found = [0.0] * len(answers)
        told = getattr(self.model.config, "max_position_embeddings", None) or MOST_TOKENS
        most = min(MOST_TOKENS, told, self.tokenizer.model_max_length)
        order = sorted(range(len(answers)), key=lambda i: len(answers[i]) + len(references[i]))
        for start in range(0, len(order), BATCH_ROWS):
            chosen = order[start : start + BATCH_ROWS]
            inputs = self.tokenizer(
                [references[i] for i in chosen], [answers[i] for i in chosen],
                padding=True, truncation="longest_first", max_length=most, return_tensors="pt",
            )  # fmt: skip
            with torch.no_grad():
                scores = self.model(**inputs).logits[:, 0].tolist()
            for i, score in zip(chosen, scores, strict=True):
                found[i] = float(score)
            if progress:
                progress(len(chosen))
        return found


def learned(
    scorer: Scorer,
    answers: dict[str, Sequence[str]],
    references: Sequence[str],
    progress: Callable[[int], None] | None = None,
) -> Learned:
    """Each answerer's mean score against the references, with a bootstrap interval.

    Args:
        answers: name of an answerer to its answers, one a reference.
    """
    means = {
        name: mean_of(scorer.score(texts, references, progress)) for name, texts in answers.items()
    }
    return Learned(scorer.name, means)
