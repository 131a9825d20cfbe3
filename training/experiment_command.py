"""`graduate train experiment` and the job that it starts for each run."""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from training.experiment_report import ExperimentReport
    from training.experiments import Experiment, Planned
    from training.jobs import Job, QueueState
    from training.ladder import Climb


def experiment_job(
    spec: Annotated[Path, typer.Argument(help="The job's file, written by the experiment.")],
) -> None:
    """One run of an experiment, for at most a slice of time; the experiment starts it.

    Example: graduate train experiment-job .graduate/experiments/ranks/jobs/baseline-s0.json
    """
    from serving import base_model
    from training.commands import operator_errors
    from training.experiment_run import ExperimentJob, run_job
    from training.jobs import PAUSED
    from training.train import RunPaused

    began = time.monotonic()
    with operator_errors():
        job = ExperimentJob.model_validate_json(spec.read_bytes())
        base = base_model.load(job.model, Path(job.models))
        try:
            run_job(job, base, began + job.slice_seconds)
        except RunPaused as why:
            raise typer.Exit(PAUSED) from why


def experiment(
    config: Annotated[
        Path, typer.Argument(help="The experiment, YAML: name, baseline, vary, sizes, ladder.")
    ],
    home: Annotated[Path, typer.Option(help="State folder.")] = Path(".graduate"),
    dataset: Annotated[
        Path | None, typer.Option(help="Dataset folder; default: the file's, else the newest.")
    ] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", help="One key of the file: seeds=5; may be given again."),
    ] = None,
    workers: Annotated[int, typer.Option(help="One-thread runs side by side.", min=1)] = 2,
    launcher: Annotated[str, typer.Option(help='Laid before each run: "nice -n 15".')] = "",
    slice_seconds: Annotated[
        float, typer.Option(help="A run saves itself and starts anew after so long.", min=1)
    ] = 1800.0,
    minutes: Annotated[
        float | None,
        typer.Option(help="Start no run after so long; the same command goes on later."),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Only say which runs there would be.")] = False,
    report_only: Annotated[bool, typer.Option(help="Run nothing; report what is there.")] = False,
    images: Annotated[
        Path | None, typer.Option(help="Where the pictures go; default: the experiment's folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Change one thing at a time and say what is more than noise; fit what more rows would bring; climb a ladder of models.

    A run that differs from the baseline in two things is refused. Runs are measured on validation rows; test sets stay
    unread. A cut experiment goes on where it was.

    Example: graduate train experiment examples/experiments/tickets.yaml --workers 2
    """
    from training import experiments
    from training.commands import operator_errors, out

    with operator_errors():
        chosen = experiments.load(config, assign or ())
        planned = experiments.plan(chosen, str(config))
        folder = home.resolve() / "experiments" / chosen.name
        if dry_run:
            lines = [
                {"run": p.name, "change": p.change, "seed": p.seed, "share": p.share, "model": p.model or chosen.base}
                for p in planned
            ]  # fmt: skip
            typer.echo(json.dumps(lines) if as_json else "\n".join(p.name for p in planned))
            return
        if not report_only:
            jobs = _jobs(chosen, planned, folder, home, dataset, slice_seconds)
            parts = _parts(planned)
            deadline = None if minutes is None else time.monotonic() + 60 * minutes
            for rung, part in enumerate(parts):
                if rung and _climbed(chosen, folder).is_over:
                    break
                _run([jobs[p.name] for p in part], workers, launcher, deadline, as_json)
        found, files = _report(chosen, planned, folder, images or folder)
    if as_json:
        typer.echo(json.dumps({**asdict(found), "files": [str(f) for f in files]}))
        return
    _show(found, files, out)


def _jobs(
    chosen: "Experiment", planned: "list[Planned]", folder: Path, home: Path, dataset: Path | None, slice_seconds: float
) -> "dict[str, Job]":  # fmt: skip
    """The job of each run by its name; their files are written."""
    from router.home import Home
    from training.commands import newest
    from training.dataset import Dataset
    from training.errors import DataError
    from training.experiment_run import RESULT, job_of, write_job
    from training.jobs import Job

    place = Home(home)
    data = dataset or (Path(chosen.dataset) if chosen.dataset else newest(place.datasets, "*-*", "dataset"))  # fmt: skip
    if not Dataset.load(data).of("validation"):
        raise DataError(f"{data}: no validation rows; an experiment is measured on them")
    jobs = {}
    for one in planned:
        is_timed = chosen.ladder is not None and (one.model is not None or not one.change)
        spec = job_of(
            one, dataset=str(data.resolve()), model=one.model or chosen.base, models=str(place.models.resolve()),
            folder=str(folder), slice_seconds=slice_seconds,
            timed_rows=chosen.ladder.timed_rows if chosen.ladder and is_timed else 0,
        )  # fmt: skip
        spec = spec.model_copy(update={"config": spec.config.model_copy(update={"threads": 1})})
        file = write_job(spec)
        command = (sys.executable, "-m", "graduate", "train", "experiment-job", str(file))
        result = folder / "runs" / one.name / RESULT
        jobs[one.name] = Job(one.name, command, result, folder / "logs" / f"{one.name}.log")
    return jobs


def _parts(planned: "list[Planned]") -> "list[list[Planned]]":
    """What is run without asking, then each rung of the ladder apart: a rung is run only when the one below held."""
    rungs: dict[str, list[Planned]] = {}
    for one in planned:
        if one.model is not None:
            rungs.setdefault(one.model, []).append(one)
    return [[one for one in planned if one.model is None], *rungs.values()]


def _climbed(chosen: "Experiment", folder: Path) -> "Climb":
    """The ladder as far as its runs are done."""
    from training import ladder
    from training.experiment_run import read_results

    asked = chosen.ladder
    assert asked is not None
    groups = ladder.groups_of(asked.models, chosen.base, chosen.seeds, read_results(folder))
    return ladder.climb(
        groups, len(asked.models), worth=asked.worth_points / 100, usd_per_hour=asked.usd_per_hour,
        climb_all=asked.climb_all,
    )  # fmt: skip


def _run(
    jobs: "list[Job]", workers: int, launcher: str, deadline: float | None, quiet: bool
) -> None:
    """Run the jobs with a bar.

    Raises:
        DataError: one failed, with what it said last.
    """
    from training.commands import progress_bar
    from training.errors import DataError
    from training.jobs import Queue, last_line

    queue = Queue(workers, launcher, deadline)
    with progress_bar(quiet) as tell:

        def told(state: "QueueState") -> None:
            tell("runs", state.done, state.total, None)

        failed = queue.run(jobs, told)
    if failed:
        log = next(job.log for job in jobs if job.name == failed[0])
        raise DataError(f"run {failed[0]} failed: {last_line(log)} ({log})")


def _report(
    chosen: "Experiment", planned: "list[Planned]", folder: Path, images: Path
) -> "tuple[ExperimentReport, list[Path]]":
    """The report and what was written: JSON, the leaderboard as CSV, pictures."""
    from training import experiment_plots, experiment_report, experiments
    from training.experiment_run import read_results

    climb = _climbed(chosen, folder) if chosen.ladder else None
    if climb is not None and climb.is_over:  # rungs above the stop are not owed
        reached = {rung.model for rung in climb.rungs}
        planned = [p for p in planned if p.model is None or p.model in reached]
    names = {p.name for p in planned}
    runs = [r for r in read_results(folder) if r.name in names]
    sizes = chosen.sizes
    is_whole = (
        sizes is not None and 1.0 in sizes.shares and experiments.is_whole_the_baseline(chosen)
    )
    found = experiment_report.report(
        chosen.name, runs, len(planned), climb=climb, whole_is_baseline=is_whole,
        worth=sizes.worth_points / 100 if sizes else 0.01,
        usd_per_row=sizes.usd_per_row if sizes else None, usd_per_hour=sizes.usd_per_hour if sizes else None,
    )  # fmt: skip
    files = [folder / "report.json", folder / "leaderboard.csv"]
    folder.mkdir(parents=True, exist_ok=True)
    files[0].write_text(json.dumps(asdict(found), indent=1))
    files[1].write_text(experiment_report.to_csv(runs))
    if found.deltas:
        files.append(images / f"study-{chosen.name}-deltas.png")
        experiment_plots.deltas(found, files[-1])
    for ablation in found.ablations:
        files.append(images / f"study-{chosen.name}-rows-{ablation.budget}.png")
        experiment_plots.sizes(ablation, files[-1])
    if climb is not None and climb.rungs:
        files.append(images / f"study-{chosen.name}-ladder.png")
        experiment_plots.ladder(climb, files[-1])
    return found, files


def _show(found: "ExperimentReport", files: list[Path], out: Any) -> None:
    from rich.table import Table

    out.print(f"[bold]{found.name}[/]: {found.done} of {found.planned} runs done", highlight=False)
    if found.baseline is not None:
        table = Table(
            "change", "seeds", "accuracy, %", "delta, points [95 %]", "p", "loss", "speed", ""
        )
        base = found.baseline
        shown = f"{100 * base.share:.1f} [{100 * base.low:.1f}-{100 * base.high:.1f}]"
        table.add_row("baseline", str(found.baseline_seeds), shown, "", "", "", "", "")
        for d in found.deltas:
            grey = "dim" if d.word == "within the noise" else ""
            table.add_row(
                d.change, str(d.seeds), f"{100 * d.accuracy.share:.1f}",
                f"{100 * d.gap.difference:+.1f} [{100 * d.gap.low:+.1f}, {100 * d.gap.high:+.1f}]",
                f"{d.gap.p_value:.2g}", f"{d.loss_delta:+.4f}", f"{d.speed:.2f}×", d.word, style=grey,
            )  # fmt: skip
        out.print(table)
    if found.ladder is not None:
        _show_ladder(found.ladder, out)
    for sentence in found.sentences:
        out.print(sentence, highlight=False, soft_wrap=True)
    out.print("written: " + ", ".join(map(str, files)), highlight=False, soft_wrap=True)


def _show_ladder(climb: "Climb", out: Any) -> None:
    from rich.table import Table

    from training.ladder import short

    table = Table(
        "model", "weights, M", "seeds", "accuracy, %", "over the rung below [95 %]", "trained in, s", "ms an answer p50 / p95",
        "$ for 1,000", "",
    )  # fmt: skip
    for rung in climb.rungs:
        gain, share = rung.gain, rung.accuracy
        table.add_row(
            short(rung.model), f"{rung.parameters / 1e6:.3g}", str(rung.seeds),
            f"{100 * share.share:.1f} [{100 * share.low:.1f}-{100 * share.high:.1f}]",
            "" if gain is None else f"{100 * gain.difference:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]",
            f"{rung.training_seconds:.0f}",
            "" if rung.answer_ms is None else f"{rung.answer_ms:.0f} / {rung.answer_ms_p95:.0f}",
            "" if rung.answers_usd is None else f"{rung.answers_usd:.4f}",
            "take" if rung.model == climb.take and climb.is_over else "" if rung.holds else "stop",
        )  # fmt: skip
    out.print(table)


def register(app: typer.Typer) -> None:
    """Mount the experiment and its job."""
    app.command(name="experiment")(experiment)
    app.command(name="experiment-job", hidden=True)(experiment_job)
