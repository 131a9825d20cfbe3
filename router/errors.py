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
