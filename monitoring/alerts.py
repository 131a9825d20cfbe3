"""Recording and alert rules for Prometheus, as YAML. Decides when a person is called, and for what.

**Budgets.** A gate's limit in the policy is a budget: 5 % of the compared requests may differ. A burn rate of 1 uses up exactly
the budget; burning B times as fast for a window of w uses B·w/7d of a week's budget. Three alerts, each on a long window for
evidence and a short one so that it ends soon after the trouble (the multi-window, multi-burn-rate form of Google's SRE
workbook, chapter 5): 2 % of the week's budget within an hour (B = 3.36), 5 % within six hours (B = 1.4), and simply being over the
limit for three days (B = 1). For a limit so high that B times it comes near 100 %, half of what lies above the limit is
the threshold instead.

**Little traffic.** The long window's share is the lower end of its 99 % Wilson interval, and 30 requests are needed: three
differences in five requests call nobody. These alerts are for people; rollouts are decided by always-valid tests in `rollout`.

**Counters that begin.** A labelled counter is born at 1, which `increase` does not see; shares treat a missing bad count as 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

BY = "namespace, route"
"""Routes of two releases in one cluster stay apart; outside a cluster the namespace is empty."""
WEEK_HOURS = 7 * 24
Z = 2.5758
"""Of a two-sided 99 % interval."""
MIN_REQUESTS = 30
WINDOWS = ("5m", "30m", "1h", "6h", "3d")
LONG = ("1h", "6h", "3d")
"""The windows that evidence is taken from; the others only end an alert."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A share that has a limit: what is bad, of what, and the limit of a route whose policy sets none."""

    name: str
    counter: str
    bad: str
    of: str
    gate: str
    default_limit: float
    what: str


BUDGETS = (
    Budget(
        "disagreement", "graduate_router_comparisons_total", 'result=~"disagree|student_form"',
        'result!="teacher_form"', "disagreement", 0.05, "disagrees with the teacher",
    ),
    Budget(
        "guard_failures", "graduate_router_answers_total", 'role="student",outcome="guard"',
        'role="student"', "guard_failures", 0.01, "fails its guard",
    ),
    Budget(
        "student_errors", "graduate_router_answers_total", 'role="student",outcome!~"ok|guard"',
        'role="student"', "errors", 0.01, "gives no answer",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Burn:
    """One pair of windows and how fast the budget may burn over them."""

    word: str
    long: str
    short: str
    factor: float
    severity: str
    lasts: str


BURNS = (
    Burn("Fast", "1h", "5m", 0.02 * WEEK_HOURS, "page", "2m"),
    Burn("Slow", "6h", "30m", 0.05 * WEEK_HOURS / 6, "ticket", "15m"),
    Burn("Steady", "3d", "6h", 1.0, "ticket", "1h"),
)

Rule = dict[str, Any]


def recording_rules() -> list[Rule]:
    """Shares, their lower ends, limits and burn rates, by route."""
    return [rule for budget in BUDGETS for rule in _recorded(budget)]


def _recorded(budget: Budget) -> list[Rule]:
    name = f"graduate:{budget.name}"
    rules: list[Rule] = []
    for window in WINDOWS:
        whole = f"sum by ({BY}) (increase({budget.counter}{{{budget.of}}}[{window}]))"
        bad = f"sum by ({BY}) (increase({budget.counter}{{{budget.bad}}}[{window}]))"
        n, p = f"{name}:requests{window}", f"{name}:ratio{window}"
        rules += [
            _record(n, whole),
            _record(p, f"({bad} or 0 * {whole}) / ({n} > 0)"),
        ]
        if window in LONG:
            rules.append(_record(f"{name}:low{window}", _wilson_low(p, n)))
    limit = f'max by ({BY}) (graduate_monitoring_limit_share{{gate="{budget.gate}"}})'
    known = f"sum by ({BY}) ({budget.counter}{{{budget.of}}})"
    rules.append(_record(f"{name}:limit", f"{limit} or {budget.default_limit:g} + 0 * {known}"))
    rules += [
        _record(f"{name}:burn{w}", f"{name}:low{w} / ({name}:limit > 0)") for w in ("1h", "6h")
    ]
    return rules


def _record(name: str, expr: str) -> Rule:
    return {"record": name, "expr": expr}


def _wilson_low(p: str, n: str) -> str:
    """Lower end of Wilson's interval for a share p of n (Wilson 1927)."""
    z2 = Z * Z
    centre = f"{p} + {z2 / 2:.4f} / {n}"
    spread = f"{Z:g} * sqrt({p} * (1 - {p}) / {n} + {z2 / 4:.4f} / ({n} * {n}))"
    return f"clamp_min(({centre} - {spread}) / (1 + {z2:.4f} / {n}), 0)"


def _burning(budget: Budget, burn: Burn) -> str:
    name = f"graduate:{budget.name}"
    fast, half = f"{burn.factor:.3g} * {name}:limit", f"(1 + {name}:limit) / 2"
    line = f"(({fast} < {half}) or {half})" if burn.factor > 1 else f"{name}:limit"
    return (
        f"{name}:low{burn.long} > {line}\n"
        f"and {name}:ratio{burn.short} > {line}\n"
        f"and {name}:requests{burn.long} >= {MIN_REQUESTS}"
    )


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert. `runbook` is the first thing to do, in one line; more is in docs/dashboards.md under the alert's name."""

    name: str
    expr: str
    lasts: str
    severity: str
    summary: str
    description: str
    runbook: str


def _budget_alerts() -> list[Alert]:
    words = {
        "disagreement": "GraduateDisagreement",
        "guard_failures": "GraduateGuardFailures",
        "student_errors": "GraduateStudentErrors",
    }
    todo = {
        "disagreement": "graduate monitor report --route {{ $labels.route }}: look at the worst slices and the flags; to take the student "
        "off the route, set its mode to dark_launch",
        "guard_failures": "graduate monitor review list --route {{ $labels.route }}: see which guard rule fails on what; callers have the "
        "teacher's answers meanwhile",
        "student_errors": "look at the student server's log and /ready, and at the Breakers panel; the teacher answers meanwhile",
    }
    return [
        Alert(
            f"{words[budget.name]}{burn.word}",
            _burning(budget, burn),
            burn.lasts,
            burn.severity,
            f"The student of route {{{{ $labels.route }}}} {budget.what} more than it may",
            f"Over {burn.long} surely more than {{{{ $value | humanizePercentage }}}} of its requests (lower end of the 99 % interval); "
            + (
                f"a week's budget burns {burn.factor:.3g} times too fast."
                if burn.factor > 1
                else "more than the limit."
            ),
            todo[budget.name],
        )
        for budget in BUDGETS
        for burn in BURNS
    ]


_M = "graduate_monitoring"
MONITOR_ALERTS = (
    Alert(
        "GraduateDrift",
        f"max by ({BY}) ({_M}_drift_lasts) == 1",
        "5m",
        "ticket",
        "Inputs of route {{ $labels.route }} have drifted",
        "Windows that share no row show together that the inputs differ from the reference; without drift that happens less than once in 1,000 windows.",
        "open the drift dashboard and evidently's report at the monitor's console; label flagged rows, then graduate train build",
    ),
    Alert(
        "GraduateMonitorStale",
        f"time() - max by (namespace) ({_M}_tick_timestamp_seconds) > 900 or absent({_M}_tick_timestamp_seconds)",
        "10m",
        "page",
        "The monitor has not looked for a quarter of an hour",
        "No tick has ended, or nothing is scraped of the monitor. Rollouts stand still, and nobody watches the student.",
        "is the monitor's process there, and is /ready free of tick_error? One tick by hand: graduate monitor tick",
    ),
    Alert(
        "GraduateMonitorTickFails",
        f'sum by (namespace) (increase({_M}_ticks_total{{result="error"}}[15m])) > 0'
        f' unless sum by (namespace) (increase({_M}_ticks_total{{result="ok"}}[15m])) > 0',
        "5m",
        "ticket",
        "Every tick of the monitor fails",
        "Ticks were tried in the last quarter of an hour and none succeeded.",
        "the monitor's /ready says why (tick_error): a policy that does not hold, a database that is gone, a full disk",
    ),
    Alert(
        "GraduateTrafficStale",
        f"time() - max by ({BY}) ({_M}_window_end_timestamp_seconds) > 3600"
        " and on (namespace, route) sum by (namespace, route) (rate(graduate_router_requests_total[30m])) > 0",
        "30m",
        "ticket",
        "Requests of route {{ $labels.route }} come in, but their records do not",
        "The newest record that the monitor knows is {{ $value | humanizeDuration }} old while the router answers requests.",
        "do the monitor and the router have the same home? Is the ship sidecar running? Is log.share 0?",
    ),
    Alert(
        "GraduateRolloutRolledBack",
        f'max by ({BY}) ({_M}_rollout_state{{state="rolled_back"}}) == 1',
        "0m",
        "page",
        "The student of route {{ $labels.route }} was rolled back",
        "A gate was shown to be breached, or a person aborted it; the teacher answers everything. Only people start it again.",
        "graduate monitor rollout --route {{ $labels.route }} shows the evidence; the queue has the flags: graduate monitor review",
    ),
    Alert(
        "GraduateRolloutHeld",
        f'max by ({BY}) ({_M}_rollout_state{{state="held"}}) == 1',
        "10m",
        "ticket",
        "The rollout of route {{ $labels.route }} is held",
        "A gate was breached under on_breach: hold, and the student keeps its share until somebody decides.",
        "graduate monitor rollout --route {{ $labels.route }} shows why; then graduate monitor rollout resume or abort",
    ),
    Alert(
        "GraduateRolloutInconclusive",
        f'max by ({BY}) ({_M}_rollout_state{{state="inconclusive"}}) == 1',
        "10m",
        "ticket",
        "The rollout of route {{ $labels.route }} shows too little",
        "A gate was still open at the cap (canary.give_up_after): neither kept nor breached. The student keeps its share.",
        "graduate monitor report --route {{ $labels.route }} shows which gate is open; more audits, a wider limit or resume; abort ends it",
    ),
    Alert(
        "GraduateRolloutWaits",
        f'max by ({BY}) ({_M}_rollout_blocked{{reason="approval"}}) == 1',
        "1h",
        "ticket",
        "The rollout of route {{ $labels.route }} waits for a person",
        "Its gates are kept and canary.approval is manual: nobody has approved the step for an hour.",
        "graduate monitor rollout --route {{ $labels.route }}, then graduate monitor rollout approve {{ $labels.route }} --by NAME",
    ),
    Alert(
        "GraduateRolloutBlocked",
        f'max by ({BY}, reason) ({_M}_rollout_blocked{{reason!="approval"}}) == 1',
        "30m",
        "ticket",
        "The rollout of route {{ $labels.route }} stands still: {{ $labels.reason }}",
        "stale: no record of the route comes; away: ticks are too far apart; confirm: a webhook does not say yes.",
        "graduate monitor report --route {{ $labels.route }} has the reason; is there traffic, does monitor serve tick, what does the webhook answer?",
    ),
    Alert(
        "GraduateTrainAgain",
        f"max by ({BY}, kind) ({_M}_trigger_due) == 1",
        "1h",
        "ticket",
        "The student of route {{ $labels.route }} should be distilled again: {{ $labels.kind }}",
        "drift or disagreement of the version in force, enough new labels, or a teacher that announced its shutdown.",
        "graduate monitor triggers --route {{ $labels.route }} says why; then graduate train build",
    ),
)
_R = "graduate_router"
_REFUSED = f'{_R}_policy_loads_total{{result="error"}}'
_BEFORE = f"sum by (namespace, instance) ({_REFUSED} offset 15m)"
_LOADS = f"sum by (namespace, instance) ({_REFUSED})"
ROUTER_ALERTS = (
    Alert(
        "GraduatePolicyRefused",
        f"({_LOADS} > {_BEFORE}) or ({_LOADS} unless {_BEFORE})",
        "0m",
        "ticket",
        "Router {{ $labels.instance }} refuses the policy as it is now",
        "An edit of policy or rollout state in the last 15 minutes does not hold. The last good policy stays in force.",
        "graduate router check POLICY names file, line and key; the router's /ready has policy_error",
    ),
    Alert(
        "GraduatePolicyDiffers",
        f"count by (namespace) (count by (namespace, digest) ({_R}_policy_info == 1)) > 1",
        "10m",
        "ticket",
        "Routers do not agree on the policy",
        "{{ $value }} different policies have been in force for ten minutes: a router has not taken an edit.",
        "compare /policy of the routers; is the ConfigMap mounted as a folder, not by subPath?",
    ),
    Alert(
        "GraduateTrafficLogDrops",
        f"sum by (namespace, instance) (increase({_R}_log_drops[10m])) > 0",
        "0m",
        "page",
        "Router {{ $labels.instance }} loses lines of its traffic log",
        "The disk refuses writes. Callers are answered, but what is not logged is not measured.",
        "free space in the home's volume; /ready has log_error",
    ),
    Alert(
        "GraduateBreakerOpen",
        f"max by (namespace, backend) (avg_over_time({_R}_breaker_open[5m])) > 0.5",
        "2m",
        "page",
        "Backend {{ $labels.backend }} is left alone",
        "Its breaker was open for most of five minutes. A student's requests go to the teacher; a teacher's requests fail.",
        "is the backend reachable from the router, and what does its log say?",
    ),
    Alert(
        "GraduateRequestsFail",
        f'sum by ({BY}) (rate({_R}_requests_total{{status="5xx"}}[5m]))'
        f" / sum by ({BY}) (rate({_R}_requests_total[5m])) > 0.01"
        f" and sum by ({BY}) (increase({_R}_requests_total[5m])) >= {MIN_REQUESTS}",
        "5m",
        "page",
        "Callers of route {{ $labels.route }} get errors",
        "{{ $value | humanizePercentage }} of the replies of five minutes were 5xx: neither student nor teacher answered.",
        "the traffic dashboard shows whose answers fail; the teacher's own status page comes first",
    ),
    Alert(
        "GraduateRouterGone",
        f"absent({_R}_policy_info)",
        "10m",
        "page",
        "No router is scraped",
        "Prometheus sees no router: none runs, or its admin port cannot be reached.",
        "kubectl get pods, or graduate doctor; the ServiceMonitor must point at the admin port",
    ),
)

ALERTS: tuple[Alert, ...] = (*_budget_alerts(), *MONITOR_ALERTS, *ROUTER_ALERTS)


def groups(runbooks: str | None = None) -> dict[str, Any]:
    """The rule groups. `runbooks` is the address of docs/dashboards.md as people reach it; it adds `runbook_url`."""
    return {
        "groups": [
            {"name": "graduate.recorded", "rules": recording_rules()},
            {"name": "graduate.alerts", "rules": [_alert(alert, runbooks) for alert in ALERTS]},
        ]
    }


def _alert(alert: Alert, runbooks: str | None) -> Rule:
    notes = {
        "summary": alert.summary,
        "description": alert.description,
        "runbook": alert.runbook,
    }
    if runbooks:
        notes["runbook_url"] = f"{runbooks}#{alert.name.lower()}"
    rule: Rule = {"alert": alert.name, "expr": alert.expr}
    if alert.lasts != "0m":
        rule["for"] = alert.lasts
    return {**rule, "labels": {"severity": alert.severity}, "annotations": notes}


def texts(runbooks: str | None = None) -> Mapping[str, str]:
    """File name → YAML of the rule files."""
    head = "# Generated by `graduate monitor dashboards`; edit monitoring/alerts.py instead.\n"
    body = yaml.safe_dump(groups(runbooks), sort_keys=False, width=10_000, allow_unicode=True)
    return {"graduate.yaml": head + body}


def write(folder: Path, runbooks: str | None = None) -> list[Path]:
    """Write the rules into a folder; the files' paths.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name, text in texts(runbooks).items():
        (folder / name).write_text(text)
        found.append(folder / name)
    return found
