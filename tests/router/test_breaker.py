"""The breaker by its clock: when it opens, whom it lets probe, when it closes."""

from router.breaker import CircuitBreaker
from router.policy import Breaker


def breaker() -> CircuitBreaker:
    rule = Breaker.model_validate({"failures": 3, "window": "10s", "open_for": "5s"})
    return CircuitBreaker(rule)


def opened() -> CircuitBreaker:
    found = breaker()
    for now in (0, 1, 2):
        found.failed(now)
    return found


def test_it_opens_after_enough_failures_within_the_window() -> None:
    found = breaker()
    found.failed(0)
    found.failed(1)
    assert found.state(1) == "closed"
    found.failed(2)
    assert (found.state(2), found.may_try(6.9)) == ("open", False)


def test_failures_far_apart_or_broken_by_a_success_do_not_open_it() -> None:
    slow = breaker()
    for now in (0, 6, 12, 18, 24):
        slow.failed(now)
    assert slow.may_try(24)
    mixed = breaker()
    for now in range(10):
        mixed.failed(now)
        mixed.failed(now)
        mixed.succeeded(now)
    assert mixed.may_try(10)


def test_one_probe_at_a_time_and_its_result_decides() -> None:
    found = opened()
    assert found.state(7) == "half_open"
    assert [found.may_try(7), found.may_try(7.1)] == [True, False]
    found.failed(8)
    assert [found.may_try(12.9), found.may_try(13)] == [False, True]
    found.succeeded(13.5)
    assert (found.state(13.5), found.may_try(14), found.may_try(14)) == ("closed", True, True)


def test_a_probe_that_never_reports_does_not_block_for_ever() -> None:
    found = opened()
    assert found.may_try(7)
    assert [found.may_try(11.9), found.may_try(12)] == [False, True]
