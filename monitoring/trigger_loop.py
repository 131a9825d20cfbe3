"""The serving monitor's look at the triggers: which are due, as gauges, beside the ticks.

It remembers none: an event is new once, and that is for who asks by `graduate monitor triggers`, a job that trains say.
"""

import datetime
import time
from dataclasses import dataclass, field

from monitoring.settings import MonitorSettings
from monitoring.store import Store
from monitoring.trigger_store import announced, evidence
from monitoring.triggers import Kind, TriggerRule, due
from router import policy_file

LOOK_SECONDS = 300.0
ASK_SECONDS = 6 * 3600.0
"""How often teachers are asked for shutdown dates."""


@dataclass(slots=True)
class TriggerWatch:
    """Looks with the rule's defaults; `graduate monitor triggers` takes others. Keeps the dates that teachers announced."""

    settings: MonitorSettings
    store: Store
    rule: TriggerRule = field(default_factory=TriggerRule)
    _dates: dict[tuple[str, str], datetime.datetime] = field(default_factory=dict)
    _asked_at: float | None = None

    def look(self) -> dict[str, list[Kind]]:
        """Kinds of triggers that are due now, by route with a student.

        Raises:
            PolicyError: the policy does not hold.
        """
        home = self.settings.home
        loaded = policy_file.load(self.settings.policy, home.rollouts)
        names = [name for name, route in loaded.policy.routes.items() if route.student is not None]
        if self._asked_at is None or time.monotonic() - self._asked_at > ASK_SECONDS:
            self._asked_at = time.monotonic()
            # A teacher that cannot be asked keeps the date that it gave; the command says which and why.
            self._dates |= announced(loaded.policy, names)[0]
        now = datetime.datetime.now(datetime.UTC)
        found = {
            name: due(
                self.rule, evidence(self.settings, self.store, loaded, name, self._dates), now
            )
            for name in names
        }
        return {name: [t.kind for t in each] for name, each in found.items()}
