"""Every metric of the student server: LoRAX's names, with an adapter label and a time to first token beside them.

Times are seconds. The adapter label holds resolved versions (`tickets/3`), `base`, or `unknown` for a name that is not
resident, so that callers cannot make series.
"""

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from serving.generation import Finished, Job, Step

SECONDS = tuple(0.00015 * 1.5**step for step in range(35))
"""LoRAX's buckets."""

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class PlainCounter(Collector):
    """A counter under exactly its name; the client library would append `_total`, which LoRAX's do not have."""

    def __init__(
        self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._counter = Counter(name, text, labels, registry=None)
        registry.register(self)

    def inc(self, *labels: str) -> None:
        """One more."""
        (self._counter.labels(*labels) if labels else self._counter).inc()

    def collect(self) -> Iterable[Metric]:
        """The samples, renamed. Their type is left open: the text format ties `counter` to `_total`."""
        for counted in self._counter.collect():
            plain = Metric(self._name, counted.documentation, "unknown")
            plain.samples = [
                sample._replace(name=self._name)
                for sample in counted.samples
                if sample.name.endswith("_total")
            ]
            yield plain


class ServingMetrics:
    """The metrics on one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

        def histogram(
            name: str, text: str, buckets: Sequence[float], labels: Sequence[str] = ()
        ) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=registry)

        self.count = PlainCounter(
            "lorax_request_count", "Requests that ended.", ["adapter"], registry
        )
        self.success = PlainCounter(
            "lorax_request_success", "Requests answered.", ["adapter"], registry
        )
        self.failure = PlainCounter(
            "lorax_request_failure", "Requests failed, by reason.", ["err", "adapter"], registry
        )
        self.duration = histogram("lorax_request_duration", "Whole request.", SECONDS, ["adapter"])
        self.first_token = histogram(
            "lorax_request_time_to_first_token_duration",
            "From the request's arrival to its first token.",
            SECONDS,
            ["adapter"],
        )
        self.generated_tokens = histogram(
            "lorax_request_generated_tokens", "Tokens generated.", TOKENS, ["adapter"]
        )
        self.validation = histogram(
            "lorax_request_validation_duration", "Checks and tokenisation.", SECONDS
        )
        self.queue = histogram("lorax_request_queue_duration", "Waiting in the queue.", SECONDS)
        self.inference = histogram("lorax_request_inference_duration", "In the model.", SECONDS)
        self.per_token = histogram(
            "lorax_request_mean_time_per_token_duration", "Inference time of a token.", SECONDS
        )
        self.input_length = histogram("lorax_request_input_length", "Prompt tokens.", TOKENS)
        self.max_new_tokens = histogram(
            "lorax_request_max_new_tokens", "Tokens asked for at most.", TOKENS
        )

        self.skipped = Summary(
            "lorax_request_skipped_tokens",
            "Tokens of a request that took no step of their own.",
            registry=registry,
        )
        self._batches(registry)

    def _batches(self, registry: CollectorRegistry) -> None:
        """What LoRAX counts of its batches. A step here holds prompts and single tokens together: it is a `prefill` when there
        is a prompt in it."""
        self.concat = PlainCounter(
            "lorax_batch_concat", "Times that requests joined rows under way.", ["reason"], registry
        )
        self.next_size = Histogram(
            "lorax_batch_next_size", "Requests that joined at a step.", buckets=ROWS, registry=registry
        )  # fmt: skip
        self.steps = PlainCounter("lorax_batch_inference_count", "Steps.", ["method"], registry)
        self.steps_done = PlainCounter(
            "lorax_batch_inference_success", "Steps that gave tokens.", ["method"], registry
        )
        self.steps_failed = PlainCounter(
            "lorax_batch_inference_failure", "Steps that raised.", ["method"], registry
        )
        self.step_duration = Histogram(
            "lorax_batch_inference_duration", "Time of a step.", ["method"], buckets=SECONDS,
            registry=registry,
        )  # fmt: skip

    def stepped(self, step: Step) -> None:
        """The engine has made a step, or failed to."""
        method = "prefill" if step.num_prompts else "decode"
        self.steps.inc(method)
        (self.steps_failed if step.is_failed else self.steps_done).inc(method)
        self.step_duration.labels(method).observe(step.seconds)
        if step.num_prompts:
            self.next_size.observe(step.num_prompts)
            if step.num_rows > step.num_prompts:
                self.concat.inc("continuous")

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A gauge that asks for its value when it is read."""
        Gauge(name, text, registry=self.registry).set_function(value)

    def started(self, job: Job, validation_seconds: float) -> None:
        """A request's parameters held and it goes to the queue."""
        self.validation.observe(validation_seconds)
        self.input_length.observe(len(job.prompt_ids))
        self.max_new_tokens.observe(job.sampling.max_new_tokens)

    def answered(
        self, ends: Sequence[Finished], duration_seconds: float, first_token_seconds: float
    ) -> None:
        """A request has its answer; `ends` are its sequences, one as a rule."""
        adapter = ends[0].adapter_id or "base"
        self.count.inc(adapter)
        self.success.inc(adapter)
        self.duration.labels(adapter).observe(duration_seconds)
        self.first_token.labels(adapter).observe(first_token_seconds)
        self.skipped.observe(sum(end.skipped_tokens for end in ends))
        for end in ends:
            self.generated_tokens.labels(adapter).observe(end.generated_tokens)
            self.queue.observe(end.queue_seconds)
            self.inference.observe(end.inference_seconds)
            self.per_token.observe(end.inference_seconds / max(1, end.generated_tokens))

    def failed(self, reason: str, adapter: str) -> None:
        """A request failed; the reasons are LoRAX's."""
        self.count.inc(adapter)
        self.failure.inc(reason, adapter)
