"""The policy in force: read at the start, read again after a change, the last good pair kept when an edit is bad."""

import hashlib
import logging
import time
from pathlib import Path

from router import auth, policy_file
from router.backends import Backends
from router.errors import PolicyError, Problem
from router.home import Home
from router.metrics import RouterMetrics
from router.services import InForce

logger = logging.getLogger(__name__)


class PolicyState:
    """Holds what is in force, and what is wrong with the files if they are bad now."""

    def __init__(
        self,
        policy: Path,
        home: Home,
        metrics: RouterMetrics,
        *,
        needs_keys: bool = False,
        workers: int = 1,
    ) -> None:
        self._policy = policy
        self._home = home
        self._metrics = metrics
        self._needs_keys = needs_keys
        self._workers = workers
        self._keys_path: Path | None = None
        self.error: str | None = None
        """Why the files as they are now are not in force; None when they are."""
        self.loaded_at = time.time()
        self._seen = self._contents()  # before reading: an edit in between is then seen as one
        self.force = self._load(None)

    def _load(self, before: InForce | None) -> InForce:
        loaded = policy_file.load(
            self._policy, self._home.rollouts, self._home.adapters / "difficulty"
        )
        keys = auth.ring_of(loaded)
        if keys is None and self._needs_keys:
            why = "missing: without keys the router listens on loopback only, and this one listens on more (--open allows it)"
            raise PolicyError(loaded.source, [Problem(1, "keys", None, why)])
        backends = Backends.of(
            loaded.policy, before.backends if before else None, workers=self._workers
        )
        force = InForce(loaded, backends, keys)
        self._keys_path = auth.keys_path(loaded)
        self.loaded_at = time.time()
        self._metrics.show_policy(
            loaded.digest, before.loaded.digest if before else None, self.loaded_at
        )
        return force

    def _contents(self) -> bytes:
        """A hash of the files' bytes: a ConfigMap's symlink swap changes no modification time that can be relied on."""
        parts = hashlib.blake2b()
        for path in filter(None, (self._policy, self._home.rollouts, self._keys_path)):
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
            self._metrics.policy_refused.set(1)
            self._metrics.policy_loads.labels("error").inc()
            logger.error("policy not taken, the last good one stays in force: %s", why)
            return
        self.error = None
        self._metrics.policy_refused.set(0)
        self._metrics.policy_loads.labels("ok").inc()
        logger.info("policy %s in force", self.force.loaded.digest)
