"""What the router counts. Labels come from the policy (route, backend, adapter) or from small closed sets, never from a request.

With several workers prometheus_client keeps the values in files (`PROMETHEUS_MULTIPROC_DIR`, set before this module is
imported), and the admin page adds them up. What every request counts is gathered in plain numbers (`tally`) and flushed
when a registry is read, and every half second for the files: a worker that is killed loses that much of its counts.
"""

import os
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric
from prometheus_client.registry import Collector

from router.records import Answer, Comparison
from router.tally import AnswerTally, ReplyTally, Spread, WholeHistogram

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class _FlushFirst(Collector):
    """Has no metrics of its own: registered before all others, it sees to it that they are up to date when read."""

    def __init__(self, metrics: "RouterMetrics") -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        self._metrics.flush()
        return ()


class RouterMetrics:
    """All metrics of the router, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        # What is counted with each request, by its labels; `labels()` costs more than counting.
        self._by_reply: dict[tuple[str, str, int], ReplyTally] = {}
        self._by_answer: dict[tuple[str, ...], AnswerTally] = {}
        self._by_comparison: dict[tuple[str, str], int] = {}
        registry.register(_FlushFirst(self))
        self._count_requests(registry)
        self._count_answers(registry)
        self._count_troubles(registry)
        self._show_what_is_in_force(registry)

    def _count_requests(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "graduate_router_requests",
            "Requests, by who answered and with what status class",
            ["route", "served_by", "status"],
            registry=registry,
        )
        self.seconds = WholeHistogram(
            "graduate_router_request_seconds",
            "From the request's last byte in to the reply's last byte out",
            ["route", "served_by"],
            buckets=SECONDS,
            registry=registry,
        )
        self.comparisons = Counter(
            "graduate_router_comparisons",
            "Student against teacher: agree, disagree, student_form, teacher_form, left_to_monitor",
            ["route", "result"],
            registry=registry,
        )

    def _count_answers(self, registry: CollectorRegistry) -> None:
        self.answers = Counter(
            "graduate_router_answers",
            "Answers of backends, by purpose and outcome (ok, guard, or the error's word)",
            ["route", "backend", "adapter", "role", "purpose", "outcome"],
            registry=registry,
        )
        self.answer_seconds = WholeHistogram(
            "graduate_router_answer_seconds",
            "How long backends took",
            ["route", "role"],
            buckets=SECONDS,
            registry=registry,
        )
        self.first_token_seconds = WholeHistogram(
            "graduate_router_first_token_seconds",
            "Until the first piece of a streamed answer",
            ["route", "role"],
            buckets=SECONDS,
            registry=registry,
        )
        self.tokens = Counter(
            "graduate_router_tokens",
            "Tokens as backends reported them",
            ["route", "role", "direction"],
            registry=registry,
        )
        self.cost_usd = Counter(
            "graduate_router_cost_usd",
            "US dollars by the policy's token prices",
            ["route", "role"],
            registry=registry,
        )

    def _count_troubles(self, registry: CollectorRegistry) -> None:
        self.fallbacks = Counter(
            "graduate_router_fallbacks",
            "Student answers that the teacher's replaced, by reason (a guard rule, an error's word, confidence)",
            ["route", "reason"],
            registry=registry,
        )
        self.shadow_drops = Counter(
            "graduate_router_shadow_drops",
            "Unseen copies that were not sent, by reason",
            ["route", "reason"],
            registry=registry,
        )
        self.log_drops = Gauge(
            "graduate_router_log_drops",
            "Lines that the disk refused since the start",
            registry=registry,
            multiprocess_mode="sum",
        )
        self.refusals = Counter(
            "graduate_router_refusals",
            "Requests refused before any backend was asked, by the HTTP status",
            ["status"],
            registry=registry,
        )

    def _show_what_is_in_force(self, registry: CollectorRegistry) -> None:
        self.policy_loads = Counter(
            "graduate_router_policy_loads",
            "Policy files read after a change, by result",
            ["result"],
            registry=registry,
        )
        self.policy_loaded_at = Gauge(
            "graduate_router_policy_loaded_timestamp_seconds",
            "When the policy in force was loaded",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.policy_info = Gauge(
            "graduate_router_policy_info",
            "1 for the digest in force",
            ["digest"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.breaker_open = Gauge(
            "graduate_router_breaker_open",
            "1 while a backend is left alone (with several workers: by any of them)",
            ["backend"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.in_flight = Gauge(
            "graduate_router_in_flight",
            "Calls to a backend under way",
            ["backend"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.policy_refused = Gauge(
            "graduate_router_policy_refused",
            "1 while the policy files as they are now are not in force",
            registry=registry,
            multiprocess_mode="livemax",
        )
        for result in ("ok", "error"):  # a counter that is born at 1 never rose
            self.policy_loads.labels(result)

    def show_policy(self, digest: str, before: str | None, loaded_at: float) -> None:
        """The policy in force, and the one that was."""
        self.policy_loaded_at.set(loaded_at)
        if before is not None and before != digest:
            self.policy_info.labels(before).set(0)
            if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:  # in files, values can only be set
                self.policy_info.remove(before)
        self.policy_info.labels(digest).set(1)

    def count_request(self, route: str, served_by: str, status: int, seconds: float) -> None:
        """Count a reply."""
        key = (route, served_by, status // 100)
        found = self._by_reply.get(key)
        if found is None:
            found = self._by_reply[key] = ReplyTally(
                self.requests.labels(route, served_by, f"{status // 100}xx"),
                Spread(self.seconds.labels(route, served_by), SECONDS),
            )
        found.replies += 1
        found.seconds.observe(seconds)

    def count_answer(self, route: str, answer: Answer) -> None:
        """Count a backend's answer."""
        outcome = answer.error or ("guard" if answer.verdict else "ok")
        key = (
            route, answer.backend, answer.adapter or "", answer.role, answer.purpose, outcome,
        )  # fmt: skip
        found = self._by_answer.get(key)
        if found is None:
            found = self._by_answer[key] = self._answer_tally(key, route, answer.role)
        found.answers += 1
        found.seconds.observe(answer.latency_seconds)
        usage = answer.usage
        found.input_tokens += usage.prompt_tokens
        found.output_tokens += usage.completion_tokens
        found.cost_usd += answer.cost_usd
        if answer.first_token_seconds is not None:
            found.first_token_seconds.observe(answer.first_token_seconds)

    def _answer_tally(self, key: tuple[str, ...], route: str, role: str) -> AnswerTally:
        return AnswerTally(
            self.answers.labels(*key),
            self.tokens.labels(route, role, "input"),
            self.tokens.labels(route, role, "output"),
            self.cost_usd.labels(route, role),
            Spread(self.answer_seconds.labels(route, role), SECONDS),
            Spread(self.first_token_seconds.labels(route, role), SECONDS),
        )

    def flush(self) -> None:
        """Give what was counted to the registry's metrics; with several workers, to the files that their parent reads."""
        for replies in self._by_reply.values():
            replies.flush()
        for answers in self._by_answer.values():
            answers.flush()
        compared, self._by_comparison = self._by_comparison, {}
        for labels, number in compared.items():
            self.comparisons.labels(*labels).inc(number)

    def count_comparison(self, route: str, comparison: Comparison | None) -> None:
        """Count a comparison at once, so that dashboards need not wait for the monitor."""
        if comparison is None:
            return
        if comparison.is_left:
            result = "left_to_monitor"
        elif comparison.comparable:
            result = "agree" if comparison.agree else "disagree"
        else:
            result = "teacher_form" if comparison.student_form_ok else "student_form"
        key = (route, result)
        self._by_comparison[key] = self._by_comparison.get(key, 0) + 1
