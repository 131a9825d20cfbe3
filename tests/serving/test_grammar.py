"""Constraints as sets of allowed tokens: what is compiled once, what is refused, and that a broken grammar is no end."""

import json
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import InvalidRequest
from serving.generation import Sampling
from serving.grammar import KEPT_GRAMMARS, Grammars, Matcher
from tests.tiny import tokenizer

TEXT = tokenizer()
GRAMMARS = Grammars(TEXT, len(TEXT))


def by(schema: object = None, choices: tuple[str, ...] = ()) -> Sampling:
    return Sampling(9, json_schema=None if schema is None else json.dumps(schema), choices=choices)


def write(matcher: Matcher, text: str) -> None:
    """Go through a text's tokens, each of which must be allowed."""
    for token in TEXT.encode(text, add_special_tokens=False):
        assert bool(matcher.allowed()[token]), text
        matcher.accept(token)


def made(sampling: Sampling) -> Matcher:
    found = GRAMMARS.matcher(sampling)
    assert found is not None
    return found


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=12), min_size=1, max_size=6))  # fmt: skip
def test_every_choice_can_be_written_whatever_its_characters_mean_elsewhere(
    choices: list[str],
) -> None:
    for choice in choices:
        matcher = made(by(choices=tuple(choices)))
        write(matcher, choice)
        assert matcher.is_finished or bool(matcher.allowed()[TEXT.eos_token_id])


def test_a_free_generation_has_no_matcher() -> None:
    assert GRAMMARS.matcher(Sampling(9)) is None
    GRAMMARS.prepare(Sampling(9))


def test_a_grammar_is_compiled_once_and_its_copies_go_their_own_ways() -> None:
    sampling = by({"enum": ["ab", "cd"]})
    GRAMMARS.prepare(sampling)
    one, other = made(sampling), made(sampling)
    write(one, '"ab"')
    write(other, '"c')
    assert one.is_finished
    assert not other.is_finished
    write(made(sampling), '"cd"')


def test_grammars_are_prepared_in_any_thread_and_kept_within_bounds() -> None:
    grammars = Grammars(TEXT, len(TEXT))
    asked = [by({"const": number}) for number in range(KEPT_GRAMMARS + 10)]
    threads = [
        threading.Thread(target=lambda part=part: [grammars.prepare(each) for each in part])
        for part in (asked[::2], asked[1::2], asked[::3])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(grammars._kept) == KEPT_GRAMMARS
    matcher = grammars.matcher(asked[-1])
    assert matcher is not None
    write(matcher, str(KEPT_GRAMMARS + 9))


def test_a_grammar_that_breaks_is_not_finished_and_says_so() -> None:
    """llguidance itself then counts as stopped and allows the end token, as after a whole text."""
    matcher = made(by({"enum": ["ab"]}))
    matcher.accept(TEXT.encode("z", add_special_tokens=False)[0])
    assert not matcher.is_finished
    with pytest.raises(ValueError, match="the grammar cannot go on"):
        matcher.allowed()


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nope"},
        {"enum": []},
        {"$ref": "#/$defs/none"},
        {"type": "string", "pattern": "("},
        {"type": "array", "items": 3},
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused_each_time(schema: object) -> None:
    for call in (GRAMMARS.prepare, GRAMMARS.matcher, GRAMMARS.matcher):
        with pytest.raises(InvalidRequest, match="response_format"):
            call(by(schema))
