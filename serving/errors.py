"""What can go wrong in the student server.

    ServingError(error_type, status)
    ├── InvalidRequest        422 validation: a parameter outside its bounds
    ├── TemplateFailed        422 template_error
    ├── AdapterFailed         424 generation: an adapter is unknown, foreign, broken or cannot be loaded
    ├── GenerationFailed      424 generation: the model failed
    ├── Overloaded            429 overloaded: the queue is full
    ├── Incomplete            500 incomplete_generation
    ├── Unhealthy             503 healthcheck
    ├── NoFastTokenizer       404 no fast tokenizer: /tokenize cannot tell places
    └── OperatorError         refuses to start: model missing, port taken, bad setting

Status and `error_type` are LoRAX's.
"""

from typing import ClassVar


class ServingError(Exception):
    """Root of the tree."""

    status: ClassVar[int] = 500
    error_type: ClassVar[str] = "generation"


class InvalidRequest(ServingError):
    """A parameter is outside its bounds."""

    status = 422
    error_type = "validation"


class TemplateFailed(ServingError):
    """The chat template does not render these messages."""

    status = 422
    error_type = "template_error"


class AdapterFailed(ServingError):
    """An adapter is unknown, made for another base model, broken, or does not fit."""

    status = 424


class GenerationFailed(ServingError):
    """The model failed on a step; the batch's other rows are not touched."""

    status = 424


class Overloaded(ServingError):
    """The queue is full; `retry_after_seconds` says when another try makes sense."""

    status = 429
    error_type = "overloaded"

    def __init__(
        self, message: str = "Model is overloaded", retry_after_seconds: float = 1.0
    ) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Incomplete(ServingError):
    """A generation ended before its last token."""

    error_type = "incomplete_generation"


class Unhealthy(ServingError):
    """The engine does not answer."""

    status = 503
    error_type = "healthcheck"


class NoFastTokenizer(ServingError):
    """The base model's tokenizer cannot tell where in a text its tokens are."""

    status = 404
    error_type = "no fast tokenizer"


class OperatorError(ServingError):
    """The server cannot start as it was told to."""
