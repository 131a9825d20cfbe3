"""Traffic, reviews and files to a dataset: which rows, whose answer, what was dropped and why.

A row is one input with the teacher's newest whole answer. A reviewed label is gold: it replaces the answer the student
learns, and stays beside the teacher's. Every row that a rule takes out is in the drop ledger with the rule's name.
"""

import datetime
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from router.answer_spec import AnswerSpec
from router.policy import Route
from router.prompt import last_user_text
from router.records import Record
from router.tool_calls import OPENING, written
from training import split as splits
from training.dataset import (
    Dataset,
    DatasetInfo,
    Dropped,
    Example,
    Split,
    class_of,
    count_classes,
    digest_of,
    save,
    sha256_of,
)
from training.encode import canonical
from training.errors import DataError
from training.form import json_of, misfit
from training.tools import Tools, known_tools, tool_choice_of, tools_of


@dataclass(frozen=True, slots=True)
class Row:
    """One candidate, before rules and splits. `fixed` names the split that its file gives it.

    An answer that calls tools is the calls as `router.tool_calls` writes them.
    """

    id: str
    messages: tuple[dict[str, Any], ...]
    teacher: str | None
    gold: str | None
    source: str
    teacher_model: str = ""
    at: float = 0.0
    fixed: Split | None = None
    discard: bool = False
    tools: Tools = ()
    """Those that the request brought, in the form of chat completions."""
    tool_choice: Any = None


@dataclass(slots=True)
class Ledger:
    """Rows taken out, in order."""

    rows: list[Dropped] = field(default_factory=list)

    def drop(self, row: Row, rule: str, detail: str = "") -> None:
        """Note that `rule` took `row` out."""
        self.rows.append(Dropped(row.id, rule, detail[:200]))


def rows_from_traffic(records: Iterable[Record]) -> Iterator[Row]:
    """Records that the teacher answered, seen or unseen, with their request's messages."""
    for record in records:
        answer = record.answer_of("teacher")
        if answer is None or not record.request:
            continue
        body = msgspec.json.decode(record.request)
        messages = body.get("messages") if isinstance(body, dict) else None
        if not isinstance(messages, list) or not messages:
            continue
        said = written(answer.tool_calls) if answer.tool_calls else answer.text
        tools, choice = known_tools(body)
        yield Row(
            record.id, tuple(messages), said, None, "traffic", answer.model, record.at, tools=tools, tool_choice=choice,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Keys:
    """Which keys of a file's rows hold the input, the teacher's answer and the gold one."""

    input: str = "text"
    teacher: str = "teacher"
    gold: str = "gold"


def rows_from_file(
    path: Path, keys: Keys | None = None, *, system: str | None = None, fixed: Split | None = None
) -> Iterator[Row]:
    """Rows of a JSON-lines file: an input (or `messages`), a teacher's answer and a gold answer, either may be absent.

    Raises:
        DataError: the file and line, and the key that is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as why:
        raise DataError(f"{path}: cannot be read: {why}") from why
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _file_row(path, number, line, keys or Keys(), system, fixed)


def _file_row(
    path: Path, number: int, line: str, keys: Keys, system: str | None, fixed: Split | None
) -> Row:
    place = f"{path}: line {number}"
    data = json_of(line, place)
    if not isinstance(data, dict):
        raise DataError(f"{place}: allowed: a JSON object, found {data!r:.80}")
    return Row(
        str(data.get("id") or f"{path.stem}-{number}"),
        tuple(_file_messages(place, data, keys.input, system)),
        _file_answer(place, data, keys.teacher),
        _file_answer(place, data, keys.gold),
        f"file:{path.name}",
        fixed=fixed,
        tools=tools_of(place, data.get("tools")),
        tool_choice=tool_choice_of(place, data.get("tool_choice")),
    )


def _file_messages(
    place: str, data: dict[str, Any], key: str, system: str | None
) -> list[dict[str, Any]]:
    messages = data.get("messages")
    if messages is not None:
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise DataError(f"{place}: 'messages' must be a list of objects")
        return messages
    text = data.get(key)
    if not isinstance(text, str) or not text.strip():
        known = ", ".join(sorted(data))
        raise DataError(f"{place}: {key!r} must be a text; this row has the keys: {known}")
    said = [{"role": "user", "content": text}]
    return [{"role": "system", "content": system}, *said] if system else said


def _file_answer(place: str, data: dict[str, Any], key: str) -> str | None:
    value = data.get(key)
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{place}: {key!r} = {value!r}: allowed: text or JSON")
    return value


@dataclass(frozen=True, slots=True)
class Reviewed:
    """What a person said about one record: the right answer, or None to leave the row out."""

    record_id: str
    answer: str | None


def with_reviews(rows: Iterable[Row], reviews: Iterable[Reviewed]) -> Iterator[Row]:
    """Rows with their reviewed answer as gold; a discarded one is marked, so that the ledger has it."""
    by_id = {review.record_id: review for review in reviews}
    for row in rows:
        review = by_id.get(row.id)
        if review is None:
            yield row
        elif review.answer is None:
            yield replace(row, discard=True)
        else:
            yield replace(row, gold=review.answer)


def with_gold(rows: Iterable[Row], gold: Iterable[Row]) -> Iterator[Row]:
    """Rows with the gold answer that a file gives for their input; a review that is already there wins."""
    known = {key_of(row.messages): row.gold for row in gold if row.gold is not None}
    for row in rows:
        answer = known.get(key_of(row.messages))
        yield row if answer is None or row.gold is not None else replace(row, gold=answer)


def normalised(messages: Sequence[dict[str, Any]]) -> str:
    """The input that identifies a row: its last user text, whitespace folded."""
    return " ".join(last_user_text(messages).split())


def key_of(messages: Sequence[dict[str, Any]]) -> str:
    """Hash of the normalised input: the same input has the same key in every dataset."""
    return hashlib.sha256(normalised(messages).encode()).hexdigest()


def _keep(rows: Iterable[Row], spec: AnswerSpec, ledger: Ledger) -> dict[str, Row]:
    """Rows that can be learned from, one an input: the newest wins, a gold answer beats any without."""
    kept: dict[str, Row] = {}
    for row in rows:
        answer = row.gold if row.gold is not None else row.teacher
        key = key_of(row.messages)
        if row.discard:
            ledger.drop(row, "discarded in review")
        elif answer is None:
            ledger.drop(row, "no answer")
        elif not normalised(row.messages):
            ledger.drop(row, "empty input")
        elif spec.kind != "tool_call" and answer.startswith(OPENING):
            ledger.drop(row, "the answer calls tools")
        elif spec.kind == "tool_call" and row.messages[-1].get("role") != "user":
            # The student's prompt ends with what the user said, so it could not know why.
            ledger.drop(row, "asked after a tool's result")
        elif (wrong := misfit(spec, answer, row.tools)) is not None:
            ledger.drop(row, "answer does not fit the route's answer spec", wrong)
        elif key in kept:
            old = kept[key]
            better = (row.fixed is not None, row.gold is not None, row.at) >= (
                old.fixed is not None,
                old.gold is not None,
                old.at,
            )
            loser, winner = (old, row) if better else (row, old)
            ledger.drop(loser, "same input as another row", winner.id)
            kept[key] = winner
        else:
            kept[key] = row
    return kept


def check_gold(rows: Iterable[Row], spec: AnswerSpec) -> None:
    """Nothing, when the gold answers of these rows fit the spec. A teacher errs, and its row is dropped; gold must not.

    Raises:
        DataError: the file, the row, the field, its value and what is allowed.
    """
    for row in rows:
        wrong = misfit(spec, row.gold, row.tools) if row.gold is not None else None
        if wrong is not None:
            raise DataError(f"{row.source.removeprefix('file:')}: row {row.id}: gold: {wrong}")


def _frozen(path: Path) -> dict[str, Split]:
    if not path.exists():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Split])
    except msgspec.MsgspecError as why:
        raise DataError(f"{path}: not a list of frozen rows: {why}") from why


SplitBy = Literal["lot", "time"]


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Shares and seed of the splits. A test share of 0 leaves testing to rows that a file fixes as tests."""

    test_share: float = 0.2
    validation_share: float = 0.15
    seed: int = 0
    near_duplicate: float = 0.7
    """Jaccard similarity of 5-character shingles from which two inputs count as one group."""
    split_by: SplitBy = "lot"
    """`lot`: each group's split is drawn by its hash, so rows keep theirs as data grows. `time`: the newest are tests."""


def build(
    rows: Iterable[Row],
    route: Route,
    task: str,
    folder: Path,
    *,
    query: dict[str, Any],
    options: BuildOptions | None = None,
    now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Dataset:
    """Write the dataset `folder/<task>-<digest>` and say which rows are tests for good (`folder/frozen.json`).

    Args:
        tell: hears rows compared with the others, and all of them.

    Raises:
        DataError: nothing is left to train on, or the route has no student.
    """
    chosen = options or BuildOptions()
    if route.student is None:
        raise DataError(f"route {task!r} has no student: there is nothing to train")
    ledger = Ledger()
    kept = _keep(rows, route.answer, ledger)
    frozen_file = folder / "frozen.json"
    frozen = _frozen(frozen_file)
    placed = _place(kept, chosen, frozen, ledger, tell)
    examples = list(_examples(placed, route.answer, task))
    examples += _balanced_copies(examples, route.answer, chosen.seed)
    counts = Counter(e.split for e in examples)
    if not counts["train"]:
        raise DataError(
            f"route {task!r}: no row is left to train on; dropped: "
            f"{dict(Counter(d.rule for d in ledger.rows)) or 'none, the log has no teacher answer'}"
            f"{_first(ledger)}"
        )
    digest = digest_of(examples)
    form = route.answer.model_dump(mode="json", by_alias=True)
    info = DatasetInfo(
        task=task,
        digest=digest,
        query=query,
        counts={str(split): count for split, count in counts.items()},
        classes=count_classes(examples, form),
        teachers=tuple(sorted({p.row.teacher_model for p in placed if p.row.teacher_model})),
        answer=form,
        prompt=route.student.prompt or "{input}",
        max_input_chars=route.student.max_input_chars,
        dropped=tuple(ledger.rows),
        created_at=now().isoformat(timespec="seconds"),
    )
    path = folder / f"{task}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    dataset = Dataset.load(path) if path.exists() else save(path, info, examples)
    tests = {p.key: p.split for p in placed if p.split == "test"}
    frozen_file.write_bytes(msgspec.json.encode({**frozen, **tests}))
    return dataset


def _first(ledger: Ledger) -> str:
    """The first row that a rule with a reason took out."""
    told = next((d for d in ledger.rows if d.detail and d.rule.startswith("answer")), None)
    return f"; the first: row {told.id}: {told.detail}" if told else ""


@dataclass(frozen=True, slots=True)
class _Placed:
    """A kept row with its key, its near-duplicate group and its split."""

    key: str
    row: Row
    group: int
    split: Split


def _place(
    kept: dict[str, Row],
    options: BuildOptions,
    frozen: dict[str, Split],
    ledger: Ledger,
    tell: Callable[[int, int], None],
) -> list[_Placed]:
    """The rows in order of time, each in its split.

    A twin of a row that a file holds out is neither trained on nor a test row: it has no gold answer of its own.
    """
    ordered = sorted(kept.items(), key=lambda item: (item[1].at, item[0]))
    keys = [key for key, _ in ordered]
    texts = [normalised(row.messages) for _, row in ordered]
    groups = splits.near_duplicate_groups(texts, options.near_duplicate, tell=tell)
    settled = {**frozen, **{key: row.fixed for key, row in ordered if row.fixed is not None}}
    shares = {"test_share": options.test_share, "validation_share": options.validation_share}
    if options.split_by == "time":
        assigned = splits.assign_by_time(groups, keys, **shares, frozen=settled)
    else:
        assigned = splits.assign(groups, keys, **shares, seed=options.seed, frozen=settled)
    held = {g for g, (_, row) in zip(groups, ordered, strict=True) if row.fixed is not None}
    placed = []
    for (key, row), group, split in zip(ordered, groups, assigned, strict=True):
        if group in held and row.fixed is None:
            ledger.drop(row, "near-duplicate of a held-out row")
        else:
            placed.append(_Placed(key, row, group, split))
    return placed


def _examples(placed: Sequence[_Placed], spec: AnswerSpec, task: str) -> Iterator[Example]:
    form = spec.model_dump(mode="json", by_alias=True)
    for one in placed:
        row = one.row
        answer = row.gold if row.gold is not None else row.teacher
        assert answer is not None, "rows without an answer were dropped"
        tools = row.tools if spec.kind == "tool_call" else ()
        completion = canonical(answer, form, tools)
        yield Example(
            id=row.id,
            task=task,
            messages=row.messages,
            completion=completion,
            teacher=row.teacher,
            gold=row.gold,
            source=row.source,
            split=one.split,
            group=f"{one.group}",
            at=row.at,
            sha256=sha256_of(row.messages, f"{one.key}{completion}", tools),
            tools=tools,
        )


def _balanced_copies(examples: Sequence[Example], spec: AnswerSpec, seed: int) -> list[Example]:
    """Test rows once more as a class-balanced set; none where the answer has no classes."""
    form = spec.model_dump(mode="json", by_alias=True)
    classed = [(e, class_of(e.completion, form)) for e in examples if e.split == "test"]
    tests = [(e, name) for e, name in classed if name is not None]
    chosen = splits.balanced([name for _, name in tests], [e.id for e, _ in tests], seed)
    return [
        msgspec.structs.replace(tests[i][0], split="test_balanced", id=f"{tests[i][0].id}#balanced")
        for i in chosen
    ]
