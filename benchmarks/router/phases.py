"""What is asked of a proxy, phase by phase, and what comes out of one."""

import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.router.processes import LOAD_CORE, machine_cpu_seconds, on_core, usage

HERE = Path(__file__).parent
STALL_SECONDS = 300
"""A load may take so much longer than it should: it may be held up by what else the machine does."""
BODY = {"model": "bench-model", "messages": [{"role": "user", "content": "hi"}]}


@dataclass(frozen=True, slots=True)
class Phase:
    """One kind of load. `length` is its share of the run's seconds; delay and gap are the upstream's.

    A sliced phase is so many loads of a second each; its latencies are the medians of theirs, so that a moment in which
    the machine did something else does not decide its p99. `trace` gives every request another trace id and request id.
    """

    name: str
    what: str
    connections: int
    length: float
    delay_ms: int = 0
    gap_ms: int = 0
    stream: bool = False
    first_event: bool = False
    sliced: bool = False
    trace: bool = False


PHASES = (
    Phase("c32", "32 connections", 32, 1.0),
    Phase("c32t", "32 connections, every request with a trace id of its own", 32, 0.6, trace=True),
    Phase("c4", "4 connections", 4, 2.0, sliced=True),
    Phase("c4d2", "4 connections, upstream takes 2 ms", 4, 2.0, delay_ms=2, sliced=True),
    Phase("sse32", "event streams over 32 connections", 32, 0.4, stream=True),
    Phase("first4", "first event of 4 streams, 5 ms apart", 4, 0.4, gap_ms=5, first_event=True),
    Phase("c32d20", "32 connections, upstream takes 20 ms", 32, 0.5, delay_ms=20),
    Phase("c256d50", "256 connections, upstream takes 50 ms", 256, 0.8, delay_ms=50),
)

Figures = dict[str, float]
"""Of one phase: requests, requests_per_second, p50_ms, p99_ms, errors, and what `Target.run` adds."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is measured: a port, the proxy's process (None for the upstream itself) and the upstream behind it."""

    port: int
    pid: int | None
    upstream_port: int
    upstream_pid: int
    load_core: int | None = LOAD_CORE

    def run(self, phase: Phase, seconds: int) -> Figures:
        """Figures of one phase.

        Beside the load's own: `cpu_us` of the proxy a request, its `rss_mib`, `upstream_calls` a request, and
        `foreign_cores`, the cores that everything else on the machine used meanwhile.
        """
        length = max(2, round(seconds * phase.length))
        before = self._counters(delay_ms=phase.delay_ms, gap_ms=phase.gap_ms)
        found = self._first_event(length) if phase.first_event else self._load(phase, length)
        time.sleep(0.3)  # what is under way ends; a shadow's call belongs to its request
        after = self._counters(delay_ms=0, gap_ms=0)
        spent = {key: after[key] - before[key] for key in after}
        asked = max(1.0, found.get("requests", found.get("streams", 0.0)))
        ours = spent["proxy"] + spent["upstream"] + spent["load"]
        found["foreign_cores"] = round((spent["machine"] - ours) / spent["clock"], 2)
        found["upstream_calls"] = round(spent["posts"] / asked, 3)
        if self.pid is not None:
            found["cpu_us"] = round(spent["proxy"] * 1e6 / asked, 1)
            found["rss_mib"] = round(usage(self.pid).rss_mib, 1)
        return found

    def _counters(self, **upstream: int) -> Figures:
        """Everything that is counted over a phase; sets the upstream's delay and gap on the way."""
        query = "&".join(f"{key.removesuffix('_ms')}={value}" for key, value in upstream.items())
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.upstream_port}/__set?{query}", timeout=5
        ) as answer:
            posts = json.load(answer)["posts"]
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        own = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "posts": posts,
            "proxy": usage(self.pid).cpu_seconds if self.pid is not None else 0.0,
            "upstream": usage(self.upstream_pid).cpu_seconds,
            "load": children.ru_utime + children.ru_stime + own.ru_utime + own.ru_stime,
            "machine": machine_cpu_seconds(),
            "clock": time.monotonic(),
        }

    def _load(self, phase: Phase, seconds: int) -> Figures:
        if not phase.sliced:
            return self._wrk(phase, seconds)
        slices = [self._wrk(phase, 1) for _ in range(seconds)]
        summed = ("requests", "errors")
        return {
            key: sum(values) if key in summed else statistics.median(values)
            for key in slices[0]
            if (values := [figures[key] for figures in slices])
        }

    def _wrk(self, phase: Phase, seconds: int) -> Figures:
        command = [
            "wrk", "-t1", f"-c{phase.connections}", f"-d{seconds}s", "--timeout", "30s",
            "-s", str(HERE / "post.lua"), f"http://127.0.0.1:{self.port}/v1/chat/completions",
        ]  # fmt: skip
        env = {"STREAM": str(int(phase.stream)), "TRACE": str(int(phase.trace))}
        printed = self._output(command, env, seconds + STALL_SECONDS)
        result = re.search(r"^RESULT (.*)$", printed, re.MULTILINE)
        if result is None:
            raise RuntimeError(f"wrk gave no result: {printed[-500:]}")
        return _figures(result.group(1))

    def _first_event(self, seconds: int) -> Figures:
        command = [sys.executable, str(HERE / "first_event.py"), str(self.port), str(seconds)]
        return _figures(self._output(command, {}, seconds + STALL_SECONDS))

    def _output(self, command: list[str], env: Mapping[str, str], timeout_seconds: float) -> str:
        done = subprocess.run(
            on_core(self.load_core, command), env={**os.environ, **env}, capture_output=True, text=True,
            timeout=timeout_seconds, check=False,
        )  # fmt: skip
        return done.stdout or done.stderr

    def is_ready(self) -> bool:
        """Whether it answers a chat."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/chat/completions",
            json.dumps(BODY).encode(),
            {"content-type": "application/json", "authorization": "Bearer sk-bench"},
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def _figures(text: str) -> Figures:
    found: Figures = json.loads(text)
    return found
