"""What the router counts. Labels come from the policy (route, backend) or from small closed sets, never from a request."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class RouterMetrics:
    """All metrics of the router, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = Counter(
            "graduate_router_requests",
            "Requests, by who answered and with what status class",
            ["route", "served_by", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "graduate_router_request_seconds",
            "From the request's last byte in to the reply's last byte out",
            ["route", "served_by"],
            buckets=SECONDS,
            registry=registry,
        )
        self.answers = Counter(
            "graduate_router_answers",
            "Answers of backends, by purpose and outcome (ok, or the error's word)",
            ["route", "backend", "role", "purpose", "outcome"],
            registry=registry,
        )
        self.answer_seconds = Histogram(
            "graduate_router_answer_seconds",
            "How long backends took",
            ["route", "role"],
            buckets=SECONDS,
            registry=registry,
        )
        self.fallbacks = Counter(
            "graduate_router_fallbacks",
            "Student answers that the teacher's replaced, by reason (a guard rule, an error's word, confidence)",
            ["route", "reason"],
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
        self.comparisons = Counter(
            "graduate_router_comparisons",
            "Student against teacher on one request: agree, disagree, student_form, teacher_form",
            ["route", "result"],
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
        )
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
        )
        self.policy_info = Gauge(
            "graduate_router_policy_info",
            "1 for the digest in force",
            ["digest"],
            registry=registry,
        )
        self.breaker_open = Gauge(
            "graduate_router_breaker_open",
            "1 while a backend is left alone",
            ["backend"],
            registry=registry,
        )
