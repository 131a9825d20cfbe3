"""A queue of commands, a few side by side, that picks up where it was: a job is done when its result file is there.

Each job is a process of its own: memory goes back when it ends, and a crash costs one job. A job that ends with
`PAUSED` has saved itself and is started again, so that no process needs to run longer than `slice_seconds`.
"""

import collections
import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PAUSED = 75
"""Exit status of a job that has saved itself and wants to go on (sysexits.h: EX_TEMPFAIL)."""
KILLED = (124, 137, 143)
"""Exit statuses that a launcher gives for a job that was killed or ran past the launcher's own limit."""
POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Job:
    """One command. `result` is the file that it leaves when it is done, `log` where its output goes."""

    name: str
    command: tuple[str, ...]
    result: Path
    log: Path


@dataclass(frozen=True, slots=True)
class QueueState:
    """What a caller is told after each change."""

    done: int
    total: int
    running: tuple[str, ...]
    failed: tuple[str, ...]


@dataclass(slots=True)
class Queue:
    """Jobs under way."""

    workers: int = 2
    launcher: str = ""
    """Laid before each command, such as `nice -n 15`."""
    deadline: float | None = None
    """`time.monotonic()` from which no job is started (or started again)."""
    restarts: int = 3
    """How often a job that was killed from outside is started again."""
    failed: list[str] = field(default_factory=list)

    def run(
        self, jobs: Sequence[Job], tell: Callable[[QueueState], None] = lambda state: None
    ) -> list[str]:
        """Run what is not done yet; names of the jobs that failed. Jobs not reached by the deadline stay undone."""
        waiting = collections.deque(job for job in jobs if not job.result.exists())
        running: dict[str, tuple[Job, subprocess.Popen[bytes]]] = {}
        finished = len(jobs) - len(waiting)
        killed: collections.Counter[str] = collections.Counter()
        try:
            while waiting or running:
                late = self.deadline is not None and time.monotonic() >= self.deadline
                if late and not running:
                    break
                while waiting and len(running) < self.workers and not late:
                    job = waiting.popleft()
                    running[job.name] = (job, self._start(job))
                ended = [name for name, (_, p) in running.items() if p.poll() is not None]
                for name in ended:
                    job, process = running.pop(name)
                    was_killed = process.returncode < 0 or process.returncode in KILLED
                    killed[name] += was_killed
                    again = was_killed and killed[name] <= self.restarts
                    if process.returncode == PAUSED or again:
                        waiting.appendleft(job)
                        continue
                    finished += 1
                    if process.returncode != 0 or not job.result.exists():
                        self.failed.append(name)
                tell(QueueState(finished, len(jobs), tuple(running), tuple(self.failed)))
                if not ended:
                    time.sleep(POLL_SECONDS)
        finally:
            for _, process in running.values():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
        return self.failed

    def _start(self, job: Job) -> subprocess.Popen[bytes]:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log:
            return subprocess.Popen(
                [*shlex.split(self.launcher), *job.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a launcher has children: all of them end together
            )


def last_line(log: Path) -> str:
    """The last line that a job wrote, for an error message."""
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        return "no output"
    return lines[-1] if lines else "no output"
