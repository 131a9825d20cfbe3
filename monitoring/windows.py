"""Records to the windows that are compared. Pure.

The current window is the newest traffic of a route; the reference is what the adapter was trained on, or an earlier
span of traffic when no adapter says.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from router.answer_spec import AnswerSpec
from router.compare import parse
from router.prompt import last_user_text
from router.records import Record


@dataclass(frozen=True, slots=True)
class Pair:
    """A request that student and teacher both answered: the raw material of disagreement."""

    record: Record
    student_text: str | None
    teacher_text: str | None
    agree: bool | None
    """None when one of the two gave nothing that can be compared."""
    student_form_ok: bool
    adapter: str | None
    confidence: float | None
    weight: float
    """1 over the probability that both were asked (Horvitz-Thompson)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One input for drift: its text, and the class of the teacher's answer where there is one."""

    id: str
    text: str
    answer_class: str | None = None
    at: float = 0.0


def input_of(record: Record) -> str:
    """The last user message of a record; "" when the route does not log text."""
    if not record.request:
        return ""
    body = msgspec.json.decode(record.request)
    messages = body.get("messages") if isinstance(body, dict) else None
    return last_user_text(messages) if isinstance(messages, list) else ""


def pairs(records: Sequence[Record]) -> list[Pair]:
    """Requests that both answered and that were compared."""
    found = []
    for record in records:
        student, teacher = (
            next((a for a in record.answers if a.role == role and a.purpose != "noise"), None)
            for role in ("student", "teacher")
        )
        if student is None or teacher is None or record.comparison is None:
            continue
        share = record.shadow_share if record.shadow_share > 0 else 1.0
        found.append(
            Pair(
                record,
                student.text,
                teacher.text,
                record.comparison.agree,
                record.comparison.student_form_ok,
                student.adapter,
                student.confidence,
                1.0 / share,
            )
        )
    return found


def class_of(spec: AnswerSpec, text: str | None) -> str | None:
    """The class of an answer: its label, or the first compared field of a JSON answer; None without classes."""
    value = parse(spec, text)
    if value is None:
        return None
    if spec.kind == "label":
        return str(value)
    if spec.kind == "json" and spec.compare.fields and isinstance(value, dict):
        return str(value[spec.compare.fields[0]])
    return None


def rows(records: Sequence[Record], spec: AnswerSpec) -> list[Row]:
    """Inputs of records that kept their text."""
    found = []
    for record in records:
        text = input_of(record)
        if text:
            teacher = record.answer_of("teacher") or record.reply
            answer = class_of(spec, teacher.text if teacher else None)
            found.append(Row(record.id, text, answer, record.at))
    return found
