"""The dataset: an immutable folder of examples in Parquet, with `dataset.json` beside it.

Decides the stored form and its digest. Where examples come from is in `build`, how they are split in `split`, what a
tokenizer makes of them in `encode`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from training.errors import DataError
from training.tools import names_of

SCHEMA = 2
"""2 since an example has the tools of its request."""
Split = Literal["train", "validation", "test", "test_balanced"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test", "test_balanced")


NO_CALL_CLASS = "(no call)"


class Example(msgspec.Struct, frozen=True):
    """One prompt and its right answer.

    `completion` is what the student is trained to say, in canonical form: the gold answer where there is one, else
    the teacher's. `teacher` and `gold` stay beside it as channels of their own. `group` holds near-duplicates together.
    """

    id: str
    task: str
    messages: tuple[dict[str, Any], ...]
    completion: str
    teacher: str | None = None
    gold: str | None = None
    source: str = "traffic"
    split: Split = "train"
    group: str = ""
    weight: float = 1.0
    at: float = 0.0
    sha256: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    """Those that the request brought, for answers that call them."""


class Dropped(msgspec.Struct, frozen=True):
    """One row that a rule took out: which rule, and enough to find the row again."""

    id: str
    rule: str
    detail: str = ""


class DatasetInfo(msgspec.Struct, frozen=True):
    """`dataset.json`: where the examples come from, what they are, what was dropped.

    `task` is a route's name; `answer` its answer spec; `prompt` and `max_input_chars` the student's template.
    """

    task: str
    digest: str
    query: dict[str, Any]
    counts: dict[str, int]
    classes: dict[str, dict[str, int]]
    teachers: tuple[str, ...]
    answer: dict[str, Any]
    prompt: str
    max_input_chars: int | None = None
    dropped: tuple[Dropped, ...] = ()
    created_at: str = ""
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True)
class Dataset:
    """Examples with what is known about them."""

    path: Path
    info: DatasetInfo
    examples: tuple[Example, ...]

    def of(self, split: Split) -> tuple[Example, ...]:
        """Examples of one split, in stored order."""
        return tuple(e for e in self.examples if e.split == split)

    @classmethod
    def load(cls, path: Path) -> "Dataset":
        """The dataset that `save` wrote into `path`.

        Raises:
            DataError: a file is missing or unreadable, or the examples are not those of the digest.
        """
        info_file, rows_file = path / "dataset.json", path / "examples.parquet"
        try:
            info = msgspec.json.decode(info_file.read_bytes(), type=DatasetInfo)
            rows = pq.read_table(rows_file).to_pylist()
        except (OSError, msgspec.MsgspecError, pa.ArrowInvalid) as why:
            raise DataError(f"{path}: not a dataset: {why}") from why
        if info.schema > SCHEMA:
            raise DataError(
                f"{info_file}: schema {info.schema} is newer than {SCHEMA}; update graduate"
            )
        try:
            examples = tuple(
                msgspec.convert(
                    row
                    | {
                        "messages": msgspec.json.decode(row["messages"]),
                        "tools": msgspec.json.decode(row.get("tools") or b"[]"),
                    },
                    Example,
                )
                for row in rows
            )
        except (KeyError, TypeError, msgspec.MsgspecError) as why:
            raise DataError(f"{rows_file}: not examples of a dataset: {why}") from why
        found = digest_of(examples)
        if found != info.digest:
            raise DataError(
                f"{rows_file}: digest {found} is not {info.digest} of dataset.json: changed"
            )
        return cls(path, info, examples)


def save(path: Path, info: DatasetInfo, examples: Sequence[Example]) -> Dataset:
    """Write a dataset folder; `path` must not exist yet, since datasets never change."""
    partial = path.with_name(f".{path.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    rows = [
        msgspec.structs.asdict(e)
        | {
            "messages": msgspec.json.encode(e.messages).decode(),
            "tools": msgspec.json.encode(e.tools).decode(),
        }
        for e in examples
    ]
    pq.write_table(pa.Table.from_pylist(rows), partial / "examples.parquet", compression="zstd")
    (partial / "dataset.json").write_bytes(msgspec.json.format(msgspec.json.encode(info), indent=2))
    partial.rename(path)
    return Dataset(path, info, tuple(examples))


def sha256_of(
    messages: Sequence[dict[str, Any]], completion: str, tools: Sequence[dict[str, Any]] = ()
) -> str:
    """Content hash of one example."""
    content = [messages, completion, tools] if tools else [messages, completion]
    return hashlib.sha256(msgspec.json.encode(content)).hexdigest()


def digest_of(examples: Sequence[Example]) -> str:
    """Content hash of a whole dataset: rows in any order, splits and labels included. 16 hex digits."""
    lines = sorted(f"{e.sha256} {e.split} {e.weight:g} {e.gold}" for e in examples)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def class_of(completion: str, answer: dict[str, Any]) -> str | None:
    """The class that balancing and counting go by: a label, the first compared field of a JSON answer, or the tools called.

    None where the kind of answer has no classes (text, JSON without compared fields).
    """
    if answer.get("kind") == "label":
        return completion
    if answer.get("kind") == "tool_call":
        names = names_of(completion)
        return None if names is None else "+".join(names) or NO_CALL_CLASS
    fields = (answer.get("compare") or {}).get("fields") or ()
    if answer.get("kind") != "json" or not fields:
        return None
    try:
        value = json.loads(completion)
    except ValueError:
        return None
    return str(value.get(fields[0])) if isinstance(value, dict) else None


def class_names(answer: dict[str, Any]) -> tuple[str, ...]:
    """The classes that answers may have: labels, or the first compared field's `enum`; () where the spec names none."""
    if answer.get("kind") == "label":
        return tuple(answer.get("labels") or ())
    fields = (answer.get("compare") or {}).get("fields") or ()
    properties = (answer.get("schema") or {}).get("properties") or {}
    if (
        answer.get("kind") != "json"
        or not fields
        or not isinstance(properties.get(fields[0]), dict)
    ):
        return ()
    return tuple(str(value) for value in properties[fields[0]].get("enum") or ())


def count_classes(examples: Sequence[Example], answer: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Rows of each class in each split, {} where the answer has no classes."""
    counted: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        found = Counter(class_of(e.completion, answer) for e in examples if e.split == split)
        counted[split] = {name: n for name, n in found.most_common() if name is not None}
    return counted
