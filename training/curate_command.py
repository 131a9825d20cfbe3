"""`graduate train curate` and `graduate train curate restore`: a configuration to a better dataset, and back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from training.curate.config import CurateConfig
    from training.curate.stages import Result
    from training.dataset import Dataset


class _DatasetFirst(TyperGroup):
    """`curate DATASET …` means `curate run DATASET …`, so that the usual use needs no second word."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is named, or `run`."""
        return super().resolve_command(ctx, args if args[0] in self.commands else ["run", *args])


app = typer.Typer(cls=_DatasetFirst, no_args_is_help=True)

HELP = """Curate a dataset: rules, duplicates, gold, votes, label suspects, power users, balance.

Example: graduate train curate .graduate/datasets/tickets-0123456789abcdef --config curate.yaml --dry-run

`curate DATASET` is short for `curate run DATASET`; `curate run --help` shows its options, `curate restore --help` how
rows come back, `curate example` a configuration with every key. Only train rows change; validation and test rows never do.
"""


@app.command()
def run(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder.")],
    config: Annotated[Path, typer.Option(help="YAML file with the stages.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the new dataset, OUT/<task>-<digest>; default: beside the old one."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Only show counts and three samples a rule; write nothing.")
    ] = False,
    effect: Annotated[
        bool,
        typer.Option(
            help="Also train a TF-IDF stand-in before and after and read it on validation; sweeps the balance."
        ),
    ] = False,
    home: Annotated[
        Path, typer.Option(help="State folder; the encoder of `semantic` is kept in its models.")
    ] = Path(".graduate"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Run the stages of a file over a dataset's train rows.

    Example: graduate train curate .graduate/datasets/tickets-0123456789abcdef --config curate.yaml --dry-run
    """
    from router.home import Home
    from training.commands import operator_errors, progress_bar
    from training.curate import report, stages
    from training.curate.config import load
    from training.dataset import Dataset

    with operator_errors():
        chosen = load(config)
        parent = Dataset.load(dataset)
        with progress_bar(quiet=as_json) as tell:
            result = stages.curate(
                parent,
                chosen,
                lambda phase, done, total: tell(phase, done, total, None),
                models=Home(home).models,
            )
            if effect:
                result.reports["effect"] = _effect(
                    parent, chosen, result, lambda done, total: tell("effect", done, total, None)
                )
        found = report.as_dict(result, chosen.seed)
        query = {"curate": chosen.model_dump(mode="json", by_alias=True, exclude_defaults=True)}
        path: Path | None = None
        digest = parent.info.digest
        if not dry_run:
            made = stages.write(
                parent, result.examples, result.entries, query, out or dataset.resolve().parent,
                lambda folder: report.write(found, folder),
            )  # fmt: skip
            path, digest = made.path, made.info.digest
    _show(found, path, digest, parent.info.digest, as_json)


def _effect(
    parent: "Dataset", chosen: "CurateConfig", result: "Result", tell: Callable[[int, int], None]
) -> dict[str, Any]:
    from training.curate.effect import measure

    return measure(
        parent.of("train"), result.train, result.unbalanced, parent.of("validation"), parent.info.answer,
        chosen.balance, chosen.seed, tell,
    )  # fmt: skip


@app.command()
def restore(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder that curate made.")],
    rule: Annotated[list[str] | None, typer.Option(help="Undo this rule; again for more.")] = None,
    stage: Annotated[
        list[str] | None, typer.Option(help="Undo this stage; again for more.")
    ] = None,
    row: Annotated[
        list[str] | None, typer.Option("--id", help="Undo for this row; again for more.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the new dataset; default: beside the old one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Bring rows back that curation took out, and undo its changes, by the ledger.

    Example: graduate train curate restore .graduate/datasets/tickets-0123456789abcdef --rule "near duplicate"
    """
    from training.commands import operator_errors
    from training.commands import out as console
    from training.curate import stages
    from training.curate.ledger import Choice
    from training.dataset import Dataset
    from training.errors import ConfigError

    with operator_errors():
        if not (rule or stage or row):
            raise ConfigError("restore: say what: --rule, --stage or --id")
        choice = Choice(frozenset(rule or ()), frozenset(stage or ()), frozenset(row or ()))
        made, undone = stages.restore(
            Dataset.load(dataset), choice, out or dataset.resolve().parent
        )
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "path": str(made.path),
                    "digest": made.info.digest,
                    "undone": undone,
                    "counts": made.info.counts,
                }
            )
        )
        return
    console.print(f"{undone} ledger entries undone")
    console.print(f"written to {made.path}", soft_wrap=True)


@app.command()
def example() -> None:
    """Print a configuration with every stage and key.

    Example: graduate train curate example > curate.yaml
    """
    from training.curate.example import EXAMPLE

    typer.echo(EXAMPLE, nl=False)


def _show(
    found: dict[str, Any], path: Path | None, digest: str, parent: str, as_json: bool
) -> None:
    from training.commands import out
    from training.curate import report

    if as_json:
        head = {
            "path": str(path) if path else None,
            "digest": digest,
            "parent": parent,
            "dry_run": path is None,
        }
        typer.echo(json.dumps(head | found, ensure_ascii=False))
        return
    report.show(found, out)
    if path is None:
        out.print("dry run: nothing was written")
    else:
        out.print(f"written to {path}", soft_wrap=True)


def register(parent: typer.Typer) -> None:
    """Mount the commands."""
    parent.add_typer(app, name="curate", help=HELP)
