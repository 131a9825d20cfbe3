"""`graduate train`: dataset, student, evaluation, publishing. Imports nothing heavy until a command runs."""

import typer

app = typer.Typer(
    no_args_is_help=True,
    help="Logged traffic and reviews in, an evaluated adapter in the registry out.",
)


def _mount() -> None:
    from training import (
        build_command,
        curate_command,
        evaluate_command,
        experiment_command,
        export_command,
        fit_command,
        label_command,
        mistakes_command,
        pairs_command,
        parity_command,
        publish_command,
        study_command,
    )

    for module in (
        build_command,
        label_command,
        curate_command,
        pairs_command,
        fit_command,
        evaluate_command,
        mistakes_command,
        experiment_command,
        study_command,
        publish_command,
        export_command,
        parity_command,
    ):
        module.register(app)


_mount()
