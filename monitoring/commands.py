"""What the commands that read the traffic log share: options, errors in plain words, a progress bar. Nothing heavy."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from router.home import Home

if TYPE_CHECKING:
    from router.policy import Route
    from router.policy_file import LoadedPolicy
    from router.records import Record

out, err = Console(), Console(stderr=True)

HomeOption = Annotated[Path, typer.Option("--home", help="State folder.")]
PolicyOption = Annotated[
    Path | None, typer.Option("--policy", help="Policy file; default HOME/policy.yaml.")
]
DatabaseOption = Annotated[
    str | None, typer.Option("--database", help="SQLAlchemy URL; default HOME/graduate.db.")
]
RouteOption = Annotated[str | None, typer.Option("--route", help="One route only.")]
SinceOption = Annotated[str, typer.Option("--since", help='How far back: "7d", "12h".')]
LogOption = Annotated[
    list[str] | None,
    typer.Option(
        "--log", help="Traffic log, repeatable: folder or s3:// URL; default HOME/traffic."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@contextlib.contextmanager
def operator_errors() -> Iterator[None]:
    """What is the operator's or the data's fault ends the command with its message and status 2."""
    from monitoring.errors import MonitoringError
    from router.errors import RouterError

    try:
        yield
    except (MonitoringError, RouterError, OSError, ValueError) as why:
        err.print(f"error: {why}", style="bold red", highlight=False, soft_wrap=True, markup=False)
        raise typer.Exit(2) from why


def seconds_of(option: str, text: str) -> float:
    """Seconds of an option's duration.

    Raises:
        ValueError: naming the option, the value and what is allowed.
    """
    from router.quantities import seconds

    try:
        return seconds(text)
    except ValueError as why:
        raise ValueError(f"{option} = {text!r}: {why}") from why


def share_of(option: str, text: str) -> float:
    """0-1 of an option's share, "3%" or "0.03".

    Raises:
        ValueError: naming the option, the value and what is allowed.
    """
    from router.quantities import fraction

    with contextlib.suppress(ValueError):
        return fraction(float(text))
    try:
        return fraction(text)
    except ValueError as why:
        raise ValueError(f"{option} = {text!r}: {why}") from why


def open_policy(home: Home, policy: Path | None) -> "LoadedPolicy":
    """The policy with its rollouts and difficulty models, as the router has it.

    Raises:
        PolicyError: it does not hold.
    """
    from router import policy_file

    return policy_file.load(policy or home.policy, home.rollouts, home.adapters / "difficulty")


def route_named(loaded: "LoadedPolicy", name: str | None) -> "Route | None":
    """The route of that name; None when no name is given.

    Raises:
        UnknownRoute: the policy has none of that name.
    """
    from monitoring.errors import UnknownRoute

    if name is None:
        return None
    if name not in loaded.policy.routes:
        known = ", ".join(loaded.policy.routes) or "none in the policy"
        raise UnknownRoute(f"route {name!r}: allowed: {known}")
    return loaded.policy.routes[name]


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str, float, float], None]]:
    """A bar on stderr, one line a phase; told (phase, done, total). Nothing is shown in a pipe."""
    columns = (
        TextColumn("{task.description:<28}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=err, disable=quiet or not err.is_terminal) as bar:
        tasks = {}

        def tell(phase: str, done: float, total: float) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total)
            bar.update(tasks[phase], completed=done, total=total)

        yield tell


def named_logs(logs: Sequence[str] | None) -> tuple[str, ...]:
    """The logs that `--log` names; none is the home's own.

    Raises:
        ValueError: one is neither a folder that is there nor a URL.
    """
    for log in logs or ():
        if "://" not in log and not Path(log).is_dir():
            raise ValueError(f"--log = {log!r}: allowed: a folder that is there, or a URL")
    return tuple(logs or ())


def scanned(
    home: Home,
    since_seconds: float,
    tell: Callable[[str, float, float], None],
    route: str | None = None,
    logs: Sequence[str] | None = None,
) -> "Iterator[Record]":
    """Records of the last `since_seconds`, one route's or all, of the home's log or those named; the bar follows their time.

    Raises:
        ValueError: a log that is named is not there.
    """
    from router.traffic import scan

    places: Sequence[str | Path] = named_logs(logs)
    if not places and not home.traffic.exists():
        return
    now = time.time()
    since = now - since_seconds
    first = None
    for number, record in enumerate(
        scan(places or [home.traffic], routes=None if route is None else [route], since=since)
    ):
        first = record.at if first is None else first
        if number % 1000 == 0:
            tell("reading the traffic log", record.at - first, max(now - first, 1e-9))
        yield record
    tell("reading the traffic log", 1, 1)
