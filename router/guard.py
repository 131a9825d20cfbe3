"""Checks of a student's answer before the caller sees it: one rule, one row of the table. Pure, but for `http`.

A failed rule is a value, not an exception: the teacher answers instead and the record names the rule. The `http` rule
asks an outside service and is called by `exchange`, which does the I/O.
"""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from router import redact
from router.answer_spec import AnswerSpec, GuardRule
from router.compare import json_value, parse, unfenced
from router.records import Answer
from router.tool_calls import read


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether all rules held; else the first that did not, and what it saw."""

    ok: bool
    rule: str | None = None
    detail: str = ""


PASSED = Verdict(True)

REFUSAL = re.compile(
    r"^\W*(i('| a)m (very |so )?sorry\b|sorry, (but )?i\b|i (can(no|')t|am (not able|unable)|won't)\b|as an ai\b|unfortunately,? i (can|am)"
    r"|es tut mir leid|leider kann ich|je suis désolé|je ne peux pas|lo siento|no puedo|mi dispiace|non posso|het spijt me)",
    re.IGNORECASE,
)
"""How refusals begin, in the languages that models refuse in most. Beginning only: an apology inside an answer is not one."""


@functools.lru_cache(maxsize=1024)
def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _schema(spec: AnswerSpec, value: int | str | None, answer: Answer) -> str | None:
    texts = [unfenced(answer.text or "")]
    if spec.kind == "tool_call":  # the schema is that of the arguments
        calls = answer.tool_calls or read(answer.text or "")
        if calls is None:
            return "a call that is none"
        texts = [call.arguments for call in calls]
    for text in texts:
        try:
            found = json_value(text, allows_constants=False)
        except (ValueError, RecursionError):
            return "not JSON"
        if spec.validator is not None and not spec.validator.is_valid(found):
            return next(spec.validator.iter_errors(found)).message
    return None


def _label(spec: AnswerSpec, value: int | str | None, answer: Answer) -> str | None:
    if parse(spec, answer.text) is None:
        return f"not one of {', '.join(spec.labels)}"
    return None


def _not_empty(spec: AnswerSpec, value: int | str | None, answer: Answer) -> str | None:
    return None if (answer.text and answer.text.strip()) or answer.tool_calls else "empty"


def _not_truncated(spec: AnswerSpec, value: int | str | None, answer: Answer) -> str | None:
    return "cut at the token limit" if answer.finish_reason == "length" else None


def _not_refusal(spec: AnswerSpec, value: int | str | None, answer: Answer) -> str | None:
    return "a refusal" if REFUSAL.match(answer.text or "") else None


def _no_pii(spec: AnswerSpec, value: int | str | None, answer: Answer) -> str | None:
    found = redact.find(answer.text or "", ("email", "phone", "credit_card"))
    return f"contains {found}" if found else None


def _max_chars(spec: AnswerSpec, value: int | str | None, answer: Answer) -> str | None:
    length = len(answer.text or "")
    return f"{length} characters" if length > int(value or 0) else None


def _min_chars(spec: AnswerSpec, value: int | str | None, answer: Answer) -> str | None:
    length = len((answer.text or "").strip())
    return f"{length} characters" if length < int(value or 0) else None


def _forbid(spec: AnswerSpec, value: int | str | None, answer: Answer) -> str | None:
    return "forbidden words" if _regex(str(value)).search(answer.text or "") else None


def _require(spec: AnswerSpec, value: int | str | None, answer: Answer) -> str | None:
    return None if _regex(str(value)).search(answer.text or "") else "required words are missing"


RULES: dict[str, Callable[[AnswerSpec, int | str | None, Answer], str | None]] = {
    "schema": _schema,
    "label": _label,
    "not_empty": _not_empty,
    "not_truncated": _not_truncated,
    "not_refusal": _not_refusal,
    "no_pii": _no_pii,
    "max_chars": _max_chars,
    "min_chars": _min_chars,
    "forbid": _forbid,
    "require": _require,
}
"""Rule → what is wrong with the answer, None when it holds."""


def asks_outside(rules: Sequence[GuardRule]) -> bool:
    """Whether a rule asks an outside service."""
    for rule in rules:  # noqa: SIM110 - a generator takes three times as long
        if rule.rule == "http":
            return True
    return False


def check(spec: AnswerSpec, rules: Sequence[GuardRule], answer: Answer) -> Verdict:
    """The first rule that fails, in order; `http` rules are left to the caller."""
    for rule in rules:
        if rule.rule == "http":
            continue
        wrong = RULES[rule.rule](spec, rule.value, answer)
        if wrong is not None:
            return Verdict(False, rule.rule, wrong)
    return PASSED
