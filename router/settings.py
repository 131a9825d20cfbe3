"""Where the router is and what it reads: flags over environment over defaults, built once at the start."""

import ipaddress
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
    max_head_bytes: int = 64 << 10
    """Larger request heads are refused with 431."""
    head_seconds: float = 15.0
    """How long a caller may take for a request's head."""
    body_seconds: float = 30.0
    """How long a caller may pause within a request's body."""
    workers: int = 1
    """Processes that share the callers' port."""
    open: bool = False
    """Whether callers need no key although the port is reachable from elsewhere."""
    fsync_seconds: float | None = None
    """Let the traffic log survive a power cut, at most so many seconds of it aside."""

    @property
    def needs_keys(self) -> bool:
        """Whether a policy without keys is refused: the port can be reached from other machines."""
        return not self.open and not is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
