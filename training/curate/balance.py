"""The mix of classes in training: under-sampling, over-sampling or weights towards a target. Pure.

`strength` s blends geometrically: the wanted share of a class is proportional to natural^(1-s) * target^s, so 0 leaves the
mix and 1 reaches the target. A perfectly balanced mix is often not the best one; sweep the strength.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec

from training.curate.config import Balance
from training.curate.ledger import Entry, Outcome
from training.curate.users import effective
from training.dataset import Example, class_of
from training.errors import DataError
from training.split import draw

STAGE = "balance"


def wanted_shares(config: Balance, counts: Counter[str]) -> dict[str, float]:
    """The share of each class that the student should learn from. Sums to 1.

    Raises:
        DataError: the target names a class that has no rows, or leaves one out.
    """
    if config.target == "uniform":
        target = dict.fromkeys(counts, 1.0)
    else:
        target = dict(config.target)
        missing, unknown = sorted(set(counts) - set(target)), sorted(set(target) - set(counts))
        if missing or unknown:
            known = ", ".join(f"{name} ({n})" for name, n in counts.most_common())
            which = f"no ratio for {missing[0]!r}" if missing else f"no rows of {unknown[0]!r}"
            raise DataError(f"balance.target: {which}; classes: {known}")
    total, goal = sum(counts.values()), sum(target.values())
    blended = {
        name: (n / total) ** (1 - config.strength) * (target[name] / goal) ** config.strength
        for name, n in counts.items()
    }
    scale = sum(blended.values())
    return {name: value / scale for name, value in blended.items()}


def apply(
    config: Balance, examples: Sequence[Example], answer: dict[str, Any], seed: int = 0
) -> Outcome:
    """Rows in the wanted mix.

    Raises:
        DataError: the kind of answer has no classes, or the target does not fit them.
    """
    classes = [class_of(e.completion, answer) for e in examples]
    if any(name is None for name in classes):
        raise DataError(
            f"balance: answers of kind {answer.get('kind')!r} without compared fields have no classes"
        )
    names = [str(name) for name in classes]
    counts = Counter(names)
    shares = wanted_shares(config, counts)
    rows: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        rows[name].append(i)
    for found in rows.values():
        found.sort(key=lambda i: (examples[i].gold is None, draw(examples[i].id, seed)))
    steps = {"undersample": _under, "oversample": _over, "weight": _weigh}
    outcome = steps[config.how](config, examples, rows, shares)
    after: Counter[str] = Counter()
    for example in outcome.kept:
        after[str(class_of(example.completion, answer))] += example.weight  # type: ignore[assignment]
    total = sum(after.values())
    outcome.report = {
        "how": config.how, "strength": config.strength, "wanted": {n: round(s, 4) for n, s in shares.items()},
        "rows_before": dict(counts), "share_after": {n: round(w / total, 4) for n, w in after.items()},
        "rows_after": len(outcome.kept), "effective_rows_after": round(effective([e.weight for e in outcome.kept]), 1),
    }  # fmt: skip
    return outcome


Rows = dict[str, list[int]]


def _under(
    config: Balance, examples: Sequence[Example], rows: Rows, shares: dict[str, float]
) -> Outcome:
    """As many rows as the scarcest class allows; rows with gold stay longest, the rest is drawn by hash."""
    size = min(len(found) / shares[name] for name, found in rows.items())
    quota = {name: max(1, round(size * shares[name])) for name in rows}
    gone = {i: name for name, found in rows.items() for i in found[quota[name] :]}
    outcome = Outcome([e for i, e in enumerate(examples) if i not in gone])
    for i, name in sorted(gone.items()):
        detail = f"{name}: {quota[name]} of {len(rows[name])} rows stay"
        outcome.entries.append(
            Entry("removed", STAGE, f"too many of {name}", examples[i], shares[name], detail)
        )
    return outcome


def _over(
    config: Balance, examples: Sequence[Example], rows: Rows, shares: dict[str, float]
) -> Outcome:
    """No row goes; rows of rare classes are repeated, none more than `max_repeat` times in all."""
    size = max(len(found) / shares[name] for name, found in rows.items())
    outcome = Outcome(list(examples))
    for name, found in rows.items():
        quota = min(round(size * shares[name]), len(found) * config.max_repeat)
        for n in range(len(found), quota):
            source = examples[found[n % len(found)]]
            copy = msgspec.structs.replace(source, id=f"{source.id}#copy{n // len(found)}")
            outcome.kept.append(copy)
            outcome.entries.append(
                Entry("added", STAGE, f"too few of {name}", copy, shares[name], f"of {source.id}")
            )
    return outcome


def _weigh(
    config: Balance, examples: Sequence[Example], rows: Rows, shares: dict[str, float]
) -> Outcome:
    """Every row stays; weights give the classes their shares and have the mean that they had before."""
    total = sum(e.weight for e in examples)
    factor = {
        name: shares[name] * total / sum(examples[i].weight for i in found)
        for name, found in rows.items()
    }
    of = {i: name for name, found in rows.items() for i in found}
    outcome = Outcome([])
    for i, example in enumerate(examples):
        changed = msgspec.structs.replace(example, weight=round(example.weight * factor[of[i]], 6))
        if changed != example:
            outcome.entries.append(
                Entry(
                    "changed",
                    STAGE,
                    "class weight",
                    example,
                    round(factor[of[i]], 4),
                    of[i],
                    changed,
                )
            )
        outcome.kept.append(changed)
    return outcome
