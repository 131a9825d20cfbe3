"""The state folder (`--home`, default `.graduate`): where each artefact lies. Paths only; creates nothing by itself."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Home:
    """Paths under one state folder."""

    root: Path

    @property
    def policy(self) -> Path:
        """People's policy, when none is named by `--policy`."""
        return self.root / "policy.yaml"

    @property
    def rollouts(self) -> Path:
        """The monitor's rollout state, laid over the policy."""
        return self.root / "rollouts.yaml"

    @property
    def traffic(self) -> Path:
        """Segments of the traffic log."""
        return self.root / "traffic"

    @property
    def limits(self) -> Path:
        """Callers' minutes, shared by the router's workers."""
        return self.root / "limits.bin"

    @property
    def adapters(self) -> Path:
        """The registry of adapters."""
        return self.root / "adapters"

    @property
    def models(self) -> Path:
        """Base models converted to safetensors."""
        return self.root / "models"

    @property
    def datasets(self) -> Path:
        """Built datasets."""
        return self.root / "datasets"

    @property
    def runs(self) -> Path:
        """Training runs: checkpoints, curves, evaluations."""
        return self.root / "runs"

    @property
    def reports(self) -> Path:
        """The monitor's reports, evidently's HTML among them."""
        return self.root / "reports"

    @property
    def database_url(self) -> str:
        """SQLite file with flags, reviews and reports, when no other database is named."""
        return f"sqlite:///{self.root / 'graduate.db'}"

    @property
    def logs(self) -> Path:
        """Output of the processes that `graduate up` starts."""
        return self.root / "logs"
