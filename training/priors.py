"""The class mix that production will have, baked into the adapter while it is trained. Pure but for tensors' shapes.

Training rows rarely have the mix that a student will meet or should be fair to: 13 % toxic in the log, half and half
where both errors cost the same. Greedy decoding has its threshold where the training mix put it. Two ways to move it:

* `logit`: logit-adjusted loss (Menon et al. 2021, "Long-tail learning via logit adjustment", arXiv 2007.07314, eq. 10).
  During training log(trained share / target share) is added to each answer's score. The model learns what is left,
  so its own greedy answer is the right one for the target mix. No row gets more weight than another.
* `weights`: rows weighted by target share / trained share (Elkan 2001, "The foundations of cost-sensitive learning").
  Simpler; on models that can fit every row its effect fades with training (Byrd & Lipton 2019, arXiv 1812.03372).

An answer is several tokens, so its correction is shared out over the tree of all training answers: at each token the
log-ratio of the conditional shares. Along an answer they sum to the log-ratio of the whole answer.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from training.errors import DataError


@dataclass(frozen=True, slots=True)
class Shift:
    """What is added to logits while training: after a prefix of answer tokens, token → nats."""

    after: Mapping[tuple[int, ...], Mapping[int, float]]

    def along(self, completion: Sequence[int]) -> list[tuple[int, int, float]]:
        """(position in the answer, token id, nats) for every correction that this answer passes."""
        found = []
        for place in range(len(completion)):
            for token, nats in self.after.get(tuple(completion[:place]), {}).items():
                found.append((place, token, nats))
        return found


def shares_of(labels: Sequence[str]) -> dict[str, float]:
    """Each class's share of the rows."""
    counts = Counter(labels)
    return {name: n / counts.total() for name, n in counts.items()}


def target_shares(target: Mapping[str, float], labels: Sequence[str]) -> dict[str, float]:
    """The declared mix with shares that sum to 1.

    Raises:
        DataError: a class of the rows is not declared, a declared one has no row, or the shares are nothing.
    """
    known = set(labels)
    missing, unknown = sorted(known - set(target)), sorted(set(target) - known)
    if missing:
        raise DataError(f"target_mix: no share for class {missing[0]!r}; classes: {sorted(known)}")
    if unknown:
        raise DataError(
            f"target_mix.{unknown[0]}: no training row of this class; classes: {sorted(known)}"
        )
    total = sum(target.values())
    if total <= 0 or min(target.values()) <= 0:
        raise DataError(f"target_mix = {dict(target)}: allowed: shares above 0 for every class")
    return {name: value / total for name, value in target.items()}


def row_weights(labels: Sequence[str], target: Mapping[str, float]) -> list[float]:
    """A weight a row, target share / trained share; their mean is 1."""
    trained, wanted = shares_of(labels), target_shares(target, labels)
    return [wanted[label] / trained[label] for label in labels]


def logit_shift(
    completions: Sequence[Sequence[int]], labels: Sequence[str], target: Mapping[str, float]
) -> Shift:
    """The correction over the tree of all training answers, one answer and its class a row."""
    weights = row_weights(labels, target)
    trained: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    wanted: dict[tuple[int, ...], dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for completion, weight in zip(completions, weights, strict=True):
        for place, token in enumerate(completion):
            prefix = tuple(completion[:place])
            trained[prefix][token] += 1
            wanted[prefix][token] += weight
    after: dict[tuple[int, ...], dict[int, float]] = {}
    for prefix, counts in trained.items():
        rows, mass = counts.total(), sum(wanted[prefix].values())
        nats = {
            token: math.log((n / rows) / (wanted[prefix][token] / mass))
            for token, n in counts.items()
        }
        if any(abs(value) > 1e-9 for value in nats.values()):
            after[prefix] = nats
    return Shift(after)


def threshold_for(trained_for: float, meant_for: float) -> float:
    """Log-odds above which a two-class score means the class, when the mix is not the one the score was made for.

    Args:
        trained_for: the class's share that the score's zero is right for.
        meant_for: its share where the answers are used (Saerens, Latinne & Decaestecker 2002).
    """
    return math.log(trained_for / (1 - trained_for)) - math.log(meant_for / (1 - meant_for))
