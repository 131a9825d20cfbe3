"""`graduate router keys add | list | revoke`: the key file that a policy's `keys.file` names."""

import datetime
import json
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from router.errors import RouterError

err = Console(stderr=True)
app = typer.Typer(
    no_args_is_help=True,
    help="API keys of the router: hashes in a file that the policy names with `keys: {file: keys.yaml}`.",
)

FileOption = Annotated[Path, typer.Option("--file", help="The key file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEFAULT_FILE = Path("keys.yaml")


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Who calls with it: the name in records and limits.")],
    file: FileOption = DEFAULT_FILE,
    route: Annotated[
        list[str] | None,
        typer.Option(help="A route that it may use, again for more; none given allows all."),
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1)] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1)] = None,
    expires: Annotated[
        str | None, typer.Option(help="How long it lives: 12h, 90d. For ever when not given.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it, once: only its hash is kept.

    Example: graduate router keys add checkout --file keys.yaml --route toxicity --requests-per-minute 600
    """
    from router import auth
    from router.quantities import seconds

    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    try:
        known = auth.read(file) if file.exists() else auth.KeyFile()
        if any(entry.name == name for entry in known.keys):
            _fail(f"{file} has a key of {name!r} already; revoke it first, or choose another name")
        ends = now + datetime.timedelta(seconds=seconds(expires)) if expires else None
        key, entry = auth.issue(
            name, routes=route or (), requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute, created=now, expires=ends,
        )  # fmt: skip
        auth.write(file, auth.KeyFile(keys=(*known.keys, entry)))
    except (RouterError, ValueError, OverflowError) as why:
        _fail(_one_line(why, name))
    if as_json:
        typer.echo(json.dumps({"name": name, "key": key, "file": str(file)}))
        return
    err.print(f"key of {name}, shown this once; {file} keeps its hash:", highlight=False)
    typer.echo(key)


def _one_line(why: Exception, name: str) -> str:
    from pydantic import ValidationError

    if isinstance(why, ValidationError):
        first = why.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))} = {first['input']!r}: {first['msg']}"
    return str(why)


@app.command(name="list")
def list_keys(file: FileOption = DEFAULT_FILE, as_json: JsonOption = False) -> None:
    """Show whose keys there are and what they may do.

    Example: graduate router keys list --file keys.yaml
    """
    from router import auth

    try:
        found = auth.read(file)
    except RouterError as why:
        _fail(str(why))
    if as_json:
        rows = [entry.model_dump(mode="json", exclude={"hash"}) for entry in found.keys]
        typer.echo(json.dumps(rows))
        return
    table = Table("name", "key", "routes", "requests/min", "tokens/min", "created", "expires")
    for entry in found.keys:
        table.add_row(
            entry.name, f"{entry.shown}…", ", ".join(entry.routes) or "all", str(entry.requests_per_minute or "–"),
            str(entry.tokens_per_minute or "–"), f"{entry.created:%Y-%m-%d}" if entry.created else "–",
            f"{entry.expires:%Y-%m-%d %H:%M}" if entry.expires else "never",
        )  # fmt: skip
    Console().print(table)


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Whose key goes.")], file: FileOption = DEFAULT_FILE
) -> None:
    """Take a key away; a running router refuses it within two seconds.

    Example: graduate router keys revoke checkout --file keys.yaml
    """
    from router import auth

    try:
        found = auth.read(file)
        kept = tuple(entry for entry in found.keys if entry.name != name)
        if len(kept) == len(found.keys):
            names = ", ".join(entry.name for entry in found.keys) or "none"
            _fail(f"{file} has no key of {name!r}; there are: {names}")
        auth.write(file, auth.KeyFile(keys=kept))
    except RouterError as why:
        _fail(str(why))
    err.print(f"the key of {name} is gone", highlight=False)


def _fail(message: str) -> NoReturn:
    err.print(f"error: {message}", style="bold red", highlight=False, soft_wrap=True, markup=False)
    raise typer.Exit(2)
