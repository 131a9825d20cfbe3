"""A run's log as its writers left it: JSON Lines, of which a process that was killed may have torn the last."""

import json
from pathlib import Path
from typing import Any


def lines(log: Path) -> list[dict[str, Any]]:
    """The whole lines; a torn one, and what was written behind it on the same line, is passed over."""
    found = []
    for text in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and {"epoch", "rows"} <= line.keys():
            found.append(line)
    return found
