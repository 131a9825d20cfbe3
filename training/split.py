"""Which split a row belongs to: near-duplicates together, classes in proportion, and stable as data grows.

Pure. A group of near-duplicate inputs goes to one split as a whole, so no test row has a twin in training. A group's
place is drawn from a hash of its oldest member, so rows keep their split when more traffic arrives; rows that were
once in a frozen test set are named by the caller and stay there.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from training.dataset import Split

_WORDS = re.compile(r"\w+", re.UNICODE)
TOLD_EVERY = 500


def shingles(text: str, size: int = 5) -> frozenset[int]:
    """Hashes of the runs of `size` characters of the normalised text; the whole text when it is shorter."""
    plain = " ".join(_WORDS.findall(text.lower()))
    pieces = {plain[i : i + size] for i in range(max(1, len(plain) - size + 1))}
    return frozenset(
        int.from_bytes(hashlib.blake2b(p.encode(), digest_size=8).digest()) for p in pieces
    )


def similarity(one: frozenset[int], other: frozenset[int]) -> float:
    """Jaccard similarity, 0-1."""
    return len(one & other) / len(one | other) if one or other else 1.0


def near_duplicate_groups(
    texts: Sequence[str],
    threshold: float = 0.7,
    num_hashes: int = 64,
    bands: int = 16,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> list[int]:
    """A group number for each text; texts at least `threshold` alike are in one group.

    Candidates come from MinHash bands (Broder 1997; with 16 bands of 4 rows a pair of similarity 0.7 is missed in
    1.2 % of cases), each candidate pair is checked by its exact Jaccard similarity. `tell` hears texts done and all of them.
    """
    sets = [shingles(text) for text in texts]
    salts = np.random.default_rng(0).integers(
        1, 2**63, size=num_hashes, dtype=np.uint64
    ) | np.uint64(1)
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    rows = num_hashes // bands
    seen: dict[tuple[int, tuple[int, ...]], list[int]] = defaultdict(list)
    for i, found in enumerate(sets):
        if i % TOLD_EVERY == 0 or i + 1 == len(sets):
            tell(i + 1, len(sets))
        hashes = np.fromiter(found, dtype=np.uint64, count=len(found))
        # Multiplying by an odd salt permutes the 64-bit numbers; the wrap-around is the point.
        signature = (hashes[:, None] * salts).min(axis=0).tolist()
        for band in range(bands):
            key = (band, tuple(signature[band * rows : (band + 1) * rows]))
            for other in seen[key]:
                if root(other) != root(i) and similarity(sets[other], found) >= threshold:
                    parent[root(i)] = root(other)
            seen[key].append(i)
    return [root(i) for i in range(len(texts))]


def draw(key: str, seed: int) -> float:
    """A number from 0 to 1 that depends on `key` and `seed` alone."""
    digest = hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def assign(
    groups: Sequence[int],
    keys: Sequence[str],
    *,
    test_share: float,
    validation_share: float,
    seed: int = 0,
    frozen: Mapping[str, Split] | None = None,
) -> list[Split]:
    """A split for each row.

    Args:
        groups: near-duplicate group of each row.
        keys: what identifies each row's input for good, such as its content hash; oldest row first.
        frozen: splits that earlier datasets gave to some keys; they win, for the whole group.
    """
    chosen = _frozen(groups, keys, frozen)
    for group, key in zip(groups, keys, strict=True):
        if group in chosen:
            continue
        at = draw(key, seed)
        if at < test_share:
            chosen[group] = "test"
        elif at < test_share + validation_share:
            chosen[group] = "validation"
        else:
            chosen[group] = "train"
    return [chosen[group] for group in groups]


def assign_by_time(
    groups: Sequence[int],
    keys: Sequence[str],
    *,
    test_share: float,
    validation_share: float,
    frozen: Mapping[str, Split] | None = None,
) -> list[Split]:
    """A split for each row by age: the newest are tests, those before them validation, as a student is used on what comes.

    Args:
        groups: near-duplicate group of each row; a group is as old as its newest row, and goes to one split.
        keys: what identifies each row's input for good; oldest row first.
        frozen: splits that earlier datasets gave to some keys; they win, for the whole group.
    """
    chosen = _frozen(groups, keys, frozen)
    newest = {group: place for place, group in enumerate(groups)}
    sizes = Counter(groups)
    left = {
        "test": round(test_share * len(groups)),
        "validation": round(validation_share * len(groups)),
    }
    splits: tuple[Split, ...] = ("test", "validation")
    for group in sorted(newest, key=lambda g: -newest[g]):
        if group in chosen:
            continue
        place: Split = next((name for name in splits if left[name] > 0), "train")
        chosen[group] = place
        if place != "train":
            left[place] -= sizes[group]
    return [chosen[group] for group in groups]


def _frozen(
    groups: Sequence[int], keys: Sequence[str], frozen: Mapping[str, Split] | None
) -> dict[int, Split]:
    """Groups with a row whose split is settled."""
    earlier = frozen or {}
    return {group: earlier[key] for group, key in zip(groups, keys, strict=True) if key in earlier}


def balanced(classes: Sequence[str], keys: Sequence[str], seed: int = 0) -> list[int]:
    """Row numbers of a class-balanced subset: as many of each class as the rarest has, drawn by hash."""
    by_class: dict[str, list[int]] = defaultdict(list)
    for i in sorted(range(len(classes)), key=lambda i: draw(keys[i], seed)):
        by_class[classes[i]].append(i)
    if not by_class:
        return []
    smallest = min(len(rows) for rows in by_class.values())
    return sorted(i for rows in by_class.values() for i in rows[:smallest])
