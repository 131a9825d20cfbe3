"""What can go wrong in the monitor.

MonitoringError
├── StoreError       the database cannot be opened, or is of a newer schema
├── ReviewError      an unknown flag, an answer outside the route's labels, a flag that is decided already
└── UnknownRoute     the policy has no such route
"""


class MonitoringError(Exception):
    """Root of the tree."""


class StoreError(MonitoringError):
    """The database cannot be used."""


class ReviewError(MonitoringError):
    """A review that cannot be taken."""


class UnknownRoute(MonitoringError):
    """The policy has no such route."""
