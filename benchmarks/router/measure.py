"""One upstream, one proxy at a time: start, warm up, run the phases, stop; as often as runs are missing."""

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.router.peers import DIRECT, peer
from benchmarks.router.phases import PHASES, Phase, Target
from benchmarks.router.processes import LOAD_CORE, PROXY_CORE, free_port, process, usage
from benchmarks.router.results import Results, Run
from router.traffic import CLOSED, OPEN

WARM_UP = Phase("warm-up", "warm-up", 32, 0.4)
START_SECONDS = 90.0
_RECORD = b'{"kind":"record"'


class DidNotStart(Exception):
    """A proxy ended or never answered; the message carries what it printed last."""


@contextlib.contextmanager
def upstream(folder: Path, core: int | None = LOAD_CORE) -> Iterator[tuple[int, int]]:
    """The compiled upstream, running on a core or on all: its port and its pid."""
    program, port = folder / "upstream", free_port()
    source = Path(__file__).with_name("upstream.c")
    subprocess.run(["cc", "-O2", "-o", str(program), str(source)], check=True)
    with process(core, [str(program), str(port)], folder / "upstream.log") as started:
        wait(Target(port, None, port, started.pid), started, folder / "upstream.log")
        yield port, started.pid


def wait(target: Target, started: subprocess.Popen[bytes], log: Path) -> None:
    """Until the target answers.

    Raises:
        DidNotStart: its process ended, or it took too long.
    """
    until = time.monotonic() + START_SECONDS
    while not target.is_ready():
        if started.poll() is not None or time.monotonic() > until:
            said = log.read_text(errors="replace")[-1500:]
            raise DidNotStart(f"{started.args!r} never answered; it printed:\n{said}")
        time.sleep(0.2)


@dataclass(slots=True)
class Records:
    """Counts a traffic log's records; closed segments are deleted once counted, so that the disk does not fill."""

    folder: Path
    _closed: int = field(default=0)

    def total(self) -> int:
        """Records written so far."""
        still_open = 0
        for segment in self.folder.glob(f"*{CLOSED}"):
            with segment.open("rb") as lines:
                found = sum(line.startswith(_RECORD) for line in lines)
            if segment.name.endswith(OPEN):
                still_open += found
            else:
                self._closed += found
                segment.unlink()
        return self._closed + still_open


def run_seconds(seconds: int) -> float:
    """About how long one run of one row takes, its start not counted."""
    return sum(max(2, round(seconds * phase.length)) + 0.5 for phase in PHASES)


def measure(
    results: Results,
    name: str,
    runs: int,
    litellm: Path | None,
    tick: Callable[[str], None],
) -> None:
    """Make the missing runs of one row and keep each as soon as it is whole.

    Args:
        tick: called with what is done next.

    Raises:
        DidNotStart: the proxy did not come up.
    """
    with tempfile.TemporaryDirectory(prefix="bench-router-") as kept:
        folder = Path(kept)
        with upstream(folder) as (port, pid):
            if name == DIRECT:
                target = Target(port, None, port, pid)
                for _ in range(runs):
                    results.add(name, _run(target, results.seconds, None, tick))
                return
            mine, log = free_port(), folder / "proxy.log"
            proxy = peer(name, mine, f"http://127.0.0.1:{port}", folder, litellm)
            tick("starting")
            with process(PROXY_CORE, proxy.command, log, proxy.env) as started:
                target = Target(mine, started.pid, port, pid)
                wait(target, started, log)
                records = Records(proxy.traffic_log) if proxy.traffic_log else None
                start_mib = usage(started.pid).rss_mib
                tick(WARM_UP.what)
                target.run(WARM_UP, results.seconds)
                for _ in range(runs):
                    run = _run(target, results.seconds, records, tick)
                    run.rss_start_mib = round(start_mib, 1)
                    results.add(name, run)


def _run(target: Target, seconds: int, records: Records | None, tick: Callable[[str], None]) -> Run:
    before = records.total() if records else 0
    run = Run(target.pid or 0, None, {})
    for phase in PHASES:
        tick(phase.what)
        run.phases[phase.name] = target.run(phase, seconds)
    if records is not None:
        figures = run.phases.values()
        answered = int(sum(f.get("requests", f.get("streams", 0)) for f in figures))
        run.records_missing = max(0, answered - (records.total() - before))
    return run
