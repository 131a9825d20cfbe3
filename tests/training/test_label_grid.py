"""Teachers compared on gold: the grid, its winner, and the ceiling."""

import json
from pathlib import Path

import pytest
from starlette.applications import Starlette

from router.policy import Price
from tests.training.labelling import SPEC, URL, ask, replay, rows
from training import label_grid
from training.errors import ConfigError
from training.label import Teacher, jobs_of
from training.label_cache import Reply


def settings_of(tmp_path: Path, apps: dict[str, Starlette]) -> list[label_grid.Setting]:
    found = []
    for name, app in apps.items():
        price = Price(input=10 if name == "dear" else 1, output=1)
        teacher = Teacher(URL, name, price, max_tokens=10)
        answers = ask(app, tmp_path, jobs_of(rows(), [teacher])).answers
        found.append(label_grid.score(name, rows(), answers, 1, SPEC))
    return found


def test_the_grid_takes_the_cheapest_that_cannot_be_told_from_the_best(tmp_path: Path) -> None:
    apps = {
        "dear": replay(),
        "cheap": replay(wrong=3),
        "bad": replay(wrong=15),
        "mute": replay(form="eh {}"),
    }
    settings = settings_of(tmp_path, apps)
    by_name = {s.name: s for s in settings}
    assert [round(s.accuracy, 3) for s in settings] == [1.0, 0.925, 0.625, 0.0]
    assert by_name["mute"].unparseable == 40
    assert by_name["cheap"].low < 0.925 < by_name["cheap"].high
    assert by_name["bad"].recall == pytest.approx({"order": 0.65, "refund": 0.6})
    verdict = label_grid.judge(settings)
    assert (verdict.best, verdict.chosen) == ("dear", "cheap")
    assert list(verdict.tied) == ["cheap"]
    assert verdict.tied["cheap"] == pytest.approx(0.25)


@pytest.mark.slow
def test_the_grid_is_written_with_its_winner_as_a_teachers_file(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, {"dear": replay(), "cheap": replay(wrong=3)})
    verdict = label_grid.judge(settings)
    teachers = {s.name: Teacher(URL, s.name, Price()) for s in settings}
    report = label_grid.write(settings, verdict, teachers, tmp_path / "grid")
    assert {p.name for p in (tmp_path / "grid").iterdir()} == {
        "grid.json",
        "grid.png",
        "teacher.json",
    }
    stored = json.loads((tmp_path / "grid" / "teacher.json").read_text())
    assert (stored["model"], stored["gold"]["rows"], len(stored["digest"])) == ("cheap", 40, 16)
    assert report["chosen"] == "cheap"


def test_repeats_show_how_stable_a_setting_is() -> None:
    warm = Teacher(URL, "m", Price(), temperature=1.0)
    jobs = jobs_of(rows(2), [warm], 2)
    gold = [r.gold or "" for r in rows(2)]
    said = [gold[0], gold[0], gold[1], "neither"]
    answers = [(j, Reply(text, "stop")) for j, text in zip(jobs, said, strict=True)]
    found = label_grid.score("m", rows(2), answers, 2, SPEC)
    assert (found.accuracy, found.stable_share, found.rows) == (0.75, 0.5, 2)
    assert found.repeat_spread == pytest.approx(0.3536, abs=1e-3)


def test_the_ceiling_is_told_by_slice() -> None:
    pairs = [(row, row.gold or "" if n >= 4 else "order") for n, row in enumerate(rows())]
    report = {(r["slice"], r["part"]): r for r in label_grid.ceiling(pairs, SPEC)}
    whole = report["all", "all"]
    assert (whole["right"], whole["rows"]) == (38, 40)
    assert report["class", "refund"]["right"] == 18
    assert report["class", "order"]["accuracy"] == 1.0
    assert whole["interval"][0] < 0.95 < whole["interval"][1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("models: []\nprompts: {a: x}", "models", id="no models"),
        pytest.param("models: [{name: a}]\nprompts: {a: '{input}'}", "models.0.input_price", id="no price"),
        pytest.param("models: [{name: a, input_price: 1, output_price: 1}]\nprompts: {a: '{inputs}'}", "unknown field 'inputs'", id="prompt"),
        pytest.param("models: [{name: a, input_price: 1, output_price: 1}]\nprompts: {a: '{input}'}\ntemperatures: [3]", "from 0 to 2", id="temperature"),
    ],
)  # fmt: skip
def test_a_bad_grid_is_refused_by_key(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        label_grid.load(file)
    assert str(file) in str(caught.value)
