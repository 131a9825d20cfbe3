"""Keeps a copy of the adapter registry: new versions, whole ones only, and the scored difficulty models.

Engines such as LoRAX and vLLM read adapters from a folder; the registry may be an `s3://` prefix or another folder. A
version is immutable, so what is there once is never looked at again. A version without `manifest.json` does not exist
yet (it is written last), and a copy appears by one rename: no engine sees half an adapter. Nothing is removed.

    python sync_adapters.py --from s3://bucket/adapters --to /data --every 15 --port 8090
    python sync_adapters.py --from /var/lib/graduate/adapters --to s3://bucket/adapters --once     # training publishes

Knows the registry's layout (`serving/registry.py`) and fsspec; no engine, no Kubernetes.
"""

import argparse
import logging
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec

logger = logging.getLogger("sync")
DIFFICULTY = "difficulty"
MANIFEST = "manifest.json"


@dataclass(slots=True)
class State:
    """What the health page tells; `synced_at` is 0 until a pass has gone through."""

    every_seconds: float
    versions: int = 0
    copied: int = 0
    errors: int = 0
    synced_at: float = 0.0
    last_error: str = ""
    started_at: float = field(default_factory=time.time)

    def metrics(self) -> str:
        """Prometheus text."""
        return (
            f"# TYPE graduate_sync_versions gauge\ngraduate_sync_versions {self.versions}\n"
            f"# TYPE graduate_sync_copied_total counter\ngraduate_sync_copied_total {self.copied}\n"
            f"# TYPE graduate_sync_errors_total counter\ngraduate_sync_errors_total {self.errors}\n"
            f"# TYPE graduate_sync_timestamp_seconds gauge\ngraduate_sync_timestamp_seconds {self.synced_at}\n"
        )


class Place:
    """One side of the copy: a folder, or a prefix of a store."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self.is_local = "://" not in self.address
        self.fs, self.base = fsspec.core.url_to_fs(self.address)
        if self.is_local:
            Path(self.address).mkdir(parents=True, exist_ok=True)

    def versions(self) -> set[str]:
        """`name/version` of every whole version."""
        self.fs.invalidate_cache()
        found = self.fs.glob(f"{self.base}/*/*/{MANIFEST}")
        return {"/".join(path.split("/")[-3:-1]) for path in found if path.split("/")[-2].isdigit()}

    def files(self, folder: str) -> Iterator[str]:
        """Names of the files in a folder, the manifest last."""
        if not self.fs.exists(f"{self.base}/{folder}"):
            return
        names = [p.rsplit("/", 1)[-1] for p in self.fs.ls(f"{self.base}/{folder}", detail=False)]
        yield from sorted((n for n in names if n), key=lambda n: (n == MANIFEST, n))


def copy_version(source: Place, target: Place, version: str) -> None:
    """`target` has the version, whole. A folder gets it by one rename, a store its manifest last."""
    if not target.is_local:
        for name in source.files(version):
            data = source.fs.cat_file(f"{source.base}/{version}/{name}")
            target.fs.pipe_file(f"{target.base}/{version}/{name}", data)
        return
    final = Path(target.address) / version
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=".sync-") as scratch:
        folder = Path(scratch) / "adapter"
        folder.mkdir()
        for name in source.files(version):
            source.fs.get_file(f"{source.base}/{version}/{name}", str(folder / name))
        if final.exists():  # left by something that is not this program, and without a manifest
            shutil.rmtree(final)
        folder.rename(final)


def copy_models(source: Place, target: Place) -> None:
    """Difficulty models that changed; they are small, and one name may be written again."""
    for name in source.files(DIFFICULTY):
        if not name.endswith(".json"):
            continue
        data = source.fs.cat_file(f"{source.base}/{DIFFICULTY}/{name}")
        path = f"{target.base}/{DIFFICULTY}/{name}"
        if target.fs.exists(path) and target.fs.cat_file(path) == data:
            continue
        if target.is_local:
            final = Path(path)
            final.parent.mkdir(parents=True, exist_ok=True)
            scratch = final.with_name(f".{name}.new")
            scratch.write_bytes(data)
            scratch.replace(final)
        else:
            target.fs.pipe_file(path, data)


def sync(source: Place, target: Place, state: State) -> None:
    """One pass; a version that cannot be copied is told and does not stop the others.

    Raises:
        OSError: the source or the target cannot be read.
    """
    wanted, present = source.versions(), target.versions()
    failed = 0
    for version in sorted(wanted - present):
        try:
            copy_version(source, target, version)
        except OSError as why:
            failed += 1
            state.errors += 1
            state.last_error = f"{version}: {why}"
            logger.error("%s could not be copied: %s", version, why)
            continue
        state.copied += 1
        logger.info("%s is here", version)
    copy_models(source, target)
    state.versions = len(wanted | present) - failed
    if not failed:
        state.synced_at, state.last_error = time.time(), ""


def page(state: State) -> type[BaseHTTPRequestHandler]:
    """Health, readiness and metrics."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Answer."""
            is_ready = state.synced_at > 0
            status, text = {
                "/health": (200, "ok"),
                "/ready": (
                    200 if is_ready else 503,
                    state.last_error or ("ready" if is_ready else "first pass"),
                ),
                "/metrics": (200, state.metrics()),
            }.get(self.path, (404, "not found"))
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Probes are not worth a line."""

    return Page


def watch(source: str, target: str, state: State, stop: threading.Event) -> None:
    """Pass after pass until told to stop; a store that is away is tried again."""
    while not stop.is_set():
        try:
            sync(Place(source), Place(target), state)
        except (
            Exception
        ) as why:  # the outermost loop: stores fail in many ways, and all of them pass
            state.errors += 1
            state.last_error = f"{type(why).__name__}: {why}"
            logger.exception("pass failed")
        stop.wait(state.every_seconds)


def main() -> int:
    """Run until SIGTERM, or once."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--from", dest="source", required=True, help="folder or s3:// address")
    parser.add_argument("--to", dest="target", required=True, help="folder or s3:// address")
    parser.add_argument(
        "--once", action="store_true", help="one pass; status 1 when something was not copied"
    )
    parser.add_argument("--every", type=float, default=15.0, help="seconds between two passes")
    parser.add_argument("--port", type=int, default=8090, help="health page")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    state = State(args.every)
    if args.once:
        sync(Place(args.source), Place(args.target), state)
        return 1 if state.errors else 0
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    server = ThreadingHTTPServer(("", args.port), page(state))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    watch(args.source, args.target, state, stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
