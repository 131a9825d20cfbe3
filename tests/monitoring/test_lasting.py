"""Drift over time: how rarely evidence reaches its line without drift, how soon with it, and what a tick counts."""

import datetime

import numpy as np
import pytest

from monitoring.drift import DriftReport
from monitoring.lasting import EVERY_SECONDS, MEAN_WINDOWS, Lasting, added, count_window, e_value
from monitoring.settings import MonitorSettings
from monitoring.store import Store
from monitoring.tick import run_tick
from monitoring.windows import Row
from router.traffic import TrafficLog
from tests.monitoring.conftest import NOW, policy, record


def report(p_value: float | None) -> DriftReport:
    return DriftReport(p_value is not None, None, 1000, 200, 0.02, p_value=p_value)


def rows(begin: float, number: int = 5) -> list[Row]:
    return [Row(f"r{begin + n}", "text", None, begin + n) for n in range(number)]


def test_an_e_value_has_mean_one_without_drift_and_less_where_p_values_are_coarse() -> None:
    fine = [e_value((n + 0.5) / 100_000) for n in range(100_000)]
    assert np.mean(fine) == pytest.approx(1, abs=0.03)
    coarse = [e_value(n / 2_000) for n in range(1, 2_001)]
    assert 0.9 < np.mean(coarse) <= 1


def test_windows_without_drift_reach_the_line_after_more_than_the_promised_number() -> None:
    generator = np.random.default_rng(0)
    lengths = []
    for _ in range(60):
        evidence, number = 0.0, 0
        while evidence < MEAN_WINDOWS and number < 20_000:
            evidence, number = added(evidence, float(generator.random())), number + 1
        lengths.append(number)
    assert np.mean(lengths) > MEAN_WINDOWS


def test_windows_that_all_alarm_reach_it_within_three() -> None:
    evidence = 0.0
    for p_value in (0.0011, 0.0011, 0.02):
        evidence = added(evidence, p_value)
    assert evidence >= MEAN_WINDOWS


def test_a_window_counts_once_and_neither_overlaps_nor_comes_too_soon(store: Store) -> None:
    first = count_window(store, "mail", "mail/1", rows(0), report(0.001))
    assert first == Lasting(1, added(0.0, 0.001))
    again = count_window(store, "mail", "mail/1", rows(0), report(0.001))
    overlaps = count_window(store, "mail", "mail/1", rows(4), report(0.001))
    too_soon = count_window(store, "mail", "mail/1", rows(100), report(0.001))
    long = [*rows(4), *rows(EVERY_SECONDS + 10)]
    reaches_back = count_window(store, "mail", "mail/1", long, report(0.001))
    assert again == overlaps == too_soon == reaches_back == first
    assert count_window(store, "mail", "mail/1", rows(EVERY_SECONDS + 10), report(None)) == first
    later = count_window(store, "mail", "mail/1", rows(EVERY_SECONDS + 10), report(0.001))
    assert (later.windows, later.is_drift) == (2, True)
    assert count_window(store, "mail", "mail/2", rows(9e9), report(1.0)).windows == 1
    assert count_window(store, "post", "mail/1", rows(9e9), report(1.0)).windows == 1


def test_evidence_goes_back_within_some_windows_when_the_traffic_does() -> None:
    evidence = 0.0
    for _ in range(500):
        evidence = added(evidence, 0.001)
    for _ in range(6):
        evidence = added(evidence, 0.5)
    assert evidence < MEAN_WINDOWS


def test_a_tick_counts_its_window_and_a_second_one_over_the_same_records_does_not(
    settings: MonitorSettings, store: Store
) -> None:
    settings.policy.write_text(policy())
    log = TrafficLog(settings.home.traffic)
    for number in range(200):
        words = f"hello number {number}" if number < 100 else f"BYE {number} " * 20
        log.append(record(number, text=words))
    log.close()
    now = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    (one,) = run_tick(settings, store, now=now, html=False)
    assert one.drift.drifted
    assert one.drift.p_value is not None
    assert one.drift.p_value < 0.002  # finer than 2,000 shuffles and eleven columns can say
    (two,) = run_tick(settings, store, now=now, html=False)
    assert one.lasting == two.lasting == Lasting(1, added(0.0, one.drift.p_value))
