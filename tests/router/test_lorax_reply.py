"""The quick reading of LoRAX's answers takes nothing that lorax.types refuses, and reads the same out of the rest."""

import json
from typing import Any

import pytest
from lorax.types import Response
from pydantic import ValidationError

from router.lorax_reply import QuickResponse, read_response

TOKEN = {"id": 7, "text": " yes", "logprob": -0.25, "special": False}
DETAILS = {
    "finish_reason": "eos_token", "prompt_tokens": 5, "generated_tokens": 1, "seed": None, "prefill": [], "tokens": [TOKEN],
}  # fmt: skip
GOOD = {"generated_text": "yes", "details": DETAILS}


def changed(**more: Any) -> dict[str, Any]:
    return {**GOOD, "details": {**DETAILS, **more}}


@pytest.mark.parametrize(
    ("body", "is_quick"),
    [
        (GOOD, True), ({"generated_text": "yes"}, True), ({**GOOD, "unknown": 1}, True), (changed(tokens=[{**TOKEN, "logprob": 0}]), True),
        (changed(tokens=[{**TOKEN, "alternative_tokens": [{"id": 1, "text": "n", "logprob": -2}]}]), True),
        (changed(prefill=[{"id": 1, "text": "a", "logprob": None}]), True), (changed(prompt_tokens="5"), False),
        (changed(best_of_sequences=[]), False), (changed(tokens=[{**TOKEN, "special": 0}]), False),
    ],
)  # fmt: skip
def test_the_same_is_read_as_lorax_types_reads(body: dict[str, Any], is_quick: bool) -> None:
    data = json.dumps(body).encode()
    quick, whole = read_response(data), Response.model_validate_json(data)
    assert isinstance(quick, QuickResponse) is is_quick
    assert quick.generated_text == whole.generated_text
    one, other = quick.details, whole.details
    assert (one is None) is (other is None)
    if one is not None and other is not None:
        assert (one.finish_reason, one.prompt_tokens, one.generated_tokens) == (
            other.finish_reason, other.prompt_tokens, other.generated_tokens,
        )  # fmt: skip
        assert [t.logprob for t in one.tokens] == [t.logprob for t in other.tokens]


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b"{}", b'{"generated_text": null}', b"\xff", *(
        json.dumps(body).encode() for body in (
            changed(finish_reason="tired"), changed(tokens=[{"id": 1, "text": "a", "special": False}]), changed(prefill=None),
            changed(tokens=None), {"generated_text": "x", "details": 3},
        )
    )],
)  # fmt: skip
def test_what_is_no_answer_is_refused(data: bytes) -> None:
    with pytest.raises(ValidationError):
        read_response(data)
    with pytest.raises(ValidationError):
        Response.model_validate_json(data)
