"""`graduate train preflight` and `graduate train fit`."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from serving.base_model import BaseModel
    from training.config import FitConfig
    from training.curriculum import Curriculum
    from training.dataset import Dataset
    from training.train import Run, RunResult, Tell
    from training.trl_run import TrlRun

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
    overfit: Annotated[
        int,
        typer.Option(
            help="Learn so many training rows by heart (32 say) as a check of the set-up.", min=0
        ),
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Show what tokenizer and template make of a dataset, and refuse what cannot be trained. Nothing is trained.

    Example: graduate train preflight --dataset .graduate/datasets/tickets-0a1b… --overfit 32
    """
    from router.home import Home
    from training import config as configs
    from training import preflight as core
    from training.commands import newest, open_base_model, operator_errors, progress_bar
    from training.dataset import Dataset

    place = Home(home)
    with operator_errors():
        settings = configs.load(config, assign or ())
        data = Dataset.load(dataset or newest(place.datasets, "*-*", "dataset"))
        base = open_base_model(model, place)
        with progress_bar(quiet=as_json) as tell:
            report = core.preflight(
                data, base.model, base.tokenizer, settings, overfit_rows=overfit, tell=tell
            )
        core.show(report, as_json)
        core.enforce(report)


def fit(
    dataset: DatasetOption = None,
    home: HomeOption = Path(".graduate"),
    model: ModelOption = "smollm2",
    config: ConfigOption = None,
    assign: SetOption = None,
    run: Annotated[
        Path | None,
        # torchrun reads `--run` as an abbreviation of its own options, even behind the command that it starts.
        typer.Option("--run", "--run-folder", help="Run folder; an interrupted run in it goes on."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="`label` (short answers, fast) or `trl` (any answer); over the run file's."
        ),
    ] = None,
    preference: Annotated[
        Path | None,
        typer.Option(help="Folder of `train pairs`: train on preferences (DPO, engine trl)."),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            help="Run whose adapter is trained further, and DPO's reference (engine trl)."
        ),
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            help="`local`; `k8s-job` or `trainjob` run the fit in a cluster, on the dataset of that name there."
        ),
    ] = "local",
    cluster: Annotated[
        Path | None, typer.Option(help="YAML: namespace, image, claim, gpus … of such a job.")
    ] = None,
    render: Annotated[
        Path | None, typer.Option(help="Write the job's manifest here instead of submitting it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train an adapter: preflight first, then LoRA with early stopping; a loss curve and checkpoints in the run folder.

    Example: graduate train fit --set epochs=4 --set lora.top_layers=10
    """
    from router.home import Home
    from training import config as configs
    from training import precision
    from training import preflight as core
    from training.commands import err, newest, open_base_model, operator_errors, progress_bar
    from training.dataset import Dataset
    from training.train import FitEvent

    place = Home(home)
    with operator_errors():
        settings = configs.load(config, _with_engine(assign or [], engine, preference, start))
        if backend != "local":
            job = _job(backend, cluster, settings, dataset, model, run, preference or start)
            _send(job, render, as_json)
            return
        data = Dataset.load(dataset or newest(place.datasets, "*-*", "dataset"))
        base = open_base_model(model, place)
        # torchrun numbers its processes by the environment; only the first one is heard.
        quiet = as_json or os.environ.get("RANK", "0") != "0"
        with progress_bar(quiet) as tell:
            report = core.preflight(data, base.model, base.tokenizer, settings, tell=tell)
        if not quiet:
            core.show(report, False, err)
        core.enforce(report)
        folder = (
            run or place.runs / f"{data.info.task}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
        )
        with progress_bar(quiet=quiet) as tell:

            def told(event: FitEvent) -> None:
                tell(event.phase, event.done, event.total, event.loss)

            made = _make(folder, settings, data, base, told, preference, start)
            result = made.fit()
        stages = [str(s.dataset.resolve()) for s in settings.stages if s.dataset is not None]
        origin = {
            "dataset": str(data.path.resolve()), "dataset_digest": data.info.digest,
            "base_model": base.id, "base_model_digest": base.digest, "model": model,
            "precision": precision.trained_in(settings),
            **({"pairs": str(preference.resolve())} if preference else {}),
            **({"start": str(start.resolve())} if start else {}),
            **({"stage_datasets": stages} if stages else {}),
        }  # fmt: skip
        if made.is_main:
            (folder / "origin.json").write_text(json.dumps(origin, indent=2))
    if made.is_main:
        _show_result(folder, result, as_json)


def _with_engine(
    assign: list[str], engine: str | None, preference: Path | None, start: Path | None
) -> list[str]:
    """`--set` with the engine that the other flags ask for.

    Raises:
        ConfigError: they contradict each other.
    """
    from training.errors import ConfigError

    needs_trl = preference is not None or start is not None
    if engine == "label" and needs_trl:
        flag = "--preference" if preference is not None else "--start"
        raise ConfigError(f"--engine 'label': {flag} needs engine trl")
    if engine is None and needs_trl:
        engine = "trl"
    return assign if engine is None else [*assign, f"engine={engine}"]


def _job(
    backend: str,
    file: Path | None,
    settings: "FitConfig",
    dataset: Path | None,
    model: str,
    run: Path | None,
    local_only: Path | None,
) -> dict[str, Any]:
    """The manifest.

    Raises:
        ConfigError: an unknown backend or key, or a flag that such a job cannot have.
    """
    from training import backends
    from training.config import load_as
    from training.errors import ConfigError

    makers = {"k8s-job": backends.job, "trainjob": backends.train_job}
    if backend not in makers:
        raise ConfigError(f"--backend {backend!r}: allowed: local, {', '.join(makers)}")
    if dataset is None:
        raise ConfigError(
            f"--backend {backend!r}: name the dataset by --dataset: the home is the cluster's"
        )
    if local_only is not None:
        raise ConfigError(f"{local_only}: --preference and --start are for --backend local")
    name = run.name if run else f"{dataset.name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    where = load_as(backends.Cluster, file)
    return makers[backend](where, settings, dataset=dataset.name, model=model, run=name)


def _send(manifest: dict[str, Any], render: Path | None, as_json: bool) -> None:
    """Write the manifest, or hand it to the cluster."""
    import yaml

    from training import backends
    from training.commands import out

    name = manifest["metadata"]["name"]
    if render is not None:
        render.write_text(yaml.safe_dump(manifest, sort_keys=False))
        told = f"written to {render}"
    else:
        told = backends.submit(manifest)
    if as_json:
        typer.echo(json.dumps({"name": name, "kind": manifest["kind"], "told": told}))
        return
    out.print(told, soft_wrap=True, highlight=False)


def _make(
    folder: Path,
    settings: "FitConfig",
    data: "Dataset",
    base: "BaseModel",
    tell: "Tell",
    preference: Path | None,
    start: Path | None,
) -> "Run | TrlRun | Curriculum":
    """The run by the engine that the configuration names, or its stages.

    Raises:
        ConfigError: TRL or TensorBoard is not installed, or stages are asked for on pairs.
        DataError: the pairs, the run to start from, or a stage's dataset are not there or do not fit.
    """
    from training import preference as preferences
    from training.curriculum import Curriculum, StageOrder
    from training.curves import require_tensorboard
    from training.engines import make_run
    from training.errors import ConfigError, DataError

    if settings.tensorboard:
        require_tensorboard()
    if settings.stages and preference is not None:
        raise ConfigError("stages: are of the dataset's rows; --preference takes none")
    adapter = start / "adapter" if start is not None else None
    if adapter is not None and not (adapter / "adapter_config.json").exists():
        raise DataError(f"--start {start}: no adapter in it; allowed: a run folder")
    pairs = preferences.load(preference) if preference is not None else None
    model = base.model
    if settings.engine == "trl" and settings.trl.precision == "nf4":
        from training.trl_settings import load_four_bit

        model = load_four_bit(base.path, settings)

    def make(order: StageOrder) -> "Run | TrlRun":
        return make_run(order, model, base.tokenizer, pairs=pairs)

    if settings.stages:
        return Curriculum(folder, settings, data, model, base.tokenizer, make, tell, start=adapter)
    return make(StageOrder(folder, settings, data, adapter, tell))


def _show_result(folder: Path, result: "RunResult", as_json: bool) -> None:
    from training.commands import out

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
