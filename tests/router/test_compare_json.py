"""What an answer's JSON is read as: the quick reader and Python's agree, and Python's has the last word."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.compare import json_value

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@given(VALUES, st.booleans())
def test_every_value_is_what_pythons_reader_says(value: object, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert repr(json_value(text)) == repr(json.loads(text))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("123456789012345678901234567890", id="an integer of thirty digits"),
        pytest.param('"\\ud800"', id="half a surrogate pair"),
        pytest.param("-0", id="minus nought"),
        pytest.param('{"a": 1, "a": 2}', id="a key twice"),
        pytest.param("1e400", id="more than a float holds"),
    ],
)
def test_odd_values_are_read_as_python_reads_them(text: str) -> None:
    found, wanted = json_value(text, allows_constants=False), json.loads(text)
    assert repr(found) == repr(wanted)


@pytest.mark.parametrize("text", ["", "{", "[1,]", "'a'", '"\n"', "nul", '{"a": 1} x'])
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(json.JSONDecodeError):
        json_value(text)


def test_constants_are_values_only_where_they_may_be() -> None:
    assert math.isnan(json_value("[NaN]")[0])
    with pytest.raises(ValueError, match="Infinity is not JSON"):
        json_value("[Infinity]", allows_constants=False)
