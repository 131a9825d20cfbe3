"""Rows under way and the step over them: prompts and single tokens of any adapters in one forward pass.

Knows rows, tokens and caches; no queue, no thread, no HTTP. Adapters' weights come with the row, so an evicted adapter
stays alive for the rows that began with it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from serving.attention import Slot
from serving.decoder import Decoder
from serving.errors import GenerationFailed
from serving.generation import Finished, FinishReason, Job, TokenOut
from serving.grammar import Grammars, Matcher
from serving.lora import Batches, Group, LoraWeights, Stacks, batches
from serving.prefixes import Prefixes
from serving.sampling import Choice, choose, choose_greedy, is_plain
from serving.settings import Precision
from serving.text import Detokenizer
from serving.weights import Weights, of_model

IDLE_CACHE_BYTES = 256 << 20
"""What the cache may keep while no row is under way; making it anew costs nothing beside the prompts that fill it."""


@dataclass(slots=True, eq=False)
class Row:
    """One generation under way."""

    job: Job
    weights: LoraWeights | None
    adapter_id: str | None
    """The version that answers, `name/number`."""
    queued_at: float
    started_at: float
    generator: torch.Generator | None
    seed: int | None
    matcher: Matcher | None
    detokenizer: Detokenizer
    generated: list[int] = field(default_factory=list)
    cached: int = 0
    """Tokens in the cache."""
    first_token_at: float | None = None
    prefill: tuple[tuple[int, str, float | None], ...] = ()

    @property
    def pending(self) -> Sequence[int]:
        """Tokens that are not in the cache yet: the rest of the prompt, or the token chosen last."""
        if self.cached < len(self.job.prompt_ids):
            return self.job.prompt_ids[self.cached :]
        return self.generated[-1:]


@dataclass(frozen=True, slots=True)
class Emitted:
    """What a step gave for one row."""

    row: Row
    token: TokenOut
    finished: Finished | None


@dataclass(frozen=True, slots=True)
class Failed:
    """A row that a step could choose no token for; it is taken out, the others go on."""

    row: Row
    error: GenerationFailed


class Engine:
    """The batch. `step` is the whole idea; rows join by `add` and leave when finished or by `remove`."""

    def __init__(
        self,
        model: Weights | Any,
        tokenizer: Any,
        *,
        embedding: torch.Tensor | None = None,
        precision: Precision = "float32",
        prefix_bytes: int = 192 << 20,
    ) -> None:
        weights = model if isinstance(model, Weights) else of_model(model)
        self.decoder = Decoder(weights, embedding, precision)
        self.tokenizer = tokenizer
        self._cache = self.decoder.new_cache()
        self._stacks = Stacks()
        self._rows: list[Row] = []
        self._prefixes = Prefixes(prefix_bytes)
        self.grammars = Grammars(tokenizer, self.decoder.vocabulary)
        self._special = frozenset(tokenizer.all_special_ids)
        own = tokenizer.eos_token_id
        self.eos_ids = frozenset(weights.eos_ids) | (frozenset() if own is None else {own})

    @property
    def rows(self) -> Sequence[Row]:
        """Rows under way; a row's place is its number in the cache."""
        return self._rows

    def start(
        self, job: Job, weights: LoraWeights | None, adapter_id: str | None, queued_at: float
    ) -> Row:
        """A row for a job, not in the batch yet.

        Raises:
            InvalidRequest: its schema cannot be enforced.
        """
        seed, generator = job.sampling.seed, None
        if not job.sampling.greedy:
            generator = torch.Generator()
            seed = seed if seed is not None else int(torch.randint(0, 2**62, ()).item())
            generator.manual_seed(seed)
        return Row(
            job=job,
            weights=weights,
            adapter_id=adapter_id,
            queued_at=queued_at,
            started_at=time.perf_counter(),
            generator=generator,
            seed=seed,
            matcher=self.grammars.matcher(job.sampling),
            detokenizer=Detokenizer(self.tokenizer, self._special),
        )

    def new_tokens(self, job: Job, adapter_id: str | None) -> int:
        """Prompt tokens that a job's first step would compute."""
        if job.want_prompt_logprobs:
            return len(job.prompt_ids)
        return len(job.prompt_ids) - self._prefixes.num_saved(adapter_id, job.prompt_ids)

    def add(self, row: Row) -> None:
        """Let a row take part from the next step on; a stored prefix of its prompt is taken over."""
        number = len(self._rows)
        self._cache.reserve(number + 1, len(row.job.prompt_ids) + 1)
        saved = None
        if not row.job.want_prompt_logprobs:
            saved = self._prefixes.longest(row.adapter_id, row.job.prompt_ids)
        if saved is not None:
            self._cache.copy_in(number, saved.states)
            row.cached = len(saved.ids)
        self._rows.append(row)

    def remove(self, row: Row) -> None:
        """Take a row out; the last row moves into its place in the cache."""
        number = self._rows.index(row)
        last = self._rows.pop()
        if last is not row:
            self._cache.move(len(self._rows), number, last.cached)
            self._cache.clear(number, last.cached, row.cached)
            self._rows[number] = last
        self._cache.clear(len(self._rows), 0, last.cached)
        if not self._rows:
            self._cache.shrink(IDLE_CACHE_BYTES)

    def clear(self) -> list[Row]:
        """Take all rows out, after a step that failed; what it left in the cache goes with them."""
        rows, self._rows = self._rows, []
        self._cache = self.decoder.new_cache()
        return rows

    def forget(self, adapter_id: str) -> None:
        """Drop what is stored for an adapter."""
        self._prefixes.forget(adapter_id)
        self._stacks.clear()

    def step(self) -> list[Emitted | Failed]:
        """One forward pass over all rows, one token for each; rows that finished or failed are taken out."""
        order = sorted(range(len(self._rows)), key=lambda i: self._rows[i].adapter_id or "")
        slots, adapters, ids, keep = self._layout(order)
        self._cache.reserve(len(self._rows), max(s.cached + s.stop - s.start for s in slots))
        logits = self.decoder.step(
            torch.tensor(ids), slots, adapters, self._cache, torch.tensor(keep)
        )
        place = 0
        last: list[int] = []
        for i, slot in zip(order, slots, strict=True):
            row, new = self._rows[i], slot.stop - slot.start
            if row.job.want_prompt_logprobs and not row.generated:
                row.prefill = self._prompt_logprobs(row, logits[place : place + new])
                place += new
            else:
                place += 1
            last.append(place - 1)
            was_prompt = row.cached < len(row.job.prompt_ids)
            row.cached += new
            if was_prompt:
                self._prefixes.saw(row.adapter_id, row.job.prompt_ids, i, self._cache)
        chosen = self._choose(
            [self._rows[i] for i in order], logits if len(last) == len(logits) else logits[last]
        )
        emitted = [
            Failed(self._rows[i], choice)
            if isinstance(choice, GenerationFailed)
            else self._emit(self._rows[i], choice)
            for i, choice in zip(order, chosen, strict=True)
        ]
        for item in emitted:
            if isinstance(item, Failed) or item.finished is not None:
                self.remove(item.row)
        return emitted

    def _layout(self, order: Sequence[int]) -> tuple[list[Slot], Batches, list[int], list[int]]:
        """The flat batch: where each row's new tokens are, which adapter they belong to, whose logits are wanted."""
        slots: list[Slot] = []
        groups: list[Group] = []
        ids: list[int] = []
        keep: list[int] = []
        for i in order:
            row = self._rows[i]
            start, num_kept = len(ids), len(keep)
            ids += row.pending
            slots.append(Slot(i, start, len(ids), row.cached))
            wants_all = row.job.want_prompt_logprobs and not row.generated
            keep += range(start, len(ids)) if wants_all else [len(ids) - 1]
            new, kept = len(ids) - start, len(keep) - num_kept
            if groups and groups[-1].weights is row.weights:
                before = groups.pop()
                new, kept = new + before.num_tokens, kept + before.num_kept
            groups.append(Group(row.weights, new, kept))
        return slots, batches(groups, self._stacks), ids, keep

    def _choose(self, rows: Sequence[Row], logits: torch.Tensor) -> list[Choice | GenerationFailed]:
        """Each row's next token, or why it has none: a row's scores are its own matter. `logits` are overwritten."""
        own = {i: logits[i].clone() for i, row in enumerate(rows) if not _takes_best(row)}
        chosen: list[Choice | GenerationFailed] = []
        for i, (row, best) in enumerate(zip(rows, choose_greedy(logits), strict=True)):
            if best is None:
                chosen.append(GenerationFailed("the model's scores are not finite"))
            else:
                chosen.append(_chosen(row, own[i]) if i in own else best)
        return chosen

    def _emit(self, row: Row, choice: Choice) -> Emitted:
        now = time.perf_counter()
        if row.first_token_at is None:
            row.first_token_at = now
        row.generated.append(choice.id)
        if row.matcher is not None:
            row.matcher.accept(choice.id)
        is_end = choice.id in self.eos_ids and not row.job.sampling.ignore_eos
        text = "" if is_end else row.detokenizer.add(choice.id)
        alternatives = tuple(
            (token, self.tokenizer.decode([token]), logprob)
            for token, logprob in choice.alternatives
        )
        token = TokenOut(
            choice.id,
            text if not is_end else self.tokenizer.decode([choice.id]),
            choice.logprob,
            is_end or choice.id in self._special,
            alternatives,
        )
        reason = self._end(row, is_end)
        finished = self._finish(row, reason, now) if reason is not None else None
        return Emitted(row, token, finished)

    def _end(self, row: Row, is_end: bool) -> FinishReason | None:
        if is_end:
            return "eos_token"
        stops = row.job.sampling.stop
        if stops and any(stop in row.detokenizer.text for stop in stops):
            return "stop_sequence"
        if len(row.generated) >= row.job.sampling.max_new_tokens:
            return "length"
        if row.matcher is not None and row.matcher.is_finished:
            return "eos_token"
        return None

    def _finish(self, row: Row, reason: FinishReason, now: float) -> Finished:
        text = row.detokenizer.finish()
        for stop in row.job.sampling.stop if reason == "stop_sequence" else ():
            found = text.find(stop)
            if found >= 0:
                text = text[: found + len(stop)]
        assert row.first_token_at is not None
        return Finished(
            text=text,
            reason=reason,
            prompt_tokens=len(row.job.prompt_ids),
            generated_tokens=len(row.generated),
            seed=row.seed,
            queue_seconds=row.started_at - row.queued_at,
            inference_seconds=now - row.started_at,
            first_token_seconds=row.first_token_at - row.queued_at,
            prefill=row.prefill,
            adapter_id=row.adapter_id,
        )

    def _prompt_logprobs(
        self, row: Row, logits: torch.Tensor
    ) -> tuple[tuple[int, str, float | None], ...]:
        """Each prompt token with its log-probability; the first has none."""
        ids = row.job.prompt_ids
        logprobs = torch.log_softmax(logits[:-1], dim=-1)
        known = logprobs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].tolist()
        texts = [self.tokenizer.decode([token]) for token in ids]
        return tuple(zip(ids, texts, [None, *known], strict=True))


def _takes_best(row: Row) -> bool:
    """Whether the most probable token is the row's next one, whatever it is."""
    return row.matcher is None and is_plain(row.job.sampling)


def _chosen(row: Row, logits: torch.Tensor) -> Choice | GenerationFailed:
    """A token by the row's own settings."""
    try:
        allowed = row.matcher.allowed() if row.matcher is not None else None
        return choose(
            logits, row.job.sampling, row.job.prompt_ids, row.generated, row.generator,
            allowed=allowed,
        )  # fmt: skip
    except (RuntimeError, ValueError) as why:
        return GenerationFailed(f"no token could be chosen: {why}")
