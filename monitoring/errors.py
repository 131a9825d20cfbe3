"""What can go wrong in the monitor.

MonitoringError
├── StoreError       the database cannot be opened, or is of a newer schema
├── ReviewError      a verdict or an answer that the route does not allow
│   ├── UnknownFlag  there is no such flag
│   └── FlagTaken    somebody else has it, or it is decided already, or there is nothing to undo
├── JudgeError       a judge that cannot be asked now
├── RolloutRefused   a person's order that a canary cannot carry out
└── UnknownRoute     the policy has no such route
"""


class MonitoringError(Exception):
    """Root of the tree."""


class StoreError(MonitoringError):
    """The database cannot be used."""


class ReviewError(MonitoringError):
    """A review that cannot be taken."""


class UnknownFlag(ReviewError):
    """There is no such flag."""


class FlagTaken(ReviewError):
    """The flag is not in the state that the step needs."""


class JudgeError(MonitoringError):
    """A judge that cannot be asked now."""


class RolloutRefused(MonitoringError):
    """A person's order that a canary cannot carry out."""


class UnknownRoute(MonitoringError):
    """The policy has no such route."""
