"""The student's prompt: what the template sees, and where it is cut."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.prompt import cut, last_user_text, render, template_fields, text_of

CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": [{"type": "text", "text": " three "}, {"type": "image_url"}]},
]


def test_every_field_is_filled_in() -> None:
    shown, was_cut = render("{system}|{conversation}|{input}|{{x}}", CHAT)
    assert (shown, was_cut) == ("S|user: one\nassistant: two|three|{x}", False)


def test_tools_are_a_line_each() -> None:
    function = {"name": "look", "parameters": {"properties": {"at": {"enum": ["ü"]}}}}
    tools = [{"type": "function", "function": function}, {"type": "other", "n": 1}]
    shown, _ = render("{tools}\n{input}", CHAT, tools=tools)
    look = '{"name":"look","parameters":{"properties":{"at":{"enum":["ü"]}}}}'
    assert shown == f'{look}\n{{"type":"other","n":1}}\nthree'
    assert render("{tools}{input}", CHAT) == ("three", False)


def test_the_input_is_cut_before_the_template_is_laid_around_it() -> None:
    assert render("<{input}>", [{"role": "user", "content": "abcdef"}], 3) == ("<abc>", True)
    assert render("<{input}>", [{"role": "user", "content": "abc"}], 3) == ("<abc>", False)


@given(st.text(max_size=40), st.integers(1, 50))
def test_braces_of_the_caller_are_text_and_the_end_of_the_template_stays(
    text: str, keep: int
) -> None:
    shown, was_cut = render("{input}\nlabel:", [{"role": "user", "content": text}], keep)
    assert shown == text[:keep].strip() + "\nlabel:"
    assert was_cut is (len(text) > keep)


@pytest.mark.parametrize("content", [None, 5, {"a": 1}, [1, None, {"type": "text"}, {"type": "text", "text": 3}]])  # fmt: skip
def test_content_of_no_known_form_is_empty(content: Any) -> None:
    assert text_of(content) == ""


def test_no_messages_and_no_user() -> None:
    assert last_user_text([]) == last_user_text([{"role": "system", "content": "x"}]) == ""
    assert render("{input}.", []) == (".", False)
    assert cut("abc", None) == ("abc", False)


def test_fields_of_a_template() -> None:
    assert template_fields("{system} {{no}} {input}") == {"system", "input"}
    for bad in ("{", "}", "{}", "{0}", "{inptu}", "{input!r}", "{input:>9}", "{input.x}"):
        with pytest.raises(ValueError):  # noqa: PT011 - several texts
            template_fields(bad)
