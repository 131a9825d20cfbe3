"""Rows that say the same: exact by a normalised, role-aware key, near by MinHash-LSH and checked by true similarity.

Of twins the row with the best label stays: gold before teacher, then the newer. Candidates come from datasketch's LSH, each
pair is then measured by its exact Jaccard similarity, so the threshold means what it says.
"""

import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from router.prompt import last_user_text, text_of
from training.curate.config import Duplicates
from training.curate.ledger import HELD_OUT_TWIN, Entry, Outcome
from training.dataset import Example
from training.split import shingles, similarity

STAGE = "duplicates"
LOWEST = 0.5
"""Similarity from which candidate pairs are looked for, so that the curve shows what lower thresholds would take."""
THRESHOLDS = tuple(round(LOWEST + 0.05 * i, 2) for i in range(11))
Pair = tuple[int, int, float]


def input_key(example: Example) -> str:
    """The whole conversation, role by role, with white space and case folded."""
    said = (
        f"{m.get('role')}\x1f{' '.join(text_of(m.get('content')).split())}"
        for m in example.messages
    )
    return "\x1e".join(said).casefold()


def _better(one: Example, other: Example) -> bool:
    """Whether `one` is kept rather than `other`."""
    return (one.gold is not None, one.at, one.id) > (other.gold is not None, other.at, other.id)


def exact(examples: Sequence[Example]) -> Outcome:
    """One row an input; the ledger names the row that stayed."""
    best: dict[str, Example] = {}
    for example in examples:
        key = input_key(example)
        if key not in best or _better(example, best[key]):
            best[key] = example
    kept = {e.id for e in best.values()}
    outcome = Outcome([e for e in examples if e.id in kept])
    for example in examples:
        if example.id not in kept:
            winner = best[input_key(example)]
            same = "" if winner.completion == example.completion else ", other answer"
            outcome.entries.append(
                Entry("removed", STAGE, "exact duplicate", example, 1.0, f"of {winner.id}{same}")
            )
    return outcome


def pairs(texts: Sequence[str], lowest: float = LOWEST, num_hashes: int = 128) -> list[Pair]:
    """(i, j, Jaccard similarity) with i < j of texts that are at least `lowest` alike.

    LSH misses some pairs near `lowest`: with 128 permutations and datasketch's choice of bands for false negatives
    weighted 0.9, a few per cent of pairs at exactly that similarity, practically none 0.1 above it.
    """
    from datasketch import MinHash, MinHashLSH

    sets = [shingles(text) for text in texts]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        index = MinHashLSH(threshold=lowest, num_perm=num_hashes, weights=(0.1, 0.9))
        # The shingles are 64-bit hashes already; datasketch mixes the lower 32 bits itself.
        sketches = MinHash.generator(
            (list(found) for found in sets), num_perm=num_hashes, hashfunc=lambda n: n & 0xFFFFFFFF
        )
        found: list[Pair] = []
        for i, sketch in enumerate(sketches):
            for j in index.query(sketch):
                score = similarity(sets[i], sets[j])
                if score >= lowest:
                    found.append((j, i, score))
            index.insert(i, sketch, check_duplication=False)
    return sorted(found)


def near(examples: Sequence[Example], held_out: Sequence[Example], config: Duplicates) -> Outcome:
    """Rows without near duplicates among themselves or of held-out rows.

    Greedy, best label first: a row goes when it is at least `near` like a row that stays, so chains of slightly
    different texts do not collapse into one. `report["curve"]` says for each threshold how many rows would go.
    """
    assert config.near is not None, "the stage runs only with a threshold"
    rows = [*held_out, *examples]
    texts = [last_user_text(e.messages) for e in rows]
    found = pairs(texts, min(LOWEST, config.near), config.num_hashes)
    neighbours: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for i, j, score in found:
        neighbours[i].append((j, score))
        neighbours[j].append((i, score))
    fixed = len(held_out)
    order = sorted(
        range(fixed, len(rows)),
        key=lambda i: (rows[i].gold is not None, rows[i].at, rows[i].id),
        reverse=True,
    )
    keep_conflicts = config.conflicts == "keep"
    gone = _greedy(rows, order, neighbours, fixed, config.near, keep_conflicts)
    outcome = Outcome([e for i, e in enumerate(examples, fixed) if i not in gone])
    for i in sorted(gone):
        twin, score = gone[i]
        same = "" if rows[twin].completion == rows[i].completion else ", other answer"
        rule = HELD_OUT_TWIN if twin < fixed else "near duplicate"
        outcome.entries.append(
            Entry("removed", STAGE, rule, rows[i], round(score, 4), f"of {rows[twin].id}{same}")
        )
    curve = [
        {"threshold": t, "rows": len(_greedy(rows, order, neighbours, fixed, t, keep_conflicts))}
        for t in sorted({*THRESHOLDS, config.near})
    ]
    conflicts = [
        (i, j, s)
        for i, j, s in found
        if s >= config.near and i >= fixed and rows[i].completion != rows[j].completion
    ]
    outcome.report = {
        "threshold": config.near, "curve": curve, "conflicts": len(conflicts),
        "conflict_samples": [_shown(rows[i], rows[j], s) for i, j, s in conflicts[:3]],
        "band_samples": _band_samples(rows, found, config.near),
    }  # fmt: skip
    return outcome


def _greedy(
    rows: Sequence[Example], order: Sequence[int], neighbours: dict[int, list[tuple[int, float]]], fixed: int,
    threshold: float, keep_conflicts: bool,
) -> dict[int, tuple[int, float]]:  # fmt: skip
    """Row → (the row that stays for it, their similarity)."""
    staying = set(range(fixed))
    gone: dict[int, tuple[int, float]] = {}
    for i in order:
        twins = [
            (score, j)
            for j, score in neighbours[i]
            if j in staying
            and score >= threshold
            # A held-out row's twin goes whatever its answer: the text itself must not be trained on.
            and (j < fixed or not keep_conflicts or rows[j].completion == rows[i].completion)
        ]
        if twins:
            score, twin = max(twins)
            gone[i] = (twin, score)
        else:
            staying.add(i)
    return gone


def _shown(one: Example, other: Example, score: float) -> dict[str, Any]:
    return {
        "score": round(score, 3), "texts": [last_user_text(e.messages)[:160] for e in (one, other)],
        "answers": [one.completion[:80], other.completion[:80]],
    }  # fmt: skip


def _band_samples(
    rows: Sequence[Example], found: Sequence[Pair], threshold: float
) -> dict[str, list[dict[str, Any]]]:
    """The pairs nearest to the threshold on either side: what moving it would change."""
    above = sorted((p for p in found if p[2] >= threshold), key=lambda p: p[2])[:3]
    below = sorted((p for p in found if p[2] < threshold), key=lambda p: -p[2])[:3]
    return {
        side: [_shown(rows[i], rows[j], s) for i, j, s in chosen]
        for side, chosen in (("above", above), ("below", below))
    }
