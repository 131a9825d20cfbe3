"""The results file: runs as they were measured, kept so that a cut run goes on where it stopped; medians over them."""

import json
import os
import platform
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.router.phases import Figures

QUIET_CORES = 0.15
"""Runs during which the rest of the machine used less than this are preferred."""


@dataclass(slots=True)
class Run:
    """One pass over all phases of one row.

    `records_missing` is how many answered requests have no record in the traffic log, None for peers that keep none. The
    load cuts its last requests off, and those have records too, so a loss below the number of connections is not seen.
    """

    process: int
    """The proxy's pid; runs of one process show whether its memory grows."""
    rss_start_mib: float | None
    """None for the upstream itself."""
    phases: dict[str, Figures]
    records_missing: int | None = None


class WrongSettings(Exception):
    """The file holds runs of another length."""


@dataclass(slots=True)
class Results:
    """All runs of a results file."""

    path: Path
    seconds: int
    rows: dict[str, list[Run]] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, seconds: int) -> "Results":
        """What the file holds; nothing when there is none.

        Raises:
            WrongSettings: its runs have another length.
        """
        if not path.exists():
            return cls(path, seconds, machine=_machine())
        found = json.loads(path.read_text())
        if found["seconds"] != seconds:
            raise WrongSettings(
                f"{path} holds runs of --seconds {found['seconds']}, not {seconds}: "
                "give that, or another folder with --out"
            )
        rows = {name: [Run(**run) for run in runs] for name, runs in found["rows"].items()}
        return cls(path, seconds, rows, found["machine"])

    def add(self, name: str, run: Run) -> None:
        """Keep a run, in the file too."""
        self.rows.setdefault(name, []).append(run)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = {name: [asdict(run) for run in runs] for name, runs in self.rows.items()}
        data = {"seconds": self.seconds, "machine": self.machine, "rows": rows}
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(data, indent=1))
        part.replace(self.path)

    def missing(self, name: str, runs: int) -> int:
        """How many runs of a row are still to be made."""
        return max(0, runs - len(self.rows.get(name, [])))

    def median(self, name: str, phase: str, figure: str) -> float | None:
        """The median over a row's runs, those on a quiet machine where there are any; None when not measured."""
        found = [run.phases[phase] for run in self.rows.get(name, []) if phase in run.phases]
        found = [figures for figures in found if figure in figures]
        quiet = [figures for figures in found if figures["foreign_cores"] <= QUIET_CORES]
        values = [figures[figure] for figures in quiet or found]
        return statistics.median(values) if values else None

    def added(self, name: str, direct: str, phase: str, figure: str) -> float | None:
        """What a proxy adds to asking the upstream itself."""
        mine, bare = self.median(name, phase, figure), self.median(direct, phase, figure)
        return None if mine is None or bare is None else mine - bare

    def memory_mib(self, name: str) -> list[list[float]]:
        """Resident memory after each run, a list for each process that the row had."""
        found: dict[int, list[float]] = {}
        for run in self.rows.get(name, []):
            last = list(run.phases.values())[-1]
            if "rss_mib" in last:
                found.setdefault(run.process, []).append(last["rss_mib"])
        return list(found.values())

    def errors(self, name: str) -> int:
        """Failed requests over all runs and phases."""
        return int(sum(f["errors"] for r in self.rows.get(name, []) for f in r.phases.values()))

    def noisy(self, name: str) -> bool:
        """Whether some phase was never measured on a quiet machine."""
        runs = self.rows.get(name, [])
        phases = {phase for run in runs for phase in run.phases}
        return any(
            min(run.phases[p]["foreign_cores"] for run in runs if p in run.phases) > QUIET_CORES
            for p in phases
        )


def _machine() -> dict[str, Any]:
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
