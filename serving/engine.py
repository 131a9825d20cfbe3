"""Rows under way and the step over them: prompts and single tokens of any adapters in one forward pass.

Knows rows, tokens and caches; no queue, no thread, no HTTP. Adapters' weights come with the row, so an evicted adapter
stays alive for the rows that began with it.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from serving.attention import Slot
from serving.decoder import Decoder
from serving.drafts import Drafts
from serving.errors import GenerationFailed
from serving.generation import Finished, FinishReason, Job, TokenOut
from serving.grammar import Grammars, Matcher
from serving.lora import Batches, Group, LoraWeights, Stacks, batches
from serving.prefixes import Prefixes
from serving.sampling import Choice, choose, choose_greedy, is_plain
from serving.settings import DRAFT_TOKENS, Precision
from serving.text import Detokenizer
from serving.weights import Weights, of_model

IDLE_CACHE_BYTES = 256 << 20
"""What the cache may keep while no row is under way; making it anew costs nothing beside the prompts that fill it."""


MOST_DRAFTED = 8
"""Tokens guessed ahead for one row: what lies further ahead is seldom right."""


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
    written: int = 0
    """Tokens that its place in the cache has ever held: behind the cached ones lie drafts that were not taken."""
    num_skipped: int = 0
    """Generated tokens that took no step of their own."""
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
        draft_tokens: int = DRAFT_TOKENS,
    ) -> None:
        """`draft_tokens` is how many a step may guess ahead, over all rows; 0 guesses none."""
        weights = model if isinstance(model, Weights) else of_model(model)
        self.decoder = Decoder(weights, embedding, precision)
        self.tokenizer = tokenizer
        self._cache = self.decoder.new_cache()
        self._stacks = Stacks()
        self._rows: list[Row] = []
        self._prefixes = Prefixes(prefix_bytes)
        self._drafts = Drafts()
        self._draft_tokens = draft_tokens
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
            row.cached = row.written = len(saved.ids)
        self._rows.append(row)

    def remove(self, row: Row) -> None:
        """Take a row out; the last row moves into its place in the cache."""
        number = self._rows.index(row)
        last = self._rows.pop()
        if last is not row:
            self._cache.move(len(self._rows), number, last.cached)
            self._cache.clear(number, last.cached, row.written)
            self._cache.clear(len(self._rows), 0, last.written)
            self._rows[number], last.written = last, last.cached
        else:
            self._cache.clear(len(self._rows), 0, last.written)
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
        """One forward pass over all rows: a token for each, and more where what was guessed ahead turns out right.

        A row's tokens come one after the other. Rows that finished or failed are taken out.
        """
        order = sorted(range(len(self._rows)), key=lambda i: self._rows[i].adapter_id or "")
        drafts = [self._draft(self._rows[i]) for i in order]
        slots, adapters, ids, keep = self._layout(order, drafts)
        self._cache.reserve(len(self._rows), max(s.cached + s.stop - s.start for s in slots))
        logits = self.decoder.step(
            torch.tensor(ids), slots, adapters, self._cache, torch.tensor(keep)
        )
        place = 0
        wanted: list[int] = []
        for i, slot, draft in zip(order, slots, drafts, strict=True):
            row, new = self._rows[i], slot.num_new - len(draft)
            if row.job.want_prompt_logprobs and not row.generated:
                row.prefill = self._prompt_logprobs(row, logits[place : place + new])
                place += new - 1
            wanted += range(place, place + 1 + len(draft))
            place = wanted[-1] + 1
            was_prompt = row.cached < len(row.job.prompt_ids)
            row.cached += new
            row.written = max(row.written, row.cached + len(draft))
            if was_prompt:
                self._prefixes.saw(row.adapter_id, row.job.prompt_ids, i, self._cache)
        rows = [self._rows[i] for i in order]
        emitted = self._choose(
            rows, drafts, logits if len(wanted) == len(logits) else logits[wanted]
        )
        for item in emitted:
            if isinstance(item, Failed) or item.finished is not None:
                self.remove(item.row)
        return emitted

    def _draft(self, row: Row) -> Sequence[int]:
        """What the row may say after the tokens that it has, to be checked in the step that computes them."""
        left = row.job.sampling.max_new_tokens - len(row.generated) - 1
        most = min(left, MOST_DRAFTED, self._draft_tokens // len(self._rows))
        if most <= 0:
            return ()
        return self._drafts.guess(row.adapter_id, row.generated, most)

    def _layout(
        self, order: Sequence[int], drafts: Sequence[Sequence[int]]
    ) -> tuple[list[Slot], Batches, list[int], list[int]]:
        """The flat batch: where each row's new tokens are, which adapter they belong to, whose logits are wanted."""
        slots: list[Slot] = []
        groups: list[Group] = []
        ids: list[int] = []
        keep: list[int] = []
        for i, draft in zip(order, drafts, strict=True):
            row = self._rows[i]
            start, num_kept = len(ids), len(keep)
            ids += (*row.pending, *draft)
            slots.append(Slot(i, start, len(ids), row.cached))
            wants_all = row.job.want_prompt_logprobs and not row.generated
            keep += range(start if wants_all else len(ids) - 1 - len(draft), len(ids))
            new, kept = len(ids) - start, len(keep) - num_kept
            if groups and groups[-1].weights is row.weights:
                before = groups.pop()
                new, kept = new + before.num_tokens, kept + before.num_kept
            groups.append(Group(row.weights, new, kept))
        return slots, batches(groups, self._stacks), ids, keep

    def _choose(
        self, rows: Sequence[Row], drafts: Sequence[Sequence[int]], logits: torch.Tensor
    ) -> list[Emitted | Failed]:
        """Each row's next tokens, or why it has none: a row's scores are its own matter. `logits` are overwritten.

        A guess is taken when it is the very token that the row chooses there, by whatever settings: what is
        generated is what would be without guessing.

        Args:
            logits: for each row those after its last token and after each guess, one row after the other.
        """
        ends = list(itertools.accumulate(1 + len(draft) for draft in drafts))
        own = {
            i: logits[end - 1 - len(drafts[i]) : end].clone()
            for i, (row, end) in enumerate(zip(rows, ends, strict=True))
            if not _takes_best(row)
        }
        best = choose_greedy(logits)
        emitted: list[Emitted | Failed] = []
        for i, (row, draft, end) in enumerate(zip(rows, drafts, ends, strict=True)):
            for number, guess in enumerate((*draft, None)):
                choice = best[end - 1 - len(draft) + number]
                if choice is None:
                    emitted.append(
                        Failed(row, GenerationFailed("the model's scores are not finite"))
                    )
                    break
                chosen = _chosen(row, own[i][number]) if i in own else choice
                if isinstance(chosen, GenerationFailed):
                    emitted.append(Failed(row, chosen))
                    break
                said = self._emit(row, chosen, is_skipped=number > 0)
                emitted.append(said)
                if chosen.id != guess or said.finished is not None:
                    break
                row.cached += 1
        return emitted

    def _emit(self, row: Row, choice: Choice, *, is_skipped: bool) -> Emitted:
        now = time.perf_counter()
        if row.first_token_at is None:
            row.first_token_at = now
        row.generated.append(choice.id)
        row.num_skipped += is_skipped
        self._drafts.saw(row.adapter_id, row.generated)
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
            is_skipped,
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
            skipped_tokens=row.num_skipped,
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
