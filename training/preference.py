"""Pairs of a better and a worse answer to one input: from gold against the student's error, edits, votes, thumbs. Pure but for `save` and `load`.

A pair's prompt, split and template are those of the dataset that the student was trained on; no row of a test set is
ever in a pair. Both answers are in canonical form and differ under the route's comparator, not only in spelling.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from router.answer_spec import AnswerSpec
from router.compare import parse
from router.prompt import template_fields
from router.records import Record
from training.build import key_of
from training.curate.votes import tally, value_of
from training.dataset import DatasetInfo, Example
from training.encode import Tokenizer, canonical, encode_prompt
from training.errors import DataError

SCHEMA = 1
Source = Literal["gold", "edit", "vote", "thumb"]
SOURCES: tuple[Source, ...] = get_args(Source)
"""In the order of trust: where two sources judge the same input differently, the first one holds."""
VALIDATION_SHARE = 0.15
"""Of pairs whose input the dataset does not know; by the input's hash, so that an input never changes sides."""


class Pair(msgspec.Struct, frozen=True):
    """One judgement. `messages` is the request; `split` is `train` or `validation`."""

    id: str
    source: Source
    messages: tuple[dict[str, Any], ...]
    chosen: str
    rejected: str
    split: Literal["train", "validation"] = "train"


class PairsInfo(msgspec.Struct, frozen=True):
    """`pairs.json`: whose pairs they are, how many of which source, what was left out and why."""

    task: str
    digest: str
    dataset_digest: str
    counts: dict[str, dict[str, int]]
    """Source to split to pairs."""
    dropped: dict[str, int]
    answer: dict[str, Any]
    prompt: str
    max_input_chars: int | None = None
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs with what is known about them."""

    path: Path
    info: PairsInfo
    pairs: tuple[Pair, ...]

    def of(self, split: str) -> tuple[Pair, ...]:
        """Pairs of one split, in stored order."""
        return tuple(pair for pair in self.pairs if pair.split == split)


@dataclass(frozen=True, slots=True)
class Judgement:
    """A pair before rules and splits."""

    id: str
    source: Source
    messages: tuple[dict[str, Any], ...]
    chosen: str
    rejected: str


def from_gold(examples: Sequence[Example], answers: Sequence[str]) -> list[Judgement]:
    """The row's answer over what the student said, for rows with a gold answer; equal ones fall out later."""
    return [
        Judgement(e.id, "gold", e.messages, e.completion, answer)
        for e, answer in zip(examples, answers, strict=True)
        if e.gold is not None
    ]


def from_reviews(
    records: Mapping[str, Record], labels: Iterable[tuple[str, str | None]]
) -> list[Judgement]:
    """A reviewer's answer over every logged answer to the same record.

    Args:
        labels: record id and the right answer; None where the reviewer discarded the record.
    """
    found = []
    for record_id, answer in labels:
        record = records.get(record_id)
        messages = messages_of(record) if record is not None else None
        if record is None or messages is None or answer is None:
            continue
        said = dict.fromkeys(a.text for a in record.answers if a.ok and a.text)
        found += [Judgement(record_id, "edit", messages, answer, text) for text in said]
    return found


def from_feedback(records: Iterable[Record]) -> list[Judgement]:
    """Callers' corrections over the reply (`edit`); thumbs decide between the reply and another logged answer (`thumb`)."""
    found = []
    for record in records:
        reply, messages = record.reply, messages_of(record)
        if not record.feedback or reply is None or not reply.text or messages is None:
            continue
        last = record.feedback[-1]
        if last.correction:
            found.append(Judgement(record.id, "edit", messages, last.correction, reply.text))
            continue
        if last.score is None or last.score == 0.5:
            continue
        others = (a.text for a in record.answers if a.ok and a.text and a.role != reply.role)
        for other in dict.fromkeys(others):
            better, worse = (reply.text, other) if last.score > 0.5 else (other, reply.text)
            found.append(Judgement(record.id, "thumb", messages, better, worse))
    return found


def from_votes(
    spec: AnswerSpec, voted: Iterable[tuple[str, tuple[dict[str, Any], ...], Sequence[str]]]
) -> list[Judgement]:
    """The majority's answer over each other one that was voted for; ties judge nothing.

    Args:
        voted: id, messages and votes of each input.
    """
    found = []
    for name, messages, votes in voted:
        counted = tally(spec, votes)
        if counted.answer is None or counted.is_tie:
            continue
        losers = {value_of(spec, vote): vote for vote in votes if value_of(spec, vote)}
        losers.pop(value_of(spec, counted.answer), None)
        found += [
            Judgement(name, "vote", messages, counted.answer, loser) for loser in losers.values()
        ]
    return found


def messages_of(record: Record) -> tuple[dict[str, Any], ...] | None:
    """The request's messages; None when the route does not log text."""
    if not record.request:
        return None
    body = msgspec.json.decode(record.request)
    messages = body.get("messages") if isinstance(body, dict) else None
    return tuple(messages) if isinstance(messages, list) and messages else None


def pair_up(
    judgements: Iterable[Judgement], info: DatasetInfo, examples: Sequence[Example]
) -> tuple[list[Pair], dict[str, int]]:
    """Judgements as pairs of the dataset's splits, one for each input and worse answer, and what was left out by rule."""
    spec = AnswerSpec.model_validate(info.answer)
    splits = {key_of(e.messages): e.split for e in examples if not e.id.endswith("#balanced")}
    decided: dict[str, str] = {}
    kept: dict[tuple[str, str], Pair] = {}
    dropped: Counter[str] = Counter()
    for judged in sorted(judgements, key=lambda j: SOURCES.index(j.source)):
        key = key_of(judged.messages)
        chosen, rejected = (
            canonical(judged.chosen, info.answer),
            canonical(judged.rejected, info.answer),
        )
        rule = _rule(spec, chosen, rejected, splits.get(key))
        better = value_of(spec, chosen) or chosen
        if rule is None and decided.setdefault(key, better) != better:
            rule = "decided otherwise before"
        if rule is None and (key, rejected) in kept:
            rule = "the same pair from another source"
        if rule is not None:
            dropped[rule] += 1
            continue
        split = splits.get(key)
        side: Literal["train", "validation"] = (
            "validation"
            if (split == "validation" or (split is None and _share_of(key) < VALIDATION_SHARE))
            else "train"
        )
        kept[key, rejected] = Pair(
            judged.id, judged.source, judged.messages, chosen, rejected, side
        )
    return list(kept.values()), dict(dropped)


def _rule(spec: AnswerSpec, chosen: str, rejected: str, split: str | None) -> str | None:
    """The rule that leaves a judgement out; None when it may be a pair."""
    if split in ("test", "test_balanced"):
        return "input of a test set"
    if parse(spec, chosen) is None:
        return "better answer does not fit the answer spec"
    if not rejected.strip():
        return "worse answer is empty"
    same = value_of(spec, chosen)
    if chosen == rejected or (same is not None and same == value_of(spec, rejected)):
        return "both answers are the same"
    return None


def _share_of(key: str) -> float:
    return int(hashlib.sha256(f"pairs {key}".encode()).hexdigest()[:8], 16) / 2**32


def save(folder: Path, pairs: Sequence[Pair], dropped: dict[str, int], info: DatasetInfo) -> Pairs:
    """Write `folder/<task>-<digest>`; the same pairs again are found there.

    Raises:
        DataError: there is no pair, or the student's prompt needs what a pair does not keep.
    """
    if "tools" in template_fields(info.prompt):
        raise DataError(
            f"{info.task}: student.prompt = {info.prompt!r:.60}: pairs keep no tools: allowed: a prompt without {{tools}}"
        )
    if not pairs:
        raise DataError(
            f"no pairs: nothing to prefer; left out: {dropped or 'nothing, the sources are empty'}"
        )
    lines = sorted(f"{key_of(p.messages)} {p.chosen} {p.rejected} {p.split}" for p in pairs)
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    counts: dict[str, dict[str, int]] = {}
    for pair in pairs:
        split = counts.setdefault(pair.source, {"train": 0, "validation": 0})
        split[pair.split] += 1
    found = PairsInfo(
        info.task,
        digest,
        info.digest,
        counts,
        dropped,
        info.answer,
        info.prompt,
        info.max_input_chars,
    )
    path = folder / f"{info.task}-{digest}"
    if not path.exists():
        partial = folder / f".{path.name}.partial"
        partial.mkdir(parents=True, exist_ok=True)
        rows = [
            {
                "id": p.id, "source": p.source, "split": p.split,
                "prompt": msgspec.json.encode(p.messages).decode(),
                "chosen": p.chosen, "rejected": p.rejected,
            }
            for p in pairs
        ]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows), partial / "pairs.parquet", compression="zstd")
        (partial / "pairs.json").write_bytes(
            msgspec.json.format(msgspec.json.encode(found), indent=2)
        )
        partial.rename(path)
    return Pairs(path, found, tuple(pairs))


def load(path: Path) -> Pairs:
    """The pairs that `save` wrote into `path`.

    Raises:
        DataError: a file is missing or unreadable, or of a newer schema.
    """
    try:
        info = msgspec.json.decode((path / "pairs.json").read_bytes(), type=PairsInfo)
        rows = pq.read_table(path / "pairs.parquet").to_pylist()
        pairs = tuple(
            Pair(
                r["id"],
                r["source"],
                tuple(json.loads(r["prompt"])),
                r["chosen"],
                r["rejected"],
                r["split"],
            )
            for r in rows
        )
    except (OSError, msgspec.MsgspecError, pa.ArrowInvalid, KeyError, ValueError) as why:
        raise DataError(f"{path}: not a folder of pairs: {why}") from why
    if info.schema > SCHEMA:
        raise DataError(f"{path}: schema {info.schema} is newer than {SCHEMA}; update graduate")
    return Pairs(path, info, pairs)


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A pair as token ids; both answers end with the end-of-sequence token."""

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]


def encode_pair(pair: Pair, info: PairsInfo, tokenizer: Tokenizer) -> EncodedPair:
    """The pair under its student's template, tokenised as serving does."""
    prompt, _ = encode_prompt(pair.messages, tokenizer, info.prompt, info.max_input_chars)
    chosen, rejected = (
        (*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id)
        for text in (pair.chosen, pair.rejected)
    )
    return EncodedPair(prompt, chosen, rejected)
