"""The command line: mounts each package's commands beside `up`, `down` and `doctor`.

A package's `cli` module imports nothing heavy, so the router's image needs no torch and `graduate --help` is quick.
Every option is also an environment variable: `graduate router serve --port` reads `GRADUATE_ROUTER_SERVE_PORT`.
"""

import importlib

import typer

from graduate_doctor import doctor
from graduate_up import down, fail, up

PACKAGES = {
    "router": ("router.cli", "router"),
    "serving": ("serving.cli", "serving"),
    "monitor": ("monitoring.cli", "monitoring"),
    "train": ("training.cli", "training"),
}
"""Command group: the module that holds its typer app, and the extra that brings what it needs."""

app = typer.Typer(
    no_args_is_help=True,
    help="Move a task from a teacher LLM API to a LoRA student that you own, and keep it honest there.",
    context_settings={"auto_envvar_prefix": "GRADUATE", "help_option_names": ["-h", "--help"]},
    pretty_exceptions_show_locals=False,
)
for _command in (up, down, doctor):
    app.command()(_command)


def _missing(group: str, extra: str, why: ModuleNotFoundError) -> typer.Typer:
    """Commands that say what to install instead."""
    stand_in = typer.Typer(help=f"(not installed: {why.name})", invoke_without_command=True)

    @stand_in.callback(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
    def _() -> None:
        raise fail(
            f"`graduate {group}` needs the package {why.name!r}: pip install 'graduate[{extra}]'"
        )

    return stand_in


for _group, (_module, _extra) in PACKAGES.items():
    try:
        app.add_typer(importlib.import_module(_module).app, name=_group)
    except ModuleNotFoundError as _why:
        app.add_typer(_missing(_group, _extra, _why), name=_group)


def main() -> None:
    """Entry point of the `graduate` command."""
    app(prog_name="graduate")


if __name__ == "__main__":
    main()
