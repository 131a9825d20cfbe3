"""`graduate router ship`: closed segments to Parquet in a folder or a bucket; imports nothing heavy until it runs."""

import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from router.errors import RouterError, SettingsError

if TYPE_CHECKING:
    from router.ship import Shipper, Sweep

out, err = Console(), Console(stderr=True)


def ship(
    to: Annotated[
        str,
        typer.Option(
            help="Folder, s3://BUCKET/PREFIX, or another URL that pyarrow opens.",
            show_default=False,
        ),
    ],
    home: Annotated[Path, typer.Option(help="State folder; its traffic/ is shipped.")] = Path(
        ".graduate"
    ),
    follow: Annotated[
        bool,
        typer.Option("--follow/--once", help="Go on until SIGTERM, or end when all is shipped."),
    ] = False,
    keep: Annotated[
        str, typer.Option(help='Shipped segments stay here so long: "24h", "7d", "0s".')
    ] = "24h",
    interval: Annotated[str, typer.Option(help="With --follow: time between two looks.")] = "30s",
    drain: Annotated[
        str, typer.Option(help="After SIGTERM: wait so long for a router to close its segments.")
    ] = "0s",
    tries: Annotated[
        int, typer.Option(help="With --once: tries when the store does not answer.", min=1)
    ] = 5,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print counters as JSON; with --follow a line when something happened."
        ),
    ] = False,
) -> None:
    """Ship closed segments of the traffic log as Parquet, by route and hour, and delete old ones that are shipped.

    Example: graduate router ship --to s3://logs/graduate --follow --keep 24h

    Exit status: 0 everything closed is shipped; 1 the store did not take it (nothing is lost, run it again); 2 bad input.
    """
    try:
        sweep, shown = _run(to, home, follow, keep, interval, drain, tries, as_json)
    except RouterError as why:
        _fail(f"error: {why}", as_json)
        raise typer.Exit(2) from why
    if as_json:
        typer.echo(json.dumps(shown))
    else:
        _show(shown, to)
    if not sweep.ok:
        raise typer.Exit(1)


def _fail(message: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"ok": False, "error": message}))
    err.print(message, style="bold red", highlight=False, soft_wrap=True, markup=False)


def _seconds(option: str, text: str) -> float:
    from router.quantities import seconds

    try:
        return seconds(text)
    except ValueError as why:
        raise SettingsError(f"{option} = {text!r}: {why}") from why


def _run(
    to: str,
    home: Path,
    follow: bool,
    keep: str,
    interval: str,
    drain: str,
    tries: int,
    as_json: bool,
) -> "tuple[Sweep, dict[str, Any]]":
    keep_seconds, interval_seconds = _seconds("--keep", keep), _seconds("--interval", interval)
    drain_seconds = _seconds("--drain", drain)
    try:
        from router import ship as core
        from router.log_store import LogStore
    except ImportError as why:
        raise SettingsError(f"shipping needs pip install 'graduate[ship]': {why}") from why
    from router.home import Home

    traffic = Home(home).traffic
    store = LogStore(to)
    if not store.is_url and Path(to).absolute().is_relative_to(traffic.absolute()):
        raise SettingsError(f"--to = {to}: allowed: a place outside {traffic}")
    if follow and not traffic.exists():  # a sidecar may be there before its router
        err.print(f"{traffic} is not there yet: made, and waited for segments", highlight=False)
        traffic.mkdir(parents=True)
    stopping = core.Stopping(drain_seconds)
    with core.alone(traffic), _Bar(not follow) as bar:
        shipper = core.Shipper(
            traffic, store, keep_seconds=keep_seconds, stop=stopping.is_over, tell=bar.tell
        )
        told = _Told(shipper, as_json)
        with _signals(stopping.ask):
            if follow:
                sweep = core.follow(shipper, stopping, interval_seconds, told.after_sweep)
            else:
                sweep = core.ship_once(shipper, tries, stopping.wait, told.after_failure)
    for problem in sweep.errors:
        err.print(f"error: {problem}", style="red", highlight=False, soft_wrap=True, markup=False)
    if not sweep.ok:
        left = f"{sweep.waiting} segments wait in {traffic}; nothing is lost, run it again"
        err.print(left, highlight=False, soft_wrap=True, markup=False)
    return sweep, counters(shipper, sweep)


@contextlib.contextmanager
def _signals(ask: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT ask, instead of ending the process."""
    before = {n: signal.signal(n, lambda *_: ask()) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def counters(shipper: "Shipper", sweep: "Sweep") -> dict[str, Any]:
    """What was done since the start, and what stands after the last sweep."""
    return {
        "ok": sweep.ok, **asdict(shipper.totals), "waiting": sweep.waiting, "open": sweep.open,
        "errors": sweep.errors,
    }  # fmt: skip


class _Told:
    """What is said while it runs."""

    def __init__(self, shipper: "Shipper", as_json: bool) -> None:
        self._shipper = shipper
        self._as_json = as_json
        self._last: dict[str, Any] = {}

    def after_failure(self, sweep: "Sweep", seconds: float) -> None:
        """A failed sweep: why, and when it goes on."""
        err.print(
            f"warning: {sweep.errors[0]}; {sweep.waiting} segments wait, nothing is lost; next try in {seconds:.1f} s",
            style="yellow", highlight=False, soft_wrap=True, markup=False,
        )  # fmt: skip

    def after_sweep(self, sweep: "Sweep", seconds: float) -> None:
        """One look: said only when something happened."""
        if sweep.errors:
            self.after_failure(sweep, seconds)
        shown = counters(self._shipper, sweep)
        if shown == self._last:
            return
        self._last = shown
        if self._as_json:
            typer.echo(json.dumps(shown))
        elif sweep.shipped:
            err.print(
                f"shipped {sweep.shipped} segments, {shown['records']} records so far",
                highlight=False,
            )


class _Bar:
    """A progress bar on a terminal, nothing elsewhere."""

    def __init__(self, is_shown: bool) -> None:
        from rich.progress import Progress

        self._progress = Progress(
            console=err, transient=True, disable=not (is_shown and err.is_terminal)
        )
        self._task = self._progress.add_task("segments", total=None)

    def tell(self, done: int, of: int) -> None:
        """So far."""
        self._progress.update(self._task, completed=done, total=of)

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _show(shown: dict[str, Any], to: str) -> None:
    ratio = shown["bytes_read"] / shown["bytes_written"] if shown["bytes_written"] else 0.0
    out.print(
        f"{shown['segments']} segments shipped to {to}: {shown['records']} records, {shown['answers']} late answers, "
        f"{shown['feedback']} feedback, {shown['bytes_read']:,} bytes to {shown['bytes_written']:,} ({ratio:.1f}x smaller)",
        highlight=False, soft_wrap=True, markup=False,
    )  # fmt: skip
    out.print(
        f"{shown['deleted']} old segments deleted here; {shown['waiting']} wait, {shown['open']} are being written; "
        f"{shown['unreadable']} unreadable lines kept out",
        highlight=False, soft_wrap=True, markup=False,
    )  # fmt: skip


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command(name="ship")(ship)
