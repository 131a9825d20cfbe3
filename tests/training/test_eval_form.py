"""Schema adherence and extraction, by hand."""

import json
from typing import Any

import pytest

from router.answer_spec import AnswerSpec
from training.eval_form import count, form_figures, normalised

SPEC = AnswerSpec.model_validate(
    {
        "kind": "json",
        "schema": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "items": {"type": "array"}},
            "required": ["name"],
        },
    }
)


@pytest.mark.parametrize(
    ("answered", "wanted", "equal"),
    [
        pytest.param("  ACME  Inc. ", "acme inc", 1, id="case, spaces and outer punctuation"),
        pytest.param("1,200.50", 1200.5, 1, id="a number however it is written"),
        pytest.param("007", "7", 0, id="a code is not a number"),
        pytest.param(True, 1, 0, id="true is not one"),
        pytest.param(["b", "a"], ["a", "b"], 2, id="lists in any order"),
        pytest.param(["a", "a"], ["a"], 1, id="an item is found once"),
        pytest.param("a", ["a"], 1, id="one item without its list"),
        pytest.param({"x": 1, "y": None}, {"x": 1, "y": 2}, 1, id="objects by key"),
        pytest.param({"x": 1}, 1, 0, id="an object is no number"),
        pytest.param(None, "a", 0, id="nothing"),
        pytest.param("?", "!", 0, id="punctuation alone is a value"),
        pytest.param("?", "?", 1, id="and equal to itself"),
    ],
)
def test_values_are_compared_normalised(answered: Any, wanted: Any, equal: int) -> None:
    assert count(answered, wanted).equal == equal


def test_items_of_a_list_are_paired_for_the_greatest_likeness() -> None:
    one = [{"sku": "ab-1", "n": 2}, {"sku": "zz-9", "n": 1}]
    other = [{"sku": "zz-9", "n": 1}, {"sku": "ab-2", "n": 2}, {"sku": "q", "n": 7}]
    found = count(one, other)
    assert (found.answered, found.wanted, found.equal) == (4, 6, 3)
    assert found.alike == pytest.approx(3.75)


def test_form_and_extraction_field_by_field() -> None:
    wanted = [{"name": "Ann", "items": ["a", "b"]}, {"name": "Bob", "items": []}, {"name": "Cy"}]
    answers = ['{"name": "ann", "items": ["b", "c"]}', '{"items": ["d"]}', "sorry"]
    found = form_figures(SPEC, answers, [json.dumps(w) for w in wanted])
    assert found is not None
    assert found.valid is not None
    assert (found.parsed.right, found.valid.right) == (2, 1)
    name, items = found.extraction["name"], found.extraction["items"]
    assert (name.precision.right, name.precision.rows) == (1, 1)
    assert (name.recall.right, name.recall.rows) == (1, 3)
    assert name.f1 == pytest.approx(0.5)
    assert (items.precision.right, items.precision.rows, items.recall.rows) == (1, 3, 2)
    assert items.fuzzy_f1 == pytest.approx(items.f1), "b and c have nothing in common"


def test_labels_have_a_parse_rate_and_text_has_no_form() -> None:
    spec = AnswerSpec(kind="label", labels=("yes", "no"))
    found = form_figures(spec, ["Yes.", "perhaps"], ["yes", "no"])
    assert found is not None
    assert (found.parsed.right, found.valid) == (1, None)
    assert form_figures(AnswerSpec(kind="text"), ["a"], ["a"]) is None


def test_long_digits_stay_what_they_are() -> None:
    assert normalised("1234567890123456789") == "1234567890123456789"
    assert normalised(" ½ ") == normalised("1⁄2")
