"""How each dialect writes an error. Pure: an exception to a status and a body."""

from typing import Any

from serving.errors import (
    AdapterFailed,
    GenerationFailed,
    Incomplete,
    InvalidRequest,
    Overloaded,
    ServingError,
    TemplateFailed,
    Unhealthy,
)

REASONS: dict[type[ServingError], str] = {
    InvalidRequest: "validation",
    TemplateFailed: "template",
    AdapterFailed: "load_adapter",
    GenerationFailed: "generation",
    Overloaded: "overloaded",
    Incomplete: "incomplete",
    Unhealthy: "generation",
}
"""Label `err` of `lorax_request_failure`."""

OPENAI: dict[type[ServingError], tuple[int, str, str | None]] = {
    InvalidRequest: (400, "invalid_request_error", None),
    TemplateFailed: (400, "invalid_request_error", "template_error"),
    AdapterFailed: (424, "invalid_request_error", "adapter_failed"),
    GenerationFailed: (500, "server_error", None),
    Overloaded: (429, "rate_limit_error", "rate_limit_exceeded"),
    Incomplete: (500, "server_error", None),
    Unhealthy: (503, "server_error", None),
}
"""Status, type and code of an OpenAI error."""


def reason(why: ServingError) -> str:
    """The failure's metric label."""
    return next((label for kind, label in REASONS.items() if isinstance(why, kind)), "generation")


def message(why: ServingError) -> str:
    """LoRAX's text of an error."""
    if isinstance(why, InvalidRequest):
        return f"Input validation error: {why}"
    if isinstance(why, AdapterFailed | GenerationFailed):
        return f"Request failed during generation: Server error: {why}"
    return str(why)


def native(why: ServingError) -> tuple[int, dict[str, Any]]:
    """Status and body on LoRAX's own routes."""
    return why.status, {"error": message(why), "error_type": why.error_type}


def openai(why: ServingError, *, is_unknown_model: bool = False) -> tuple[int, dict[str, Any]]:
    """Status and body on OpenAI's routes; LoRAX's `error_type` stands beside OpenAI's object."""
    status, kind, code = next(
        (entry for known, entry in OPENAI.items() if isinstance(why, known)),
        (500, "server_error", None),
    )
    if is_unknown_model:
        status, code = 404, "model_not_found"
    if isinstance(why, InvalidRequest) and "`inputs`" in str(why) and "tokens" in str(why):
        code = "context_length_exceeded"
    error = {"message": str(why), "type": kind, "param": None, "code": code}
    return status, {"error": error, "error_type": why.error_type}


def vanished(text: str) -> dict[str, Any]:
    """An OpenAI error body for a path that is not served."""
    error = {"message": text, "type": "invalid_request_error", "param": None, "code": None}
    return {"error": error, "error_type": "not_found"}
