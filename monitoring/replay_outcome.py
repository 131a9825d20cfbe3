"""What a logged answer of the student would have led to under another policy: does it agree, does it fall back. Pure."""

from router import guard
from router.compare import compare
from router.policy import Price, Route
from router.policy_file import LoadedPolicy
from router.records import Answer, Record


def token_cost(answer: Answer, price: Price) -> float:
    """US dollars of an answer's tokens; the logged cost where there is no token price."""
    if not price.input and not price.output:
        return answer.cost_usd
    usage = answer.usage
    return (usage.prompt_tokens * price.input + usage.completion_tokens * price.output) / 1e6


def is_adapter(student: Answer, route: Route, rules: LoadedPolicy, name: str) -> bool:
    """Whether the logged answer is of the adapter that the policy asks."""
    spec = route.student
    if spec is None or student.adapter is None:
        return False
    adapter, _, version = student.adapter.rpartition("/")
    rollout = rules.rollouts.routes.get(name)
    pinned = rollout.version if rollout and rollout.version is not None else spec.version
    return adapter == spec.adapter and (pinned == "latest" or str(pinned) == version)


def _has_text(answer: Answer) -> bool:
    return answer.text is not None or bool(answer.tool_calls)


def agreed(record: Record, student: Answer, teacher: Answer, route: Route) -> tuple[bool, bool]:
    """Whether the two agree by the policy's comparator, and whether the teacher's answer can be compared at all."""
    found = record.comparison
    if _has_text(student) and _has_text(teacher):
        found = compare(route.answer, student, teacher)
    if found is None:
        return False, False
    return found.agree is True, found.comparable or not found.student_form_ok


def why_falls(student: Answer, route: Route, floor: float | None) -> str | None:
    """Why the student's answer would not have been the reply; None when it would. Rules that ask outside are not asked."""
    if student.error is not None:
        return student.error
    verdict = student.verdict
    if _has_text(student):
        verdict = guard.check(route.answer, route.guard.rules, student).rule
    if verdict is not None and "guard" in route.fallback.on:
        return "guard"
    if floor is not None and (student.confidence is None or student.confidence < floor):
        return "confidence"
    return None


def teacher_replies(reason: str, route: Route) -> bool:
    """Whether the teacher answers instead for this reason; otherwise the caller gets an error."""
    if reason == "confidence":
        return True
    kind = reason if reason in ("timeout", "overload", "guard") else "error"
    return route.fallback.to == "teacher" and kind in route.fallback.on
