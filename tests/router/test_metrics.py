"""Counts that wait in plain numbers are what prometheus_client would have counted one by one."""

import random

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import generate_latest

from router.metrics import SECONDS, RouterMetrics
from router.records import Answer, Usage
from router.tally import Spread, WholeHistogram


def values(registry: CollectorRegistry, name: str) -> dict[str, float]:
    lines = generate_latest(registry).decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line.startswith(name))
    return {key: float(value) for key, value in pairs if "_created" not in key}


def test_many_observations_at_once_are_those_one_by_one() -> None:
    drawn = random.Random(3)
    seconds = [*SECONDS, 0.0, 1e9, *(drawn.expovariate(1) for _ in range(200))]
    at_once, single = CollectorRegistry(), CollectorRegistry()
    spread = Spread(WholeHistogram("h", "", buckets=SECONDS, registry=at_once), SECONDS)
    histogram = Histogram("h", "", buckets=SECONDS, registry=single)
    for number, value in enumerate(seconds):
        spread.observe(value)
        histogram.observe(value)
        if number % 50 == 0:
            spread.flush()
    spread.flush()
    found, wanted = values(at_once, "h"), values(single, "h")
    assert abs(found.pop("h_sum") - wanted.pop("h_sum")) < 1e-3
    assert found == wanted


def test_who_reads_the_registry_sees_all_that_was_counted_and_once() -> None:
    metrics = RouterMetrics(CollectorRegistry())
    answer = Answer(
        "teacher", "up", "m", status=200, usage=Usage(10, 2), latency_seconds=0.3, cost_usd=0.5
    )
    for _ in range(2):
        metrics.count_request("mail", "teacher", 200, 0.3)
        metrics.count_answer("mail", answer)
    for count in (2.0, 2.0):
        found = values(metrics.registry, "graduate_router_")
        labels = 'route="mail",served_by="teacher"'
        assert found[f'graduate_router_requests_total{{{labels},status="2xx"}}'] == count
        assert found[f'graduate_router_request_seconds_bucket{{le="0.5",{labels}}}'] == count
        assert found[f'graduate_router_request_seconds_bucket{{le="0.25",{labels}}}'] == 0
        tokens = 'graduate_router_tokens_total{direction="input",role="teacher",route="mail"}'
        assert found[tokens] == 20
        assert found['graduate_router_cost_usd_total{role="teacher",route="mail"}'] == 1.0
