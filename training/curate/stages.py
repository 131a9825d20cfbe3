"""The stages in their order over a dataset's train rows, and the new dataset with its link to the old one.

Validation and test rows pass through untouched, whatever the stages do: near duplicates *of* them leave the train rows.
"""

import datetime
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from router.answer_spec import AnswerSpec
from router.prompt import last_user_text
from router.traffic import scan
from training import imports
from training.build import Keys
from training.curate import (
    balance,
    duplicates,
    gold,
    ledger,
    rank,
    rules,
    semantic,
    suspects,
    users,
    votes,
)
from training.curate.config import CurateConfig, RecordColumns
from training.curate.ledger import Choice, Entry, Outcome
from training.dataset import (
    Dataset,
    DatasetInfo,
    Dropped,
    Example,
    count_classes,
    digest_of,
    save,
)
from training.errors import DataError
from training.import_formats import Columns, Facts
from training.split import draw

Tell = Callable[[str, int, int], None]
NUM_SAMPLES = 3


@dataclass(slots=True)
class Result:
    """What all stages together made of the train rows."""

    train: list[Example]
    held_out: list[Example]
    entries: list[Entry] = field(default_factory=list)
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: list[tuple[str, int, int]] = field(default_factory=list)
    """(stage, train rows before, after), in order."""
    unbalanced: list[Example] | None = None
    """Train rows before the balance, None without one."""

    @property
    def examples(self) -> list[Example]:
        """All rows, train first, as they are stored."""
        return [*self.train, *self.held_out]


def read_facts(records: Sequence[Path], columns: RecordColumns | None = None) -> dict[str, Facts]:
    """Users and finish reasons by row id, from traffic folders and imported files.

    Raises:
        DataError: a path that is neither, or a file that cannot be read.
    """
    names = columns or RecordColumns()
    found: dict[str, Facts] = {}
    for path in records:
        if path.is_dir():
            for record in scan(path):
                answer = record.answer_of("teacher")
                finish = (answer.finish_reason if answer else None) or ""
                found[record.id] = Facts(record.user or record.caller or "", finish)
        elif path.is_file():
            keys = Keys(input=names.input)
            found |= imports.read(path, Columns(keys, id=names.id, user=names.user)).facts
        else:
            raise DataError(f"{path}: no such traffic folder or file")
    return found


def curate(
    dataset: Dataset, config: CurateConfig, tell: Tell | None = None, *, models: Path | None = None
) -> Result:
    """Run the stages that the configuration names.

    Args:
        models: folder of fetched models, for the stage that needs sentence vectors.

    Raises:
        DataError: data that a stage needs are missing, or no train row is left.
    """
    train = [e for e in dataset.examples if e.split == "train"]
    if not train:
        raise DataError(f"{dataset.path}: no train rows to curate")
    result = Result(train, [e for e in dataset.examples if e.split != "train"])
    facts = read_facts(config.records, config.columns)
    form = dataset.info.answer
    spec = AnswerSpec.model_validate(form)
    steps = [
        *_row_steps(config, result, spec, facts),
        *_meaning_steps(config, result, models or dataset.path.parent / "models"),
        *_label_steps(config, result, spec, form, tell),
        *_mix_steps(config, result, form, facts),
    ]
    for number, (name, step) in enumerate(steps):
        if tell:
            tell("stages", number, len(steps))
        before = len(result.train)
        if name == balance.STAGE:
            result.unbalanced = result.train
        outcome = step()
        if not outcome.kept:
            reasons = dict(Counter(e.rule for e in outcome.entries))
            raise DataError(f"stage {name} leaves no train row of {before}: {reasons}")
        result.train = outcome.kept
        result.entries += outcome.entries
        result.reports[name] = outcome.report
        result.rows.append((name, before, len(outcome.kept)))
    if tell:
        tell("stages", len(steps), len(steps))
    return result


Step = tuple[str, Callable[[], Outcome]]


def _row_steps(
    config: CurateConfig, result: Result, spec: AnswerSpec, facts: Mapping[str, Facts]
) -> Iterator[Step]:
    """Which rows: rules and duplicates."""
    if config.rules:
        yield rules.STAGE, lambda: rules.apply(config.rules, result.train, spec, facts)
    if (twins := config.duplicates) is not None:
        if twins.exact:
            yield "exact duplicates", lambda: duplicates.exact(result.train)
        if twins.near is not None:
            yield "near duplicates", lambda: duplicates.near(result.train, result.held_out, twins)


def _meaning_steps(config: CurateConfig, result: Result, models: Path) -> Iterator[Step]:
    """Which rows, by what they mean."""
    if (alike := config.semantic) is not None:

        def step() -> Outcome:
            from training import encoder  # torch and a model: only where they are asked for

            loaded = encoder.load(alike.encoder, models)
            return semantic.apply(alike, result.train, result.held_out, loaded)

        yield semantic.STAGE, step


def _label_steps(
    config: CurateConfig, result: Result, spec: AnswerSpec, form: dict[str, Any], tell: Tell | None
) -> Iterator[Step]:
    """Whose label: gold, votes, suspects, a judge's ranking."""

    def judged(done: int, total: int) -> None:
        if tell:
            tell("suspects: cross-validation", done, total)

    if (teacher := config.gold) is not None:
        yield gold.STAGE, lambda: gold.apply(teacher, result.train, spec)
    if (ballots := config.votes) is not None:
        cast = votes.load(ballots.files)
        yield votes.STAGE, lambda: votes.apply(ballots, result.train, cast, spec)
    if (doubts := config.suspects) is not None:
        yield suspects.STAGE, lambda: suspects.apply(doubts, result.train, form, judged)
    if (ranks := config.rank) is not None:
        scores = rank.load(ranks.files)
        yield rank.STAGE, lambda: rank.apply(ranks, result.train, scores)


def _mix_steps(
    config: CurateConfig, result: Result, form: dict[str, Any], facts: Mapping[str, Facts]
) -> Iterator[Step]:
    """How much of each: users and classes."""
    if (caps := config.power_users) is not None:
        yield users.STAGE, lambda: users.apply(caps, result.train, facts)
    if (mix := config.balance) is not None:
        yield balance.STAGE, lambda: balance.apply(mix, result.train, form, config.seed)


def samples(entries: Sequence[Entry], seed: int = 0) -> dict[str, dict[str, Any]]:
    """For each rule how many rows, and three of them drawn by hash: `{"stage/rule": {"count", "kind", "samples"}}`."""
    by_rule: dict[str, list[Entry]] = {}
    for entry in entries:
        by_rule.setdefault(f"{entry.stage}/{entry.rule}", []).append(entry)
    return {
        name: {
            "count": len(found),
            "kind": found[0].kind,
            "samples": [_sample(e) for e in sorted(found, key=lambda e: draw(e.row.id, seed))[:NUM_SAMPLES]],
        }
        for name, found in by_rule.items()
    }  # fmt: skip


def _sample(entry: Entry) -> dict[str, Any]:
    after = None if entry.after is None else entry.after.completion[:100]
    return {
        "id": entry.row.id, "input": last_user_text(entry.row.messages)[:160], "answer": entry.row.completion[:100],
        "after": after, "score": entry.score, "detail": entry.detail,
    }  # fmt: skip


def write(
    parent: Dataset, examples: Sequence[Example], entries: Sequence[Entry], query: dict[str, Any], out: Path,
    fill: Callable[[Path], None] | None = None,
) -> Dataset:  # fmt: skip
    """The new dataset `out/<task>-<digest>` with its ledger; its `query` names the parent and what was done to it.

    `fill` may put more files into the folder before it gets its name.

    Raises:
        DataError: nothing differs from the parent, or another dataset has the name.
    """
    digest = digest_of(examples)
    if digest == parent.info.digest:
        raise DataError(f"{parent.path}: nothing changed, so there is no new dataset")
    path = out / f"{parent.info.task}-{digest}"
    if path.exists():
        return Dataset.load(path)
    info = _info(parent, examples, entries, query, digest)
    # `save` fills this folder and gives it its name at the end, so a dataset is never seen without its ledger.
    partial = path.with_name(f".{path.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    (partial / ledger.FILE).write_bytes(ledger.dump(entries))
    if fill:
        fill(partial)
    return save(path, info, examples)


def _info(
    parent: Dataset, examples: Sequence[Example], entries: Sequence[Entry], query: dict[str, Any], digest: str
) -> DatasetInfo:  # fmt: skip
    removed = tuple(
        Dropped(
            e.row.id,
            f"{e.stage}: {e.rule}",
            f"{e.detail}{'' if e.score is None else f' (score {e.score:g})'}"[:200],
        )
        for e in entries
        if e.kind == "removed"
    )
    earlier = {d.id for d in removed}
    return msgspec.structs.replace(
        parent.info,
        digest=digest,
        query={
            "parent": parent.info.digest,
            "parent_path": str(parent.path),
            **query,
            "parent_query": parent.info.query,
        },
        counts={str(s): n for s, n in Counter(e.split for e in examples).items()},
        classes=count_classes(examples, parent.info.answer),
        dropped=(*(d for d in parent.info.dropped if d.id not in earlier), *removed),
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def restore(dataset: Dataset, choice: Choice, out: Path) -> tuple[Dataset, int]:
    """A new dataset with the chosen ledger entries undone, and how many they were.

    Raises:
        DataError: no ledger, nothing chosen, or a row that must stay out.
    """
    entries = ledger.load(dataset.path)
    train = [e for e in dataset.examples if e.split == "train"]
    rows, standing = ledger.undo(train, entries, choice)
    held_out = [e for e in dataset.examples if e.split != "train"]
    undone = {
        "rules": sorted(choice.rules),
        "stages": sorted(choice.stages),
        "ids": sorted(choice.ids),
    }
    fewer = msgspec.structs.replace(dataset.info, dropped=_without(dataset.info.dropped, entries))
    parent = Dataset(dataset.path, fewer, dataset.examples)
    made = write(parent, [*rows, *held_out], standing, {"restored": undone}, out)
    return made, len(entries) - len(standing)


def _without(dropped: Sequence[Dropped], entries: Sequence[Entry]) -> tuple[Dropped, ...]:
    """What was dropped before curation: the entries that stand are added again."""
    curated = {e.row.id for e in entries if e.kind == "removed"}
    return tuple(d for d in dropped if d.id not in curated)
