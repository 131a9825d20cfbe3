"""What a tick remembers of one route while its records pass: counts and bounded samples, never the records themselves.

Knows no file, no clock and no store; each part is measured by the module that it is of.
"""

from collections import Counter
from dataclasses import dataclass, field

from monitoring.disagreement import Tally
from monitoring.evidence import Gathering
from monitoring.flags import Candidates
from monitoring.windows import Inputs
from router.records import Record


@dataclass(slots=True)
class RouteWindow:
    """One route's window."""

    inputs: Inputs
    pairs: Tally
    flags: Candidates
    canary: Gathering
    canary_since: float
    """Records of the canary from this time on are its evidence, epoch seconds."""
    since: float = 0.0
    """Older records are evidence only: the report does not look back so far."""
    records: int = 0
    first_at: float | None = None
    last_at: float | None = None
    served_by: Counter[str] = field(default_factory=Counter)
    costs_usd: dict[str, float] = field(default_factory=lambda: {"teacher": 0.0, "student": 0.0})

    def add(self, record: Record) -> None:
        """Take the next record, in order of time."""
        if record.mode == "canary" and record.at >= self.canary_since:
            self.canary.add(record)
        if record.at < self.since:
            return
        self.records += 1
        self.first_at = record.at if self.first_at is None else min(self.first_at, record.at)
        self.last_at = record.at if self.last_at is None else max(self.last_at, record.at)
        self.served_by[record.served_by] += 1
        for answer in record.answers:
            self.costs_usd[answer.role] += answer.cost_usd
        self.inputs.add(record)
        self.pairs.add(record)
        self.flags.add(record)
