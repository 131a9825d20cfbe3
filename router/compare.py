"""Whether student and teacher gave the same answer, under the route's named comparator. Pure.

| comparator | for | agrees when |
|---|---|---|
| label | label | the normalised words are equal |
| json | json | the compared fields (or the whole values) are equal |
| tool_call | tool_call | same tools, same arguments as JSON, in any key order |
| rouge_l | text | ROUGE-L F1 of the words reaches the threshold (Lin 2004) |
| exact | any | the stripped texts are equal |
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from router.policy import AnswerSpec
from router.records import Answer, Comparison, ToolCall

_FENCE = re.compile(r"^\s*```[a-zA-Z]*\s*\n?(.*?)\n?\s*```\s*$", re.DOTALL)
_WORDS = re.compile(r"\w+", re.UNICODE)


def unfenced(text: str) -> str:
    """The text inside one Markdown code fence, or the text itself, stripped."""
    found = _FENCE.match(text)
    return (found[1] if found else text).strip()


def _label(spec: AnswerSpec, text: str) -> str | None:
    word = unfenced(text).strip("\"'`. \n").casefold()
    return next((label for label in spec.labels if label.casefold() == word), None)


def _json(spec: AnswerSpec, text: str) -> Any | None:
    try:
        value = json.loads(unfenced(text))
    except (ValueError, RecursionError):
        return None
    fields = spec.compare.fields
    if fields and not (isinstance(value, dict) and all(name in value for name in fields)):
        return None
    return value


def _calls(calls: Sequence[ToolCall]) -> list[tuple[str, str]] | None:
    found = []
    for call in calls:
        try:
            arguments = json.loads(call.arguments or "{}")
        except (ValueError, RecursionError):
            return None
        found.append((call.name, json.dumps(arguments, sort_keys=True)))
    return sorted(found)


def parse(spec: AnswerSpec, text: str | None, tool_calls: Sequence[ToolCall] = ()) -> Any | None:
    """The normalised answer: a label, a JSON value, sorted tool calls, or stripped text; None when it has no such form."""
    if spec.kind == "tool_call":
        return _calls(tool_calls)
    if text is None:
        return None
    if spec.kind == "label":
        return _label(spec, text)
    if spec.kind == "json":
        return _json(spec, text)
    return text.strip() or None


def rouge_l(one: str, other: str) -> float:
    """ROUGE-L F1 of two texts: the longest common subsequence of their lower-case words (Lin 2004). 0-1."""
    a, b = _WORDS.findall(one.lower()), _WORDS.findall(other.lower())
    if not a or not b:
        return float(a == b)
    above = [0] * (len(b) + 1)
    for word in a:
        row = [0]
        for j, candidate in enumerate(b):
            row.append(above[j] + 1 if word == candidate else max(above[j + 1], row[j]))
        above = row
    common = above[-1]
    return 2 * common / (len(a) + len(b))


def _name(spec: AnswerSpec) -> str:
    chosen = spec.compare.comparator
    if chosen != "auto":
        return chosen
    return {"label": "label", "json": "json", "tool_call": "tool_call", "text": "rouge_l"}[
        spec.kind
    ]


def _agree_json(spec: AnswerSpec, one: Any, other: Any) -> tuple[bool, float, dict[str, bool]]:
    names = spec.compare.fields
    if not names:
        same = one == other
        return same, float(same), {}
    fields = {name: one[name] == other[name] for name in names}
    return all(fields.values()), sum(fields.values()) / len(fields), fields


def _agree_text(spec: AnswerSpec, one: Any, other: Any) -> tuple[bool, float, dict[str, bool]]:
    score = rouge_l(str(one), str(other))
    return score >= spec.compare.threshold, score, {}


def _agree_equal(spec: AnswerSpec, one: Any, other: Any) -> tuple[bool, float, dict[str, bool]]:
    return one == other, float(one == other), {}


_AGREE: dict[str, Callable[[AnswerSpec, Any, Any], tuple[bool, float, dict[str, bool]]]] = {
    "label": _agree_equal,
    "json": _agree_json,
    "tool_call": _agree_equal,
    "rouge_l": _agree_text,
    "exact": _agree_equal,
}


def compare(spec: AnswerSpec, student: Answer, teacher: Answer) -> Comparison:
    """Student against teacher. When one has no answer of the right form, `agree` is None and the fault is named."""
    name = _name(spec)
    if name == "exact":
        one: Any = (student.text or "").strip() or None
        other: Any = (teacher.text or "").strip() or None
    else:
        one = parse(spec, student.text, student.tool_calls) if student.ok else None
        other = parse(spec, teacher.text, teacher.tool_calls) if teacher.ok else None
    if one is None or other is None:
        return Comparison(name, comparable=False, student_form_ok=one is not None)
    agree, score, fields = _AGREE[name](spec, one, other)
    return Comparison(name, agree, score, fields)
