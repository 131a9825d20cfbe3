"""A Prometheus of our own on this machine: started with the rules, asked by HTTP."""

import math
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

DEBIAN = "apt-get install -y --no-install-recommends prometheus"


class NoPrometheus(Exception):
    """The program is not there."""


@dataclass(frozen=True, slots=True)
class Series:
    """One series of an answer: its labels, times in seconds since 1970, and values, the finite ones only."""

    labels: Mapping[str, str]
    times: tuple[float, ...]
    values: tuple[float, ...]

    def named(self, legend: str) -> str:
        """A legend with its labels filled in, as Grafana does."""
        for name, value in self.labels.items():
            legend = legend.replace("{{" + name + "}}", value)
        return legend


class Prometheus:
    """One running server. Ask it by `instant` and `between`."""

    def __init__(self, folder: Path, port: int, targets: Mapping[str, str], rules: Path) -> None:
        """`targets` are addresses (`host:port`) by job."""
        folder.mkdir(parents=True)
        jobs = [
            {"job_name": job, "static_configs": [{"targets": [address]}]}
            for job, address in targets.items()
        ]
        intervals = {
            "scrape_interval": "1s",
            "scrape_timeout": "1s",
            "evaluation_interval": "2s",
        }
        config = {"global": intervals, "rule_files": [str(rules)], "scrape_configs": jobs}
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._folder, self._port = folder, port
        self._process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30)

    def start(self) -> None:
        """Start it; `is_ready` says when it can be asked.

        Raises:
            NoPrometheus: the program is not there; the message has the command that installs it.
        """
        program = shutil.which("prometheus")
        if program is None:
            raise NoPrometheus(f"prometheus is not there: {DEBIAN}")
        command = [
            program,
            f"--config.file={self._folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}",
            "--log.level=warn",
        ]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(os.environ)
            )

    def is_ready(self) -> bool:
        """Whether it can be asked."""
        try:
            return self.client.get("/-/ready").status_code == 200
        except httpx.HTTPError:
            return False

    def stop(self) -> None:
        """End it."""
        self.client.close()
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)

    def instant(self, expr: str, at: float) -> list[Series]:
        """Values at a time."""
        found = self._ask("query", query=expr, time=f"{at:.3f}")
        return [_series(one["metric"], [one["value"]]) for one in found]

    def between(self, expr: str, start: float, end: float, step_seconds: float) -> list[Series]:
        """Values over a span."""
        span = {"start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step_seconds:g}"}
        found = self._ask("query_range", query=expr, **span)
        return [_series(one["metric"], one["values"]) for one in found]

    def _ask(self, what: str, **parameters: str) -> list[dict[str, Any]]:
        reply = self.client.post(f"/api/v1/{what}", data=parameters).json()
        if reply["status"] != "success":
            raise ValueError(f"{parameters['query']}: {reply['error']}")
        found: list[dict[str, Any]] = reply["data"]["result"]
        return found


def _series(labels: Mapping[str, str], pairs: list[tuple[float, str]]) -> Series:
    finite = [(float(t), float(v)) for t, v in pairs if math.isfinite(float(v))]
    return Series(labels, tuple(t for t, _ in finite), tuple(v for _, v in finite))


def filled(expr: str, *, interval: str, span: str, route: str = ".*", adapter: str = ".*") -> str:
    """A panel's expression with Grafana's variables filled in."""
    found = expr.replace("$__rate_interval", interval).replace("$__range", span)
    return found.replace("$route", route).replace("$adapter", adapter)
