"""Declarative rules: what a row's texts must be to stay. Pure; one function a condition."""

import re
from collections.abc import Callable, Mapping, Sequence

from router import guard, redact
from router.answer_spec import AnswerSpec, GuardRule
from router.prompt import last_user_text
from router.records import Answer
from training.curate.config import Rule, name_of
from training.curate.ledger import Entry, Outcome
from training.dataset import Example
from training.import_formats import Facts
from training.language import language_of

STAGE = "rules"


def _length(rule: Rule, text: str) -> str | None:
    if rule.min_chars is not None and len(text.strip()) < rule.min_chars:
        return f"{len(text.strip())} characters"
    if rule.max_chars is not None and len(text) > rule.max_chars:
        return f"{len(text)} characters"
    return None


def _allow(rule: Rule, text: str) -> str | None:
    return None if re.search(rule.allow or "", text) else "pattern not found"


def _deny(rule: Rule, text: str) -> str | None:
    found = re.search(rule.deny or "", text)
    return f"found {found[0]!r:.60}" if found else None


def _language(rule: Rule, text: str) -> str | None:
    language, probability = language_of(text)
    if language is None or language in rule.language:
        return None
    return f"language {language} (p {probability:.2f})"


def _pii(rule: Rule, text: str) -> str | None:
    found = redact.find(text, rule.pii)
    return f"contains {found}" if found else None


def _empty(rule: Rule, text: str) -> str | None:
    return None if text.strip() else "blank"


_TEXTS: dict[str, Callable[[Rule, str], str | None]] = {
    "min_chars": _length, "max_chars": _length, "allow": _allow, "deny": _deny, "language": _language, "pii": _pii,
    "empty": _empty,
}  # fmt: skip
_GUARDS = {"json": "schema", "refusal": "not_refusal"}


def _wrong(
    rule: Rule, example: Example, spec: AnswerSpec, facts: Mapping[str, Facts]
) -> str | None:
    """What the rule does not like about the row; None when it stays."""
    condition = rule.condition
    answer = example.completion
    if condition == "truncated":
        reason = facts.get(example.id, Facts()).finish_reason
        return "finish_reason length" if reason == "length" else None
    if condition in _GUARDS:
        said = Answer(role="teacher", backend="", model="", status=200, text=answer)
        verdict = guard.check(spec, (GuardRule(rule=_GUARDS[condition]),), said)  # type: ignore[arg-type]
        return None if verdict.ok else verdict.detail
    of = rule.of or ("both" if condition == "empty" else "input")
    texts = [last_user_text(example.messages)] if of != "answer" else []
    texts += [answer] if of != "input" else []
    return next((wrong for text in texts if (wrong := _TEXTS[condition](rule, text))), None)


def apply(
    rules: Sequence[Rule], examples: Sequence[Example], spec: AnswerSpec, facts: Mapping[str, Facts]
) -> Outcome:
    """The rows that keep every rule; a row goes by the first that it breaks.

    `report` counts for each rule how many rows break it, whether or not an earlier rule took them: rules can be judged
    apart.
    """
    outcome = Outcome([], report={"breaks": {name_of(rule): 0 for rule in rules}})
    for example in examples:
        broken = [
            (name_of(rule), wrong)
            for rule in rules
            if (wrong := _wrong(rule, example, spec, facts)) is not None
        ]
        for name, _ in broken:
            outcome.report["breaks"][name] += 1
        if broken:
            outcome.entries.append(
                Entry("removed", STAGE, broken[0][0], example, None, broken[0][1])
            )
        else:
            outcome.kept.append(example)
    return outcome
