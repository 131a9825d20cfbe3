"""Other tools' files as rows: which format a file is in, and where each format keeps input, answer, gold and user.

| format | one entry is |
|---|---|
| `graduate` | our own JSON Lines: an input or `messages`, `teacher`, `gold` |
| `openai-chat` | a fine-tuning line: `messages` that end with the assistant's answer |
| `openai-stored` | a stored completion with its `messages` beside it |
| `openai-evals` | an item of an Evals data source, or an output item of an Evals run |
| `langfuse` | an observation; only generations are rows |
| `litellm` | a standard logging payload |
| `csv` | a row, its columns named by the keys |

Knows nothing of routes and answer specs; what is kept is decided in `build`. Entries that are no rows (a failed call, a
span) are counted by reason, entries that should be rows and are not are refused.
"""

import csv
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from router.prompt import last_user_text
from training.build import Keys, Row, rows_from_file
from training.dataset import Split
from training.errors import ConfigError, DataError
from training.form import json_of
from training.import_formats import READERS, Columns, Entry, Facts, Parts, Place, Skip, word

FORMATS = ("graduate", *READERS)


@dataclass(slots=True)
class Imported:
    """The rows of one file, what was passed over by reason, and facts by row id."""

    path: Path
    format: str
    rows: list[Row] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    facts: dict[str, Facts] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """What a dataset remembers of the file."""
        return {
            "file": str(self.path), "format": self.format, "rows": len(self.rows), "skipped": dict(self.skipped),
        }  # fmt: skip

    def first(self) -> dict[str, str]:
        """The first row in a few words, for a preview; {} without rows."""
        if not self.rows:
            return {}
        row = self.rows[0]
        return {
            "id": row.id, "input": last_user_text(row.messages)[:200], "teacher": str(row.teacher)[:200],
            "gold": str(row.gold)[:200], "user": self.facts.get(row.id, Facts()).user,
        }  # fmt: skip


def read(
    path: Path,
    columns: Columns | None = None,
    *,
    form: str | None = None,
    system: str | None = None,
    fixed: Split | None = None,
) -> Imported:
    """The rows of a file in any of the formats; without `form` the first entry decides.

    Raises:
        ConfigError: no such format.
        DataError: the file, its line or entry, the field, and what is allowed.
    """
    names = columns or Columns()
    if form is not None and form not in FORMATS:
        raise ConfigError(f"--format {form!r}: allowed: {', '.join(FORMATS)}")
    if form == "csv" or (form is None and path.suffix.lower() in (".csv", ".tsv")):
        found = Imported(path, "csv")
        entries = _csv_entries(path, names)
    else:
        entries = _json_entries(path)
        first = next(entries, None)
        chosen = form or ("graduate" if first is None else sniff(first[1], names.keys))
        found = Imported(path, chosen)
        if chosen == "graduate":
            return _own(found, names, system, fixed)
        if first is not None:
            entries = itertools.chain([first], entries)
    reader = READERS[found.format]
    for place, entry in entries:
        try:
            parts = reader(place, entry, names)
        except Skip as why:
            found.skipped[str(why)] += 1
            continue
        row = _row(place, parts, system, fixed)
        found.rows.append(row)
        if parts.facts != Facts():
            found.facts[row.id] = parts.facts
    return found


def _own(found: Imported, names: Columns, system: str | None, fixed: Split | None) -> Imported:
    rows = rows_from_file(found.path, names.keys, system=system, fixed=fixed)
    lines = [line for line in _text(found.path).splitlines() if line.strip()]
    for row, line in zip(rows, lines, strict=True):
        entry = json.loads(line)
        found.rows.append(replace(row, teacher_model=word(entry.get("teacher_model"))))
        facts = Facts(word(entry.get(names.user)), word(entry.get("finish_reason")))
        if facts != Facts():
            found.facts[row.id] = facts
    return found


def _row(place: Place, parts: Parts, system: str | None, fixed: Split | None) -> Row:
    messages = parts.messages
    if system and not any(m.get("role") in ("system", "developer") for m in messages):
        messages = [{"role": "system", "content": system}, *messages]
    return Row(
        parts.id or f"{place.path.stem}-{place.number}", tuple(messages), parts.teacher, parts.gold,
        f"file:{place.path.name}", parts.model, parts.at, fixed, tools=parts.tools, tool_choice=parts.tool_choice,
    )  # fmt: skip


def sniff(entry: Entry, keys: Keys) -> str:
    """The format that an entry looks like; `graduate` when it looks like none of the others."""
    if entry.get("object") == "eval.run.output_item" or isinstance(
        entry.get("item", entry.get("datasource_item")), dict
    ):
        return "openai-evals"
    if entry.get("object") == "chat.completion" or isinstance(entry.get("choices"), list):
        return "openai-stored"
    if {"call_type", "standard_logging_object", "litellm_call_id"} & set(entry):
        return "litellm"
    if {"traceId", "trace_id"} & set(entry) and {"type", "input", "output"} & set(entry):
        return "langfuse"
    messages = entry.get("messages")
    ends_with_answer = (
        isinstance(messages, list)
        and messages
        and isinstance(messages[-1], dict)
        and messages[-1].get("role") == "assistant"
    )
    return "openai-chat" if ends_with_answer and keys.teacher not in entry else "graduate"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as why:
        raise DataError(f"{path}: cannot be read: {why}") from why


def _json_entries(path: Path) -> Iterator[tuple[Place, Entry]]:
    """Objects of a JSON Lines file, of a JSON array, or of an API page (`data`, `observations`)."""
    text = _text(path)
    lines = text.splitlines()
    first = next((line for line in lines if line.strip()), "")
    if first.lstrip().startswith("[") or not _is_json(first):
        yield from _document(path, text)
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        value = json_of(line, f"{path}: line {number}")
        yield from _entries(path, value, f"line {number}", number)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _document(path: Path, text: str) -> Iterator[tuple[Place, Entry]]:
    value = json_of(text, str(path))
    for number, item in enumerate(value if isinstance(value, list) else [value], 1):
        yield from _entries(path, item, f"entry {number}", number)


def _entries(path: Path, value: Any, where: str, number: int) -> Iterator[tuple[Place, Entry]]:
    if not isinstance(value, dict):
        raise DataError(f"{path}: {where}: allowed: a JSON object, found {value!r:.80}")
    page = value.get("data", value.get("observations"))
    if not isinstance(page, list):
        yield Place(path, where, number), value
        return
    for inner, item in enumerate(page, 1):
        if not isinstance(item, dict):
            raise DataError(f"{path}: {where}: item {inner}: allowed: a JSON object")
        yield Place(path, f"{where}, item {inner}", number * 1000 + inner), item


def _csv_entries(path: Path, names: Columns) -> Iterator[tuple[Place, Entry]]:
    csv.field_size_limit(sys.maxsize)
    lines = _text(path).splitlines(keepends=True)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
    try:
        header = reader.fieldnames or []
        if names.keys.input not in header:
            raise DataError(
                f"{path}: line 1: no column {names.keys.input!r} for the input; columns: "
                f"{', '.join(header) or 'none'} (--input-key, --teacher-key, --gold-key, --column)"
            )
        for number, cells in enumerate(reader, 1):
            place = Place(path, f"line {reader.line_num}", number)
            if None in cells or None in cells.values():
                found = "more" if None in cells else "fewer"
                raise DataError(
                    f"{path}: {place.where}: {found} cells than the {len(header)} columns"
                )
            yield place, dict(cells)
    except csv.Error as why:
        raise DataError(f"{path}: line {reader.reader.line_num}: not CSV: {why}") from why
