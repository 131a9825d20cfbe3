"""Where the student server is and how much it takes. Frozen, built once by the command line, passed down."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AppSettings:
    """What the HTTP side needs to know beside the worker."""

    max_concurrent_requests: int = 1024
    """Open requests above which a new one gets a 429 before its body is looked at."""
    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_body_bytes: int = 2_000_000
    keep_alive_seconds: float = 15.0
    """Silence on a stream after which a comment is sent."""
    startup_timeout_seconds: float = 60.0
    """How long `/startup` waits for its one token."""
    version: str = "0.1.0"
