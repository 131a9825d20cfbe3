"""What an evaluation leaves in its folder: `evaluation.json`, the answers a row, and pictures."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from training import eval_plots, plots
from training.dataset import Dataset
from training.evaluate import STUDENT, Evaluation, TestReport

ROWS = ("examples", "references")
LINE_ROWS = ("predictions", "rouge")
"""What has one entry a row: it goes into the answers' file, not into the report."""


def write(report: Evaluation, dataset: Dataset, folder: Path) -> dict[str, Path]:
    """The report, the answers and the pictures are in `folder`; names of what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"evaluation": write_report(report, folder)}
    for test in report.tests:
        path = folder / f"answers-{test.split}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in answer_rows(test))
        files[f"answers {test.split}"] = path
        files |= _confusions(test, folder)
        if test.slices:
            path = folder / f"slices-{test.split}.png"
            eval_plots.slices(test, f"{report.task}: {test.split}, {test.rows} rows", path)
            files[f"slices {test.split}"] = path
        if any(line.scores.curve for line in test.lines):
            path = folder / f"roc-{test.split}.png"
            eval_plots.roc(test, f"{report.task}: {test.split}, {test.rows} rows", path)
            files[f"roc {test.split}"] = path
        if test.hybrid:
            path = folder / f"hybrid-{test.split}.png"
            _hybrid(test, dataset.info.task, path)
            files[f"hybrid {test.split}"] = path
    return files


def write_report(report: Evaluation, folder: Path) -> Path:
    """`evaluation.json` is in `folder`; where."""
    path = folder / "evaluation.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(plain(report)), indent=2))
    return path


def answer_rows(test: TestReport) -> Iterator[dict[str, Any]]:
    """One row after another: the reference, what everybody said, and how near it came."""
    for i, example in enumerate(test.examples):
        yield {
            "id": example.id,
            "reference": test.references[i],
            "gold": example.gold,
            "answers": {
                line.name: {
                    "text": line.predictions[i].text,
                    "right": line.figures.right[i],
                    "confidence": line.predictions[i].confidence,
                }
                | ({"rouge": line.rouge[i]} if line.rouge else {})
                for line in test.lines
            },
        }


def plain(report: Evaluation) -> dict[str, Any]:
    """The report as JSON values, without what has one entry a row."""
    found = asdict(report)
    for test in found["tests"]:
        for name in ROWS:
            test.pop(name)
        for line in test["lines"]:
            line["figures"].pop("right")
            for name in LINE_ROWS:
                line.pop(name)
    return found


def _confusions(test: TestReport, folder: Path) -> dict[str, Path]:
    files = {}
    for name, found in test.line(STUDENT).figures.fields.items():
        path = folder / f"confusion-{test.split}-{name}.png"
        classes = sorted({*found.confusion, *(a for row in found.confusion.values() for a in row)})
        plots.confusion(found.confusion, classes, f"student, {name}, {test.split}", path)
        files[f"confusion {name} {test.split}"] = path
    return files


def _hybrid(test: TestReport, task: str, path: Path) -> None:
    h = test.hybrid
    assert h is not None
    plots.hybrid_curve(
        [p.handed_over for p in h.curve],
        [p.accuracy for p in h.curve],
        teacher=h.teacher_alone.share,
        chosen=(h.handed_over, h.accuracy.share, (h.accuracy.low, h.accuracy.high)),
        reference=test.reference,
        title=f"{task}: {test.split}, {test.rows} rows",
        path=path,
    )
