"""What a tick says of money: a route's part of the ledger, over the window and on the present day. Pure.

The ledger and its words are `monitoring.savings`'; this is the little of it that a gauge can hold.
"""

from dataclasses import dataclass

from monitoring.savings import Savings, day_of


@dataclass(frozen=True, slots=True)
class Spent:
    """US dollars of one span; None where a price is missing in the policy."""

    list_price_usd: float | None
    """What the teacher would have cost for all replies."""
    spent_usd: float | None
    """What was paid: replies of both, copies that nobody saw, the student's node."""
    saved_usd: float | None


@dataclass(frozen=True, slots=True)
class Balance:
    """One route."""

    window: Spent
    today: Spent
    """The UTC day that the tick is on."""
    by_student_a_day: float
    """Requests that the student answers a day."""
    break_even_a_day: float | None
    """Requests that it must answer a day before its node pays; None where that is not known or never happens."""


def balances(found: Savings, now: float) -> dict[str, Balance]:
    """By route, those that had traffic."""
    days = {(day.route, day.day): day for day in found.days}
    result = {}
    for route in found.routes:
        day = days.get((route.route, day_of(now)))
        today = (
            Spent(0.0, 0.0, 0.0)
            if day is None
            else Spent(day.baseline_usd, day.spent_usd, day.saved_usd)
        )
        result[route.route] = Balance(
            Spent(route.baseline_usd, route.spent_usd, route.saved_usd), today,
            route.by_student_a_day, route.break_even_a_day,
        )  # fmt: skip
    return result
