"""Hidden states of the frozen lower layers, kept on disk: another run over the same rows does not compute them again.

States depend on the base model, the number of layers, and a row's tokens; the first two name the folder, the tokens
the row. They are kept as half floats (rounding 5e-4 of a value, below that of bf16 products). Each process writes a
shard of its own, so that two runs beside each other need no lock.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from training.encode import Encoded


def key_of(row: Encoded) -> str:
    """What names a row: its tokens."""
    text = json.dumps([row.prompt_ids, row.completion_ids])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class StateCache:
    """A folder of shards: `NAME.f16` holds states one after another, `NAME.json` where each row's begin."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, tuple[Path, int, int, int]] = {}
        self._maps: dict[Path, np.ndarray] = {}
        for index in sorted(folder.glob("*.json")):
            self._read(index)

    def _read(self, index: Path) -> None:
        data = json.loads(index.read_text())
        for key, (start, tokens) in data["rows"].items():
            self._known[key] = (index.with_suffix(".f16"), start, tokens, data["width"])

    def __contains__(self, row: Encoded) -> bool:
        return key_of(row) in self._known

    def get(self, row: Encoded) -> torch.Tensor:
        """[tokens, d] half floats of a row that is here.

        Raises:
            KeyError: it is not.
        """
        file, start, tokens, width = self._known[key_of(row)]
        if file not in self._maps:
            self._maps[file] = np.memmap(file, dtype=np.float16, mode="r")
        part = self._maps[file][start * width : (start + tokens) * width]
        return torch.from_numpy(np.array(part)).reshape(tokens, width)

    def add(self, rows: Sequence[Encoded], states: Sequence[torch.Tensor]) -> None:
        """Keep these rows' states, [tokens, d] each, in a new shard."""
        if not rows:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{time.time_ns():x}-{os.getpid()}"
        index: dict[str, tuple[int, int]] = {}
        start = 0
        with (self.folder / f"{name}.f16").open("wb") as file:
            for row, state in zip(rows, states, strict=True):
                file.write(state.half().numpy().tobytes())
                index[key_of(row)] = (start, len(state))
                start += len(state)
        place = self.folder / f"{name}.json"
        partial = place.with_suffix(".partial")
        partial.write_text(json.dumps({"width": states[0].shape[-1], "rows": index}))
        partial.replace(place)
        self._read(place)
