"""The stored form: what is written is read again, bodies stay verbatim, late lines are laid over."""

import msgspec
import pytest

from router.records import Answer, Comparison, Feedback, LateAnswer, Line, Record, dump, load, merge

TEACHER = Answer("teacher", "up", "big", status=200, text="yes\nü", body=msgspec.Raw(b'{"a":1}'))
STUDENT = Answer("student", "s", "mail", purpose="shadow", status=200, text="no")
RECORD = Record("r", 1.5, "mail", "dark_launch", "d", "teacher", "teacher", "why", 200, (TEACHER,), request=msgspec.Raw(b'{"x": 1.0}'))  # fmt: skip
LATE = LateAnswer("r", 2.0, "mail", STUDENT, Comparison("exact", False, 0.0))
SAID = Feedback("r", 3.0, "mail", 0.5, "maybe", "hm")


@pytest.mark.parametrize("line", [RECORD, LATE, SAID])
def test_a_line_is_read_as_it_was_written(line: Line) -> None:
    data = dump(line)
    assert (data.count(b"\n"), data[-1:]) == (1, b"\n")
    assert dump(load(data)) == data
    assert type(load(data)) is type(line)


def test_a_body_is_verbatim_but_for_line_breaks_between_tokens() -> None:
    body = msgspec.Raw(b'{\n "a": "b\\nc"}')
    found = load(dump(msgspec.structs.replace(RECORD, request=body)))
    assert isinstance(found, Record)
    assert bytes(found.request) == b'{  "a": "b\\nc"}'


def test_a_reader_takes_keys_of_a_later_schema() -> None:
    data = dump(RECORD).replace(b'{"kind"', b'{"new":{"x":[1]},"kind"', 1)
    assert load(data) == load(dump(RECORD))


@pytest.mark.parametrize("cut_at", [0, 1, 20, -2])
def test_a_torn_line_is_an_error(cut_at: int) -> None:
    with pytest.raises(msgspec.DecodeError):
        load(dump(RECORD)[:cut_at])


def test_late_lines_are_laid_over_and_the_callers_reply_stays() -> None:
    found = merge(RECORD, [LATE, SAID])
    assert found.answers == (TEACHER, STUDENT)
    assert (found.comparison, found.feedback) == (LATE.comparison, (SAID,))
    assert found.reply == TEACHER
    assert found.answer_of("student") == STUDENT


def test_noise_and_failures_are_nobodys_answer() -> None:
    noise = msgspec.structs.replace(TEACHER, purpose="noise")
    failed = msgspec.structs.replace(TEACHER, error="timeout")
    record = msgspec.structs.replace(RECORD, answers=(failed, noise))
    assert record.answer_of("teacher") is None
    assert record.reply == failed
