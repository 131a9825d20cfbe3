"""`graduate train preflight` and `graduate train fit`."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

DatasetOption = Annotated[
    Path | None,
    typer.Option("--dataset", help="Dataset folder; default: the newest one in the home."),
]
ModelOption = Annotated[
    str, typer.Option("--model", help="Base model: a folder, a GGUF file, a hub id, or smollm2.")
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="Run file, YAML.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="One key of it: lora.rank=8; may be given again.")
]
HomeOption = Annotated[Path, typer.Option("--home", help="State folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def preflight(
    dataset: DatasetOption = None,
    home: HomeOption = Path(".graduate"),
    model: ModelOption = "smollm2",
    config: ConfigOption = None,
    assign: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what tokenizer and template make of a dataset, and refuse what cannot be trained. Nothing is trained.

    Example: graduate train preflight --dataset .graduate/datasets/tickets-0a1b…
    """
    from router.home import Home
    from training import config as configs
    from training import preflight as core
    from training.commands import newest, open_base_model, operator_errors
    from training.dataset import Dataset

    place = Home(home)
    with operator_errors():
        settings = configs.load(config, assign or ())
        data = Dataset.load(dataset or newest(place.datasets, "*-*", "dataset"))
        base = open_base_model(model, place)
        report = core.preflight(data, base.model, base.tokenizer, settings)
        core.show(report, as_json)
        core.enforce(report)


def fit(
    dataset: DatasetOption = None,
    home: HomeOption = Path(".graduate"),
    model: ModelOption = "smollm2",
    config: ConfigOption = None,
    assign: SetOption = None,
    run: Annotated[
        Path | None, typer.Option(help="Run folder; an interrupted run in it goes on.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train an adapter: preflight first, then LoRA with early stopping; a loss curve and checkpoints in the run folder.

    Example: graduate train fit --set epochs=4 --set lora.top_layers=10
    """
    from router.home import Home
    from training import config as configs
    from training import preflight as core
    from training.commands import (
        err,
        newest,
        open_base_model,
        operator_errors,
        out,
        progress_bar,
    )
    from training.dataset import Dataset
    from training.train import FitEvent, Run

    place = Home(home)
    with operator_errors():
        settings = configs.load(config, assign or ())
        data = Dataset.load(dataset or newest(place.datasets, "*-*", "dataset"))
        base = open_base_model(model, place)
        report = core.preflight(data, base.model, base.tokenizer, settings)
        if not as_json:
            core.show(report, False, err)
        core.enforce(report)
        folder = (
            run or place.runs / f"{data.info.task}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
        )
        with progress_bar(quiet=as_json) as tell:

            def told(event: FitEvent) -> None:
                tell(event.phase, event.done, event.total, event.loss)

            result = Run(folder, settings, data, base.model, base.tokenizer, told).fit()
        origin = {
            "dataset": str(data.path.resolve()), "dataset_digest": data.info.digest,
            "base_model": base.id, "base_model_digest": base.digest, "model": model,
        }  # fmt: skip
        (folder / "origin.json").write_text(json.dumps(origin, indent=2))
    if as_json:
        typer.echo(json.dumps({"run": str(folder), **asdict(result)}))
        return
    best = result.epochs[result.best - 1]
    out.print(
        f"[bold]{folder}[/]: best epoch {result.best} of {len(result.epochs)}, validation loss {best.validation_loss:.4f}, "
        f"{100 * best.exact_share:.1f} % of held-out answers exact; {result.trained_parameters:,} weights, "
        f"{result.seconds:.0f} s, {result.rows_per_second:.1f} rows/s; curve: {folder / 'curve.png'}",
        soft_wrap=True,
        highlight=False,
    )


def register(app: typer.Typer) -> None:
    """Mount both commands."""
    app.command(name="preflight")(preflight)
    app.command(name="fit")(fit)
