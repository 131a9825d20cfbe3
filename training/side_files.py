"""Files beside a dataset, such as votes, scores or explanations: JSON Lines, each line about one row. Pure but for reading.

A line names its row by `id`, `text` or `messages`; what else it says is the reader's.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.build import key_of
from training.errors import DataError
from training.form import json_of


def entries(path: Path) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """Each line: its place for messages, what it says, and the keys of its row (`id:…`, `input:…`), one at least.

    Raises:
        DataError: the file cannot be read, or a line is not a JSON object or names no row.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as why:
        raise DataError(f"{path}: cannot be read: {why}") from why
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"{path}: line {number}"
            entry = json_of(line, place)
            if not isinstance(entry, dict):
                raise DataError(f"{place}: {line.strip():.60}: allowed: a JSON object")
            yield place, entry, _keys(place, entry)


def _keys(place: str, entry: dict[str, Any]) -> list[str]:
    keys = [f"id:{entry['id']}"] if entry.get("id") else []
    text, messages = entry.get("text"), entry.get("messages")
    if isinstance(messages, list) and all(isinstance(m, dict) for m in messages):
        keys.append(f"input:{key_of(messages)}")
    elif isinstance(text, str):
        keys.append(f"input:{key_of([{'role': 'user', 'content': text}])}")
    if not keys:
        raise DataError(f"{place}: allowed: an 'id', a 'text' or 'messages' to find the row by")
    return keys
