"""What the monitor exports: gauges that hold what the newest reports and the policy say. Labels come from the policy,
from the registry (adapter), or from closed sets; of slices only the worst few are shown.

A gauge whose label has left the report (an adapter that was replaced, a slice that is no longer among the worst) is
removed: a gauge that stands still for ever would be read as news.
"""

import datetime
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

from monitoring.flags import KINDS
from monitoring.review import VERDICTS
from monitoring.triggers import Kind
from router.policy import Policy, RouteRollout

SLICES = 10
"""Slices of an adapter that are shown, the worst first."""

ROLLOUT_STATES: tuple[str, ...] = get_args(RouteRollout.model_fields["state"].annotation)
TRIGGERS: tuple[str, ...] = get_args(Kind)
BLOCKS = ("stale", "away", "approval", "confirm")
"""What alone may keep a canary from more traffic."""
SPANS, FIGURES = ("window", "today"), ("list_price", "spent", "saved")
GATE_STATES = {"breached": -1.0, "open": 0.0, "kept": 1.0}

Labels = TypeVar("Labels", bound=tuple[str, ...])
"""A series' labels after the route."""


class MonitorMetrics:
    """All metrics of the monitor, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._of_disagreement()
        self._of_drift()
        self._of_people()
        self._of_rollouts()
        self._of_traffic()
        self._of_ticks()
        self._shown: dict[tuple[Gauge, str], set[tuple[str, ...]]] = {}

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        full = f"graduate_monitoring_{name}"
        return Gauge(full, text, list(labels), registry=self.registry)

    def _of_disagreement(self) -> None:
        gauge, by_adapter = self._gauge, ("route", "adapter")
        self.disagreement = gauge("disagreement_share", "Student against teacher", *by_adapter)
        self.disagreement_low = gauge(
            "disagreement_low", "Lower end of its 95 % interval", *by_adapter
        )
        self.disagreement_high = gauge(
            "disagreement_high", "Upper end of its 95 % interval", *by_adapter
        )
        self.noise_floor = gauge("noise_floor_share", "Teacher against itself", "route")
        self.form_failures = gauge(
            "form_failure_share", "Student answers of the wrong form", *by_adapter
        )
        self.pairs = gauge("pairs", "Requests that both answered, in the window", *by_adapter)
        self.pairs_left = gauge(
            "pairs_left", "Pairs that wait for the monitor to compare them", "route"
        )
        self.kappa = gauge("kappa", "Cohen's kappa over classes", *by_adapter)
        self.slices = gauge(
            "slice_disagreement_share", "The worst slices", *by_adapter, "slice", "value"
        )
        self.fields = gauge(
            "field_disagreement_share", "Disagreement of one JSON field", *by_adapter, "field"
        )

    def _of_drift(self) -> None:
        gauge = self._gauge
        self.drifted = gauge("drift", "1 when an input column alarms", "route")
        self.drift_lasts = gauge("drift_lasts", "1 when windows together show drift", "route")
        self.drift_evidence = gauge(
            "drift_evidence",
            "Of all windows against no drift, at most ten times the wanted",
            "route",
        )
        self.drift_wanted = gauge(
            "drift_evidence_wanted",
            "Windows between false alarms on average, at the least",
            "route",
        )
        self.drift_enough = gauge("drift_enough", "1 when there are rows enough to say", "route")
        self.drift_rows = gauge("drift_rows", "Rows of a window", "route", "window")
        self.drift_alarm_rate = gauge(
            "drift_alarm_rate", "Chance that a window without drift alarms", "route"
        )
        self.drift_p_value = gauge(
            "drift_adjusted_p_value", "Adjusted p-value of a column", "route", "column"
        )
        self.drift_mean = gauge(
            "drift_column_mean", "Mean of a numeric column", "route", "column", "window"
        )

    def _of_people(self) -> None:
        gauge = self._gauge
        self.flags_open = gauge("flags_open", "Flags that wait for a review", "route")
        self.flags_waiting = gauge("flags_waiting", "Flags that wait, by kind", "route", "kind")
        self.reviews = gauge("reviews", "Decisions that stand, by verdict", "route", "verdict")

    def _of_rollouts(self) -> None:
        gauge = self._gauge
        self.thresholds = gauge(
            "hybrid_threshold",
            "Of the policy: min_confidence, max_difficulty",
            "route",
            "threshold",
        )
        self.canary_share = gauge("canary_share", "The student's share of a canary", "route")
        self.rollout_state = gauge("rollout_state", "1 for the state it is in", "route", "state")
        self.rollout_moved_at = gauge(
            "rollout_moved_timestamp_seconds", "When a rollout came to its state", "route", "state"
        )
        self.rollout_blocked = gauge(
            "rollout_blocked", "1 when this alone keeps a canary from more", "route", "reason"
        )
        self.gates = gauge("gate_state", "-1 breached, 0 open, 1 kept", "route", "gate")
        self.limits = gauge("limit_share", "Limit of a gate in the policy", "route", "gate")
        self.triggers = gauge(
            "trigger_due", "1 when this says that a student be distilled again", "route", "kind"
        )

    def _of_traffic(self) -> None:
        gauge = self._gauge
        self.records = gauge("window_records", "Records in the window", "route")
        self.served = gauge("window_served_records", "By who answered", "route", "served_by")
        self.costs = gauge("window_cost_usd", "US dollars in the window", "route", "role")
        self.savings = gauge(
            "savings_usd", "US dollars: the teacher's list price, what was spent, what was saved",
            "route", "figure", "span",
        )  # fmt: skip
        self.break_even = gauge(
            "break_even_requests_per_day", "From so many the student's node pays", "route"
        )
        self.by_student = gauge(
            "student_requests_per_day", "Requests that the student answers", "route"
        )
        self.window_end = gauge(
            "window_end_timestamp_seconds", "Time of the newest record in the window", "route"
        )

    def _of_ticks(self) -> None:
        self.ticked_at = self._gauge("tick_timestamp_seconds", "When the last tick ended")
        self.ticks = Counter(
            "graduate_monitoring_ticks", "Ticks, by result", ["result"], registry=self.registry
        )
        for result in ("ok", "error"):  # there from the start, or the first error is no increase
            self.ticks.labels(result)
        self.notices = Counter(
            "graduate_monitoring_notices", "Tries to tell a webhook of a canary's move, by result",
            ["result"], registry=self.registry,
        )  # fmt: skip
        for result in ("ok", "error"):
            self.notices.labels(result)

    def show(self, route: str, report: dict[str, Any]) -> None:
        """Set the gauges of one route from its newest report."""
        self._show_disagreement(route, report["disagreement"])
        self._show_drift(route, report["drift"])
        self._show_rollout(route, report["rollout"])
        self._show_balance(route, report.get("balance"))
        lasting = report.get("lasting")
        self._set(self.drift_lasts, route, {(): lasting["is_drift"]} if lasting else {})
        self._set(self.drift_evidence, route, {(): lasting["evidence"]} if lasting else {})
        self._set(self.drift_wanted, route, {(): lasting["wanted"]} if lasting else {})
        compared = report.get("compared")
        self._set(self.pairs_left, route, {(): compared["left"] if compared else 0})
        waiting, reviews = report.get("waiting") or {}, report.get("reviews") or {}
        self._set(self.flags_waiting, route, {(k,): waiting.get(k, 0) for k in KINDS})
        self._set(self.reviews, route, {(v,): reviews.get(v, 0) for v in VERDICTS})
        self._set(self.flags_open, route, {(): report["flags_open"]})
        self._set(self.records, route, {(): report["records"]})
        self._set(self.window_end, route, {(): report["window_end"]})
        self._set(self.served, route, {(who,): n for who, n in report["served_by"].items()})
        self._set(self.costs, route, {(role,): usd for role, usd in report["costs_usd"].items()})

    def _show_balance(self, route: str, balance: dict[str, Any] | None) -> None:
        usd, per_day, pays_from = {}, {}, {}
        if balance is not None:
            usd = {
                (figure, span): balance[span][f"{figure}_usd"]
                for span in SPANS
                for figure in FIGURES
                if balance[span][f"{figure}_usd"] is not None
            }
            per_day = {(): balance["by_student_a_day"]}
            known = balance["break_even_a_day"]
            pays_from = {(): known} if known is not None else {}
        self._set(self.savings, route, usd)
        self._set(self.by_student, route, per_day)
        self._set(self.break_even, route, pays_from)

    def show_triggers(self, due: Mapping[str, Collection[str]]) -> None:
        """Set which triggers are due, by route."""
        for route, kinds in due.items():
            values = {(kind,): float(kind in kinds) for kind in TRIGGERS}
            self._set(self.triggers, route, values)

    def show_policy(self, policy: Policy) -> None:
        """Set the policy's limits and thresholds, and forget routes that it has no longer."""
        for gauge, route in list(self._shown):
            if route not in policy.routes:
                self._set(gauge, route, {})
        for name, route_ in policy.routes.items():
            gates = route_.canary.gates
            limits = {
                "disagreement": gates.disagreement,
                "guard_failures": gates.guard_failures,
                "errors": gates.errors,
            }
            self._set(self.limits, name, {(k,): v.max for k, v in limits.items() if v is not None})
            cascade, difficulty = route_.hybrid.cascade, route_.hybrid.difficulty
            thresholds = {
                ("min_confidence",): cascade.min_confidence if cascade else None,
                ("max_difficulty",): difficulty.max if difficulty else None,
            }
            known = {key: value for key, value in thresholds.items() if value is not None}
            self._set(self.thresholds, name, known)

    def _show_disagreement(self, route: str, found: Iterable[dict[str, Any]]) -> None:
        by_adapter = {one["adapter"] or "none": one for one in found}
        floors = [one["noise_floor"]["share"] for one in by_adapter.values() if one["noise_floor"]]
        self._set(self.noise_floor, route, {(): floors[0]} if floors else {})
        for gauge, block, key in (
            (self.disagreement, "rate", "share"),
            (self.disagreement_low, "rate", "low"),
            (self.disagreement_high, "rate", "high"),
            (self.form_failures, "form_failures", "share"),
        ):
            self._set(gauge, route, {(a,): one[block][key] for a, one in by_adapter.items()})
        self._set(self.pairs, route, {(a,): one["pairs"] for a, one in by_adapter.items()})
        known = {(a,): one["kappa"] for a, one in by_adapter.items() if one["kappa"] is not None}
        self._set(self.kappa, route, known)
        worst = {
            (adapter, part["name"], part["value"]): part["disagreement"]["share"]
            for adapter, one in by_adapter.items()
            for part in one["slices"][:SLICES]
        }
        self._set(self.slices, route, worst)
        fields = {
            (adapter, name): share["share"]
            for adapter, one in by_adapter.items()
            for name, share in one["fields"].items()
        }
        self._set(self.fields, route, fields)

    def _show_drift(self, route: str, drift: dict[str, Any]) -> None:
        self._set(self.drifted, route, {(): drift["drifted"]})
        self._set(self.drift_enough, route, {(): drift["enough"]})
        self._set(self.drift_alarm_rate, route, {(): drift["alarm_rate"]})
        windows = ("reference", "current")
        self._set(self.drift_rows, route, {(w,): drift[f"{w}_rows"] for w in windows})
        columns = drift["columns"]
        self._set(self.drift_p_value, route, {(c["name"],): c["adjusted"] for c in columns})
        means = {
            (c["name"], window): c[f"{window}_mean"]
            for c in columns
            for window in windows
            if c[f"{window}_mean"] is not None
        }
        self._set(self.drift_mean, route, means)

    def _show_rollout(self, route: str, rollout: dict[str, Any] | None) -> None:
        state = rollout["state"] if rollout else None
        self._set(self.canary_share, route, {(): state["share"]} if state else {})
        names = ROLLOUT_STATES if state else ()
        states = {(name,): float(state["state"] == name) for name in names if state}
        self._set(self.rollout_state, route, states)
        moved = {}
        if state and state["since"]:
            since = datetime.datetime.fromisoformat(state["since"])
            moved = {(state["state"],): since.timestamp()}
        self._set(self.rollout_moved_at, route, moved)
        blocked = rollout.get("blocked") if rollout else None
        reasons = BLOCKS if state and state["state"] in ("canary", "waiting") else ()
        blocks = {(why,): float(why == blocked) for why in reasons}
        self._set(self.rollout_blocked, route, blocks)
        gates = rollout["gates"] if rollout else ()
        self._set(self.gates, route, {(g["name"],): GATE_STATES[g["state"]] for g in gates})

    def _set(self, gauge: Gauge, route: str, values: Mapping[Labels, float]) -> None:
        """Make these the gauge's series of the route; series that were there and are not among them go."""
        before = self._shown.get((gauge, route), set())
        for gone in before - set(values):
            gauge.remove(route, *gone)
        for labels, value in values.items():
            gauge.labels(route, *labels).set(value)
        self._shown[gauge, route] = set(values)
