"""Clients of the policy's backends: concurrency bound, breaker, retries, timeouts; one for each backend.

`send` gives the reply's head as it came, an error status included: what a backend says is its answer, and only silence
is a `BackendError`. What the bodies mean is in `teacher` and `student`.
"""

import asyncio
import logging
import os
import ssl
from collections.abc import AsyncIterable, Sequence
from dataclasses import dataclass

from router.breaker import CircuitBreaker
from router.errors import BackendError, BreakerOpen, ConnectFailed, Overloaded, TimedOut
from router.policy import Backend, Policy
from router.records import Usage
from router.transport import Header, Origin, Pool, Reply

logger = logging.getLogger(__name__)

MAX_RETRY_AFTER_SECONDS = 10.0
"""A longer `Retry-After` is passed to the caller instead of waited for."""


class BackendClient:
    """One backend. Belongs to the event loop that it was made in."""

    def __init__(
        self, name: str, config: Backend, tls: ssl.SSLContext | None = None, *, workers: int = 1
    ) -> None:
        self.name = name
        self.config = config
        self.max_in_flight = max(1, config.max_concurrency // workers)
        """This process's part of the backend's bound."""
        self.breaker = CircuitBreaker(config.breaker)
        self.api_key = os.environ.get(config.api_key_env) if config.api_key_env else None
        """From the environment, None when none is named or set."""
        self.in_flight = 0
        """Calls whose reply has not come to its end."""
        self._pool = Pool(Origin.parse(name, config.base_url), tls)
        self._loop = asyncio.get_running_loop()

    async def send(
        self,
        method: bytes,
        path: bytes,
        headers: Sequence[Header] | bytes,
        body: bytes | AsyncIterable[bytes] = b"",
        *,
        may_wait: bool = True,
    ) -> Reply:
        """The head of the backend's reply; tried again as the policy says, never after the first byte.

        Args:
            headers: as `Pool.request` takes them.
            may_wait: False where somebody else can answer at once: a backend that asks for time is then not waited for.

        Raises:
            BackendError: no answer: not connected, too late, too many calls in flight, or the breaker is open.
        """
        rule = self.config.retries
        attempts = (
            rule.attempts if isinstance(body, bytes) else 1
        )  # a streamed upload cannot be sent twice
        for attempt in range(1, attempts + 1):
            last = attempt == attempts
            pause = rule.backoff * 2 ** (attempt - 1)
            try:
                reply = await self._once(method, path, headers, body)
            except (ConnectFailed, TimedOut) as why:
                if last or why.word not in rule.on:
                    raise
                logger.info("backend %s: try %d failed: %s", self.name, attempt, why.word)
            else:
                if last or reply.status < 429:
                    return reply
                again = self._wait_before_retry(reply, pause, may_wait)
                if again is None:
                    return reply
                reply.close()
                pause = again
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _wait_before_retry(self, reply: Reply, pause: float, may_wait: bool) -> float | None:
        """Seconds to wait before another try; None when the reply stands."""
        rule = self.config.retries
        limited = reply.status == 429 and "429" in rule.on
        failed = reply.status >= 500 and "5xx" in rule.on
        if not (limited or failed):
            return None
        asked = reply.header(b"retry-after")
        if not may_wait and (limited or asked is not None):
            return None
        try:
            wait = max(pause, float(asked)) if asked is not None else pause
        except (
            ValueError
        ):  # an HTTP date: rare from these backends, and seconds are what we can use
            wait = pause
        return wait if wait <= MAX_RETRY_AFTER_SECONDS else None

    async def _once(
        self,
        method: bytes,
        path: bytes,
        headers: Sequence[Header] | bytes,
        body: bytes | AsyncIterable[bytes],
    ) -> Reply:
        timeout = self.config.timeout
        if self.in_flight >= self.max_in_flight:
            raise Overloaded(
                self.name, f"{self.in_flight} calls in flight, the bound is {self.max_in_flight}"
            )
        if not self.breaker.may_try(self._loop.time()):
            raise BreakerOpen(self.name, "too many failures lately; left alone for a while")
        self.in_flight += 1
        try:
            reply = await self._pool.request(
                method,
                path,
                headers,
                body,
                connect_seconds=timeout.connect,
                first_byte_seconds=timeout.first_token,
                total_seconds=timeout.total,
            )
        except (
            BaseException
        ) as why:  # cancelled too: the caller has left before the backend had answered
            self.in_flight -= 1
            if isinstance(why, BackendError):
                self.breaker.failed(self._loop.time())
            raise
        if reply.status >= 500:
            self.breaker.failed(self._loop.time())
            reply.on_end = self._failed_reply_ended
        else:
            reply.on_end = self._ended
        return reply

    def _ended(self, is_whole: bool | None) -> None:
        """Count a reply at its end: a head alone is no success, many a sick server still sends that."""
        self.in_flight -= 1
        if is_whole:
            self.breaker.succeeded(self._loop.time())
        elif is_whole is False:
            self.breaker.failed(self._loop.time())

    def _failed_reply_ended(self, _: bool | None) -> None:
        self.in_flight -= 1

    def cost(self, usage: Usage) -> float:
        """US dollars of one answer by the token prices."""
        price = self.config.price
        return (usage.prompt_tokens * price.input + usage.completion_tokens * price.output) / 1e6

    def close(self) -> None:
        """Close idle connections."""
        self._pool.close()


@dataclass(frozen=True, slots=True)
class Backends:
    """The clients of one policy, by name."""

    clients: dict[str, BackendClient]

    @classmethod
    def of(
        cls, policy: Policy, before: "Backends | None" = None, *, workers: int = 1
    ) -> "Backends":
        """Clients for a policy; those whose settings did not change keep connections and breaker.

        Args:
            workers: processes that share each backend's `max_concurrency`.
        """
        old = before.clients if before else {}
        clients = {
            name: old[name]
            if name in old and old[name].config == config
            else BackendClient(name, config, workers=workers)
            for name, config in policy.backends.items()
        }
        return cls(clients)

    def __getitem__(self, name: str) -> BackendClient:
        return self.clients[name]
