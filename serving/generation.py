"""The values between the HTTP side and the engine: what is asked of a generation, and what comes out of it.

Knows no HTTP, no queue and no tensor. Log-probabilities are natural logarithms, times are seconds.
"""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["length", "eos_token", "stop_sequence"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens of one generation are chosen. `temperature` 0 is greedy, as is `do_sample` False."""

    max_new_tokens: int
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    json_schema: str | None = None
    """JSON Schema text that the output must satisfy, by constrained decoding."""
    choices: tuple[str, ...] = ()
    """The output must be one of these texts."""
    num_alternatives: int = 0
    """Most probable tokens reported beside each chosen one."""

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken each time."""
        return not self.do_sample or self.temperature == 0

    @property
    def is_constrained(self) -> bool:
        """Whether only some texts are allowed."""
        return self.json_schema is not None or bool(self.choices)


@dataclass(frozen=True, slots=True)
class Job:
    """One generation: token ids in, tokens out. `adapter_id` None means the base model."""

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    adapter_id: str | None = None
    want_prompt_logprobs: bool = False
    at_once: bool = False
    """Tokens are handed over together with the end, not one by one: a caller that reads no stream is woken once."""


@dataclass(frozen=True, slots=True)
class TokenOut:
    """One generated token. `text` is what it adds to the output; `special` tokens add nothing to it."""

    id: int
    text: str
    logprob: float
    special: bool = False
    alternatives: tuple[tuple[int, str, float], ...] = ()
    skipped: bool = False
    """It took no step of its own: it was guessed before, and the guess was right."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of one generation. `text` is the whole output, stop sequences included as LoRAX does."""

    text: str
    reason: FinishReason
    prompt_tokens: int
    generated_tokens: int
    seed: int | None
    queue_seconds: float
    inference_seconds: float
    first_token_seconds: float
    prefill: tuple[tuple[int, str, float | None], ...] = ()
    skipped_tokens: int = 0
    """Generated tokens that took no step of their own."""
    adapter_id: str | None = None
    """The adapter version that answered, such as `tickets/3`; None for the base model."""


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass over the batch, as counted."""

    num_rows: int
    num_prompts: int
    """Rows that joined: a prompt is computed in one step."""
    seconds: float
    is_failed: bool
