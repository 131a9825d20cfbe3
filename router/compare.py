"""Whether student and teacher gave the same answer, under the route's named comparator. Pure.

| comparator | for | agrees when |
|---|---|---|
| label | label | the normalised words are equal |
| json | json | the compared fields (or the whole values) are equal |
| tool_call | tool_call | same tools, same arguments as JSON, in any key order; no call on either side |
| rouge_l | text | ROUGE-L F1 of the words reaches the threshold (Lin 2004) |
| exact | any | the stripped texts are equal |
| embedding, judge | text | the monitor says so: online the pair is left to it (`compare_online`), elsewhere ROUGE-L stands in |
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Never

import msgspec

from router.answer_spec import AnswerSpec
from router.records import Answer, Comparison, ToolCall
from router.tool_calls import read

_WORDS = re.compile(r"\w+", re.UNICODE)
_quick = msgspec.json.Decoder()


def json_value(text: str, *, allows_constants: bool = True) -> Any:
    """The value of a JSON text.

    msgspec reads it, at a tenth of the time; what it does not take is given to Python's reader, which has the last word
    (lone surrogates, integers of any length). What both take has one value.

    Args:
        allows_constants: whether NaN and Infinity are values: Python's reader thinks so, JSON does not.

    Raises:
        ValueError, RecursionError: it is not JSON.
    """
    try:
        return _quick.decode(text)
    except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError):
        return json.loads(text, parse_constant=None if allows_constants else _no_constant)


def _no_constant(name: str) -> Never:
    raise ValueError(f"{name} is not JSON")


def unfenced(text: str) -> str:
    """The text inside one Markdown code fence, or the text itself, stripped."""
    plain = text.strip()
    if len(plain) < 6 or not (plain.startswith("```") and plain.endswith("```")):
        return plain
    first, newline, rest = plain[3:-3].partition("\n")
    is_language = (newline and first.strip().isalnum()) or not first.strip()
    return (rest if is_language else plain[3:-3]).strip()


def _label(spec: AnswerSpec, text: str) -> str | None:
    word = unfenced(text).strip("\"'`. \n").casefold()
    return next((label for label in spec.labels if label.casefold() == word), None)


def _json(spec: AnswerSpec, text: str) -> Any | None:
    try:
        value = json_value(unfenced(text))
    except (ValueError, RecursionError):
        return None
    fields = spec.compare.fields
    if fields and not (isinstance(value, dict) and all(name in value for name in fields)):
        return None
    return value


def _calls(calls: Sequence[ToolCall]) -> list[tuple[str, Any]] | None:
    """Names and arguments in one order, whatever order they came in."""
    found = []
    for call in calls:
        try:
            found.append((call.name, json_value(call.arguments or "{}")))
        except (ValueError, RecursionError):
            return None
    if len(found) < 2:
        return found
    return sorted(found, key=lambda item: (item[0], json.dumps(item[1], sort_keys=True)))


def parse(spec: AnswerSpec, text: str | None, tool_calls: Sequence[ToolCall] = ()) -> Any | None:
    """The normalised answer: a label, a JSON value, sorted tool calls, or stripped text; None when it has no such form.

    A text of kind tool_call is read for the calls that a student writes; words are no call, an empty list.
    """
    if spec.kind == "tool_call":
        found = tool_calls or read(text or "")
        return None if found is None else _calls(found)
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
    return 2 * _common_subsequence(a, b) / (len(a) + len(b))


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table in one integer (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for position, word in enumerate(b):
        places[word] = places.get(word, 0) | 1 << position
    full = (1 << len(b)) - 1
    row = full
    for word in a:
        matched = row & places.get(word, 0)
        row = (row + matched | row - matched) & full
    return len(b) - row.bit_count()


_BY_KIND = {"label": "label", "json": "json", "tool_call": "tool_call", "text": "rouge_l"}


def _name(spec: AnswerSpec) -> str:
    chosen = spec.compare.comparator
    if chosen != "auto" and not spec.compare.is_deferred:
        return chosen
    return _BY_KIND[spec.kind]


def _agree_json(spec: AnswerSpec, one: Any, other: Any) -> tuple[bool, float, dict[str, bool]]:
    names = spec.compare.fields
    if not names:
        same = is_same(one, other)
        return same, float(same), {}
    fields = {name: is_same(one[name], other[name]) for name in names}
    return all(fields.values()), sum(fields.values()) / len(fields), fields


def _agree_text(spec: AnswerSpec, one: Any, other: Any) -> tuple[bool, float, dict[str, bool]]:
    score = rouge_l(str(one), str(other))
    return score >= spec.compare.threshold, score, {}


def _agree_equal(spec: AnswerSpec, one: Any, other: Any) -> tuple[bool, float, dict[str, bool]]:
    same = is_same(one, other)
    return same, float(same), {}


def is_same(one: Any, other: Any) -> bool:
    """Equality of JSON values: 1 is 1.0, but true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_same(v, other[k]) for k, v in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    return bool(one == other)


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
        one: Any = (student.text or "").strip() or None if student.ok else None
        other: Any = (teacher.text or "").strip() or None if teacher.ok else None
    else:
        one = parse(spec, student.text, student.tool_calls) if student.ok else None
        other = parse(spec, teacher.text, teacher.tool_calls) if teacher.ok else None
    if one is None or other is None:
        return Comparison(name, comparable=False, student_form_ok=one is not None)
    agree, score, fields = _AGREE[name](spec, one, other)
    return Comparison(name, agree, score, fields)


def compare_online(spec: AnswerSpec, student: Answer, teacher: Answer) -> Comparison:
    """`compare`, but what only the monitor can compare is left to it: `agree` is then None though both have the form."""
    if not spec.compare.is_deferred:
        return compare(spec, student, teacher)
    one = parse(spec, student.text) if student.ok else None
    other = parse(spec, teacher.text) if teacher.ok else None
    both = one is not None and other is not None
    return Comparison(spec.compare.comparator, comparable=both, student_form_ok=one is not None)
