"""Names and labels of the metrics, as a scrape sees them."""

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from serving.errors import InvalidRequest, Overloaded
from serving.exchange import Meter
from serving.generation import Finished, Job, Sampling, Step
from serving.metrics import ServingMetrics


class Engine:
    """Knows which adapters are resident; nothing is submitted here."""

    def resident(self) -> list[str]:
        return ["tickets/3"]

    def submit(self, job: Job) -> object:
        raise AssertionError(job)


def samples(metrics: ServingMetrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = generate_latest(metrics.registry).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def job(adapter_id: str | None) -> Job:
    return Job(tuple(range(5)), Sampling(max_new_tokens=7), adapter_id)


def test_an_answer_is_counted_under_loraxs_names_with_its_adapter() -> None:
    metrics = ServingMetrics(CollectorRegistry())
    ticks = iter([10.0, 10.25, 10.5, 12.0])
    with Meter(metrics, Engine(), clock=lambda: next(ticks)) as meter:  # type: ignore[arg-type]
        meter.admitted(job("tickets/latest"))
        meter.token()
        meter.answered(
            [Finished("x", "length", 5, 4, None, 0.5, 1.0, 0.75, adapter_id="tickets/3")]
        )
    seen = samples(metrics)
    adapter = (("adapter", "tickets/3"),)
    assert seen["lorax_request_count", adapter] == 1
    assert seen["lorax_request_success", adapter] == 1
    assert seen["lorax_request_duration_sum", adapter] == 2.0
    assert seen["lorax_request_time_to_first_token_duration_sum", adapter] == 0.5
    assert seen["lorax_request_validation_duration_sum", ()] == 0.25
    assert seen["lorax_request_queue_duration_sum", ()] == 0.5
    assert seen["lorax_request_mean_time_per_token_duration_sum", ()] == 0.25
    assert seen["lorax_request_input_length_sum", ()] == 5
    assert seen["lorax_request_max_new_tokens_sum", ()] == 7
    assert seen["lorax_request_generated_tokens_sum", adapter] == 4


def test_skipped_tokens_are_counted_once_a_request() -> None:
    metrics = ServingMetrics(CollectorRegistry())
    one = Finished("x", "length", 5, 7, None, 0.0, 1.0, 0.5, skipped_tokens=3)
    metrics.answered([one, one], 1.0, 0.5)
    found = samples(metrics)
    assert found["lorax_request_skipped_tokens_count", ()] == 1
    assert found["lorax_request_skipped_tokens_sum", ()] == 6


def test_failures_are_counted_by_reason_and_callers_make_no_series() -> None:
    metrics = ServingMetrics(CollectorRegistry())
    endings: list[tuple[str | None, BaseException]] = [
        ("tickets/3", Overloaded()),
        ("made-up", InvalidRequest("x")),
        ("made-up-too", GeneratorExit()),
        (None, RuntimeError("x")),
    ]
    for adapter_id, why in endings:
        meter = Meter(metrics, Engine())  # type: ignore[arg-type]
        meter.admitted(job(adapter_id))
        meter.__exit__(type(why), why, None)
    found = {
        key: value for key, value in samples(metrics).items() if key[0] == "lorax_request_failure"
    }
    assert found == {
        ("lorax_request_failure", (("adapter", "tickets/3"), ("err", "overloaded"))): 1,
        ("lorax_request_failure", (("adapter", "unknown"), ("err", "validation"))): 1,
        ("lorax_request_failure", (("adapter", "unknown"), ("err", "dropped"))): 1,
        ("lorax_request_failure", (("adapter", "base"), ("err", "generation"))): 1,
    }


def test_steps_are_counted_as_loraxs_batches() -> None:
    metrics = ServingMetrics(CollectorRegistry())
    metrics.stepped(Step(num_rows=3, num_prompts=3, seconds=0.5, is_failed=False))
    metrics.stepped(Step(num_rows=4, num_prompts=1, seconds=0.25, is_failed=False))
    metrics.stepped(Step(num_rows=4, num_prompts=0, seconds=0.125, is_failed=True))
    seen = samples(metrics)
    prefill, decode = (("method", "prefill"),), (("method", "decode"),)
    assert seen["lorax_batch_inference_count", prefill] == 2
    assert seen["lorax_batch_inference_success", prefill] == 2
    assert seen["lorax_batch_inference_failure", decode] == 1
    assert seen["lorax_batch_inference_duration_sum", prefill] == 0.75
    assert seen["lorax_batch_inference_duration_count", decode] == 1
    assert seen["lorax_batch_next_size_sum", ()] == 4
    assert seen["lorax_batch_concat", (("reason", "continuous"),)] == 1


def test_gauges_ask_when_they_are_read() -> None:
    metrics = ServingMetrics(CollectorRegistry())
    values = iter([3.0, 5.0])
    metrics.watch("lorax_queue_length", "Requests that wait.", lambda: next(values))
    assert samples(metrics)["lorax_queue_length", ()] == 3
    assert samples(metrics)["lorax_queue_length", ()] == 5
