"""Who may ask at all: the key, its limits, and what a reply costs the caller afterwards."""

import math
from collections.abc import Mapping

from router.auth import KeyEntry, KeyRing
from router.errors import LimitExceeded
from router.limits import Buckets
from router.records import Usage

CHARS_A_TOKEN = 4
"""For replies whose backend reported no usage: a stream that was not asked for it."""


class Admission:
    """The gate in front of the routes; `buckets` are shared by all workers."""

    def __init__(self, buckets: Buckets) -> None:
        self._buckets = buckets

    def admit(
        self, keys: KeyRing | None, headers: Mapping[str, str], now: float
    ) -> KeyEntry | None:
        """Whose request it is; None where no keys are in use.

        Raises:
            Unauthorized: no good key.
            LimitExceeded: the caller's minute is spent; says when there is more.
        """
        if keys is None:
            return None
        entry = keys.identify(headers, now)
        requests, tokens = entry.requests_per_minute, entry.tokens_per_minute
        if tokens:  # looked at first: a request that is refused for its tokens costs no request
            self._hold_back(
                self._buckets.take(f"{entry.name} tokens", tokens, 0, now), tokens, "tokens"
            )
        if requests:
            wait = self._buckets.take(f"{entry.name} requests", requests, 1, now)
            self._hold_back(wait, requests, "requests")
        return entry

    def charge(self, entry: KeyEntry | None, usage: Usage, chars: int, now: float) -> None:
        """Take a reply's tokens off the caller's minute.

        Args:
            chars: characters of question and answer, for when no usage was reported.
        """
        if entry is None or not entry.tokens_per_minute:
            return
        tokens = usage.prompt_tokens + usage.completion_tokens or math.ceil(chars / CHARS_A_TOKEN)
        self._buckets.charge(f"{entry.name} tokens", entry.tokens_per_minute, tokens, now)

    @staticmethod
    def _hold_back(wait_seconds: float, per_minute: int, what: str) -> None:
        if wait_seconds > 0:
            raise LimitExceeded(
                f"the limit of {per_minute} {what} a minute is spent; more in {wait_seconds:.1f} s",
                retry_after_seconds=math.ceil(wait_seconds),
            )

    def close(self) -> None:
        """Let the buckets go."""
        self._buckets.close()
