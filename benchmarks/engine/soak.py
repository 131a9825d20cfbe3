"""Half an hour of mixed load with adapters coming and going: errors, memory and speed over time, and a picture.

Callers send classifications, generations, streams, constrained answers and streams that they leave half-way, to adapters
that do not all fit in memory; new versions are published and old ones removed all the while. The same probe is asked of each
version again and again: an answer that changes would be another adapter's.

A turn may end early (`--budget`): the server stays, idle, and the next call of the same command goes on with it. Only time under
load counts. Status 3: not over yet.

Example: python -m benchmarks.engine.soak --budget 400
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.engine import peers
from benchmarks.engine.load import Connection
from benchmarks.engine.work import CLASSIFY, GENERATE, WORDS, messages

NUM_NAMES = 24
CALLERS = 8
PATH = "/v1/chat/completions"


@dataclass(slots=True)
class Counts:
    """What has happened so far; kept over turns."""

    seconds: float = 0.0
    requests: int = 0
    tokens: int = 0
    errors: int = 0
    left: int = 0
    """Streams that their caller left."""
    published: int = 0
    removed: int = 0
    changed: int = 0
    """Probes that were answered otherwise than before."""
    memory_bytes: int = 0
    first_errors: list[str] = field(default_factory=list)


class Soak:
    """One turn."""

    def __init__(self, folder: Path, port: int, counts: Counts, turn: int, until: float) -> None:
        from serving.registry import Registry

        self.folder, self.port, self.counts = folder, port, counts
        self.registry = Registry(folder / "soak-registry")
        self.draw = random.Random(turn)
        self.numbers = itertools.count(turn * 1_000_000)
        self.live: list[str] = [ref.id for ref in self.registry.list()]
        self.answers: dict[str, str] = {}
        self.until = until
        self.is_over = False

    def publish(self) -> None:
        """A new version of a name."""
        name = f"a{self.draw.randrange(NUM_NAMES)}"
        source = self.folder / "adapters" / f"a{self.draw.randrange(64)}"
        manifest = self.registry.manifest(self.registry.resolve(name))
        from serving.registry import ManifestFields

        fields = ManifestFields(
            base_model=manifest.base_model, base_model_digest=manifest.base_model_digest,
            rank=manifest.rank, alpha=manifest.alpha, target_modules=manifest.target_modules,
        )  # fmt: skip
        self.live.append(self.registry.publish(name, source, fields, {}).id)
        self.counts.published += 1

    def remove(self) -> None:
        """The oldest version of the name that has most; requests under way may still ask for it by its number."""
        by_name: dict[str, list[str]] = {}
        for one in self.live:
            by_name.setdefault(one.partition("/")[0], []).append(one)
        versions = max(by_name.values(), key=len)
        if len(versions) > 2:
            oldest = min(versions, key=lambda one: int(one.partition("/")[2]))
            self.live.remove(oldest)
            shutil.rmtree(self.folder / "soak-registry" / oldest, ignore_errors=True)
            self.counts.removed += 1

    def body(self, model: str, roll: float) -> dict[str, Any]:
        """A request of some kind."""
        number = next(self.numbers)
        if roll < 0.45:
            return {
                "messages": messages(CLASSIFY, number, "soak"),
                "max_tokens": 4,
                "temperature": 0,
            }
        if roll < 0.60:
            choice = self.draw.sample(WORDS, 3)
            return {
                "messages": messages(CLASSIFY, number, "soak"),
                "max_tokens": 12,
                "structured_outputs": {"choice": choice},
            }
        return {
            "messages": messages(GENERATE, number, "soak"),
            "max_tokens": self.draw.randint(4, 48),
            "temperature": self.draw.choice([0, 0.8]),
            "stream": roll > 0.8,
            "logprobs": roll < 0.7,
        }

    async def caller(self) -> None:
        """Request after request."""
        connection = Connection(self.port)
        while not self.is_over:
            roll = self.draw.random()
            model = "" if roll > 0.97 else self.draw.choice(self.live)
            try:
                if roll < 0.1:
                    await self.probe(connection, model)
                elif roll > 0.93:
                    await self.leave(model)
                else:
                    await self.ask(connection, model, self.draw.random())
            except (OSError, RuntimeError, ValueError, TimeoutError, EOFError) as why:
                connection.close()
                if model and model not in self.live:
                    continue  # it was removed between its choice and its load
                self.counts.errors += 1
                self.counts.first_errors = [
                    *self.counts.first_errors, f"{model}: {type(why).__name__}: {why}"
                ][:5]  # fmt: skip
        connection.close()

    async def ask(self, connection: Connection, model: str, roll: float) -> None:
        """One request to its end."""
        wanted = self.body(model, roll)
        raw = await self._post(connection, {"model": model, **wanted})
        if wanted.get("stream"):
            if not raw.rstrip().endswith(b"data: [DONE]"):
                raise ValueError(f"a stream without its end: {raw[-200:]!r}")
        else:
            reply = json.loads(raw)
            self.counts.tokens += reply["usage"]["completion_tokens"]
            text = reply["choices"][0]["message"]["content"]
            choice = wanted.get("structured_outputs", {}).get("choice")
            if choice and not any(c.startswith(text) or text == c for c in choice):
                raise ValueError(f"{text!r} is none of {choice}")
        self.counts.requests += 1

    async def probe(self, connection: Connection, model: str) -> None:
        """The same question again: the same answer."""
        wanted = {
            "model": model, "messages": messages(GENERATE, 0, "probe"), "max_tokens": 6, "temperature": 0,
        }  # fmt: skip
        text = json.loads(await self._post(connection, wanted))["choices"][0]["message"]["content"]
        self.counts.requests += 1
        self.counts.changed += self.answers.setdefault(model, text) != text

    async def leave(self, model: str) -> None:
        """A stream whose caller goes away after its first bytes."""
        data = json.dumps(
            {
                "model": model, "messages": messages(GENERATE, next(self.numbers), "leave"),
                "max_tokens": 200, "stream": True,
            }
        ).encode()  # fmt: skip
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        await asyncio.wait_for(reader.read(300), 900)
        writer.close()
        self.counts.left += 1

    async def _post(self, connection: Connection, wanted: dict[str, Any]) -> bytes:
        status, raw = await asyncio.wait_for(
            connection.post(PATH, json.dumps(wanted).encode()), 900
        )
        if status != 200:
            raise RuntimeError(f"HTTP {status}: {raw[:200]!r}")
        return raw

    async def run(self, seconds: float, process: peers.Peer, samples: Path) -> None:
        """Load for so long; a sample every two seconds."""
        end, last = self.counts.seconds + seconds, time.monotonic()
        tasks = [asyncio.create_task(self.caller()) for _ in range(CALLERS)]
        for tick in itertools.count():
            await asyncio.sleep(2)
            now = time.monotonic()
            # a machine that is shared may stop this process and its server for minutes: that is not time under load
            self.counts.seconds += min(now - last, 6.0)
            last = now
            self.counts.memory_bytes = process.memory_bytes()
            with samples.open("a") as out:
                out.write(json.dumps(asdict(self.counts)) + "\n")
            if tick % 4 == 1:
                self.publish()
            if tick % 4 == 3:
                self.remove()
            if self.counts.seconds >= end or time.monotonic() > self.until:
                self.is_over = True
                break
        await asyncio.gather(*tasks)


def _server(folder: Path, model: str) -> tuple[int, int]:
    """Process number and port of the server of an earlier turn, or of a new one."""
    note = folder / "soak-server.json"
    if note.exists():
        pid, port = json.loads(note.read_text())
        with suppress(ProcessLookupError):
            os.kill(pid, 0)
            return pid, port
        raise SystemExit(f"the server of the turns before is gone: see {folder}/soak.log")
    shutil.rmtree(folder / "soak-registry", ignore_errors=True)
    for index in range(NUM_NAMES):
        shutil.copytree(folder / "registry" / f"a{index}", folder / "soak-registry" / f"a{index}")
    port = peers.free_port()
    command = peers.ours(sys.executable, Path(model), folder / "soak-registry", port, 2)
    # room for ten adapters of 5.5 MB: most requests' adapters come in again and others go
    command += ["--adapter-memory", "56MiB"]
    with (folder / "soak.log").open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT
        )  # fmt: skip
    note.write_text(json.dumps([process.pid, port]))
    while not peers.is_healthy(port):
        if process.poll() is not None:
            note.unlink()
            raise SystemExit(f"the server did not start: see {folder}/soak.log")
        time.sleep(0.1)
    return process.pid, port


def draw(samples: list[dict[str, Any]], path: Path) -> None:
    """Memory and requests against minutes under load."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(7.6, 4.6), dpi=130, layout="constrained", sharex=True
    )
    minutes = [one["seconds"] / 60 for one in samples]
    top.plot(minutes, [one["memory_bytes"] / 2**20 for one in samples], color="#1d4ed8", lw=1.2)
    top.set(ylabel="memory, MiB", ylim=(0, None))
    pairs = list(zip(samples, samples[15:], strict=False))
    speeds = [
        (b["requests"] - a["requests"]) / max(1e-9, b["seconds"] - a["seconds"]) for a, b in pairs
    ]
    bottom.plot([b["seconds"] / 60 for _, b in pairs], speeds, color="#b45309", lw=1.2)
    bottom.set(ylabel="requests/s", xlabel="minutes under load", ylim=(0, None))
    last = samples[-1]
    top.set_title(
        f"{last['requests']} requests, {last['errors']} errors, {last['left']} streams left by their callers, "
        f"{last['published']} versions published, {last['removed']} removed",
        fontsize=8,
    )
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path)
    plt.close(figure)


def _summary(samples: list[dict[str, Any]]) -> str:
    """Figures after the first fifth, in which caches fill."""
    steady = [one["memory_bytes"] for one in samples[len(samples) // 5 :]]
    middle = sorted(steady)[len(steady) // 2]
    last = {k: v for k, v in samples[-1].items() if k not in ("memory_bytes",)}
    spread = f"{min(steady) / middle - 1:+.1%} to {max(steady) / middle - 1:+.1%}"
    return f"{json.dumps(last)}\nmemory {middle / 2**20:.0f} MiB, {spread} after the first fifth"


def main() -> int:
    """One turn, then the picture so far."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path(".graduate/bench-engine"))
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--budget", type=float, default=1e9, help="seconds for this turn")
    parser.add_argument("--plot", type=Path, default=Path("docs/images/engine-soak.png"))
    parser.add_argument("--model", default="smollm2")
    args = parser.parse_args()
    until = time.monotonic() + args.budget
    folder = args.folder.resolve()
    prepare = [sys.executable, "-m", "benchmarks.engine.prepare", str(folder), "64", args.model]
    made = subprocess.run(prepare, stdout=subprocess.PIPE, text=True, check=True).stdout
    path = folder / "soak.jsonl"
    samples = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    pid, port = _server(folder, json.loads(made.splitlines()[-1])["model"])
    counts = Counts(**samples[-1]) if samples else Counts()
    seconds = args.minutes * 60 - counts.seconds
    if seconds > 0:
        soak = Soak(folder, port, counts, turn=len(samples), until=until)
        asyncio.run(soak.run(seconds, peers.Peer("ours", port, pid, 0.0), path))
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    draw(samples, args.plot)
    print(_summary(samples))
    if counts.seconds < args.minutes * 60 - 5:
        return 3
    os.kill(pid, signal.SIGTERM)
    (folder / "soak-server.json").unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
