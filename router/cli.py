"""`graduate router`: imports nothing heavy until a command runs."""

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from router import keys_commands, policy_commands, ship_command

app = typer.Typer(
    no_args_is_help=True,
    help="The front door: decides teacher, student or both, and logs what happened.",
)
policy_commands.register(app)
ship_command.register(app)
app.add_typer(keys_commands.app, name="keys")
err = Console(stderr=True)


@app.command()
def serve(
    policy: Annotated[Path, typer.Option(help="Policy file.")] = Path("policy.yaml"),
    home: Annotated[Path, typer.Option(help="State folder: traffic log, rollouts.")] = Path(
        ".graduate"
    ),
    host: Annotated[str, typer.Option(help="Address for callers.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port for callers.", min=0, max=65535)] = 8080,
    admin_host: Annotated[str, typer.Option(help="Address for operators.")] = "127.0.0.1",
    admin_port: Annotated[
        int, typer.Option(help="Port for operators: metrics, policy.", min=0, max=65535)
    ] = 9080,
    workers: Annotated[
        int, typer.Option(help="Processes that share the port; one a core.", min=1, max=128)
    ] = 1,
    open_: Annotated[
        bool,
        typer.Option(
            "--open",
            help="Let callers in without keys although --host is not loopback: the network must keep others out.",
        ),
    ] = False,
    drain: Annotated[
        float, typer.Option(help="Seconds that requests under way may take after SIGTERM.")
    ] = 20.0,
    max_body: Annotated[int, typer.Option(help="Largest request body, bytes.")] = 20 << 20,
    max_head: Annotated[int, typer.Option(help="Largest request head, bytes.")] = 64 << 10,
    head_timeout: Annotated[
        float, typer.Option(help="Seconds that a caller may take for a request's head.")
    ] = 15.0,
    body_timeout: Annotated[
        float, typer.Option(help="Seconds that a caller may pause within a body.")
    ] = 30.0,
    fsync: Annotated[
        float | None, typer.Option(help="fsync the traffic log at least every so many seconds.")
    ] = None,
) -> None:
    """Serve the OpenAI API by a policy until SIGTERM; the policy is read again when it changes.

    Example: graduate router serve --policy policy.yaml --port 8080
    """
    from router.errors import RouterError
    from router.serve import run
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
    try:
        run(settings)
    except RouterError as why:
        err.print(f"error: {why}", style="bold red", highlight=False, soft_wrap=True, markup=False)
        raise typer.Exit(2) from why
    except OSError as why:
        err.print(
            f"error: {home} cannot be used: {why.strerror}", style="bold red", highlight=False
        )
        raise typer.Exit(2) from why
