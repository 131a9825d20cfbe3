"""Where the student server is and how much it takes. Frozen, built once by the command line, passed down."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Precision = Literal["float32", "int8"]
"""Of the base model's layers; head, embedding and adapters are fp32."""


DRAFT_TOKENS = 32
"""Tokens that a step guesses ahead at most. Eight rows take 45 ms a step and each token more takes one and a half."""


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
    pinned: tuple[str, ...] = ()
    """Adapter versions that are loaded before the server is ready, and not unloaded."""


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """What `graduate serving serve` was told."""

    model: str
    adapters: str
    """Folder or `s3://` address of the registry."""
    models: Path
    """Folder where converted base models are kept."""
    threads: int | None = None
    weights: Precision = "float32"
    max_batch: int = 32
    draft_tokens: int = DRAFT_TOKENS
    queue: int = 256
    max_total_tokens: int | None = None
    """Prompt and answer together; None takes what the model was made for."""
    adapter_memory_bytes: int = 512 * 2**20
    pinned: tuple[str, ...] = ()
    """Adapters that are loaded at the start and stay."""
    allowed: tuple[Path, ...] = ()
    """Folders outside the registry that links in it may lead to."""
    drain_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How much the worker takes."""

    threads: int | None = None
    """CPU threads of a step; None leaves torch's choice, one for each core."""
    weights: Precision = "float32"
    max_batch: int = 32
    draft_tokens: int = DRAFT_TOKENS
    """Tokens that a step guesses ahead at most, over all rows; 0 guesses none."""
    queue: int = 256
    """Requests that may wait; above it they are refused."""
    max_total_tokens: int | None = None
    """Prompt and answer together; None takes what the model was made for."""
    max_prefill_tokens: int = 1024
    """New prompt tokens that join in one step. Fewer than a batch's make its rows end apart, and adapters are then not
    stacked: measured in benchmarks/engine/README.md."""
    max_batch_total_tokens: int = 65_536
    """Cached tokens of all rows."""
    adapter_memory_bytes: int = 512 << 20
    pinned: frozenset[str] = frozenset()
    """Adapter versions that are never evicted."""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What is served, and its limits."""

    base_model: str
    base_model_digest: str
    dtype: str
    max_input_length: int
    max_total_tokens: int
    max_concurrent_requests: int
    max_batch_total_tokens: int
