"""What the commands share: opening a home's model, policy and datasets, telling progress, showing errors."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from monitoring.errors import MonitoringError
from router import policy_file
from router.errors import RouterError
from router.home import Home
from router.policy import Policy, Route
from serving.errors import OperatorError
from training.errors import ConfigError, DataError, TrainingError

err = Console(stderr=True)
out = Console()


@contextlib.contextmanager
def operator_errors() -> Iterator[None]:
    """What is the operator's or the data's fault ends the command with its message and status 2."""
    from safetensors import SafetensorError  # of a base model's or an adapter's file that was cut

    faults = (TrainingError, RouterError, MonitoringError, OperatorError, SafetensorError, OSError)
    try:
        yield
    except faults as why:
        # An error may quote a value in brackets, which rich would take for its own.
        err.print(f"[bold red]error:[/] {escape(str(why))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from why


@contextlib.contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[str, int, int, float | None], None]]:
    """A bar on stderr, one line a phase; told (phase, done, total, loss)."""
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns, console=err, disable=quiet) as bar:
        tasks: dict[str, Any] = {}

        def tell(phase: str, done: int, total: int, loss: float | None = None) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total, loss="")
            shown = "" if loss is None else f"loss {loss:.4f}"
            bar.update(tasks[phase], completed=done, total=total, loss=shown)

        yield tell


Told = TypeVar("Told")


def counted(
    rows: Iterable[Told], phase: str, tell: Callable[[str, int, int, float | None], None], every: int = 200
) -> Iterator[Told]:  # fmt: skip
    """The same rows; how many have passed is told now and then, where nobody knows beforehand how many there are."""
    number = 0
    for row in rows:
        yield row
        number += 1
        if number % every == 0:
            tell(phase, number, number, None)
    tell(phase, number, number, None)


def open_route(policy: Path, name: str) -> tuple[Policy, Route]:
    """The policy and one of its routes.

    Raises:
        ConfigError: no such route.
    """
    loaded = policy_file.load(policy)
    if name not in loaded.policy.routes:
        known = ", ".join(sorted(loaded.policy.routes)) or "none"
        raise ConfigError(f"{policy}: no route {name!r}; routes: {known}")
    return loaded.policy, loaded.policy.routes[name]


def newest(folder: Path, pattern: str, what: str) -> Path:
    """The newest folder that matches.

    Raises:
        DataError: there is none.
    """
    found = sorted((p for p in folder.glob(pattern) if p.is_dir()), key=lambda p: p.stat().st_mtime)
    if not found:
        raise DataError(f"no {what} under {folder}")
    return found[-1]


def policy_path(home: Home, policy: Path | None) -> Path:
    """`--policy`, or the home's own."""
    return policy or home.policy


def open_base_model(model: str, home: Home) -> Any:
    """The base model with its tokenizer, in fp32, by the loader that the student server has too."""
    from serving import base_model

    return base_model.load(model, home.models)
