"""What the commands share: options, and an operator's mistake said plainly with exit status 2."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

Value = TypeVar("Value")
console = Console(stderr=True)

HomeOption = Annotated[
    Path, typer.Option("--home", help="State folder; made when it is not there.")
]
HostOption = Annotated[str, typer.Option(help="Address to bind.")]


def fail(message: object) -> typer.Exit:
    """Says on stderr what is wrong; raise the result to end with status 2."""
    console.print(f"[bold red]error:[/] {escape(str(message))}", highlight=False, soft_wrap=True)
    return typer.Exit(2)


def parsed(parse: Callable[[str], Value], text: str, option: str) -> Value:
    """`parse(text)`; a ValueError becomes a message that names the option."""
    try:
        return parse(text)
    except ValueError as why:
        raise fail(f"{option} {why}") from why
