"""What can go wrong in training; each is the operator's or the data's fault and says what to change.

TrainingError
├── ConfigError       a key of the run file or a flag
├── DataError         the data cannot be trained or evaluated on: which file, row, column, value
├── PreflightFailed   the hard gate before fitting
└── PublishRefused    a lint, parity or quality gate said no
"""


class TrainingError(Exception):
    """Root of the tree."""


class ConfigError(TrainingError):
    """A key of the run file or a flag does not hold."""


class DataError(TrainingError):
    """The data cannot be used as it is."""


class PreflightFailed(TrainingError):
    """The dataset and the template do not fit together; nothing was trained."""


class PublishRefused(TrainingError):
    """The adapter does not go into the registry."""
