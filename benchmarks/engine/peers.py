"""The servers that are compared: starting one, its readiness, its memory and CPU time, and its end.

Ours runs from this repository by the interpreter in use; vLLM's CPU build from a virtual environment of its own
(`README.md` says how it is installed and why each setting is there).
"""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that runs."""

    name: str
    port: int
    pid: int
    ready_seconds: float
    """From its start to its first healthy answer."""

    def processes(self) -> list[int]:
        """Its process and all that it started."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                fields = entry.read_text().rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry.parent.name))
        found = [self.pid]
        for pid in found:
            found += children.get(pid, [])
        return found

    def memory_bytes(self) -> int:
        """Proportional set size over its processes: shared pages are counted once."""
        total = 0
        for pid in self.processes():
            with suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1]) * 1024
        return total

    def cpu_seconds(self) -> float:
        """User and system time over its processes."""
        total = 0
        for pid in self.processes():
            with suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
        return total / TICKS


def busy_seconds() -> float:
    """Time that all processors have worked since the machine started."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, interrupt, soft, *_ = map(int, fields)
    return (user + nice + system + interrupt + soft) / TICKS


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    name: str, command: Sequence[str], port: int, log: Path, environment: Mapping[str, str]
) -> Iterator[Peer]:
    """A server process from its start to its end.

    Raises:
        RuntimeError: it ended, or was not healthy within three minutes; names the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **environment},
            start_new_session=True,
        )  # fmt: skip
    try:
        while not is_healthy(port):
            if process.poll() is not None or time.perf_counter() - began > 180:
                raise RuntimeError(f"{name} did not become healthy: see {log}")
            time.sleep(0.02)
        yield Peer(name, port, process.pid, time.perf_counter() - began)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def is_healthy(port: int) -> bool:
    """Whether a server answers its health check."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def ours(python: str, model: Path, registry: Path, port: int, threads: int) -> list[str]:
    """The command of our server."""
    return [
        python, "-m", "graduate", "serving", "serve", "--model", str(model), "--adapters", str(registry),
        "--port", str(port), "--threads", str(threads),
    ]  # fmt: skip


def vllm(python: str, model: Path, adapters: Mapping[str, Path], port: int) -> list[str]:
    """The command of vLLM's CPU build; one adapter slot more than there are adapters."""
    command = [
        python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", "base",
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "1024",
        "--max-num-seqs", "32", "--block-size", "32",
    ]  # fmt: skip
    if adapters:
        command += [
            "--enable-lora", "--max-loras", str(len(adapters) + 1), "--max-cpu-loras", str(2 * len(adapters)),
            "--max-lora-rank", "8", "--lora-target-modules", "q_proj", "k_proj", "v_proj", "o_proj",
            "--lora-modules", *(f"{name}={path}" for name, path in adapters.items()),
        ]  # fmt: skip
    return command


def vllm_environment(threads: int, preload: str | None) -> dict[str, str]:
    """What vLLM reads from its environment."""
    found = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
    }
    if preload is not None:
        found["LD_PRELOAD"] = preload
    return found
