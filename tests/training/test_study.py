"""The study: its files with their traps, thresholds, tests over seeds, the cascade's cut, the queue, and the whole on a tiny model."""

import csv
import json
import math
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from serving.base_model import BaseModel
from training import study, study_data, study_figures, study_keep, study_report, study_words
from training.config import FitConfig
from training.encode import Encoded
from training.errors import ConfigError, DataError
from training.jobs import PAUSED, Job, Queue, QueueState
from training.priors import threshold_for
from training.states import StateCache
from training.statistics import mcnemar
from training.study_fit import Recipe
from training.train import Run, RunPaused

GPT4 = study_data.GPT4
BAD = ("idiot", "moron", "stupid")
FINE = ("thanks", "source", "article", "please", "edit", "talk", "page", "history")


def comment(number: int, bad: bool) -> dict[str, str]:
    draw = random.Random(number)
    words = draw.choices(FINE, k=6)
    if bad:
        words.insert(draw.randint(0, 6), draw.choice(BAD))
    gold = dict.fromkeys(study_data.GOLD, "0") | {"toxic": str(int(bad))}
    said = f'```json\n{{\n  "is_bad": {int(bad != (number % 17 == 0))}\n}}\n```'
    return {"id": f"c{number}", "comment_text": " ".join(words) + f" {number}", **gold,
            "is_bad": str(bad), "simple_prompt": said}  # fmt: skip


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        out = csv.DictWriter(file, list(rows[0]))
        out.writeheader()
        out.writerows(rows)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The playbook's folder, small: the same files, names and traps."""
    folder = tmp_path_factory.mktemp("jigsaw")
    a = [comment(n, n % 5 == 0) for n in range(60)]
    b = a + [comment(n, n % 5 == 0) for n in range(60, 120)]
    d = b + [comment(n, True) for n in range(120, 160)]
    e = [comment(n, n % 5 == 0) for n in range(200, 360)]
    balanced = [comment(n, n % 2 == 0) for n in range(400, 440)]
    indist = [comment(n, n % 10 == 0) for n in range(500, 540)]
    for name, rows in (("train.5.a", a), ("train.5.b", b), ("train.6", d), ("train.5k", e),
                       ("test.balanced", balanced), ("test.indist.1", indist)):  # fmt: skip
        write(folder / f"{name}.{GPT4}" / f"{name}.{GPT4}.with_labels.csv", rows)
    agreed = [r for r in b if ('"is_bad": 1' in r["simple_prompt"]) == (r["toxic"] == "1")]
    write(folder / "train.5.c.csv", agreed)
    more = [{**comment(n, n % 5 == 0), "is_bad": "", "simple_prompt": ""} for n in range(600, 606)]
    write(folder / "train.5.d.csv", [*agreed, *more, agreed[0]])
    return folder


def test_each_arm_has_the_labels_that_it_should(data: Path) -> None:
    arms = {name: study_data.arm_rows(data, name) for name in study_data.ARMS}
    assert all(r.label == r.teacher for r in arms["A"] + arms["E"])
    assert any(r.label != r.gold for r in arms["A"])
    asked = {r.id for r in arms["A"]}
    assert all(r.label == (r.teacher if r.id in asked else r.gold) for r in arms["B"] + arms["D"])
    assert all(r.label == r.gold == r.teacher for r in arms["C"])
    fresh = [r for r in arms["control"] if r.teacher is None]
    assert len(fresh) == 6
    assert {r.label for r in fresh} == {"yes", "no"}
    assert len({r.id for r in arms["control"]}) == len(arms["control"])


def test_e_loses_or_corrects_the_rows_on_which_the_teacher_errs(data: Path) -> None:
    rows = study_data.arm_rows(data, "E")
    wrong = {r.id for r in rows if r.teacher != r.gold}
    assert wrong
    agreed = study_data.arm_rows(data, "E-agreed")
    assert agreed == [r for r in rows if r.id not in wrong]
    corrected = study_data.arm_rows(data, "E-corrected")
    assert [r.id for r in corrected] == [r.id for r in rows]
    assert all(r.label == r.gold for r in corrected)
    train, held = study_data.split_rows(agreed, 0, 0.15, 500)
    assert not wrong & {r.id for r in train + held}, "nor is the validation by them"


def test_an_arm_of_a_curation_rule_is_no_subset_of_the_playbook() -> None:
    line = {"test": "balanced", "against_rival": {"low": 0.01, "p_value": 0.01}}
    lines = [{**line, "arm": arm} for arm in (*study_data.PLAYBOOK_ARMS[1:4], "E-agreed")]
    (goal,) = study_words.goals(lines)
    assert goal["of"] == ["B", "C", "control"]
    assert not goal["met"]


def test_tuning_rows_are_in_no_test_set_and_in_neither_a_nor_e(data: Path) -> None:
    found = study_data.tuning_rows(data, each=20)
    taken = {r.id for arm in ("A", "E") for r in study_data.arm_rows(data, arm)}
    taken |= {r.id for test in study_data.TESTS for r in study_data.test_rows(data, test)}
    assert not taken & {r.id for r in found}
    assert sum(r.gold == "yes" for r in found) == 20


def test_a_split_is_its_seeds_and_keeps_the_mix(data: Path) -> None:
    rows = study_data.arm_rows(data, "E")
    train, held = study_data.split_rows(rows, 1, 0.25, 500)
    assert {r.id for r in train} | {r.id for r in held} == {r.id for r in rows}
    assert study_data.split_rows(rows, 1, 0.25, 500) == (train, held)
    assert study_data.split_rows(rows, 2, 0.25, 500)[1] != held
    shares = [sum(r.label == "yes" for r in part) / len(part) for part in (rows, held)]
    assert shares[0] == pytest.approx(shares[1], abs=0.02)
    assert len(study_data.split_rows(rows, 1, 0.25, 16)[1]) == 16


def test_a_file_without_a_column_is_refused_with_its_name(tmp_path: Path) -> None:
    write(tmp_path / "x.csv", [{"id": "1", "comment_text": "a"}])
    with pytest.raises(DataError, match="column 'toxic' is missing"):
        study_data.read_comments(tmp_path / "x.csv")


@pytest.mark.parametrize("mix", [0.1, 0.5])
def test_the_best_threshold_is_that_of_a_search_over_all(mix: float) -> None:
    generator = np.random.default_rng(3)
    labels = generator.random(90) < 0.2
    scores = generator.normal(size=90) + 1.5 * labels
    found = study_figures.best_threshold(scores, labels, mix, 0.0)
    weights = study_figures.mix_weights(labels, mix)

    def accuracy(cut: float) -> float:
        return float(weights[(scores > cut) == labels].sum())

    best = max(accuracy(t) for t in np.concatenate([scores, scores - 1e-9]))
    assert accuracy(found) == pytest.approx(best)


def test_no_threshold_is_put_between_equal_scores() -> None:
    scores, labels = [-2.0, 0.0, 0.0, 0.0, 1.0], [False, True, False, True, True]
    assert -2 < study_figures.best_threshold(scores, labels, 0.5, -0.5) < 0


def test_the_auc_counts_ordered_pairs() -> None:
    assert study_figures.auc([1, 2, 3, 3], [False, True, False, True]) == pytest.approx(2.5 / 4)


def test_one_run_each_is_mcnemars_test_and_seeds_sharpen_it() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.random(400) < 0.9, generator.random(400) < 0.84
    gap = study_figures.seeds_gap([one], [other])
    assert gap.difference == pytest.approx(one.mean() - other.mean())
    assert gap.p_value == pytest.approx(mcnemar(one.tolist(), other.tolist()), abs=0.01)
    assert gap.low < gap.difference < gap.high
    many = [generator.random(400) < 0.9 for _ in range(8)]
    assert study_figures.seeds_gap(many, [other]).p_value < gap.p_value


def test_a_cut_hands_over_its_share_of_the_mix() -> None:
    labels = [True] * 10 + [False] * 90
    confidence = [i / 100 for i in range(100)]  # the rare class is the unsure one
    assert study_figures.cut_for(confidence, labels, 0.5, 0.26) == pytest.approx(0.05)
    assert study_figures.cut_for(confidence, labels, 0.1, 0.25) == pytest.approx(0.25, abs=0.011)


def test_a_cascade_takes_the_teacher_where_the_student_is_unsure() -> None:
    found = study_figures.cascade(
        [0.1, 0.9, 0.2, 0.8], [False, True, False, False], [True] * 4, 0.5
    )
    assert found.handed_over == 0.5
    assert found.accuracy.right == 3
    assert found.curve[0] == (0.0, 0.25)
    assert found.curve[-1] == (1.0, 1.0)


def test_an_ensemble_that_disagrees_with_the_student_is_less_than_unsure() -> None:
    found = study_figures.joint_confidence([2.0, 0.5, -1.0], 0.0, [1.0, -2.0, -1.0], 0.0)
    assert found.tolist() == [3.0, -1.5, 2.0]


def test_kept_states_come_back_and_another_process_sees_them(tmp_path: Path) -> None:
    rows = [Encoded("a", (1, 2), (3,)), Encoded("b", (4,), (5,))]
    states = [torch.randn(3, 8), torch.randn(2, 8)]
    StateCache(tmp_path).add(rows, states)
    again = StateCache(tmp_path)
    assert Encoded("other name", (1, 2), (3,)) in again
    assert Encoded("a", (1, 2), (5,)) not in again
    torch.testing.assert_close(again.get(rows[1]).float(), states[1], atol=2e-3, rtol=1e-3)


def script(tmp_path: Path, name: str, body: str) -> Job:
    code = f"import sys, pathlib\nresult = pathlib.Path({str(tmp_path / name)!r})\n{body}"
    return Job(name, (sys.executable, "-c", code), tmp_path / name, tmp_path / f"{name}.log")


def test_the_queue_starts_paused_jobs_again_and_skips_done_ones(tmp_path: Path) -> None:
    once = f"s = result.with_suffix('.once')\nif not s.exists(): s.touch(); sys.exit({PAUSED})\nresult.touch()"
    jobs = [
        script(tmp_path, "paused", once),
        script(tmp_path, "broken", "print('no such thing'); sys.exit(1)"),
        script(tmp_path, "done", "sys.exit(1)"),
    ]
    (tmp_path / "done").touch()
    told: list[QueueState] = []
    assert Queue(workers=2).run(jobs, told.append) == ["broken"]
    assert (tmp_path / "paused").exists()
    assert "no such thing" in (tmp_path / "broken.log").read_text()
    assert told[-1].done == told[-1].total == 3


def test_a_job_killed_from_outside_is_started_again(tmp_path: Path) -> None:
    body = "import os, signal\ns = result.with_suffix('.once')\n"
    body += "if not s.exists(): s.touch(); os.kill(os.getpid(), signal.SIGKILL)\nresult.touch()"
    assert Queue(workers=1).run([script(tmp_path, "hit", body)]) == []
    assert (tmp_path / "hit").exists()


def test_no_job_starts_after_the_deadline(tmp_path: Path) -> None:
    queue = Queue(workers=1, deadline=time.monotonic() - 1)
    assert queue.run([script(tmp_path, "late", "result.touch()")]) == []
    assert not (tmp_path / "late").exists()


TINY = Recipe(
    fit=FitConfig.model_validate(
        {
            "epochs": 3, "lora": {"top_layers": 2}, "optimizer": {"learning_rate": 0.01}, "frozen_products": "fp32",
            "target_mix": {"yes": 0.5, "no": 0.5}, "average_share": 0.4,
        }
    ),
    most_validation=30,
)  # fmt: skip


@pytest.mark.slow
def test_a_run_paused_within_an_epoch_goes_on_to_the_same_adapter(
    data: Path, base_folder: Path, tmp_path: Path
) -> None:
    from serving import base_model

    made = study_data.make_dataset(
        data, tmp_path / "d", "A", 0, prompt=TINY.prompt, max_input_chars=60, validation_share=0.2
    )

    def run(name: str, pause_at: float | None = None) -> Run:
        base = base_model.load(str(base_folder), tmp_path)
        cache = StateCache(tmp_path / "states")
        return Run(tmp_path / name, TINY.fit, made, base.model, base.tokenizer, states=cache, pause_at=pause_at)  # fmt: skip

    run("whole").fit()
    pauses = 0
    while True:
        cut = run("cut", pause_at=0.0)  # the time is always up: one step a start
        try:
            cut.fit()
        except RunPaused:
            pauses += 1
            continue
        break
    assert pauses > 10
    weights = [(tmp_path / n / "adapter" / "adapter_model.safetensors").read_bytes() for n in ("whole", "cut")]  # fmt: skip
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_the_study_from_files_to_report(
    data: Path, base: BaseModel, base_folder: Path, tmp_path: Path
) -> None:
    from serving import base_model

    make = study.JobSpec(
        kind="student", arm="A", seed=0, data=str(data), out=str(tmp_path), model=str(base_folder),
        models=str(tmp_path), recipe=TINY, sets=study_data.TESTS, slice_seconds=60,
    )  # fmt: skip
    jobs = study.plan(("A", "B"), (0,), make)
    assert [(j.kind, j.arm) for j in jobs] == [("rival", "A"), ("rival", "B"), ("student", "A"), ("student", "B")]  # fmt: skip
    for job in jobs:
        model = base_model.load(str(base_folder), tmp_path) if job.kind == "student" else None
        study.run_job(job, model, math.inf)
    place = study.Place(tmp_path)
    made = study_report.Study(data, place, TINY, ("A", "B"), (0, 1, 2), now=lambda: 0.0)
    found = study_report.report(made)
    shown, _ = study_report.write(found, tmp_path / "r.json", tmp_path / "r.md", tmp_path)
    read = json.loads((tmp_path / "r.json").read_text())
    assert {(r["arm"], r["test"]) for r in read["runs"]} == {
        (a, t) for a in "AB" for t in study_data.TESTS
    }
    run = next(r for r in read["runs"] if (r["arm"], r["test"]) == ("A", "balanced"))
    assert run["threshold"] == 0.0
    assert run["interval"][0] <= run["accuracy"] <= run["interval"][1]
    indist = next(r for r in read["runs"] if r["test"] == "indist")
    assert indist["threshold"] == pytest.approx(threshold_for(0.5, 0.1), abs=1e-4)
    assert read["test_readings"] == {"balanced": 1, "indist": 1}
    assert next(t for t in read["teacher"] if t["test"] == "balanced")["accuracy"] == pytest.approx(38 / 40)  # fmt: skip
    assert not any(goal["met"] for goal in read["goals"] if "seeds" in goal), (
        "one seed meets no goal"
    )
    assert "right" not in json.dumps([list(r) for r in read["runs"]])
    page = (tmp_path / "r.md").read_text()
    assert "| A | GPT-4 |" in page
    assert (tmp_path / "study-jigsaw-hand-over.png").stat().st_size > 1000
    assert read == shown
    study_report.report(made)
    assert made.readings() == {"balanced": 1, "indist": 1}, "one report reads a set once"
    again = study_report.Study(data, place, TINY, ("A",), (0,), now=lambda: 1.0)
    study_report.report(again)
    assert again.readings()["balanced"] == 2
    _is_kept(data, place, shown, tmp_path)


def _is_kept(data: Path, place: study.Place, earlier: dict[str, Any], folder: Path) -> None:
    """A report of arm A alone keeps arm B's figures, but not its comparison with A, whose rows it no longer has."""
    alone = study_report.report(study_report.Study(data, place, TINY, ("A",), (0,)))
    files = (folder / "kept.json", folder / "kept.md", folder)
    shown, _ = study_report.write(alone, *files, earlier)
    assert [s for s in shown["summaries"] if s["arm"] == "B"] == [
        s for s in earlier["summaries"] if s["arm"] == "B"
    ]
    assert "B-A" in earlier["gaps"]
    assert "B-A" not in shown["gaps"]
    assert "Arms B have the figures of an earlier run" in (folder / "kept.md").read_text()
    other = json.loads(json.dumps(earlier))
    other["recipe"]["fit"]["batch_size"] = 3
    with pytest.raises(DataError, match=r"the recipes differ in more than fit\.max_rows_seen"):
        study_report.write(alone, *files, other)
    for run in (longer := json.loads(json.dumps(earlier)))["runs"]:
        run["fit"]["epochs"] = 7
    with pytest.raises(DataError, match=r"arm B, seed 0 made 7 passes, the new recipe makes \d"):
        study_report.write(alone, *files, longer)


def test_a_file_that_is_no_result_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"study": "tickets"}')
    with pytest.raises(DataError, match="no result of the study jigsaw"):
        study_keep.read(tmp_path / "r.json")
    with pytest.raises(DataError, match="cannot be read"):
        study_keep.read(tmp_path / "none.json")


def test_words_say_what_a_gap_shows() -> None:
    gap = {"difference": 0.02, "low": 0.01, "high": 0.03, "p_value": 0.001, "seeds": 3}
    up, down = study_words.conclusions(
        [], {"B-A": gap, "C-B": {**gap, "low": -0.03, "high": -0.01}}
    )
    assert "supported: +2.0 points [+1.0, +3.0], p = 0.001 (3 seeds)" in up
    assert "contradicted" in down
    (early,) = study_words.conclusions([], {"B-A": {**gap, "seeds": 1}})
    assert "supported so far (3 seeds are needed to settle it): +2.0 points" in early
    assert early.endswith("(1 seed).")


def test_an_unknown_arm_or_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="no arm 'F'; allowed: A, B, C, control, D, E, E-agreed"):
        study.wanted_arms("A,F")
    with pytest.raises(ConfigError, match=r"did you mean 'fit\.epochs'"):
        study.read_recipe(None, ["fit.epoch=3"])
    assert study.read_recipe(None, ["fit.epochs=3"]).fit.target_mix == {"yes": 0.5, "no": 0.5}


def test_the_command_refuses_a_folder_without_the_files(tmp_path: Path) -> None:
    from training.cli import app

    found = CliRunner().invoke(
        app, ["study", "jigsaw", "--data", str(tmp_path), "--home", str(tmp_path)]
    )
    assert found.exit_code == 2
    assert "cannot be read" in found.output
