"""One paid run: the cost shown and agreed to, the first answers checked, the rest asked, all under one cap.

The shell around `label_teacher`: it knows the terminal, the environment's key and the cache's file; what is asked and
what an answer must look like is in `label`.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import typer

from router.answer_spec import AnswerSpec
from training.build import Row
from training.commands import err, progress_bar
from training.errors import ConfigError
from training.label import Estimate, Job, check_first, estimate, first_jobs
from training.label_cache import Cache
from training.label_teacher import Asked, Asker, Budget

TIMEOUT_SECONDS = 120.0


class LabelRun:
    """What labelling and comparing share: the cache, the cap, the question before paying, and what was spent."""

    def __init__(
        self, cache: Path, api_key_env: str, concurrency: int, max_usd: float | None, yes: bool, min_first: float,
        as_json: bool,
    ) -> None:  # fmt: skip
        self.cache_path = cache
        self.api_key_env = api_key_env
        self.concurrency = concurrency
        self.max_usd = max_usd
        self.yes = yes
        self.min_first = min_first
        self.as_json = as_json
        self.spent_usd = 0.0
        self.estimate: Estimate | None = None

    def ask(self, jobs: Sequence[Job], rows: Sequence[Row], spec: AnswerSpec) -> Asked:
        """Show the cost, have it agreed to, ask and check the first ones, ask the rest."""
        cache = Cache(self.cache_path)
        try:
            cached = {
                job.hash: reply for job in jobs if (reply := cache.find(job.hash)) is not None
            }
            known = [answer for row in rows if (answer := row.gold or row.teacher) is not None]
            self.estimate = estimate(jobs, cached, known)
            cap = self.estimate.most_usd if self.max_usd is None else self.max_usd
            self._agree(self.estimate, cap)
            with progress_bar(quiet=self.as_json) as bar:
                return asyncio.run(
                    self._asked(
                        jobs,
                        cache,
                        spec,
                        cap,
                        lambda phase, done, total: bar(phase, done, total, None),
                    )
                )
        finally:
            cache.close()

    def _agree(self, cost: Estimate, cap: float) -> None:
        new = cost.num_requests - cost.num_cached
        err.print(
            f"{cost.num_requests} requests, {cost.num_cached} answered before; {new} to ask with about "
            f"{cost.prompt_tokens} prompt tokens: likely ${cost.likely_usd:.4f}, at most ${cost.most_usd:.4f}, "
            f"stopped at ${cap:.4f}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        if cost.likely_usd > cap and new:
            reach = int(new * cap / cost.likely_usd)
            err.print(f"the cap will be reached after about {reach} of them", highlight=False)
        if not new or self.yes or not cost.most_usd:
            return
        if not sys.stdin.isatty():
            raise ConfigError("nothing was asked: agree to the cost with --yes")
        if not typer.confirm("Ask the teacher?", err=True):
            raise ConfigError("nothing was asked")

    async def _asked(
        self, jobs: Sequence[Job], cache: Cache, spec: AnswerSpec, cap: float,
        tell: Callable[[str, int, int], None],
    ) -> Asked:  # fmt: skip
        key = os.environ.get(self.api_key_env)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        budget = Budget(cap)
        limits = httpx.Limits(max_connections=self.concurrency)
        async with httpx.AsyncClient(
            timeout=TIMEOUT_SECONDS, headers=headers, limits=limits
        ) as client:
            asker = Asker(client, cache, budget, concurrency=self.concurrency)
            try:
                first = await asker.ask(
                    first_jobs(jobs), lambda done, total: tell("first answers", done, total)
                )
                failures = [why for _, why in first.failed]
                if first.answers or failures:
                    check_first(spec, first.answers, self.min_first, failures)
                # The first ones are in the cache by now, so all are asked and only the rest is paid.
                return await asker.ask(jobs, lambda done, total: tell("answers", done, total))
            finally:
                self.spent_usd = budget.spent_usd
