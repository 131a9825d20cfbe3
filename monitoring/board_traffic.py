"""The third dashboard: what the router and the student server do, and what it costs."""

from collections.abc import Callable

from monitoring.panels import ADAPTER, ROUTE, Board, Panel, Query, Row, quantile, rate

REQUESTS = "graduate_router_requests_total"
ANSWERS = "graduate_router_answers_total"
M = "graduate_monitoring"
SAVINGS = f"{M}_savings_usd"
COST = "graduate_router_cost_usd_total"
BY_STUDENT, TEACHER = 'served_by="student"', 'role="teacher"'


def _in_range(counter: str, selector: str) -> str:
    return f"sum by (route) (increase({counter}{{{ROUTE},{selector}}}[$__range]))"


def _an_hour(counter: str, selector: str) -> str:
    return f"(3600 * {rate(counter, f'{ROUTE},{selector}', 'route')})"


def _saved(events: Callable[[str, str], str]) -> str:
    """What the teacher would have cost on the replies that the student gave, at its mean cost an answer, by route."""
    answered = events(ANSWERS, f'{TEACHER},outcome="ok"')
    return f"{events(REQUESTS, BY_STUDENT)} * on (route) {events(COST, TEACHER)} / on (route) ({answered} > 0)"


_NOW = Row(
    "Now",
    (
        Panel(
            "Requests a second",
            "What callers ask, by route.",
            "number",
            "reqps",
            (Query(rate(REQUESTS, ROUTE, "route"), "{{route}}"),),
            width=6,
            height=5,
        ),
        Panel(
            "Answered by the student",
            "Its share of the replies in the time shown.",
            "number",
            "percentunit",
            (
                Query(
                    f"({_in_range(REQUESTS, BY_STUDENT)} or 0 * {_in_range(REQUESTS, '')})"
                    f" / ({_in_range(REQUESTS, '')} > 0)",
                    "{{route}}",
                ),
            ),
            width=6,
            height=5,
        ),
        Panel(
            "Spent",
            "US dollars by token prices in the time shown, copies that nobody saw included; node hours are not in it.",
            "number",
            "currencyUSD",
            (
                Query(
                    f"sum by (route, role) (increase({COST}{{{ROUTE}}}[$__range]))",
                    "{{route}} {{role}}",
                ),
            ),
            width=6,
            height=5,
        ),
        Panel(
            "Not spent on the teacher",
            "The student's replies times the teacher's mean cost of an answer, in the time shown: an estimate. The student's "
            "node hours are not taken off.",
            "number",
            "currencyUSD",
            (Query(_saved(_in_range), "{{route}}"),),
            width=6,
            height=5,
        ),
    ),
)

_TRAFFIC = Row(
    "What callers get",
    (
        Panel(
            "Replies by who answered",
            "`none` is a request that got no answer of a backend.",
            "lines",
            "reqps",
            (Query(rate(REQUESTS, ROUTE, "route, served_by"), "{{route}} {{served_by}}"),),
            is_stacked=True,
        ),
        Panel(
            "Replies by status",
            "Status classes that callers saw, and requests refused before any backend was asked.",
            "lines",
            "reqps",
            (
                Query(rate(REQUESTS, ROUTE, "status"), "{{status}}"),
                Query(rate("graduate_router_refusals_total", "", "status"), "refused {{status}}"),
            ),
            is_stacked=True,
        ),
        Panel(
            "Latency",
            "From the request's last byte in to the reply's last byte out: median and 95th percentile, from histogram buckets.",
            "lines",
            "s",
            tuple(
                Query(
                    quantile(q, "graduate_router_request_seconds", ROUTE, "route, served_by"),
                    f"p{100 * q:.0f} {{{{route}}}} {{{{served_by}}}}",
                )
                for q in (0.5, 0.95)
            ),
        ),
        Panel(
            "Backends' 95th percentile",
            "How long teacher and student take, unseen copies included.",
            "lines",
            "s",
            (
                Query(
                    quantile(0.95, "graduate_router_answer_seconds", ROUTE, "route, role"),
                    "{{route}} {{role}}",
                ),
            ),
        ),
        Panel(
            "The student's answers",
            "By purpose (a reply to a caller, or an unseen shadow) and outcome: ok, held back by a guard, or the error's word.",
            "lines",
            "reqps",
            (
                Query(
                    rate(
                        ANSWERS, f'{ROUTE},{ADAPTER},role="student"', "adapter, purpose, outcome"
                    ),
                    "{{adapter}} {{purpose}} {{outcome}}",
                ),
            ),
            is_stacked=True,
        ),
        Panel(
            "Fallbacks",
            "Student answers that the teacher's replaced, by reason.",
            "lines",
            "reqps",
            (Query(rate("graduate_router_fallbacks_total", ROUTE, "route, reason"), "{{route}} {{reason}}"),),
        ),
    ),
)  # fmt: skip

_HYBRID = Row(
    "What the student keeps",
    (
        Panel(
            "Thresholds",
            "Of hybrid routes, as the policy has them: `graduate monitor calibrate` suggests them with a promise.",
            "lines",
            "short",
            (Query(f"{M}_hybrid_threshold{{{ROUTE}}}", "{{route}} {{threshold}}"),),
            width=12,
            height=6,
            most=1.0,
        ),
        Panel(
            "Replies by the student",
            "Its share of all replies: what the thresholds, a canary's share and the guards leave it.",
            "lines",
            "percentunit",
            (
                Query(
                    f"({rate(REQUESTS, f'{ROUTE},{BY_STUDENT}', 'route')} or 0 * {rate(REQUESTS, ROUTE, 'route')})"
                    f" / ({rate(REQUESTS, ROUTE, 'route')} > 0)",
                    "{{route}}",
                ),
            ),
            width=12,
            height=6,
            most=1.0,
        ),
    ),
)  # fmt: skip

_HEALTH = Row(
    "Is anything wrong?",
    (
        Panel(
            "Breakers",
            "A backend that failed again and again is left alone for a while; the teacher answers for a student's.",
            "states",
            "short",
            (Query("max by (backend) (graduate_router_breaker_open)", "{{backend}}"),),
            height=7,
            names={0: ("closed", "green"), 1: ("open", "red")},
        ),
        Panel(
            "Copies not sent",
            "Shadows that were shed under load or by `max_per_minute`, a second.",
            "lines",
            "reqps",
            (Query(rate("graduate_router_shadow_drops_total", ROUTE, "route, reason"), "{{route}} {{reason}}"),),
            height=7,
        ),
        Panel(
            "Log lines refused by the disk",
            "Since each router's start. What is not logged is not measured, and never trained on.",
            "lines",
            "short",
            (Query("sum by (instance) (graduate_router_log_drops)", "{{instance}}"),),
            height=7,
        ),
        Panel(
            "Policy loads",
            "Changes of policy or rollout state that routers took, and that they refused (`error`).",
            "lines",
            "short",
            (Query("sum by (instance, result) (graduate_router_policy_loads_total)", "{{instance}} {{result}}"),),
            width=12,
            height=7,
        ),
        Panel(
            "Policies in force",
            "How many routers have each digest. More than one for long: a router has not taken an edit.",
            "lines",
            "short",
            (Query("count by (digest) (graduate_router_policy_info == 1)", "{{digest}}"),),
            width=12,
            height=7,
        ),
    ),
)  # fmt: skip

_COST = Row(
    "What it costs",
    (
        Panel(
            "US dollars an hour",
            "By token prices of the policy, at the present rate.",
            "lines",
            "currencyUSD",
            (Query(f"3600 * {rate(COST, ROUTE, 'route, role')}", "{{route}} {{role}}"),),
            is_stacked=True,
        ),
        Panel(
            "Not spent on the teacher, an hour",
            "The student's replies at the teacher's mean cost of an answer, at the present rate.",
            "lines",
            "currencyUSD",
            (Query(_saved(_an_hour), "{{route}}"),),
        ),
        Panel(
            "List price, spent and saved",
            "By the monitor, over its window: the teacher's list price of all replies; what was paid, copies and the student's "
            "node hours included; the difference. Empty where the policy names no price.",
            "lines",
            "currencyUSD",
            tuple(
                Query(
                    f'max by (route) ({SAVINGS}{{{ROUTE},span="window",figure="{figure}"}})',
                    f"{word} {{{{route}}}}",
                )
                for figure, word in (
                    ("list_price", "list price"),
                    ("spent", "spent"),
                    ("saved", "saved"),
                )
            ),
        ),
        Panel(
            "Spent and saved today",
            "The same since midnight, UTC. Below zero, the student's node and the copies cost more than they save.",
            "lines",
            "currencyUSD",
            tuple(
                Query(
                    f'max by (route) ({SAVINGS}{{{ROUTE},span="today",figure="{figure}"}})',
                    f"{figure} {{{{route}}}}",
                )
                for figure in ("spent", "saved")
            ),
        ),
        Panel(
            "Break-even",
            "Requests that the student answers a day, and from how many on its node pays. No break-even is shown where a copy "
            "or an answer of the student costs more than the teacher's.",
            "lines",
            "short",
            (
                Query(f"{M}_student_requests_per_day{{{ROUTE}}}", "student {{route}}"),
                Query(f"{M}_break_even_requests_per_day{{{ROUTE}}}", "break-even {{route}}"),
            ),
            is_log=True,
        ),
        Panel(
            "Tokens a second",
            "As backends report them.",
            "lines",
            "short",
            (
                Query(
                    rate("graduate_router_tokens_total", ROUTE, "role, direction"),
                    "{{role}} {{direction}}",
                ),
            ),
        ),
    ),
)

_STUDENT = Row(
    "The student server",
    (
        Panel(
            "Answers by adapter",
            "Requests that the student server answered.",
            "lines",
            "reqps",
            (Query(rate("lorax_request_success", ADAPTER, "adapter"), "{{adapter}}"),),
        ),
        Panel(
            "Time to first token",
            "Median and 95th percentile by adapter.",
            "lines",
            "s",
            tuple(
                Query(
                    quantile(
                        q, "lorax_request_time_to_first_token_duration", ADAPTER, "adapter"
                    ),
                    f"p{100 * q:.0f} {{{{adapter}}}}",
                )
                for q in (0.5, 0.95)
            ),
        ),
        Panel(
            "Queue and batch",
            "Requests that wait, requests in the batch, adapters in memory.",
            "lines",
            "short",
            (
                Query("sum(lorax_queue_length)", "waiting"),
                Query("sum(lorax_batch_current_size)", "in the batch"),
                Query("sum(graduate_serving_resident_adapters)", "adapters resident"),
            ),
        ),
    ),
)  # fmt: skip

BOARD = Board(
    "graduate-traffic",
    "Graduate: traffic and cost",
    "Who answers, how fast, and for how much?",
    REQUESTS,
    ANSWERS,
    (_NOW, _TRAFFIC, _HYBRID, _HEALTH, _COST, _STUDENT),
)
