"""What can go wrong in the router.

RouterError
├── CallerError            the caller's fault: 4xx
│   ├── BadRequest         body is not what the route needs
│   ├── Unauthorized       no key, or an unknown one
│   ├── Forbidden          the key may not use this route
│   ├── TooLarge           body over the limit
│   └── LimitExceeded      the key's requests or tokens per minute
├── PolicyError            the operator's fault: the file does not hold
├── SettingsError          the operator's fault: a flag, a port, a folder
└── BackendError           a backend did not answer; `retriable` says whether another try may help
    ├── ConnectFailed
    ├── TimedOut
    ├── Overloaded         our own bound, or the backend's 429 / 503
    ├── BreakerOpen        too many failures lately: not even asked
    ├── BadStatus          an error status, with its body
    └── BadReply           cut off, or not what its protocol says
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class RouterError(Exception):
    """Root of the tree."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a file: where, what stands there, what is allowed."""

    line: int
    key: str
    value: Any
    allowed: str

    def __str__(self) -> str:
        shown = "" if self.value is None else f" = {self.value!r}"
        return f"line {self.line}: {self.key}{shown}: {self.allowed}"


class PolicyError(RouterError):
    """A policy or rollouts file that does not hold; `problems` has all that was found."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems))


class SettingsError(RouterError):
    """A flag, environment variable, port or folder that cannot be used."""


class CallerError(RouterError):
    """The caller's fault; `status` is what it gets."""

    status = 400
    kind = "invalid_request_error"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        self.field = field
        super().__init__(message)


class BadRequest(CallerError):
    """The body or a header is not what it must be; `field` names the part."""


class Unauthorized(CallerError):
    """No key, or one that nobody issued."""

    status = 401
    kind = "authentication_error"


class Forbidden(CallerError):
    """The key is good, but not for this route."""

    status = 403
    kind = "permission_error"


class TooLarge(CallerError):
    """The body is over the limit."""

    status = 413


class LimitExceeded(CallerError):
    """The key's requests or tokens of this minute are spent."""

    status = 429
    kind = "rate_limit_error"

    def __init__(self, message: str, *, retry_after_seconds: int) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(message)


class BackendError(RouterError):
    """A backend did not give an answer. `word` is what the record says; `retriable` whether another try may help."""

    word = "error"
    retriable = False

    def __init__(self, backend: str, message: str) -> None:
        self.backend = backend
        super().__init__(f"backend {backend}: {message}")


class ConnectFailed(BackendError):
    """No connection."""

    word = "connect"
    retriable = True


class TimedOut(BackendError):
    """No first byte, or no last byte, in time."""

    word = "timeout"
    retriable = True


class Overloaded(BackendError):
    """Our own bound on calls in flight."""

    word = "overload"


class BreakerOpen(BackendError):
    """Too many failures lately; the backend was not asked."""

    word = "breaker"


class BadReply(BackendError):
    """The connection broke in the middle, or what came is not what the protocol says."""

    word = "stream"
