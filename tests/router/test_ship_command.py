"""`graduate router ship` as a command and as a process of its own: statuses, kills, a bucket that fails."""

import base64
import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from router.cli import app
from router.log_store import LogStore, StoreError
from router.records import (
    Line,
)
from router.traffic import scan, segments
from tests.router.ship_logs import (
    DAY,
    ROUTES,
    START,
    Dying,
    Killed,
    record,
    shipper,
    traffic,
    write,
)

run = CliRunner()


def test_the_command_ships_once_and_prints_counters(tmp_path: Path) -> None:
    write(tmp_path / "traffic", traffic(10), 100)
    args = [
        "ship",
        "--home",
        str(tmp_path),
        "--to",
        str(tmp_path / "store"),
        "--keep",
        "0s",
        "--json",
    ]
    done = run.invoke(app, args)
    shown = json.loads(done.stdout)
    assert done.exit_code == 0, done.output
    assert (shown["ok"], shown["records"], shown["deleted"], shown["waiting"]) == (True, 17, 2, 0)
    assert json.loads(run.invoke(app, args).stdout)["segments"] == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--to", "store", "--keep", "7"], "--keep = '7': allowed"),
        (["--to", "nosuch://x/y"], "nosuch://x/y: allowed"),
        (["--to", "s3://a:b@bucket/x"], "keys belong in the environment"),
        (["--to", "s3://bucket/x?regoin=us"], "regoin"),
        (["--to", "store", "--home", "nowhere"], "no folder of segments"),
        (["--to", "home/traffic/store"], "a place outside"),
    ],
)
def test_bad_input_is_exit_status_2_with_what_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home" / "traffic").mkdir(parents=True)
    done = run.invoke(app, ["ship", "--home", "home", *args])
    assert done.exit_code == 2
    assert message in done.stderr.replace("\n", " ")


def test_a_store_that_takes_nothing_is_exit_status_1(tmp_path: Path) -> None:
    write(tmp_path / "traffic", [record(1, START)], 1)
    (tmp_path / "store").write_text("in the way")
    args = ["ship", "--home", str(tmp_path), "--to", str(tmp_path / "store"), "--tries", "1"]
    done = run.invoke(app, args)
    assert done.exit_code == 1
    assert len(segments(tmp_path / "traffic")) == 1


# real processes and a real S3 server

SHIP = [sys.executable, "-m", "graduate", "router", "ship"]


@pytest.mark.slow
def test_killed_at_any_moment_the_next_run_completes_the_log(tmp_path: Path) -> None:
    lines: list[Line] = [record(n, START + n * 0.5, ROUTES[n % 4]) for n in range(20_000)]
    write(tmp_path / "traffic", lines, 1000)
    expected = list(scan(tmp_path / "traffic"))
    args = ["--home", str(tmp_path), "--to", str(tmp_path / "store"), "--keep", "0s"]
    for number in range(8):
        child = subprocess.Popen(
            [*SHIP, *args], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        time.sleep(0.8 + number * 0.15)
        child.kill()
        child.wait()
    subprocess.run([*SHIP, *args], check=True, capture_output=True)
    assert segments(tmp_path / "traffic") == []
    assert list(scan(tmp_path / "store")) == expected
    assert not list((tmp_path / "store").rglob("*.part"))


@pytest.mark.slow
def test_following_ends_gracefully_on_sigterm(tmp_path: Path) -> None:
    write(tmp_path / "traffic", traffic(50), 20)
    args = ["--home", str(tmp_path), "--to", str(tmp_path / "store"), "--follow", "--json"]
    with subprocess.Popen([*SHIP, *args], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["records"] == 57
        write(tmp_path / "traffic", [record(5000, START + DAY)], 1, pid=8)
        child.send_signal(signal.SIGTERM)
        last = json.loads(child.stdout.readlines()[-1])
        assert child.wait(20) == 0
    assert (last["records"], last["ok"]) == (58, True)


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """An S3 server on a free port that can be stopped and started."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    child: list[subprocess.Popen[bytes]] = []

    def start() -> str:
        child.append(
            subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
        )  # fmt: skip
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        import pyarrow.fs as pafs

        pafs.S3FileSystem(
            endpoint_override=f"http://127.0.0.1:{port}",
            region="us-east-1",
            allow_bucket_creation=True,
        ).create_dir("logs")
        return f"s3://logs/graduate?endpoint_override=http://127.0.0.1:{port}&region=us-east-1"

    def stop() -> None:
        child[-1].kill()
        child[-1].wait()

    patch = pytest.MonkeyPatch()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.setenv(name, "test")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    yield start, stop
    stop()
    patch.undo()


@pytest.mark.slow
def test_a_bucket_holds_the_same_log_and_an_outage_loses_nothing(tmp_path: Path, s3: Any) -> None:
    start, stop = s3
    url = start()
    noise = base64.b64encode(random.Random(0).randbytes(18 << 20))  # a put of several parts
    large = record(5000, START, "large", request=msgspec.Raw(b'"' + noise + b'"'))
    write(tmp_path / "traffic", [large, *traffic(40)], 40)
    expected = list(scan(tmp_path / "traffic"))
    args = ["ship", "--home", str(tmp_path), "--to", url, "--keep", "0s", "--tries", "1"]
    stop()
    done = run.invoke(app, args)
    assert done.exit_code == 1, done.output
    assert "nothing is lost" in done.stderr
    assert list(scan(tmp_path / "traffic")) == expected
    start()
    store = LogStore(url)
    with pytest.raises(Killed):
        shipper(tmp_path / "traffic", Dying(url, 7, True), keep_seconds=0).sweep()
    assert list(scan([url, tmp_path / "traffic"])) == expected
    done = run.invoke(app, args)
    assert done.exit_code == 0, done.output
    assert segments(tmp_path / "traffic") == []
    assert list(scan(url)) == expected
    some = [r for r in expected if r.route == "a/b c%" and START + 3600 <= r.at < START + 7200]
    assert some
    assert list(scan(url, routes=["a/b c%"], since=START + 3600, until=START + 7200)) == some
    assert store.get("segments/nothing.json") is None
    stop()
    with pytest.raises(StoreError, match="logs"):
        list(scan(url))
    start()
