"""The drop ledger: every row that a stage took out, changed or added, whole, with stage, rule and score.

One JSON line an entry in `ledger.jsonl` beside the dataset. Because an entry holds the row as it was, `restore` can
undo any of them. Decides the stored form and what undoing means; the stages decide what is entered.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from training.dataset import Example
from training.errors import DataError

FILE = "ledger.jsonl"
HELD_OUT_TWIN = "near duplicate of a held-out row"
"""The rule whose rows stay out: a restored twin would put a test row's text into training."""


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One row and what happened to it.

    `row` is the row before a removal or change, and the copy itself when it was added. `score` is the stage's own number
    (similarity, agreement, probability of the label), None where a rule has none. `after` is a changed row.
    """

    kind: Literal["removed", "changed", "added"]
    stage: str
    rule: str
    row: Example
    score: float | None = None
    detail: str = ""
    after: Example | None = None


@dataclass(slots=True)
class Outcome:
    """What a stage made of the rows, and what it has to say for the report."""

    kept: list[Example]
    entries: list[Entry] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)


def dump(entries: Iterable[Entry]) -> bytes:
    """The file's content."""
    return msgspec.json.Encoder().encode_lines(list(entries))


def load(folder: Path) -> list[Entry]:
    """The ledger of a dataset.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    path = folder / FILE
    try:
        return msgspec.json.Decoder(Entry).decode_lines(path.read_bytes())
    except FileNotFoundError as why:
        raise DataError(f"{path}: no such file: {folder.name} was not made by curate") from why
    except (OSError, msgspec.MsgspecError) as why:
        raise DataError(f"{path}: not a ledger: {why}") from why


@dataclass(frozen=True, slots=True)
class Choice:
    """Which entries to undo: any of the given rules, stages and row ids."""

    rules: frozenset[str] = frozenset()
    stages: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()

    def takes(self, entry: Entry) -> bool:
        """Whether the entry is chosen."""
        return entry.rule in self.rules or entry.stage in self.stages or entry.row.id in self.ids


def undo(
    examples: Sequence[Example], entries: Sequence[Entry], choice: Choice
) -> tuple[list[Example], list[Entry]]:
    """The rows with the chosen entries undone, newest first, and the entries that stand.

    Raises:
        DataError: nothing is chosen, or a chosen row must stay out.
    """
    chosen = [entry for entry in entries if choice.takes(entry)]
    if not chosen:
        known = sorted({f"{e.stage}/{e.rule}" for e in entries})
        raise DataError(
            f"the ledger has no such entry; stages and rules: {', '.join(known) or 'none'}"
        )
    twin = next((e for e in chosen if e.rule == HELD_OUT_TWIN), None)
    if twin is not None:
        raise DataError(f"row {twin.row.id!r} stays out: {HELD_OUT_TWIN} ({twin.detail})")
    rows = {e.id: e for e in examples}
    for entry in reversed(chosen):
        if entry.kind == "added":
            rows.pop(entry.row.id, None)
        elif entry.kind == "removed" or entry.row.id in rows:
            rows[entry.row.id] = entry.row
    return list(rows.values()), [entry for entry in entries if not choice.takes(entry)]
