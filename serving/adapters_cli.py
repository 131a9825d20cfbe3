"""`graduate serving adapters`: what the registry holds, one version's manifest, and old versions removed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from serving.errors import OperatorError
from serving.terminal import HomeOption, fail

if TYPE_CHECKING:
    from serving.registry import AdapterRef, Registry

app = typer.Typer(no_args_is_help=True, help="List, show and clean up published adapters.")

AdaptersOption = Annotated[
    str | None,
    typer.Option(metavar="DIR|S3", help="Adapter registry; default is HOME/adapters."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _registry(adapters: str | None, home: Path) -> "Registry":
    from serving.registry import Registry

    place = adapters or str(home / "adapters")
    if "://" not in place and not Path(place).is_dir():
        raise fail(f"--adapters {place}: no such folder")
    return Registry(place)


def _manifest(registry: "Registry", ref: "AdapterRef") -> dict[str, Any]:
    import msgspec

    built: dict[str, Any] = msgspec.to_builtins(registry.manifest(ref))
    return built


@app.command("list")
def list_adapters(
    adapters: AdaptersOption = None,
    home: HomeOption = Path(".graduate"),
    as_json: JsonOption = False,
) -> None:
    """Every version in the registry; one that is broken is listed with its reason.

    Example: graduate serving adapters list --home .graduate
    """
    from serving.registry import RegistryError

    registry = _registry(adapters, home)
    rows = []
    for ref in registry.list():
        try:
            rows.append({"id": ref.id, **_manifest(registry, ref)})
        except RegistryError as why:
            rows.append({"id": ref.id, "error": str(why)})
    if as_json:
        typer.echo(json.dumps(rows, indent=2, default=str))
        return
    table = Table("adapter", "base model", "rank", "route", "published", "metrics")
    for row in rows:
        if "error" in row:
            table.add_row(row["id"], f"[red]{row['error']}[/]", "", "", "", "")
            continue
        metrics = ", ".join(f"{k} {v}" for k, v in list((row.get("metrics") or {}).items())[:3])
        table.add_row(
            row["id"], row["base_model"], str(row["rank"]), str(row.get("route") or ""),
            str(row["created_at"]), metrics,
        )  # fmt: skip
    Console().print(table)


@app.command()
def show(
    adapter: Annotated[str, typer.Argument(help="tickets, tickets/latest or tickets/3")],
    adapters: AdaptersOption = None,
    home: HomeOption = Path(".graduate"),
    as_json: JsonOption = False,
) -> None:
    """One version's manifest.

    Example: graduate serving adapters show tickets/latest --json
    """
    from serving.registry import RegistryError

    registry = _registry(adapters, home)
    try:
        ref = registry.resolve(adapter)
        manifest = {"id": ref.id, **_manifest(registry, ref)}
    except RegistryError as why:
        raise fail(why) from why
    if as_json:
        typer.echo(json.dumps(manifest, indent=2, default=str))
        return
    table = Table("key", "value", title=ref.id)
    for key, value in manifest.items():
        table.add_row(key, value if isinstance(value, str) else json.dumps(value, default=str))
    Console().print(table)


@app.command()
def gc(
    keep: Annotated[int, typer.Option(min=1, help="Newest versions of each name that stay.")] = 5,
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove; without it they are only named.")
    ] = False,
    adapters: AdaptersOption = None,
    home: HomeOption = Path(".graduate"),
    as_json: JsonOption = False,
) -> None:
    """Remove old versions from a registry folder. Make sure that no policy or rollout names them.

    Example: graduate serving adapters gc --keep 3 --yes
    """
    from serving.garbage import remove, superseded

    place = adapters or str(home / "adapters")
    if "://" in place:
        raise fail(
            f"--adapters {place}: only folders are cleaned up; use the bucket's lifecycle rules"
        )
    found = superseded(_registry(adapters, home).list(), keep)
    if yes:
        for ref in found:
            try:
                remove(Path(place), ref)
            except OperatorError as why:
                raise fail(why) from why
    if as_json:
        typer.echo(json.dumps({"removed" if yes else "would_remove": [ref.id for ref in found]}))
        return
    verb = "removed" if yes else "would remove (give --yes)"
    Console().print(f"{verb}: {', '.join(ref.id for ref in found) or 'nothing'}", highlight=False)
