"""`rollouts.yaml` on disk: read, changed under a lock, written in one rename. Knows nothing of why a canary moves.

A tick and a person's command may come at the same time; each changes one route, from the state that it saw.
"""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from router.policy import Rollouts


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Within it nobody else of this home changes the overlay at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".{path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_rollouts(path: Path, rollouts: Rollouts) -> None:
    """Write the overlay in one rename, so that no router reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (
        "# Written by the monitor: how far each canary has come. People edit policy.yaml instead.\n"
    )
    text += yaml.safe_dump(rollouts.model_dump(mode="json", exclude_none=True), sort_keys=False)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=".rollouts-", delete=False
    ) as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    Path(out.name).chmod(0o644)
    Path(out.name).replace(path)
