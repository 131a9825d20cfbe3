"""`graduate router`: imports nothing heavy until a command runs."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from router import keys_commands, policy_commands, ship_command

if TYPE_CHECKING:
    from router.settings import RouterSettings

app = typer.Typer(
    no_args_is_help=True,
    help="The front door: decides teacher, student or both, and logs what happened.",
)
policy_commands.register(app)
ship_command.register(app)
app.add_typer(keys_commands.app, name="keys")
err = Console(stderr=True)


Policy = Annotated[Path, typer.Option(help="Policy file.")]
Home = Annotated[Path, typer.Option(help="State folder: traffic log, rollouts.")]
Host = Annotated[str, typer.Option(help="Address for callers.")]
Port = Annotated[int, typer.Option(help="Port for callers.", min=0, max=65535)]
AdminHost = Annotated[str, typer.Option(help="Address for operators.")]
AdminPort = Annotated[
    int, typer.Option(help="Port for operators: metrics, policy.", min=0, max=65535)
]
Workers = Annotated[
    int, typer.Option(help="Processes that share the port; one a core.", min=1, max=128)
]
OPEN = (
    "Let callers in without keys although --host is not loopback: the network must keep others out."
)
Open = Annotated[bool, typer.Option("--open", help=OPEN)]
Drain = Annotated[
    float, typer.Option(help="Seconds that requests under way may take after SIGTERM.")
]
MaxBody = Annotated[int, typer.Option(help="Largest request body, bytes.")]
MaxHead = Annotated[int, typer.Option(help="Largest request head, bytes.")]
HeadTimeout = Annotated[
    float, typer.Option(help="Seconds that a caller may take for a request's head.")
]
BodyTimeout = Annotated[float, typer.Option(help="Seconds that a caller may pause within a body.")]
Fsync = Annotated[
    float | None, typer.Option(help="fsync the traffic log at least every so many seconds.")
]


@app.command()
def serve(
    policy: Policy = Path("policy.yaml"),
    home: Home = Path(".graduate"),
    host: Host = "127.0.0.1",
    port: Port = 8080,
    admin_host: AdminHost = "127.0.0.1",
    admin_port: AdminPort = 9080,
    workers: Workers = 1,
    open_: Open = False,
    drain: Drain = 20.0,
    max_body: MaxBody = 20 << 20,
    max_head: MaxHead = 64 << 10,
    head_timeout: HeadTimeout = 15.0,
    body_timeout: BodyTimeout = 30.0,
    fsync: Fsync = None,
) -> None:
    """Serve the OpenAI API by a policy until SIGTERM; the policy is read again when it changes.

    Example: graduate router serve --policy policy.yaml --port 8080
    """
    from router.settings import RouterSettings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    settings = RouterSettings(
        policy, home, host, port, admin_host, admin_port,
        drain_seconds=drain, max_body_bytes=max_body, max_head_bytes=max_head,
        head_seconds=head_timeout, body_seconds=body_timeout, workers=workers, open=open_,
        fsync_seconds=fsync,
    )  # fmt: skip
    err.print(
        f"router on http://{host}:{port}/v1, admin on http://{admin_host}:{admin_port}",
        highlight=False,
    )
    _run(settings)


def _run(settings: "RouterSettings") -> None:
    """Serve; what the operator has to change is said and is exit status 2."""
    from router.errors import RouterError
    from router.serve import run

    try:
        run(settings)
    except RouterError as why:
        wrong = str(why)
    except OSError as why:
        wrong = f"{settings.home} cannot be used: {why.strerror}"
    else:
        return
    err.print(f"error: {wrong}", style="bold red", highlight=False, soft_wrap=True, markup=False)
    raise typer.Exit(2)
