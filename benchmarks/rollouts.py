"""Whom do rollouts let through that are looked at every minute? Many of a bad, a borderline and a good student.

    python -m benchmarks.rollouts --runs 1000 --json

Every minute a Poisson number of pairs arrives, and `monitoring.rollout.next_step` decides as a tick would, over the
default steps of a policy, until the canary is promoted, rolled back or held as inconclusive. Beside it, on draws of the same
disagreement: a window threshold as Flagger's (10 checks of 10 requests pass, 5 that fail roll back) and a z-test that is
peeked at every minute. `requests` are pairs: requests that both student and teacher answered.
"""

import argparse
import json
import math
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from monitoring.rollout import Count, Evidence, first_step, next_step
from router.policy import Canary

STUDENTS = {"bad": 1.5, "limit": 1.0, "good": 0.5}
"""True disagreement as a multiple of the gate's limit."""
WINDOW_CHECKS, WINDOW_FAILURES, WINDOW_REQUESTS = 10, 5, 10
Z_95 = 1.6448536269514722
MIN_Z_REQUESTS = 30
"""Below this nobody trusts the normal approximation of a z-test."""
Outcome = Literal["promoted", "rolled_back", "inconclusive"]
OUTCOMES: dict[str, Outcome] = {
    "promote": "promoted", "rollback": "rolled_back", "inconclusive": "inconclusive",
}  # fmt: skip
"""Actions that end a rollout."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is simulated. `most_requests`: pairs on one step after which the rollout is held as inconclusive."""

    limit: float = 0.10
    steps: tuple[float, ...] = Canary().steps
    per_minute: float = 20.0
    most_requests: int = 8_000


@dataclass(frozen=True, slots=True)
class Run:
    """One rollout's end and the pairs that it took."""

    outcome: Outcome
    requests: int


def canary(setting: Setting) -> Canary:
    """The rule: one gate on disagreement at the default confidence, no waiting."""
    gates = {"disagreement": {"max": setting.limit}}
    cap = {"requests": setting.most_requests}
    return Canary.model_validate(
        {"steps": setting.steps, "hold": "0s", "gates": gates, "give_up_after": cap}
    )


def sequential_run(setting: Setting, share: float, generator: np.random.Generator) -> Run:
    """A rollout by `next_step`, looked at every minute. Evidence begins anew on each step, as the tick gathers it."""
    rule = canary(setting)
    state = first_step(rule, 1, "0")
    requests = bad = rows = minute = 0
    while True:
        arrived = int(generator.poisson(setting.per_minute))
        rows, bad = rows + arrived, bad + int(generator.binomial(arrived, share))
        requests, minute = requests + arrived, minute + 1
        step = next_step(
            rule, Evidence({"": Count(bad, rows)}, errors={"": Count(0, rows)}), state,
            seconds_on_step=60.0 * minute, now=str(requests),
        )  # fmt: skip
        if step.action == "advance":
            bad = rows = minute = 0
        state = step.state
        if step.action in OUTCOMES:
            return Run(OUTCOMES[step.action], requests)


def window_run(setting: Setting, share: float, generator: np.random.Generator) -> Run:
    """A threshold on each window, as Flagger's: a window passes when its share is within the limit."""
    passed = failed = 0
    while passed < WINDOW_CHECKS and failed < WINDOW_FAILURES:
        bad = int(generator.binomial(WINDOW_REQUESTS, share))
        within = bad <= setting.limit * WINDOW_REQUESTS
        passed, failed = passed + within, failed + (not within)
    requests = WINDOW_REQUESTS * (passed + failed)
    return Run("promoted" if passed >= WINDOW_CHECKS else "rolled_back", requests)


def z_run(setting: Setting, share: float, generator: np.random.Generator) -> Run:
    """A one-sided z-test at 95 %, looked at every minute until it says something."""
    bad = rows = 0
    while rows < setting.most_requests:
        arrived = int(generator.poisson(setting.per_minute))
        rows, bad = rows + arrived, bad + int(generator.binomial(arrived, share))
        if rows < MIN_Z_REQUESTS:
            continue
        z = (bad / rows - setting.limit) / math.sqrt(setting.limit * (1 - setting.limit) / rows)
        if abs(z) >= Z_95:
            return Run("promoted" if z < 0 else "rolled_back", rows)
    return Run("inconclusive", rows)


RULES = {"graduate": sequential_run, "window_threshold": window_run, "peeked_z_test": z_run}


def summary(runs: list[Run]) -> dict[str, float]:
    """Shares of the outcomes, and the median pairs that a rollout took."""
    found: dict[str, float] = {
        f"{outcome}_share": sum(r.outcome == outcome for r in runs) / len(runs)
        for outcome in get_args(Outcome)
    }
    return {**found, "median_requests": statistics.median(r.requests for r in runs)}


def measure(runs: int, setting: Setting, seed: int = 0) -> dict[str, Any]:
    """Every student under every rule. The first rule's figures stand at the top, the others under `beside`."""
    found: dict[str, Any] = {"runs": runs, "limit_share": setting.limit, "steps": setting.steps}
    beside: dict[str, dict[str, dict[str, float]]] = {}
    for number, (name, rule) in enumerate(RULES.items()):
        for student, multiple in STUDENTS.items():
            share = multiple * setting.limit
            result = summary(
                [
                    rule(
                        setting,
                        share,
                        np.random.default_rng([seed, number, round(2 * multiple), i]),
                    )
                    for i in range(runs)
                ]
            )
            if name == "graduate":
                found[student] = result
            else:
                beside.setdefault(name, {})[student] = result
    return {**found, "beside": beside}


def main() -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=1000, help="rollouts of each student")
    parser.add_argument("--limit", type=float, default=0.10, help="the gate's limit, 0-1")
    parser.add_argument("--one-step", action="store_true", help="promote at the first kept gate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    if chosen.runs < 1 or not 0 < chosen.limit * max(STUDENTS.values()) < 1:
        parser.error("--runs: allowed: from 1; --limit: allowed: above 0 and below 2/3")
    steps = (1.0,) if chosen.one_step else Setting().steps
    begun = time.perf_counter()
    found = measure(chosen.runs, Setting(chosen.limit, steps), chosen.seed)
    found["seconds"] = round(time.perf_counter() - begun, 1)
    if chosen.json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    for name, students in {"graduate": found, **found["beside"]}.items():
        for student in STUDENTS:
            one = students[student]
            sys.stdout.write(
                f"{name:16} {student:5} promoted {100 * one['promoted_share']:5.1f} %  rolled back "
                f"{100 * one['rolled_back_share']:5.1f} %  inconclusive {100 * one['inconclusive_share']:5.1f} %  "
                f"median {one['median_requests']:,.0f} requests\n"
            )


if __name__ == "__main__":
    main()
