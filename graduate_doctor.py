"""`graduate doctor`: is each process's part of the installation there, and has this machine room for it."""

import importlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from graduate_up import HomeOption

EXTRAS = {
    "router": (
        "fastapi",
        "uvicorn",
        "uvloop",
        "httptools",
        "orjson",
        "prometheus_client",
        "jsonschema_rs",
        "lorax",
    ),
    "serving": ("torch", "transformers", "peft", "safetensors", "gguf", "llguidance"),
    "monitoring": ("evidently", "pandas", "sqlalchemy", "scipy", "sklearn", "jinja2"),
    "training": ("pyarrow", "matplotlib"),
}
"""What each process imports; `doctor` imports them in turn."""

MODULES = {
    "lorax": "lorax-client",
    "sklearn": "scikit-learn",
    "jsonschema_rs": "jsonschema-rs",
    "prometheus_client": "prometheus-client",
}
"""Distributions whose name is not their module's."""


def doctor(
    home: HomeOption = Path(".graduate"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
) -> None:
    """Check the installation: each process's packages, lorax-client, disk and ports. Status 1 when a check fails.

    Example: graduate doctor --json
    """
    checks = list(_checks(home))
    if as_json:
        typer.echo(json.dumps(checks, indent=2))
    else:
        table = Table("", "check", "found", title="graduate doctor")
        for check in checks:
            table.add_row(
                "[green]✓[/]" if check["ok"] else "[red]✗[/]", check["check"], check["found"]
            )
        Console().print(table)
    if not all(check["ok"] for check in checks):
        raise typer.Exit(1)


def _checks(home: Path) -> Iterator[dict[str, Any]]:
    """Each thing looked at: what, whether it is in order, what was found (and what to do)."""
    here = sys.version_info
    yield {"check": "Python 3.11 or newer", "ok": here >= (3, 11), "found": sys.version.split()[0]}
    for extra, names in EXTRAS.items():
        for name in names:
            try:
                importlib.import_module(name)
                distribution = MODULES.get(name, name)
                yield {
                    "check": f"{extra}: {name}",
                    "ok": True,
                    "found": metadata.version(distribution),
                }
            except (ImportError, metadata.PackageNotFoundError) as why:
                hint = f"pip install 'graduate[{extra}]'"
                if name == "lorax":
                    hint = "pip install --no-deps lorax-client==0.6.3 (its pins fight with transformers 5)"
                yield {"check": f"{extra}: {name}", "ok": False, "found": f"{why}; {hint}"}
    nearest = next(p for p in (home.resolve(), *home.resolve().parents) if p.exists())
    free_gib = shutil.disk_usage(nearest).free / 2**30
    yield {
        "check": f"disk under {home}",
        "ok": free_gib > 2,
        "found": f"{free_gib:.1f} GiB free, 2 wanted",
    }
    yield {
        "check": f"{home} can be written",
        "ok": os.access(nearest, os.W_OK),
        "found": str(nearest),
    }
    for what, port in {"router": 8080, "student": 8081, "monitor": 8083, "admin": 9080}.items():
        with socket.socket() as probe:
            in_use = probe.connect_ex(("127.0.0.1", port)) == 0
        yield {
            "check": f"port {port} ({what})",
            "ok": True,
            "found": "in use" if in_use else "free",
        }
