"""Windows to compare: real texts drawn anew with small edits, and what is planted in them."""

import csv
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from monitoring.windows import Row

TICKETS = Path(__file__).parents[2] / "examples" / "tickets"
PLANTED_SHARE = 0.2
"""Of a window's rows."""
TEMPLATE = "[sent from the mobile app 3.2] "
Texts = Sequence[tuple[str, str]]
"""Texts and the classes of their answers."""


class SourceError(ValueError):
    """A file of texts is not what it should be."""


def tickets(name: str = "tickets.jsonl") -> Texts:
    """The example's tickets, with the intent as class."""
    rows = [json.loads(line) for line in (TICKETS / name).read_text().splitlines()]
    return [(row["text"], row["gold"]["intent"]) for row in rows]


def comments(path: Path) -> Texts:
    """A CSV with the columns `comment_text` and `toxic` or `label`.

    Raises:
        SourceError: the columns are not there.
        OSError: the file cannot be read.
    """
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        names = reader.fieldnames or []
        text = next((name for name in ("comment_text", "text") if name in names), None)
        label = next((name for name in ("toxic", "label", "target") if name in names), None)
        if text is None or label is None:
            raise SourceError(
                f"{path}: columns {', '.join(names)}; wanted comment_text or text, and toxic, label or target"
            )
        return [(row[text], row[label]) for row in reader if row[text].strip()]


def edited(text: str, draws: random.Random) -> str:
    """The text with a word less, a slip of the fingers, or another number: what two people write differently."""
    words = text.split(" ")
    if len(words) > 4 and draws.random() < 0.4:
        del words[draws.randrange(len(words))]
    if draws.random() < 0.4:
        place = draws.randrange(len(words))
        word = words[place]
        if len(word) > 3:
            i = draws.randrange(1, len(word) - 1)
            words[place] = word[: i - 1] + word[i] + word[i - 1] + word[i + 1 :]
    return "".join(
        str(draws.randrange(10)) if c.isdigit() and draws.random() < 0.5 else c
        for c in " ".join(words)
    )


def window(texts: Texts, rows: int, draws: random.Random) -> list[Row]:
    """Rows drawn with replacement, each edited."""
    return [
        Row(f"r{number}", edited(text, draws), kind)
        for number, (text, kind) in enumerate(draws.choices(texts, k=rows))
    ]


def _cut(row: Row, draws: random.Random, pools: Sequence[Texts]) -> Row:
    return Row(row.id, row.text[: max(1, len(row.text) * 3 // 10)], row.answer_class)


def _topic(row: Row, draws: random.Random, pools: Sequence[Texts]) -> Row:
    text, _ = draws.choice(pools[1])
    return Row(row.id, edited(text, draws), row.answer_class)


def _class(row: Row, draws: random.Random, pools: Sequence[Texts]) -> Row:
    rarest = min({kind for _, kind in pools[0]}, key=[k for _, k in pools[0]].count)
    text, kind = draws.choice([item for item in pools[0] if item[1] == rarest])
    return Row(row.id, edited(text, draws), kind)


def _template(row: Row, draws: random.Random, pools: Sequence[Texts]) -> Row:
    return Row(row.id, TEMPLATE + row.text, row.answer_class)


def _shouted(row: Row, draws: random.Random, pools: Sequence[Texts]) -> Row:
    return Row(row.id, row.text.upper(), row.answer_class)


SHIFTS: dict[str, Callable[[Row, random.Random, Sequence[Texts]], Row]] = {
    "cut": _cut,
    "topic": _topic,
    "class": _class,
    "template": _template,
    "shouted": _shouted,
}
"""What happens to a planted row: cut to 30 % of its length; a text of another product; a text of the rarest class;
a line of a client in front; all in capitals."""


def planted(
    rows: Sequence[Row], shift: str, draws: random.Random, pools: tuple[Texts, Texts]
) -> list[Row]:
    """A window in which a fifth of the rows is shifted.

    Args:
        pools: the texts that the window is drawn from, and texts of another kind.
    """
    chosen = set(draws.sample(range(len(rows)), round(PLANTED_SHARE * len(rows))))
    change = SHIFTS[shift]
    return [change(row, draws, pools) if i in chosen else row for i, row in enumerate(rows)]
