"""Where a command works, told once for all of them: `--home`, `--policy`, `--database`, `--log`, `--json` as one argument.

A command that names `place: Place` among its parameters is given the options that it asks for by `@placed(...)`; in its help they stand
where typer puts all options.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from monitoring.commands import (
    DatabaseOption,
    HomeOption,
    JsonOption,
    LogOption,
    PolicyOption,
)
from router.home import Home

Command = Callable[..., None]
ConfigMapOption = Annotated[
    str | None,
    typer.Option(
        "--rollouts-configmap",
        help="In a cluster: keep this ConfigMap of the pod's namespace equal to HOME/rollouts.yaml.",
        # One name for all commands: a shell in the pod finds what the tick was given.
        envvar=["GRADUATE_MONITOR_TICK_ROLLOUTS_CONFIGMAP", "GRADUATE_ROLLOUTS_CONFIGMAP"],
    ),
]
_OPTIONS: dict[str, tuple[Any, object]] = {
    "home": (HomeOption, Path(".graduate")),
    "policy": (PolicyOption, None),
    "log": (LogOption, None),
    "database": (DatabaseOption, None),
    "rollouts_configmap": (ConfigMapOption, None),
    "as_json": (JsonOption, False),
}


@dataclass(frozen=True, slots=True)
class Place:
    """What the options say, those that a command does not have at their defaults."""

    home: Home
    policy: Path
    """HOME/policy.yaml unless named."""
    database: str
    """HOME/graduate.db unless named."""
    log: list[str] | None = None
    rollouts_configmap: str | None = None
    as_json: bool = False


def placed(*names: str) -> Callable[[Command], Command]:
    """The command with these options, given to it as its parameter `place`.

    Args:
        names: of `home`, `policy`, `log`, `database`, `rollouts_configmap`, `as_json`.
    """

    def made(command: Command) -> Command:
        own = [p for p in inspect.signature(command).parameters.values() if p.name != "place"]
        options = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
            for name, (annotation, default) in ((name, _OPTIONS[name]) for name in names)
        ]

        def run(**given: Any) -> None:
            said = {name: given.pop(name) for name in names}
            command(**given, place=_place(said))

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + options
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__module__ = command.__module__
        return run

    return made


def _place(said: dict[str, Any]) -> Place:
    home = Home(said["home"])
    return Place(
        home,
        said.get("policy") or home.policy,
        said.get("database") or home.database_url,
        said.get("log"),
        said.get("rollouts_configmap"),
        bool(said.get("as_json")),
    )
