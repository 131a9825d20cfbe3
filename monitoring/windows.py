"""Records to the windows that are compared. Knows no file and no clock.

The current window is the newest traffic of a route; the reference is what the adapter was trained on, or an earlier
span of traffic when no adapter says.
"""

import random
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import msgspec

from router.answer_spec import AnswerSpec
from router.compare import parse
from router.prompt import last_user_text
from router.records import Answer, Record


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


def pair_of(record: Record) -> tuple[Answer, Answer] | None:
    """Student's and teacher's answers of a request that both answered and that was compared."""
    if record.comparison is None:
        return None
    student = teacher = None
    for answer in record.answers:
        if answer.purpose == "noise":
            continue
        if answer.role == "student":
            student = student or answer
        else:
            teacher = teacher or answer
    return None if student is None or teacher is None else (student, teacher)


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


def rows(records: Iterable[Record], spec: AnswerSpec) -> list[Row]:
    """Inputs of records that kept their text."""
    found = []
    for record in records:
        text = input_of(record)
        if text:
            teacher = record.answer_of("teacher") or record.reply
            answer = class_of(spec, teacher.text if teacher else None)
            found.append(Row(record.id, text, answer, record.at))
    return found


class Inputs:
    """A route's records with text as they pass, in a memory that does not grow: the newest, and a sample of all.

    The sample is a reservoir (Vitter 1985, algorithm R) with a fixed seed: the same records give the same sample.

    Args:
        newest: records that the current window holds at most.
        sampled: records that the reservoir holds; 0 keeps no sample.
        known: ids that are in the reference already.
    """

    def __init__(self, newest: int, sampled: int, known: Collection[str] = ()) -> None:
        self._newest: deque[tuple[int, Record]] = deque(maxlen=newest)
        self._sample: list[tuple[int, Record]] = []
        self._sampled = sampled
        self._known = known
        self._draws = random.Random(0)
        self._count = 0

    def add(self, record: Record) -> None:
        """Take the next record, in order of time."""
        if not record.request or record.id in self._known:
            return
        item = (self._count, record)
        self._count += 1
        self._newest.append(item)
        if len(self._sample) < self._sampled:
            self._sample.append(item)
        elif self._sampled:
            place = int(self._draws.random() * self._count)
            if place < self._sampled:
                self._sample[place] = item

    def current(self) -> list[Record]:
        """The newest records; with a sample only those of the newer half."""
        begin = self._count // 2 if self._sampled else 0
        return [record for number, record in self._newest if number >= begin]

    def older_half(self) -> list[Record]:
        """The sample's records of the older half, oldest first."""
        end = self._count // 2
        order = sorted((item for item in self._sample if item[0] < end), key=lambda item: item[0])
        return [record for _, record in order]
