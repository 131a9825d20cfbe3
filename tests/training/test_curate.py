"""Curation as a whole: what moves between datasets, the ledger and back, refusals, and the commands."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from typer.testing import CliRunner

import graduate
from router.records import Answer, Record
from router.traffic import TrafficLog
from tests.training.conftest import route, rows
from training import build
from training.curate import config, effect, ledger, stages
from training.curate.config import CurateConfig
from training.curate.ledger import Choice
from training.dataset import Dataset, Example, save
from training.errors import ConfigError, DataError

EVERYTHING: dict[str, Any] = {
    "rules": [{"id": "short", "min_chars": 3}, "empty", "json"],
    "duplicates": {"near": 0.8},
    "gold": {"errors": "drop"},
    "suspects": {"action": "weight"},
    "power_users": {"max_rows": 1, "by": "template", "how": "weight"},
    "balance": {"target": {"refund": 1, "order": 2}},
}


def with_gold(dataset: Dataset, folder: Path) -> Dataset:
    """The dataset with gold on 20 rows, wrong against the teacher on four of the train ones."""
    train = [e.id for e in dataset.of("train")][:20]
    changed: list[Example] = []
    for example in dataset.examples:
        if example.id in train:
            wrong = example.id in train[:4]
            gold = (
                '{"kind":"order"}'
                if ("refund" in example.completion) == wrong
                else '{"kind":"refund"}'
            )
            example = msgspec.structs.replace(example, gold=gold)
        changed.append(example)
    from training.dataset import digest_of

    info = msgspec.structs.replace(dataset.info, digest=digest_of(changed))
    return save(folder / f"mail-{info.digest}", info, changed)


def settings(**data: Any) -> CurateConfig:
    return CurateConfig.model_validate(data)


def held_out(dataset: Dataset) -> list[Example]:
    return [e for e in dataset.examples if e.split != "train"]


def test_held_out_rows_stay_and_every_row_that_goes_is_in_the_ledger(
    dataset: Dataset, tmp_path: Path
) -> None:
    parent = with_gold(dataset, tmp_path)
    result = stages.curate(parent, settings(**EVERYTHING))
    made = stages.write(parent, result.examples, result.entries, {"curate": "x"}, tmp_path / "out")
    assert held_out(made) == held_out(parent)
    entries = ledger.load(made.path)
    removed = {e.row.id for e in entries if e.kind == "removed"}
    assert {e.id for e in parent.of("train")} == {e.id for e in made.of("train")} | removed
    assert not removed & {e.id for e in made.of("train")}
    assert all(e.stage and e.rule for e in entries)
    assert {d.id for d in made.info.dropped} == removed
    again = Dataset.load(made.path)
    assert again.info.query["parent"] == parent.info.digest != again.info.digest
    mix = again.info.classes["train"]
    assert mix["order" if "order" in mix else '{"kind":"order"}'] == pytest.approx(
        2 * mix["refund" if "refund" in mix else '{"kind":"refund"}'], abs=1
    )


def test_undoing_everything_gives_the_parent_again(dataset: Dataset, tmp_path: Path) -> None:
    parent = with_gold(dataset, tmp_path)
    chosen = settings(
        **EVERYTHING
        | {
            "rules": [{"deny": "river"}],
            "gold": {"errors": "replace"},
            "balance": {"how": "oversample", "target": {"refund": 1, "order": 2}},
        }
    )
    result = stages.curate(parent, chosen)
    assert {e.kind for e in result.entries} == {"removed", "changed", "added"}
    made = stages.write(parent, result.examples, result.entries, {}, tmp_path)
    back, undone = stages.restore(
        made, Choice(stages=frozenset(e.stage for e in result.entries)), tmp_path
    )
    assert undone == len(result.entries)
    assert back.info.digest == parent.info.digest
    assert sorted(e.id for e in back.examples) == sorted(e.id for e in parent.examples)


def test_one_rule_can_be_undone_and_the_rest_stands(dataset: Dataset, tmp_path: Path) -> None:
    result = stages.curate(
        dataset,
        settings(
            rules=[{"id": "deny-river", "deny": "river"}, {"id": "deny-stone", "deny": "stone"}]
        ),
    )
    made = stages.write(dataset, result.examples, result.entries, {}, tmp_path / "out")
    counted = Counter(e.rule for e in result.entries)
    assert counted["deny-river"]
    assert counted["deny-stone"]
    back, undone = stages.restore(made, Choice(rules=frozenset({"deny-river"})), tmp_path / "out")
    assert undone == counted["deny-river"]
    assert len(back.of("train")) == len(made.of("train")) + counted["deny-river"]
    assert {e.rule for e in ledger.load(back.path)} == {"deny-stone"}
    assert len(back.info.dropped) == counted["deny-stone"]
    with pytest.raises(DataError, match="no such entry; stages and rules: rules/deny-stone"):
        stages.restore(back, Choice(ids=frozenset({"nobody"})), tmp_path)
    with pytest.raises(DataError, match="was not made by curate"):
        stages.restore(dataset, Choice(ids=frozenset({"r1"})), tmp_path)


def test_a_twin_of_a_held_out_row_goes_and_cannot_come_back(
    dataset: Dataset, tmp_path: Path
) -> None:
    test = dataset.of("test")[0]
    text = test.messages[0]["content"] + " please"
    twin = msgspec.structs.replace(
        test, id="twin", split="train", messages=({"role": "user", "content": text},), sha256="x",
        completion='{"kind":"refund"}' if "order" in test.completion else '{"kind":"order"}',
    )  # fmt: skip
    parent = Dataset(dataset.path, dataset.info, (*dataset.examples, twin))
    result = stages.curate(parent, settings(duplicates={"near": 0.8}))
    (entry,) = [e for e in result.entries if e.row.id == "twin"]
    assert entry.rule == ledger.HELD_OUT_TWIN
    assert 0.8 <= (entry.score or 0) < 1
    with pytest.raises(DataError, match="row 'twin' stays out"):
        ledger.undo(result.train, result.entries, Choice(ids=frozenset({"twin"})))


def test_the_effect_is_read_on_validation_and_sees_a_better_set(tmp_path: Path) -> None:
    """Half of the train labels are flipped and gold puts them right: the stand-in must see it."""
    parent = build.build(rows(200), route(), "mail", tmp_path, query={})
    flipped = []
    for number, example in enumerate(parent.of("train")):
        right = example.completion
        wrong = '{"kind":"order"}' if "refund" in right else '{"kind":"refund"}'
        said = wrong if number % 2 else right
        flipped.append(msgspec.structs.replace(example, completion=said, teacher=said, gold=right))
    noisy = Dataset(parent.path, parent.info, (*flipped, *held_out(parent)))
    chosen = settings(gold={"errors": "replace"}, balance={"how": "weight"})
    result = stages.curate(noisy, chosen)
    found = effect.measure(
        noisy.of("train"), result.train, result.unbalanced, parent.of("validation"), parent.info.answer,
        chosen.balance, 0,
    )  # fmt: skip
    assert found["before_accuracy"] < 0.75 < found["after_accuracy"]
    assert found["interval"][0] > 0
    assert found["validation_rows"] == len(parent.of("validation"))
    assert [s["strength"] for s in found["sweep"]] == list(effect.STRENGTHS)
    assert found["sweep"][-1]["accuracy"] == found["after_accuracy"]
    with pytest.raises(DataError, match="no validation rows"):
        effect.measure(result.train, result.train, None, [], parent.info.answer, None, 0)


def test_nothing_to_change_and_nothing_left_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    result = stages.curate(dataset, settings(rules=[{"max_chars": 10_000}]))
    with pytest.raises(DataError, match="nothing changed"):
        stages.write(dataset, result.examples, result.entries, {}, tmp_path)
    with pytest.raises(DataError, match="stage rules leaves no train row"):
        stages.curate(dataset, settings(rules=[{"min_chars": 10_000}]))


def test_users_and_finish_reasons_are_read_from_traffic(tmp_path: Path) -> None:
    log = TrafficLog(tmp_path / "traffic")
    cut = Answer(
        role="teacher", backend="t", model="m", status=200, text="x", finish_reason="length"
    )
    log.append(
        Record(
            id="r1", at=1.0, route="mail", mode="teacher", policy_digest="d", arm="teacher", served_by="teacher",
            reason="", status=200, answers=(cut,), user="u9",
        )
    )  # fmt: skip
    log.close()
    facts = stages.read_facts([tmp_path / "traffic"])
    assert (facts["r1"].user, facts["r1"].finish_reason) == ("u9", "length")
    table = tmp_path / "log.csv"
    table.write_text("nr,comment,who\n7,hello,ann\n")
    columns = config.RecordColumns(input="comment", id="nr", user="who")
    assert stages.read_facts([table], columns)["7"].user == "ann"
    with pytest.raises(DataError, match="no such traffic folder or file"):
        stages.read_facts([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("ruls: []", "ruls: unknown key; did you mean 'rules'", id="unknown stage"),
        pytest.param("rules: [{maxchars: 3}]", "rules.0.maxchars: unknown key; did you mean 'max_chars'", id="unknown condition"),
        pytest.param("rules: [{max_chars: 3, deny: x}]", "rules.0: a rule has exactly one condition of .*here: max_chars and deny", id="two conditions"),
        pytest.param("rules: [{deny: '('}]", "rules.0.deny = '.': not a regular expression", id="regex"),
        pytest.param("rules: [empty, empty]", "two rules are called 'empty'", id="same name"),
        pytest.param("rules: [truncated]", "records: rule 'truncated' needs the rows' finish reasons", id="no records"),
        pytest.param("power_users: {max_rows: 3}", "records: power_users by user needs", id="no users"),
        pytest.param("power_users: {by: template}", "power_users: exactly one of max_rows and max_share", id="no cap"),
        pytest.param("duplicates: {near: 2}", "duplicates.near = 2: allowed: a share from 0 to 1", id="share"),
        pytest.param("balance: {target: even}", "balance.target", id="target"),
        pytest.param("- a", "allowed: a mapping with the keys seed, records, columns, rules", id="a list"),
        pytest.param("votes: {files: []}", "votes.files = ..: tuple should have at least 1 item", id="no files"),
    ],
)  # fmt: skip
def test_a_bad_configuration_names_key_value_and_what_is_allowed(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "curate.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        config.load(file)
    assert str(file) in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_example_loads_and_names_every_stage(tmp_path: Path) -> None:
    done = CliRunner().invoke(graduate.app, ["train", "curate", "example"])
    file = tmp_path / "curate.yaml"
    file.write_text(
        done.stdout.replace("# votes:", "votes:")
        .replace("# rank:", "rank:")
        .replace("# - {id: form", "- {id: form")
    )
    loaded = config.load(file)
    assert {name for name in CurateConfig.model_fields if getattr(loaded, name) is not None} == set(
        CurateConfig.model_fields
    )
    assert {rule.condition for rule in loaded.rules} == set(config.CONDITIONS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_commands_dry_run_write_and_restore(dataset: Dataset, tmp_path: Path) -> None:
    file = tmp_path / "curate.yaml"
    file.write_text(
        yaml.safe_dump(
            {"rules": [{"id": "no-river", "deny": "river"}], "duplicates": {"near": 0.8}}
        )
    )
    command = [
        "train",
        "curate",
        str(dataset.path),
        "--config",
        str(file),
        "--out",
        str(tmp_path / "out"),
        "--effect",
        "--json",
    ]
    dry = CliRunner().invoke(graduate.app, [*command, "--dry-run"])
    assert dry.exit_code == 0, dry.output
    report = json.loads(dry.stdout)
    rule = report["rules"]["rules/no-river"]
    assert (rule["count"], len(rule["samples"])) == (rule["count"], 3)
    assert rule["count"] > 3
    assert all("river" in s["input"] for s in rule["samples"])
    assert not (tmp_path / "out").exists()
    done = json.loads(CliRunner().invoke(graduate.app, command).stdout)
    made = Path(done["path"])
    assert {p.name for p in made.iterdir()} == {
        "dataset.json", "examples.parquet", "ledger.jsonl", "curation.json", "near_duplicates.png",
    }  # fmt: skip
    assert report["reports"]["near duplicates"]["curve"][0]["threshold"] == 0.5
    back = CliRunner().invoke(
        graduate.app, ["train", "curate", "restore", str(made), "--rule", "no-river", "--json"]
    )
    assert json.loads(back.stdout)["undone"] == rule["count"]
    nothing = CliRunner().invoke(graduate.app, ["train", "curate", "restore", str(made)])
    assert (nothing.exit_code, "--rule, --stage or --id" in nothing.stderr) == (2, True)
    file.write_text("rules: [{deny: '('}]")
    bad = CliRunner().invoke(graduate.app, command)
    assert (bad.exit_code, "not a regular expression" in bad.stderr) == (2, True)
    shown = CliRunner().invoke(graduate.app, ["train", "curate", "--help"])
    assert "Example:" in shown.output


def test_rows_of_the_fixture_are_distinct() -> None:
    """The other tests count on it."""
    assert len({r.messages[0]["content"] for r in rows(80)}) == 80
