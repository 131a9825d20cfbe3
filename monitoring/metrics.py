"""What the monitor exports: gauges that hold what the newest reports say. Labels come from the policy."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge


class MonitorMetrics:
    """All metrics of the monitor, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"graduate_monitoring_{name}", text, list(labels), registry=registry)

        self.disagreement = gauge(
            "disagreement_share", "Student against teacher", "route", "adapter"
        )
        self.disagreement_low = gauge(
            "disagreement_low", "Lower end of its interval", "route", "adapter"
        )
        self.disagreement_high = gauge(
            "disagreement_high", "Upper end of its interval", "route", "adapter"
        )
        self.noise_floor = gauge("noise_floor_share", "Teacher against itself", "route")
        self.form_failures = gauge(
            "form_failure_share", "Student answers of the wrong form", "route", "adapter"
        )
        self.pairs = gauge(
            "pairs", "Requests that both answered, in the window", "route", "adapter"
        )
        self.drifted = gauge("drift", "1 when an input column alarms", "route")
        self.drift_p_value = gauge(
            "drift_adjusted_p_value", "Adjusted p-value of a column", "route", "column"
        )
        self.flags_open = gauge("flags_open", "Flags that wait for a review", "route")
        self.canary_share = gauge("canary_share", "The student's share of a canary", "route")
        self.records = gauge("window_records", "Records in the window", "route")
        self.ticked_at = gauge("tick_timestamp_seconds", "When the last tick ended")
        self.ticks = Counter(
            "graduate_monitoring_ticks", "Ticks, by result", ["result"], registry=registry
        )

    def show(self, route: str, report: dict[str, Any]) -> None:
        """Set the gauges of one route from its newest report."""
        for one in report["disagreement"]:
            adapter = one["adapter"] or "none"
            self.disagreement.labels(route, adapter).set(one["rate"]["share"])
            self.disagreement_low.labels(route, adapter).set(one["rate"]["low"])
            self.disagreement_high.labels(route, adapter).set(one["rate"]["high"])
            self.form_failures.labels(route, adapter).set(one["form_failures"]["share"])
            self.pairs.labels(route, adapter).set(one["pairs"])
            if one["noise_floor"]:
                self.noise_floor.labels(route).set(one["noise_floor"]["share"])
        drift = report["drift"]
        self.drifted.labels(route).set(drift["drifted"])
        for column in drift["columns"]:
            self.drift_p_value.labels(route, column["name"]).set(column["adjusted"])
        self.flags_open.labels(route).set(report["flags_open"])
        self.records.labels(route).set(report["records"])
        if report["rollout"]:
            self.canary_share.labels(route).set(report["rollout"]["state"]["share"])
