"""LoRAX's native answers, read at a tenth of what pydantic takes for their many tokens.

`lorax.types.Response` is the contract and has the last word: these structs are as strict as it is or stricter, and
whatever they do not take is given to it.
"""

import msgspec
from lorax.types import FinishReason, Response


class _Likely(msgspec.Struct, gc=False):
    id: int
    text: str
    logprob: float


class _InputToken(msgspec.Struct, gc=False):
    id: int
    text: str
    logprob: float | None = None


class _Token(msgspec.Struct, gc=False):
    id: int
    text: str
    logprob: float
    special: bool
    alternative_tokens: list[_Likely] | None = None


class _Details(msgspec.Struct):
    finish_reason: FinishReason
    prompt_tokens: int
    generated_tokens: int
    prefill: list[_InputToken]
    tokens: list[_Token]
    seed: int | None = None
    best_of_sequences: None = None


class QuickResponse(msgspec.Struct):
    """What `lorax.types.Response` would hold, under the same names."""

    generated_text: str
    details: _Details | None = None


_quick = msgspec.json.Decoder(QuickResponse)


def read_response(data: bytes) -> Response | QuickResponse:
    """The answer in a body.

    Raises:
        pydantic.ValidationError: it is not one.
    """
    try:
        return _quick.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Response.model_validate_json(data)
