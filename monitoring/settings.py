"""Where the monitor is, what it reads and how often."""

from dataclasses import dataclass
from pathlib import Path

from router.home import Home


@dataclass(frozen=True, slots=True)
class MonitorSettings:
    """One monitor."""

    policy: Path
    home: Home
    database: str
    """SQLAlchemy URL of flags, reviews and reports."""
    since_seconds: float = 7 * 86400.0
    """How far back a tick reads the traffic log."""
    drift_rows: int = 200
    """Newest rows of a route that drift looks at."""
    every_seconds: float = 60.0
    """How often `monitor serve` ticks."""
    alarm_rate: float = 0.02
    """Chance that a drift window without drift alarms."""
    logs: tuple[str, ...] = ()
    """Traffic logs: folders of segments, shipped logs' folders or URLs, read as one; none is the home's own."""
    rollouts_configmap: str | None = None
    """In a cluster: the ConfigMap that is kept equal to the home's rollouts."""
