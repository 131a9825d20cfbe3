"""Few users that fill most of the data: their cap, and how many users the data are worth before and after. Pure."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import msgspec

from router.prompt import last_user_text
from training.curate.config import PowerUsers
from training.curate.ledger import Entry, Outcome
from training.dataset import Example
from training.errors import DataError
from training.import_formats import Facts
from training.split import draw

STAGE = "power_users"
RULE = "over the user's cap"
_VARIABLE = re.compile(r"\"[^\"]*\"|'[^']*'|\S*\d\S*|\S*@\S*|https?://\S+")


def template_of(text: str) -> str:
    """The text without what varies between fillings of one template: quoted parts, numbers, addresses."""
    return " ".join(_VARIABLE.sub("#", text).split()).casefold()


def effective(weights: Sequence[float]) -> float:
    """Kish's effective number, (sum of w)^2 / (sum of w^2): equal weights count fully, one heavy weight as one."""
    squares = sum(w * w for w in weights)
    return sum(weights) ** 2 / squares if squares else 0.0


def _totals(owners: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
    totals: dict[str, float] = defaultdict(float)
    for owner, example in zip(owners, examples, strict=True):
        totals[owner] += example.weight
    return totals


def owners_of(
    config: PowerUsers, examples: Sequence[Example], facts: Mapping[str, Facts]
) -> list[str]:
    """Whose row each is; a row of an unknown user is its own.

    Raises:
        DataError: no row's user is known.
    """
    if config.by == "template":
        return [template_of(last_user_text(e.messages)) for e in examples]
    known = [facts.get(e.id, Facts()).user for e in examples]
    if examples and not any(known):
        raise DataError(
            "power_users: no row's user is in `records`; rows are found by their id. "
            "Is it the log that the dataset was built from?"
        )
    return [user or f"\x00{e.id}" for user, e in zip(known, examples, strict=True)]


def apply(config: PowerUsers, examples: Sequence[Example], facts: Mapping[str, Facts]) -> Outcome:
    """No user has more than the cap, by leaving rows out (drawn by hash, rows with gold last) or by weights."""
    owners = owners_of(config, examples, facts)
    cap = config.max_rows or max(1, int((config.max_share or 1.0) * len(examples)))
    rows: dict[str, list[int]] = defaultdict(list)
    for i, owner in enumerate(owners):
        rows[owner].append(i)
    over = {owner: found for owner, found in rows.items() if len(found) > cap}
    outcome = Outcome([])
    gone: set[int] = set()
    weight: dict[int, float] = {}
    for found in over.values():
        ranked = sorted(found, key=lambda i: (examples[i].gold is None, draw(examples[i].id, 0)))
        if config.how == "drop":
            gone |= set(ranked[cap:])
        else:
            weight |= dict.fromkeys(found, cap / len(found))
    kept_owners = []
    for i, (example, owner) in enumerate(zip(examples, owners, strict=True)):
        detail = f"{len(rows[owner])} rows, cap {cap}"
        if i in gone:
            outcome.entries.append(
                Entry("removed", STAGE, RULE, example, float(len(rows[owner])), detail)
            )
            continue
        kept = example
        if i in weight:
            kept = msgspec.structs.replace(example, weight=example.weight * weight[i])
            outcome.entries.append(
                Entry("changed", STAGE, RULE, example, round(weight[i], 4), detail, kept)
            )
        outcome.kept.append(kept)
        kept_owners.append(owner)
    before, after = _totals(owners, examples), _totals(kept_owners, outcome.kept)
    outcome.report = {
        "by": config.by, "cap": cap, "users": len(rows), "users_over": len(over),
        "largest": sorted((len(found) for found in rows.values()), reverse=True)[:5],
        "rows_before": len(examples), "rows_after": len(outcome.kept),
        "effective_users_before": round(effective(list(before.values())), 2),
        "effective_users_after": round(effective(list(after.values())), 2),
        "effective_rows_after": round(effective([e.weight for e in outcome.kept]), 1),
    }  # fmt: skip
    return outcome
