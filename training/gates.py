"""Gates in front of the registry: each one a line with figure, limit and outcome, all of them together a conclusion.

Decides whether a student graduates, may only work beside its teacher, or does not graduate, and why. Pure: the figures come from the
run's evaluation and from whoever measured them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from training.errors import PublishRefused

State = Literal["passed", "failed", "not measured"]
Stops = Literal["always", "signature", "verdict", "never"]
"""What a failed gate does: `always` refuses; `signature` refuses until somebody signs; `verdict` decides the conclusion, which
`--force` overrules; `never` only warns."""
Verdict = Literal["graduate", "hybrid only", "do not graduate"]
LEAST_AGREEMENT = 0.5
"""Without gold answers: the share of the teacher's answers that a student beside it must give."""
MOST_HANDED_OVER = 0.9
"""Share of the requests that a hybrid may leave to the teacher: with nearly all of them left, any student is as good as it."""


@dataclass(frozen=True, slots=True)
class Gate:
    """One line of the report."""

    name: str
    state: State
    figure: str
    limit: str
    stops: Stops


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What all gates come to."""

    verdict: Verdict
    reasons: tuple[str, ...]
    gates: tuple[Gate, ...]

    @property
    def failed(self) -> tuple[Gate, ...]:
        """Gates that did not hold."""
        return tuple(gate for gate in self.gates if gate.state == "failed")


def outcome(holds: bool) -> State:
    """`passed` or `failed`."""
    return "passed" if holds else "failed"


def of_evaluation(evaluation: dict[str, Any]) -> list[Gate]:
    """The evaluation's gates: non-inferiority on each test set and by each judge, and the hybrid where one of them fails.

    Both test sets count: a student that holds its own on the traffic's mix may have given up the rare class.
    """
    gates = [_non_inferior(test) for test in evaluation["tests"]]
    if not any(test["split"] == "test_balanced" for test in evaluation["tests"]):
        gates.append(
            Gate("non-inferior on test_balanced", "not measured", "no such test set: the answers have no classes",
                 "-", "verdict")
        )  # fmt: skip
    gates += [_judged(judge, evaluation["tests"][0]) for judge in evaluation.get("judges", ())]
    if all(gate.state == "not measured" for gate in gates):
        gates.append(_agreement(evaluation["tests"][0]))
    elif any(gate.state == "failed" for gate in gates):
        gates += [_together(test) for test in evaluation["tests"]]
    return gates


def _non_inferior(test: dict[str, Any]) -> Gate:
    name = f"non-inferior on {test['split']}"
    gap, limit = test["student_against_teacher"], f"above -{100 * test['margin']:.0f} points"
    if gap is None or test["non_inferior"] is None:
        return Gate(
            name, "not measured", f"{test['rows']} rows, no gold beside the teacher's answers", limit, "verdict"
        )  # fmt: skip
    figure = (
        f"{100 * gap['difference']:+.1f} points [{100 * gap['low']:+.1f}, {100 * gap['high']:+.1f}] "
        f"to the teacher, {test['rows']} rows"
    )
    return Gate(name, outcome(test["non_inferior"]), figure, limit, "verdict")


def _judged(judge: dict[str, Any], test: dict[str, Any]) -> Gate:
    """What a judge says of student against teacher; only one that agrees with people may gate."""
    won = judge["pairwise"]["win_rate"]
    name = f"non-inferior by judge {judge['model']}"
    least = 0.5 - test["margin"]
    limit = f"interval above {100 * least:.0f} %, by a judge that agrees with people"
    figure = (
        f"wins {100 * won['value']:.1f} % [{100 * won['low']:.1f}, {100 * won['high']:.1f}] against the teacher, ties half, "
        f"{judge['rows']} rows"
    )
    if not judge["may_gate"]:
        return Gate(
            name, "not measured", f"{figure}; it may not gate: {judge['why']}", limit, "verdict"
        )
    return Gate(name, outcome(won["low"] > least), figure, limit, "verdict")


def _agreement(test: dict[str, Any]) -> Gate:
    student = next(line for line in test["lines"] if line["name"] == "student")
    share = student["figures"]["accuracy"]["share"]
    return Gate(
        "agrees with the teacher", outcome(share >= LEAST_AGREEMENT),
        f"{100 * share:.1f} % of {test['rows']} test rows; there is no gold",
        f"at least {100 * LEAST_AGREEMENT:.0f} %", "verdict",
    )  # fmt: skip


def _together(test: dict[str, Any]) -> Gate:
    """Student and teacher together against the teacher alone."""
    name, found = f"hybrid on {test['split']}", test["hybrid"]
    if not found:
        return Gate(
            name, "not measured", "no hybrid in the evaluation", "the teacher alone", "verdict"
        )
    right, teacher = found["accuracy"], found["teacher_alone"]
    figure = (
        f"{100 * right['share']:.1f} % right, up to {100 * right['high']:.1f}, with the teacher on "
        f"{100 * found['handed_over']:.0f} % of requests"
    )
    limit = f"the teacher alone: {100 * teacher['share']:.1f} %, on at most {100 * MOST_HANDED_OVER:.0f} % of requests"
    holds = found["handed_over"] <= MOST_HANDED_OVER and right["high"] >= teacher["share"]
    return Gate(name, outcome(holds), figure, limit, "verdict")


def conclude(gates: Sequence[Gate]) -> Conclusion:
    """`graduate`: no gate that decides failed, and non-inferiority was shown. `hybrid only`: it was not, but student and teacher
    together are as good as the teacher at fewer of its calls. Otherwise `do not graduate`.

    A gate that was not measured neither lets pass nor stops; where no test set could be compared, agreement with the teacher
    allows a hybrid at most.
    """
    deciding = [gate for gate in gates if gate.stops == "verdict"]
    of_tests = [gate for gate in deciding if gate.name.startswith("non-inferior")]
    fallback = [gate for gate in deciding if gate.name.startswith(("hybrid", "agrees"))]
    others = [gate for gate in deciding if gate not in of_tests and gate not in fallback]
    stopped = [gate for gate in others if gate.state == "failed"]
    shown = any(gate.state == "passed" for gate in of_tests)
    missed = [gate for gate in of_tests if gate.state == "failed"]
    verdict: Verdict
    if stopped:
        verdict, why = "do not graduate", stopped
    elif shown and not missed:
        verdict, why = "graduate", [gate for gate in of_tests if gate.state == "passed"]
    else:
        measured = [gate for gate in fallback if gate.state != "not measured"]
        holds = bool(measured) and all(gate.state == "passed" for gate in measured)
        verdict, why = "hybrid only" if holds else "do not graduate", [*missed, *measured]
    reasons = tuple(
        f"{gate.name}: {gate.figure} ({gate.state}; limit {gate.limit})" for gate in why
    )
    return Conclusion(verdict, reasons or ("nothing was measured that a student could graduate on",), tuple(gates))  # fmt: skip


def enforce(conclusion: Conclusion, forced: str | None) -> None:
    """Nothing, when the adapter may be published. A hybrid-only student may: the policy decides its mode.

    Raises:
        PublishRefused: with every failed gate. Only the verdict can be forced.
    """
    hard = [g for g in conclusion.gates if g.state == "failed" and g.stops in ("always", "signature")]  # fmt: skip
    if hard:
        raise PublishRefused(
            "; ".join(f"{gate.name}: {gate.figure} (needed: {gate.limit})" for gate in hard)
        )
    if conclusion.verdict == "do not graduate" and not forced:
        raise PublishRefused(
            "do not graduate: "
            + "; ".join(conclusion.reasons)
            + "; --force REASON publishes all the same"
        )
