"""One run of an experiment as a job: fit, then which validation rows the best adapter gets exactly right."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from pydantic import BaseModel, ConfigDict

from training import label_engine as engine
from training.config import FitConfig
from training.curriculum import Curriculum, StageOrder
from training.dataset import Dataset, DatasetInfo
from training.engines import make_run
from training.experiments import Planned, nested_rows
from training.predict import ModelPredictor
from training.states import StateCache
from training.train import Run, RunResult

RESULT = "result.json"


class ExperimentJob(BaseModel):
    """What one process of an experiment does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    change: str
    config: FitConfig
    seed: int
    share: float
    budget: str | None
    dataset: str
    model: str
    models: str
    folder: str
    """The experiment's folder."""
    slice_seconds: float
    is_rung: bool = False
    timed_rows: int = 0
    """Validation rows that are answered one at a time, for the latency."""


class RunFigures(msgspec.Struct, frozen=True):
    """What one run gave; it is written to `RESULT` in the run's folder."""

    name: str
    group: str
    change: str
    seed: int
    share: float
    budget: str | None
    rows: int
    accuracy: float
    """Share of validation rows whose whole answer is exactly right."""
    validation_loss: float
    right: dict[str, bool]
    epochs: int
    best_epoch: int
    seconds: float
    rows_per_second: float
    trained_parameters: int
    model: str = ""
    is_rung: bool = False
    """A run of the ladder, on another base model than the baseline's."""
    parameters: int = 0
    """Of the base model."""
    train_loss: float | None = None
    """Of the best epoch."""
    answer_ms: float | None = None
    """Median of the timed rows; None when none were."""
    answer_ms_p95: float | None = None


def part_of(dataset: Dataset, share: float, seed: int) -> Dataset:
    """The dataset with a share of its training rows; validation rows stay as they are."""
    if share >= 1:
        return dataset
    kept = set(nested_rows([e.id for e in dataset.of("train")], share, seed))
    examples = tuple(e for e in dataset.examples if e.split != "train" or e.id in kept)
    counts = {**dataset.info.counts, "train": len(kept)}
    info: DatasetInfo = msgspec.structs.replace(dataset.info, counts=counts)
    return replace(dataset, info=info, examples=examples)


def run_job(job: ExperimentJob, base: Any, pause_at: float) -> RunFigures:
    """Do the run, or go on with it; its figures are on disk then.

    Raises:
        RunPaused: the time was up.
    """
    from training import lora

    folder = Path(job.folder) / "runs" / job.name
    dataset = part_of(Dataset.load(Path(job.dataset)), job.share, job.seed)
    layers = len(lora.decoder_of(base.model).layers)
    first = max(0, layers - (job.config.lora.top_layers or layers))
    cache = StateCache(Path(job.folder) / "states" / f"{base.digest}-{first}")
    began = time.perf_counter()
    run, result = _fitted(folder, job.config, dataset, base, cache, pause_at)
    lora.restore_adapter(run.adapted, folder / "adapter")
    with run.products():
        states = run.cache("validation rows", run.validation)
        held = engine.validate(
            run.adapted, run.validation, states, job.config.batch_size * 2, run.shift
        )
        median, tail = answer_times(run, dataset, base.tokenizer, job.timed_rows)
    seconds = sum(e.seconds for e in result.epochs)
    found = RunFigures(
        name=job.name, group=job.name.rpartition("-s")[0], change=job.change, seed=job.seed, share=job.share,
        budget=job.budget, rows=len(run.train), accuracy=held.exact_share, validation_loss=held.loss,
        right=dict(zip((r.id for r in run.validation), held.exact, strict=True)), epochs=len(result.epochs),
        best_epoch=result.best, seconds=seconds or time.perf_counter() - began,
        rows_per_second=result.rows_per_second, trained_parameters=result.trained_parameters, model=job.model,
        is_rung=job.is_rung, parameters=sum(p.numel() for p in base.model.parameters()) - result.trained_parameters,
        train_loss=result.epochs[result.best - 1].train_loss, answer_ms=median, answer_ms_p95=tail,
    )  # fmt: skip
    partial = folder / f"{RESULT}.partial"
    partial.write_bytes(msgspec.json.encode(found))
    partial.replace(folder / RESULT)
    return found


def answer_times(
    run: Run, dataset: Dataset, tokenizer: Any, rows: int
) -> tuple[float | None, float | None]:
    """Median and 95th percentile of one greedy answer, ms, one at a time after one that is not counted."""
    chosen = dataset.of("validation")[:rows]
    if not chosen:
        return None, None
    longest = max(len(row.completion_ids) for row in run.validation)
    student = ModelPredictor(
        "student", run.adapted.eval(), tokenizer, dataset.info.prompt, dataset.info.max_input_chars,
        max_new_tokens=longest + 8, batch_size=1,
    )  # fmt: skip
    student.predict(chosen[:1])
    times = [1000 * answer.latency_seconds for answer in student.predict(chosen)]
    return float(np.median(times)), float(np.quantile(times, 0.95))


def _fitted(
    folder: Path, config: FitConfig, dataset: Dataset, base: Any, cache: StateCache, pause_at: float
) -> tuple[Run, RunResult]:
    """The finished run's result, and a run to measure its adapter in: its own, or one that is never trained."""

    def make(order: StageOrder) -> Any:
        return make_run(order, base.model, base.tokenizer, states=cache, pause_at=pause_at)

    whole = StageOrder(folder, config, dataset, None, lambda event: None)
    if config.stages:
        result = Curriculum(folder, config, dataset, base.model, base.tokenizer, make).fit()
    else:
        run = make(whole)
        result = run.fit()
        if isinstance(run, Run):
            return run, result
        run.adapted.unload()
    measured = make(
        replace(whole, config=config.model_copy(update={"stages": (), "engine": "label"}))
    )
    assert isinstance(measured, Run)
    return measured, result


def job_of(planned: Planned, **where: Any) -> ExperimentJob:
    """A planned run with the paths that its process needs."""
    return ExperimentJob(
        name=planned.name, change=planned.change, config=planned.config, seed=planned.seed, share=planned.share,
        budget=planned.budget, is_rung=planned.model is not None, **where,
    )  # fmt: skip


def read_results(folder: Path) -> list[RunFigures]:
    """The runs of an experiment that are done."""
    files = sorted((folder / "runs").glob(f"*/{RESULT}"))
    return [msgspec.json.decode(file.read_bytes(), type=RunFigures) for file in files]


def write_job(job: ExperimentJob) -> Path:
    """The job's file."""
    file = Path(job.folder) / "jobs" / f"{job.name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(job.model_dump(mode="json"), indent=1))
    return file
