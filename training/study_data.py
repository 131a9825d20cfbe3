"""The playbook's case study as data: its files read, its arms put together, one dataset an arm and seed.

Knows the files' traps: GPT-4's text is fenced JSON that a JSON reader refuses; `train.5.d.csv` has rows without
`is_bad`, to be derived from the six gold columns, and one row twice. Knows no model.
"""

import csv
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from router.answer_spec import AnswerSpec
from training.curate import gold
from training.curate.config import Gold
from training.dataset import Dataset, DatasetInfo, Example, Split, digest_of, save, sha256_of
from training.errors import DataError

ArmName = Literal["A", "B", "C", "D", "E", "control", "E-agreed", "E-corrected"]
GPT4 = "gpt-4-1106-preview"
GOLD = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
LABELS = ("no", "yes")
ANSWER = {"kind": "label", "labels": list(LABELS)}
COLUMNS = ("id", "comment_text", *GOLD)


@dataclass(frozen=True, slots=True)
class Arm:
    """One training set of the study."""

    name: ArmName
    labels: str
    """Whose labels its rows have, in words."""
    playbook: float | None
    """Test-balanced accuracy of the playbook's 7B student, %; None where it gives none."""


ARMS: dict[ArmName, Arm] = {
    "A": Arm("A", "GPT-4", 87.2),
    "B": Arm("B", "A's rows GPT-4, as many again gold", 90.0),
    "C": Arm("C", "B without the rows on which GPT-4 and gold differ", 92.0),
    "control": Arm("control", "C and 135 fresh rows with gold labels: as large as B", None),
    "D": Arm("D", "B and 1,000 toxic rows with gold labels", None),
    "E": Arm("E", "GPT-4, 5,000 rows", 90.2),
    "E-agreed": Arm("E-agreed", "E without the rows on which GPT-4 and gold differ", None),
    "E-corrected": Arm("E-corrected", "E with gold labels on those rows", None),
}
PLAYBOOK_ARMS: tuple[ArmName, ...] = ("A", "B", "C", "control", "D", "E")
"""The subsets of the playbook and the control; the other arms are E after a rule of curation."""
GAPS: dict[str, tuple[ArmName, ArmName]] = {
    "B-A": ("B", "A"),
    "C-B": ("C", "B"),
    "C-control": ("C", "control"),
    "D-B": ("D", "B"),
    "E-A": ("E", "A"),
    "C-E": ("C", "E"),
    "E-agreed-E": ("E-agreed", "E"),
    "E-corrected-E": ("E-corrected", "E"),
}
"""Comparisons of two arms on the same rows, by name."""

PLAYBOOK = {
    "GPT-3.5": 85.8, "GPT-4": 88.8, "Llama-2-7B, fine-tuned": 91.2, "Mistral-7B, fine-tuned": 92.0,
    "Llama-2-13B, fine-tuned": 92.7,
}  # fmt: skip
"""The playbook's own figures: test-balanced accuracy, %."""


@dataclass(frozen=True, slots=True)
class Comment:
    """One row: people's label, and GPT-4's where it was asked."""

    id: str
    text: str
    gold: str
    teacher: str | None
    label: str = ""
    """The label that the student learns."""


def read_comments(path: Path) -> list[Comment]:
    """Rows of one of the playbook's files, or of a file with the same columns.

    Raises:
        DataError: the file is missing, or lacks a column, or has no row.
    """
    csv.field_size_limit(1 << 28)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [c for c in COLUMNS if c not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{path}: column {missing[0]!r} is missing; needed: {list(COLUMNS)}"
                )
            rows = list(_rows(reader))
    except (OSError, UnicodeDecodeError, csv.Error) as why:
        raise DataError(f"{path}: cannot be read: {why}") from why
    if not rows:
        raise DataError(f"{path}: no rows")
    return rows


def _rows(reader: Iterator[dict[str, str]]) -> Iterator[Comment]:
    seen = set()
    for row in reader:
        if row["id"] in seen or not (row["comment_text"] or "").strip():
            continue
        seen.add(row["id"])
        gold = LABELS[any(row[c] in ("1", "1.0", "True") for c in GOLD)]
        said = re.search(r'"is_bad"\s*:\s*"?([01])', row.get("simple_prompt") or "")
        teacher = LABELS[int(said[1])] if said else None
        yield Comment(row["id"], row["comment_text"], gold, teacher)


def _labelled(folder: Path, name: str) -> list[Comment]:
    return read_comments(folder / f"{name}.{GPT4}" / f"{name}.{GPT4}.with_labels.csv")


def _by_teacher(rows: Sequence[Comment]) -> list[Comment]:
    return [replace(r, label=r.teacher) for r in rows if r.teacher is not None]


def _mixed(rows: Sequence[Comment], asked: set[str]) -> list[Comment]:
    """GPT-4's label for the rows of arm A, gold for the others."""
    return [replace(r, label=(r.teacher or r.gold) if r.id in asked else r.gold) for r in rows]


def _by_rule(rows: Sequence[Comment], errors: Literal["drop", "replace"]) -> list[Comment]:
    """The rows after curation's rule on the teacher's errors: they go, or learn people's label."""
    examples = [example(r, "train") for r in rows]
    kept = gold.apply(Gold(errors=errors), examples, AnswerSpec.model_validate(ANSWER)).kept
    learned = {one.id: one.completion for one in kept}
    return [replace(r, label=learned[r.id]) for r in rows if r.id in learned]


def arm_rows(folder: Path, arm: ArmName) -> list[Comment]:
    """The labelled rows of an arm, in the files' order.

    Raises:
        DataError: a file is missing or wrong.
    """
    if arm == "A":
        return _by_teacher(_labelled(folder, "train.5.a"))
    if arm == "E":
        return _by_teacher(_labelled(folder, "train.5k"))
    if arm in ("E-agreed", "E-corrected"):
        return _by_rule(arm_rows(folder, "E"), "drop" if arm == "E-agreed" else "replace")
    if arm == "C":
        return [replace(r, label=r.gold) for r in read_comments(folder / "train.5.c.csv")]
    if arm == "control":
        return [replace(r, label=r.gold) for r in read_comments(folder / "train.5.d.csv")]
    asked = {r.id for r in _labelled(folder, "train.5.a")}
    return _mixed(_labelled(folder, "train.5.b" if arm == "B" else "train.6"), asked)


TESTS = ("balanced", "indist")


def test_rows(folder: Path, test: str) -> list[Comment]:
    """A frozen test set with GPT-4's answers beside gold."""
    return _labelled(folder, {"balanced": "test.balanced", "indist": "test.indist.1"}[test])


def gpt35_accuracy(folder: Path) -> float:
    """GPT-3.5's share right on test-balanced, from its recorded answers."""
    name = "test.balanced.gpt-3.5-turbo"
    rows = read_comments(folder / name / f"{name}.with_labels.csv")
    return sum(r.teacher == r.gold for r in rows) / len(rows)


def tuning_rows(folder: Path, seed: int = 0, each: int = 500) -> list[Comment]:
    """Rows that recipes are compared on: `each` of either gold class, in neither A nor E nor a test set.

    They come from D's file. B, C, D and the control train on some of them, so the recipe is chosen on A and E only.
    """
    taken = {r.id for name in ("train.5.a", "train.5k") for r in _labelled(folder, name)}
    taken |= {r.id for test in TESTS for r in test_rows(folder, test)}
    free = [r for r in _labelled(folder, "train.6") if r.id not in taken]
    draw = random.Random(seed)
    chosen = []
    for label in LABELS:
        rows = [r for r in free if r.gold == label]
        chosen += draw.sample(rows, min(each, len(rows)))
    return chosen


def split_rows(
    rows: Sequence[Comment], seed: int, share: float, most: int
) -> tuple[list[Comment], list[Comment]]:
    """Train and validation rows, drawn apart within each class; at most `most` validation rows."""
    draw = random.Random(seed)
    share = min(share, most / len(rows))
    held: set[str] = set()
    for label in LABELS:
        ids = sorted(r.id for r in rows if r.label == label)
        held |= set(draw.sample(ids, round(share * len(ids))))
    return [r for r in rows if r.id not in held], [r for r in rows if r.id in held]


def example(row: Comment, split: Split) -> Example:
    """A comment as an example; its completion is the label learned, or gold where there is none."""
    messages = ({"role": "user", "content": row.text},)
    label = row.label or row.gold
    return Example(
        id=row.id, task="jigsaw", messages=messages, completion=label, teacher=row.teacher, gold=row.gold,
        source="playbook", split=split, sha256=sha256_of(messages, label),
    )  # fmt: skip


def make_dataset(
    folder: Path,
    out: Path,
    arm: ArmName,
    seed: int,
    *,
    prompt: str,
    max_input_chars: int,
    validation_share: float,
    most_validation: int = 500,
) -> Dataset:
    """An arm's dataset with this seed's validation rows; test sets are not in it, so nothing here reads them."""
    rows = arm_rows(folder, arm)
    train, held = split_rows(rows, seed, validation_share, most_validation)
    examples = [example(r, "train") for r in train] + [example(r, "validation") for r in held]
    digest = digest_of(examples)
    info = DatasetInfo(
        task="jigsaw", digest=digest, query={"arm": arm, "seed": seed},
        counts={"train": len(train), "validation": len(held)}, classes={}, teachers=(GPT4,),
        answer=dict(ANSWER), prompt=prompt, max_input_chars=max_input_chars,
    )  # fmt: skip
    path = out / f"{arm}-{seed}-{digest[:8]}-{max_input_chars}"
    if path.exists():
        return replace(Dataset.load(path), info=info)
    out.mkdir(parents=True, exist_ok=True)
    return save(path, info, examples)
