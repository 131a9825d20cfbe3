"""The teacher against gold: how often it is wrong, on which classes, and what is learned from such rows. Pure."""

import msgspec

from monitoring.intervals import wilson
from router.answer_spec import AnswerSpec
from router.compare import compare
from router.records import Answer
from training.build import key_of
from training.curate.config import Gold
from training.curate.ledger import Entry, Outcome
from training.dataset import Example, class_of, sha256_of
from training.encode import canonical

STAGE = "gold"
RULE = "teacher error"


def agree(spec: AnswerSpec, one: str, other: str) -> bool:
    """Whether two answers agree under the route's comparator; two that do not parse do not."""

    def said(text: str) -> Answer:
        return Answer(role="teacher", backend="", model="", status=200, text=text)

    return compare(spec, said(one), said(other)).agree is True


def relabelled(example: Example, answer: str, spec: AnswerSpec) -> Example:
    """The row with another answer to learn, in canonical form, its hash with it."""
    tools = example.tools
    completion = canonical(answer, spec.model_dump(mode="json", by_alias=True), tools)
    return msgspec.structs.replace(
        example, completion=completion, sha256=sha256_of(example.messages, f"{key_of(example.messages)}{completion}", tools),
    )  # fmt: skip


def apply(config: Gold, examples: list[Example], spec: AnswerSpec) -> Outcome:
    """Rows with a gold answer learn it, go where the teacher errs, or learn the teacher's error; others stay."""
    form = spec.model_dump(mode="json", by_alias=True)
    outcome = Outcome([])
    both, wrong, by_class = 0, 0, dict[str, list[int]]()
    for example in examples:
        if example.gold is None or example.teacher is None:
            outcome.kept.append(example)
            continue
        is_error = not agree(spec, example.teacher, example.gold)
        both, wrong = both + 1, wrong + is_error
        name = class_of(canonical(example.gold, form), form)
        if name is not None:
            counted = by_class.setdefault(name, [0, 0])
            counted[0], counted[1] = counted[0] + is_error, counted[1] + 1
        if is_error and config.errors == "drop":
            detail = f"teacher {example.teacher!r:.60}, gold {example.gold!r:.60}"
            outcome.entries.append(Entry("removed", STAGE, RULE, example, None, detail))
            continue
        learned = example.teacher if config.errors == "teacher" else example.gold
        changed = relabelled(example, learned, spec)
        if changed.completion != example.completion:
            rule = "teacher's label" if config.errors == "teacher" else RULE
            outcome.entries.append(
                Entry("changed", STAGE, rule, example, None, learned[:200], changed)
            )
        outcome.kept.append(changed)
    low, high = wilson(wrong, both)
    outcome.report = {
        "rows_with_gold": both, "teacher_errors": wrong, "action": config.errors,
        "error_rate": wrong / both if both else None, "interval": [low, high] if both else None,
        "by_class": {name: {"errors": e, "rows": n} for name, (e, n) in sorted(by_class.items())},
    }  # fmt: skip
    return outcome
