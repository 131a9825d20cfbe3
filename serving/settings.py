"""Where the student server is and how much it takes. Frozen, built once by the command line, passed down."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class AppSettings:
    """What the HTTP side needs to know beside the worker."""

    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_body_bytes: int = 2_000_000
    keep_alive_seconds: float = 15.0
    """Silence on a stream after which a comment is sent."""
    startup_timeout_seconds: float = 60.0
    """How long `/startup` waits for its one token."""
    version: str = "0.1.0"


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """What `graduate serving serve` was told."""

    model: str
    adapters: str
    """Folder or `s3://` address of the registry."""
    models: Path
    """Folder where converted base models are kept."""
    threads: int | None = None
    max_batch: int = 32
    queue: int = 256
    max_total_tokens: int | None = None
    """Prompt and answer together; None takes what the model was made for."""
    adapter_memory_bytes: int = 512 * 2**20
    drain_seconds: float = 30.0
