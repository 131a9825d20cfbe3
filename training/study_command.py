"""`graduate train study jigsaw` and the job that it starts for each fit."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from training.jobs import Job, QueueState
    from training.study import JobSpec

study = typer.Typer(no_args_is_help=True, help="Case studies, run from data to report.")


def study_job(
    spec: Annotated[Path, typer.Argument(help="The job's file, written by the study.")],
) -> None:
    """One fit of a study, for at most a slice of time; the study starts it.

    Example: graduate train study-job .graduate/studies/jigsaw/jobs/A-0.json
    """
    from serving import base_model
    from training.commands import operator_errors
    from training.jobs import PAUSED
    from training.study import JobSpec, run_job
    from training.train import RunPaused

    began = time.monotonic()
    with operator_errors():
        job = JobSpec.model_validate_json(spec.read_bytes())
        base = base_model.load(job.model, Path(job.models)) if job.kind == "student" else None
        try:
            run_job(job, base, began + job.slice_seconds)
        except RunPaused as why:
            raise typer.Exit(PAUSED) from why


@study.command()
def jigsaw(
    data: Annotated[Path, typer.Option(help="Folder with the playbook's files.")],
    home: Annotated[Path, typer.Option(help="State folder.")] = Path(".graduate"),
    model: Annotated[
        str, typer.Option(help="Base model: a folder, a GGUF file, a hub id, or smollm2.")
    ] = "smollm2",
    arms: Annotated[str, typer.Option(help="Which arms.")] = "A,B,C,control,D,E",
    seeds: Annotated[int, typer.Option(help="Seeds an arm.", min=1, max=20)] = 3,
    config: Annotated[
        Path | None, typer.Option(help="Recipe, YAML; default: the chosen one.")
    ] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", help="One key of it: fit.epochs=2; may be given again."),
    ] = None,
    tune: Annotated[
        bool,
        typer.Option(help="Score the tuning rows instead of the test sets: for choosing a recipe."),
    ] = False,
    extra_test: Annotated[
        list[Path] | None, typer.Option(help="One more test set, CSV with the same columns.")
    ] = None,
    workers: Annotated[int, typer.Option(help="One-thread jobs side by side.", min=1)] = 2,
    launcher: Annotated[str, typer.Option(help='Laid before each job: "nice -n 15".')] = "",
    slice_seconds: Annotated[
        float, typer.Option(help="A job saves itself and starts anew after so long.", min=1)
    ] = 1800.0,
    minutes: Annotated[
        float | None,
        typer.Option(help="Start no job after so long; the same command goes on later."),
    ] = None,
    report_only: Annotated[bool, typer.Option(help="Fit nothing; report what is there.")] = False,
    keep: Annotated[
        Path | None,
        typer.Option(
            help="An earlier result (JSON): arms that are not among --arms keep its figures."
        ),
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Where the JSON goes; default: the study's folder.")
    ] = None,
    page: Annotated[Path | None, typer.Option(help="Where the Markdown goes.")] = None,
    images: Annotated[Path | None, typer.Option(help="Where the pictures go.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train the playbook's arms, score the frozen test sets, compare, and say what the figures support.

    A cut study goes on where it was: fits and scores are files. Test labels are read by the report alone, and counted.

    Example: graduate train study jigsaw --data ../data/jigsaw --arms A,E --seeds 3
    """
    from training import study_keep, study_report, study_words
    from training.commands import operator_errors, out
    from training.study import TUNING, JobSpec, Place, plan, read_recipe, rows_of, wanted_arms
    from training.study_data import TESTS

    folder = home.resolve() / "studies" / "jigsaw"
    with operator_errors():
        chosen = wanted_arms(arms)
        recipe = read_recipe(config, assign or ())
        sets = (TUNING,) if tune else (*TESTS, *(str(p.resolve()) for p in extra_test or ()))
        earlier = None if keep is None else study_keep.read(keep)
        for name in sets:
            rows_of(data, name)  # a wrong file is refused before anything is trained
        make = JobSpec(
            kind="student", arm="A", seed=0, data=str(data.resolve()), out=str(folder), model=model,
            models=str(home.resolve() / "models"), recipe=recipe, sets=sets, slice_seconds=slice_seconds,
        )  # fmt: skip
        if not report_only:
            _run(plan(chosen, range(seeds), make), workers, launcher, minutes, as_json)
        study = study_report.Study(
            data, Place(folder), recipe, chosen, tuple(range(seeds)), sets,
            purpose="tune" if tune else "report",
        )  # fmt: skip
        found = study_report.report(study)
        name = "tuning" if tune else "jigsaw"
        shown, written = study_report.write(
            found,
            results or folder / f"{name}.json",
            page or folder / f"{name}.md",
            images or folder,
            earlier,
        )
    if as_json:
        typer.echo(json.dumps(shown))
        return
    out.print(study_words.markdown(shown), highlight=False, soft_wrap=True)
    out.print("written: " + ", ".join(str(p) for p in written), highlight=False, soft_wrap=True)


def _run(
    specs: "list[JobSpec]", workers: int, launcher: str, minutes: float | None, quiet: bool
) -> None:
    """Run the jobs with a bar.

    Raises:
        DataError: a job failed, with what it said last.
    """
    from training.commands import progress_bar
    from training.errors import DataError
    from training.jobs import Queue, last_line

    jobs = [_job(spec) for spec in specs]
    queue = Queue(workers, launcher)
    if minutes is not None:
        queue.deadline = time.monotonic() + 60 * minutes
    with progress_bar(quiet) as tell:

        def told(state: "QueueState") -> None:
            tell("fits", state.done, state.total, None)

        failed = queue.run(jobs, told)
    if failed:
        log = next(job.log for job in jobs if job.name == failed[0])
        raise DataError(f"job {failed[0]} failed: {last_line(log)} ({log})")


def _job(spec: "JobSpec") -> "Job":
    """The job's file and command; its result is the first set that is not scored yet."""
    import sys

    from training.jobs import Job
    from training.study import fit_of, set_name

    fit, out = fit_of(spec), Path(spec.out)
    file = out / "jobs" / f"{fit.folder.name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(spec.model_dump_json())
    names = [set_name(name) for name in spec.sets]
    missing = [name for name in names if not fit.score_file(name).exists()]
    return Job(
        fit.folder.name,
        (sys.executable, "-m", "graduate", "train", "study-job", str(file)),
        fit.score_file((missing or names)[-1]),
        out / "logs" / f"{fit.folder.name}.log",
    )


def register(app: typer.Typer) -> None:
    """Mount the study and its job."""
    app.add_typer(study, name="study")
    app.command(name="study-job", hidden=True)(study_job)
