"""What a right answer looks like, and the checks that a student's answer must pass: the policy's part that offline code reads.

Pure shapes with their validation. What the rules do is in `guard`, what agreement means in `compare`.
"""

import re
from functools import cached_property
from typing import Annotated, Any, Literal

import jsonschema_rs
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from router.prompt import template_fields
from router.quantities import Share

AnswerKind = Literal["label", "json", "tool_call", "text"]


def at_key(key: str, why: str) -> PydanticCustomError:
    """The error of a rule over several keys, at the one (dots for deeper ones) that the reader should look at."""
    return PydanticCustomError("at_key", "{why}", {"why": why, "key": key})


def regex(pattern: str) -> str:
    """The pattern itself, when it is a regular expression.

    Raises:
        ValueError: it is not.
    """
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as why:
        raise ValueError(f"not a regular expression: {why}") from why
    return pattern


def _template(template: str) -> str:
    template_fields(template)
    return template


Regex = Annotated[str, AfterValidator(regex)]
Template = Annotated[str, AfterValidator(_template)]


class Strict(BaseModel):
    """Unknown keys are errors; values do not change after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, use_attribute_docstrings=True
    )


class Judge(Strict):
    """An LLM that says which of two answers is better."""

    backend: str | None = None
    """A backend of kind `openai`; none given asks the route's teacher."""
    model: str | None = None
    """Its model; none given asks for the teacher's."""
    per_day: int = Field(default=200, ge=1)
    """Pairs that it is asked about within 24 hours, twice each, in both orders."""


class Compare(Strict):
    """When student and teacher count as agreeing."""

    fields: tuple[str, ...] = ()
    """JSON: these top-level fields decide; none given compares the whole value."""
    comparator: Literal[
        "auto", "exact", "label", "json", "tool_call", "rouge_l", "embedding", "judge"
    ] = "auto"
    """By the kind of answer unless named. `embedding` and `judge` are the monitor's: the router leaves it the pair."""
    threshold: Share = 0.7
    """Text: score from which it counts as agreement, ROUGE-L or the cosine of sentence vectors."""
    judge: Judge | None = None
    """Comparator `judge`: who is asked, and how often."""

    @property
    def is_deferred(self) -> bool:
        """Whether only the monitor can say if two answers agree."""
        return self.comparator in DEFERRED

    @model_validator(mode="after")
    def _judge_is_asked(self) -> "Compare":
        if self.judge is not None and self.comparator != "judge":
            raise at_key("judge", f"nobody asks it under comparator {self.comparator}")
        return self


DEFERRED = ("embedding", "judge")
"""Comparators that cost too much for a request: seconds of CPU, or an LLM's answer."""


COMPARATORS: dict[AnswerKind, tuple[str, ...]] = {
    "label": ("auto", "label", "exact"),
    "json": ("auto", "json", "exact"),
    "tool_call": ("auto", "tool_call"),
    "text": ("auto", "rouge_l", "exact", *DEFERRED),
}
"""Kind of answer → comparators that can read it."""


class AnswerSpec(Strict):
    """What a right answer looks like: drives comparison, guard and evaluation."""

    kind: AnswerKind = "text"
    """The form of the answer."""
    labels: tuple[str, ...] = ()
    """Label: the allowed words."""
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    """JSON: its JSON Schema."""
    compare: Compare = Compare()
    """When two answers agree."""

    @cached_property
    def validator(self) -> jsonschema_rs.Validator | None:
        """The schema's validator, made once; None without a schema."""
        return None if self.schema_ is None else jsonschema_rs.validator_for(self.schema_)

    @model_validator(mode="after")
    def _holds(self) -> "AnswerSpec":
        if self.kind == "label" and not self.labels:
            raise at_key("labels", "an answer of kind label needs labels")
        allowed = COMPARATORS[self.kind]
        if self.compare.comparator not in allowed:
            raise at_key(
                "compare.comparator",
                f"comparator {self.compare.comparator!r} cannot read answers of kind {self.kind}; "
                f"allowed: {', '.join(allowed)}",
            )
        if self.schema_ is not None:
            try:
                jsonschema_rs.validator_for(self.schema_)
            except (ValueError, RecursionError) as why:
                reason = str(why).splitlines()[0]
                raise at_key("schema", f"not a JSON Schema: {reason}") from why
        return self


_VALUED: dict[str, type] = {
    "max_chars": int, "min_chars": int, "forbid": str, "require": str, "http": str,
}  # fmt: skip
_RULES = (
    "schema", "label", "not_empty", "not_truncated", "not_refusal", "no_pii",
    "max_chars", "min_chars", "forbid", "require", "http",
)  # fmt: skip


class GuardRule(Strict):
    """One check of a student's answer; a bare word in YAML is a rule without a value."""

    rule: Literal[
        "schema", "label", "not_empty", "not_truncated", "not_refusal", "no_pii",
        "max_chars", "min_chars", "forbid", "require", "http",
    ]  # fmt: skip
    """Name of the rule."""
    value: int | str | None = None
    """A number of characters, a regular expression, or an address, where the rule takes one."""

    @model_validator(mode="after")
    def _value_fits(self) -> "GuardRule":
        wanted = _VALUED.get(self.rule)
        if wanted is None:
            if self.value is not None:
                raise ValueError(f"{self.rule} takes no value")
            return self
        if not isinstance(self.value, wanted) or isinstance(self.value, bool):
            raise ValueError(
                f"{self.rule} needs {'a number' if wanted is int else 'a text'}: {{{self.rule}: …}}"
            )
        if isinstance(self.value, int) and self.value < 0:
            raise ValueError(f"{self.rule} = {self.value}: allowed: 0 or more")
        if self.rule in ("forbid", "require"):
            regex(str(self.value))
        if self.rule == "http" and not re.match(r"https?://", str(self.value)):
            raise ValueError("http needs an address that begins with http:// or https://")
        return self


def _guard_rule(data: Any) -> Any:
    """`word` or `{word: value}` as a rule; anything else is left for pydantic to refuse."""
    if isinstance(data, str):
        return {"rule": data}
    if isinstance(data, dict) and len(data) == 1 and "rule" not in data:
        name, value = next(iter(data.items()))
        return {"rule": name, "value": value}
    return data


_GUARD_RULE_SCHEMA = {
    "oneOf": [
        {"enum": [rule for rule in _RULES if rule not in _VALUED]},
        *(
            {
                "type": "object",
                "required": [rule],
                "additionalProperties": False,
                "properties": {rule: {"type": "integer" if kind is int else "string"}},
            }
            for rule, kind in _VALUED.items()
        ),
        {
            "type": "object",
            "required": ["rule"],
            "additionalProperties": False,
            "properties": {"rule": {"enum": list(_RULES)}, "value": {}},
        },
    ]
}


class Guard(Strict):
    """Checks on the student's answer before the caller sees it."""

    rules: tuple[
        Annotated[GuardRule, BeforeValidator(_guard_rule), WithJsonSchema(_GUARD_RULE_SCHEMA)], ...
    ] = ()
    """In order; the first that fails decides."""
    stream: Literal["buffer", "pass"] = "buffer"
    """Hold a streamed answer until it is checked, or let it through and only record the verdict."""
