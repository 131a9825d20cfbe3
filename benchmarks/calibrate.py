"""Does the promise of `graduate monitor calibrate` hold? Many random splits of many pairs, the truth from those held out.

    python -m benchmarks.calibrate --splits 100 --json

The pairs are made: requests of easy and hard words, a student whose confidence knows part of what makes it wrong. Each
split calibrates on some of them and reads the disagreement of the student's answers off the others. Beside it stands
what people do without a promise: the boldest threshold whose share of disagreement looks fine.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from monitoring.calibrate import Pairs, Point, path
from monitoring.calibrate_run import Use, thresholds
from monitoring.calibration_pairs import Example, arrays

HARD = tuple(f"hard{a}" for a in "abcdefgh")
EASY = tuple(f"easy{a}{b}" for a in "abcdefghijklmnop" for b in "abcdefghijklmnop")


def make(
    rows: int,
    seed: int,
    sampled: tuple[float, ...] = (1.0,),
    risks: tuple[float, float] = (0.16, 0.4),
) -> list[Example]:
    """Pairs whose disagreement depends on words and on something that only the confidence shows.

    Args:
        sampled: probabilities of being a pair, one drawn for each request; the likelier the harder, so that unweighted
            figures are biased.
        risks: how much a hard word, and what only the confidence shows, add to the risk of disagreement.
    """
    generator = np.random.default_rng(seed)
    found: list[Example] = []
    while len(found) < rows:
        hard = int(generator.binomial(3, 0.08))
        hidden = float(generator.random())
        risk = min(0.9, 0.003 + risks[0] * hard + risks[1] * max(0.0, hidden - 0.6))
        place = int(hard > 0) % len(sampled)
        if generator.random() > sampled[place]:
            continue
        words = [HARD[i] for i in generator.integers(0, len(HARD), hard)]
        words += [EASY[i] for i in generator.integers(0, len(EASY), 12 - hard)]
        generator.shuffle(words)
        confidence = float(
            np.clip(1 - 0.6 * hidden - 0.12 * hard + generator.normal(0, 0.05), 0.0, 1.0)
        )
        found.append(
            Example(
                f"r{len(found)}", " ".join(words), confidence, bool(generator.random() < risk), True,
                sampled[place], 0.0, 1.0,
            )
        )  # fmt: skip
    return found


def _rate(point: Point | None, pairs: Pairs) -> tuple[float, float]:
    """Share that the student answers, and the disagreement of that; zeros without a threshold."""
    if point is None:
        return 0.0, 0.0
    kept = point.kept(pairs)
    weight = pairs.weight[kept]
    rate = float(np.average(pairs.wrong[kept], weights=weight)) if len(weight) else 0.0
    return float(weight.sum() / pairs.weight.sum()), rate


def _naive(pairs: Pairs, limit: float, confidence: float) -> Point | None:
    """The boldest confidence floor whose disagreement on the same pairs is within the limit."""
    points = path(pairs, limit, 1 - confidence)
    fine = [p for p in points if p.kept(pairs).any() and _rate(p, pairs)[1] <= limit]
    return fine[-1] if fine else None


def run(
    examples: Sequence[Example],
    *,
    splits: int,
    calibrate_rows: int,
    limit: float,
    confidence: float,
    use: Use,
    seed: int = 0,
) -> dict[str, Any]:
    """Shares of random splits in which the held-out disagreement stayed within the limit."""
    generator = np.random.default_rng(seed)
    pairs = arrays(examples)
    shares, naive_shares, held, naive_held, none = [], [], 0, 0, 0
    for split in range(splits):
        order = generator.permutation(len(examples))
        chosen = [examples[i] for i in order[:calibrate_rows]]
        found = thresholds(chosen, limit=limit, confidence=confidence, use=use, seed=split)
        inside, outside = pairs.part(order[:calibrate_rows]), pairs.part(order[calibrate_rows:])
        point = found.calibration.chosen.point if found.calibration.chosen else None
        none += point is None
        if found.model is not None:
            texts = [examples[i].text or "" for i in order[calibrate_rows:]]
            outside = replace(outside, difficulty=np.asarray([found.model.score(t) for t in texts]))
        share, rate = _rate(point, outside)
        shares.append(share)
        held += rate <= limit
        share, rate = _rate(_naive(inside, limit, confidence), outside)
        naive_shares.append(share)
        naive_held += rate <= limit
    return {
        "use": use, "calibrate_pairs": calibrate_rows, "held_out_pairs": len(examples) - calibrate_rows,
        "splits": splits, "limit": limit, "confidence": confidence,
        "held_share": held / splits, "student_share": float(np.mean(shares)), "none_share": none / splits,
        "naive_held_share": naive_held / splits, "naive_student_share": float(np.mean(naive_shares)),
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """What is used, pairs to calibrate on, pairs in all; the rest as in `make`."""

    use: Use
    rows: int
    total: int
    sampled: tuple[float, ...] = (1.0,)
    risks: tuple[float, float] = (0.16, 0.4)


CASES = (
    Case("confidence", 1_000, 10_000),
    Case("confidence", 2_000, 10_000),
    Case("confidence", 2_000, 4_000),
    Case("confidence", 2_000, 10_000, sampled=(0.25, 1.0)),
    Case("both", 2_000, 5_000),
    Case("difficulty", 2_000, 5_000, risks=(0.35, 0.1)),
)


def main() -> None:
    """Print one line for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splits", type=int, default=100)
    parser.add_argument("--case", type=int, choices=range(1, len(CASES) + 1), help="one case only")
    parser.add_argument("--max-disagreement", type=float, default=0.05)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = []
    chosen = CASES if options.case is None else CASES[options.case - 1 : options.case]
    for case in chosen:
        began = time.perf_counter()
        found = run(
            make(case.total, options.seed, case.sampled, case.risks), splits=options.splits,
            calibrate_rows=case.rows, limit=options.max_disagreement, confidence=options.confidence,
            use=case.use, seed=options.seed,
        )  # fmt: skip
        found |= {"sampled": case.sampled, "seconds": round(time.perf_counter() - began, 1)}
        results.append(found)
        if not options.json:
            print(
                f"{case.use:<11} {case.rows:>5} pairs of {case.total:>6}, sampled at {case.sampled}: "
                f"held in {100 * found['held_share']:.0f} % of splits at {100 * found['student_share']:.1f} % "
                f"by the student (none: {100 * found['none_share']:.0f} %); without a promise: "
                f"{100 * found['naive_held_share']:.0f} % at {100 * found['naive_student_share']:.1f} %, {found['seconds']} s",
                file=sys.stdout, flush=True,
            )  # fmt: skip
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
