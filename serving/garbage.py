"""Which adapter versions of a registry folder can go, and their removal. Nothing is removed that is not named first."""

import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from serving.errors import OperatorError
from serving.registry import AdapterRef


def superseded(refs: Iterable[AdapterRef], keep: int) -> list[AdapterRef]:
    """All versions but the newest `keep` of each name, oldest first. Pure."""
    by_name: dict[str, list[AdapterRef]] = defaultdict(list)
    for ref in refs:
        by_name[ref.name].append(ref)
    return [
        ref
        for _, versions in sorted(by_name.items())
        for ref in sorted(versions, key=lambda each: each.version)[:-keep]
    ]


def remove(root: Path, ref: AdapterRef) -> None:
    """The version is gone: renamed out of sight at once, then deleted, so that no reader sees half of it.

    Raises:
        OperatorError: the folder cannot be changed.
    """
    folder = root / ref.name / str(ref.version)
    hidden = folder.with_name(f".removed-{ref.version}")
    try:
        folder.rename(hidden)
        shutil.rmtree(hidden)
    except OSError as why:
        raise OperatorError(f"{folder}: {why.strerror}") from why
