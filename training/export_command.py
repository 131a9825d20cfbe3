"""`graduate train export`: a published adapter as one server takes it, the weights linked rather than copied."""

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from serving.registry import AdapterRef


def export(
    adapter: Annotated[str, typer.Option(help="NAME/VERSION of the registry, or NAME: the newest.")],
    server: Annotated[str, typer.Option(help="Kind of server: lorax, vllm, graduate.")],
    to: Annotated[Path, typer.Option(help="Folder to make; it must not exist, or be empty.")],
    home: Annotated[Path, typer.Option(help="State folder; the registry is HOME/adapters.")] = Path(
        ".graduate"
    ),
    registry: Annotated[
        str | None, typer.Option(help="Another registry: a folder or s3://…")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="What the server calls the base model; default: its id.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:  # fmt: skip
    """Make a folder that one server takes: adapter_config.json with the keys that it reads, and the same weights.

    Example: graduate train export --adapter tickets/1 --server vllm --to ./tickets-vllm
    """
    from router.home import Home
    from serving.registry import Registry, RegistryError
    from training.commands import operator_errors, out
    from training.errors import DataError

    with operator_errors():
        try:
            shelf = Registry(registry or Home(home).adapters)
            ref = shelf.resolve(adapter)
            found = _profile(shelf.open_local(ref), ref, server, base_model, to)
            linked = _write(shelf, ref, found, to)
        except RegistryError as why:
            raise DataError(str(why)) from why
    if as_json:
        typer.echo(json.dumps({"folder": str(to), "adapter": ref.id, "weights": linked, **found}))
        return
    out.print(f"{to}: {ref.id} for {server}, weights {linked}", highlight=False, soft_wrap=True)
    if found["flags"]:
        out.print("start it with: " + " ".join(found["flags"]), highlight=False, soft_wrap=True)
    out.print(f"load: {found['load']}", highlight=False, soft_wrap=True)
    out.print(f"call: {json.dumps(found['call'])}", highlight=False, soft_wrap=True, markup=False)
    for warning in found["warnings"]:
        out.print(f"[yellow]warning[/] {warning}", highlight=False, soft_wrap=True)


def _profile(
    folder: Path, ref: "AdapterRef", server: str, base_model: str | None, to: Path
) -> dict[str, Any]:
    """The server's part of `servers.json`, with the version's number and the exported folder in it.

    Raises:
        ConfigError: no such server, or it would serve this adapter wrongly.
        DataError: published before there were profiles.
    """
    from training.errors import ConfigError, DataError
    from training.servers import FILE, SERVERS, VERSION

    if server not in SERVERS:
        raise ConfigError(f"--server {server!r}: allowed: {', '.join(SERVERS)}")
    file = folder / FILE
    try:
        exported = json.dumps(str(to.resolve()))[1:-1]
        text = file.read_text().replace(f"/adapters/{ref.name}/{VERSION}", exported)
        text = text.replace(f"{ref.name}/{VERSION}", ref.id)
        found = json.loads(text.replace(f"{ref.name}-{VERSION}", f"{ref.name}-{ref.version}"))
    except (OSError, ValueError) as why:
        raise DataError(f"{file}: {why}; publish the run again") from why
    if server not in found:
        known = ", ".join(one for one in found if one != "schema")
        raise ConfigError(
            f"--server {server!r}: {ref.id} would be served wrongly there; allowed: {known}"
        )
    profile: dict[str, Any] = found[server]
    if base_model is not None:
        profile["adapter_config"]["base_model_name_or_path"] = base_model
    return profile


def _write(shelf: Any, ref: "AdapterRef", profile: dict[str, Any], to: Path) -> str:
    """Fill the folder; how the weights got there.

    Raises:
        DataError: there is something in it.
        BrokenAdapter: the weights are not those that were published.
    """
    from serving.registry import check_digest
    from training.errors import DataError
    from training.servers import FILE

    source = shelf.open_local(ref)
    check_digest(ref, source, shelf.manifest(ref).digest)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise DataError(f"--to {to}: there is something in it; allowed: a new folder")
    to.mkdir(parents=True, exist_ok=True)
    (to / "adapter_config.json").write_text(json.dumps(profile["adapter_config"], indent=2))
    (to / FILE).write_text(json.dumps(profile, indent=2))
    weights = to / "adapter_model.safetensors"
    try:
        os.link(source / weights.name, weights)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source / weights.name, weights)
        return "copied"
    return "linked"


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command(name="export")(export)
