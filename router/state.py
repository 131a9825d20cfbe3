"""The policy in force: read at the start, read again after a change, the last good pair kept when an edit is bad."""

import asyncio
import hashlib
import logging
import time
from pathlib import Path

from router import policy_file
from router.backends import Backends
from router.errors import PolicyError, Problem
from router.exchange import InForce
from router.home import Home
from router.metrics import RouterMetrics

logger = logging.getLogger(__name__)


class PolicyState:
    """Holds what is in force, and what is wrong with the files if they are bad now."""

    def __init__(self, policy: Path, home: Home, metrics: RouterMetrics) -> None:
        self._policy = policy
        self._home = home
        self._metrics = metrics
        self._seen = self._contents()
        self.error: str | None = None
        """Why the files as they are now are not in force; None when they are."""
        self.loaded_at = time.time()
        self.force = self._load(None)

    def _load(self, before: InForce | None) -> InForce:
        loaded = policy_file.load(
            self._policy, self._home.rollouts, self._home.adapters / "difficulty"
        )
        if loaded.policy.keys is not None:
            problem = Problem(
                1,
                "keys",
                None,
                "API keys are not checked yet; leave it out, and let only trusted callers reach the port",
            )
            raise PolicyError(loaded.source, [problem])
        force = InForce(loaded, Backends.of(loaded.policy, before.backends if before else None))
        self.loaded_at = time.time()
        self._metrics.policy_loaded_at.set(self.loaded_at)
        self._metrics.policy_info.clear()
        self._metrics.policy_info.labels(loaded.digest).set(1)
        return force

    def _contents(self) -> bytes:
        """A hash of both files' bytes: a ConfigMap's symlink swap changes no modification time that can be relied on."""
        parts = hashlib.blake2b()
        for path in (self._policy, self._home.rollouts):
            try:
                parts.update(b"1" + path.read_bytes())
            except OSError:
                parts.update(b"0")
        return parts.digest()

    def reload_if_changed(self) -> None:
        """Look at the files; take them when they changed and hold."""
        found = self._contents()
        if found == self._seen:
            return
        self._seen = found
        try:
            self.force = self._load(self.force)
        except PolicyError as why:
            self.error = str(why)
            self._metrics.policy_loads.labels("error").inc()
            logger.error("policy not taken, the last good one stays in force: %s", why)
            return
        self.error = None
        self._metrics.policy_loads.labels("ok").inc()
        logger.info("policy %s in force", self.force.loaded.digest)

    async def watch(self, every_seconds: float) -> None:
        """Look again and again, for ever."""
        while True:
            await asyncio.sleep(every_seconds)
            self.reload_if_changed()
