"""Several answers to one input: the majority, how sure it is, and what that is used for. Pure but for `load`.

Agreement is the majority's share of the votes; entropy is over the distinct answers, in bits. Answers are the same when the
route's comparator reads the same value in them (for JSON the compared fields), unparseable ones are a vote for nothing.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from router.answer_spec import AnswerSpec
from router.compare import parse
from training.build import key_of
from training.curate.config import Votes
from training.curate.gold import agree, relabelled
from training.curate.ledger import Entry, Outcome
from training.dataset import Example
from training.errors import DataError
from training.side_files import entries

STAGE = "votes"


@dataclass(frozen=True, slots=True)
class Tally:
    """Votes counted. `answer` is the majority's, as first written; None when nothing parses or the first two tie."""

    answer: str | None
    agreement: float
    entropy_bits: float
    num_votes: int
    is_tie: bool = False


def tally(spec: AnswerSpec, votes: Sequence[str]) -> Tally:
    """Count the votes of one input."""
    values: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for vote in votes:
        value = value_of(spec, vote)
        if value is not None:
            values.setdefault(value, vote)
        counts[value if value is not None else ""] += 1
    total = len(votes)
    entropy = sum(-n / total * math.log2(n / total) for n in counts.values()) if total else 0.0
    ranked = [(n, value) for value, n in counts.most_common() if value]
    if not ranked:
        return Tally(None, 0.0, entropy, total)
    if len(ranked) > 1 and ranked[0][0] == ranked[1][0]:
        return Tally(None, ranked[0][0] / total, entropy, total, True)
    return Tally(values[ranked[0][1]], ranked[0][0] / total, entropy, total)


def value_of(spec: AnswerSpec, text: str) -> str | None:
    """What two equal answers have in common; None when the answer has not the route's form."""
    value = parse(spec, text)
    if value is None:
        return None
    if spec.kind == "json" and spec.compare.fields:
        value = [value[name] for name in spec.compare.fields]
    if spec.kind == "text":
        value = " ".join(str(value).split()).casefold()
    return json.dumps(value, sort_keys=True)


def load(files: Sequence[Path]) -> dict[str, list[str]]:
    """Votes by row id and by input key, of all files together.

    Raises:
        DataError: file, line, field and what is allowed.
    """
    found: dict[str, list[str]] = {}
    for path in files:
        for place, entry, keys in entries(path):
            votes = _votes(place, entry.get("votes"))
            for key in keys:
                found.setdefault(key, []).extend(votes)
    return found


def _votes(place: str, votes: Any) -> list[str]:
    if not isinstance(votes, list) or not votes or not all(isinstance(v, str) for v in votes):
        raise DataError(
            f"{place}: votes = {votes!r:.60}: allowed: a list of answers that is not empty"
        )
    return votes


def apply(
    config: Votes, examples: Sequence[Example], votes: Mapping[str, list[str]], spec: AnswerSpec
) -> Outcome:
    """Rows filtered or weighed by the agreement of their votes; rows without votes stay as they are."""
    outcome = Outcome([])
    counted, right, single = 0, [0, 0], [0, 0]
    agreements: list[float] = []
    for example in examples:
        cast = votes.get(f"id:{example.id}") or votes.get(f"input:{key_of(example.messages)}")
        if not cast:
            outcome.kept.append(example)
            continue
        counted += 1
        result = tally(spec, cast)
        agreements.append(result.agreement)
        if example.gold is not None and result.answer is not None:
            right = [right[0] + agree(spec, result.answer, example.gold), right[1] + 1]
            single = [single[0] + agree(spec, cast[0], example.gold), single[1] + 1]
        _settle(outcome, example, result, config, spec)
    outcome.report = {
        "rows_with_votes": counted, "mean_agreement": sum(agreements) / counted if counted else None,
        "use": config.use, "min_agreement": config.min_agreement,
        "majority_right": right, "first_vote_right": single,
    }  # fmt: skip
    return outcome


def _settle(
    outcome: Outcome, example: Example, result: Tally, config: Votes, spec: AnswerSpec
) -> None:
    detail = f"{result.num_votes} votes, entropy {result.entropy_bits:.2f} bits"
    score = round(result.agreement, 4)
    is_sure = result.answer is not None and result.agreement >= config.min_agreement
    if config.use == "filter" and not is_sure:
        rule = "tie" if result.is_tie else "low agreement"
        outcome.entries.append(Entry("removed", STAGE, rule, example, score, detail))
        return
    changed = example
    if config.relabel and example.gold is None and result.answer is not None:
        changed = relabelled(changed, result.answer, spec)
    if config.use == "weight":
        changed = msgspec.structs.replace(changed, weight=example.weight * max(score, 0.01))
    if changed != example:
        rule = "majority label" if changed.completion != example.completion else "agreement weight"
        outcome.entries.append(Entry("changed", STAGE, rule, example, score, detail, changed))
    outcome.kept.append(changed)
