"""Processes of a run: started on a core, asked for their memory and CPU time, stopped by their pid.

Reads `/proc`, so this runs on Linux only.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROXY_CORE, LOAD_CORE = 0, 1
"""The proxy has a core for itself; upstream and load share the other."""
STOP_SECONDS = 10.0
ROOT = Path(__file__).parents[2]
"""Where `python -m` finds what is measured."""
_TICKS = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Usage:
    """Of a process and its children: resident memory in MiB, CPU seconds since their start."""

    rss_mib: float
    cpu_seconds: float


def family(pid: int) -> list[int]:
    """The process and all that came from it, parents first."""
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                todo += [int(child) for child in children.read_text().split()]
    return found


def usage(pid: int, *, alone: bool = False) -> Usage:
    """What the process and, unless `alone`, its children use now; those that have ended count nothing."""
    rss, ticks = 0, 0
    for one in [pid] if alone else family(pid):
        with contextlib.suppress(OSError):
            found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{one}/status").read_text())
            rss += int(found.group(1)) if found else 0
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return Usage(rss / 1024, ticks / _TICKS)


def machine_cpu_seconds() -> float:
    """CPU seconds that the whole machine has spent, stolen ones included."""
    fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4]) / _TICKS


def on_core(core: int | None, command: Sequence[str]) -> list[str]:
    """The command, bound to one core, or to none."""
    return list(command) if core is None else ["taskset", "-c", str(core), *command]


@contextlib.contextmanager
def process(
    core: int | None, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process on a core, or on any, while the block runs; what it prints goes to `log`."""
    with log.open("wb") as out:
        started = subprocess.Popen(
            on_core(core, command),
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            yield started
        finally:
            _stop(started)


def _stop(started: subprocess.Popen[bytes]) -> None:
    """Ask the process to end, then end it and the children that it left behind."""
    children = family(started.pid)[1:]
    started.terminate()
    try:
        started.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        started.kill()
        started.wait()
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == started.pid:  # still ours, not a number that was given out again
                os.kill(pid, signal.SIGKILL)
