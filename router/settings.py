"""Where the router is and what it reads: flags over environment over defaults, built once at the start."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """One router process."""

    policy: Path
    """People's policy file."""
    home: Path
    """State folder: rollouts, traffic log."""
    host: str = "127.0.0.1"
    port: int = 8080
    admin_host: str = "127.0.0.1"
    admin_port: int = 9080
    reload_seconds: float = 0.5
    """How often the policy files are looked at."""
    drain_seconds: float = 20.0
    """How long requests under way may take after SIGTERM."""
    max_body_bytes: int = 20 << 20
    """Larger request bodies are refused with 413."""
    fsync_seconds: float | None = None
    """Let the traffic log survive a power cut, at most so many seconds of it aside."""
