"""The first dashboard: is the student as good as the teacher, and may it have more traffic."""

from monitoring.panels import BOTH, ROUTE, Board, Panel, Query, Row, rate, share

M = "graduate_monitoring"
COMPARISONS = "graduate_router_comparisons_total"
ANSWERS = "graduate_router_answers_total"
BAD, COMPARED = 'result=~"disagree|student_form"', 'result!="teacher_form"'
STATES = ("canary", "held", "promoted", "rolled_back", "waiting", "inconclusive")


def _state_codes() -> str:
    codes = " or ".join(
        f'{code} * {M}_rollout_state{{{ROUTE},state="{state}"}}'
        for code, state in enumerate(STATES, 1)
    )
    return f"max by (route) ({codes})"


_NOW = Row(
    "Now",
    (
        Panel(
            "Disagreement",
            "Share of the compared requests of the monitor's window on which student and teacher differ. Read it beside "
            "the noise floor: a teacher that differs from itself on 4 % cannot be met at 1 %.",
            "number",
            "percentunit",
            (Query(f"{M}_disagreement_share{{{BOTH}}}", "{{route}} {{adapter}}"),),
            width=6,
            height=5,
        ),
        Panel(
            "Student's share of the canary",
            "The share of the route's live traffic that the rollout gives to the student; 0 when it was rolled back.",
            "number",
            "percentunit",
            (Query(f"{M}_canary_share{{{ROUTE}}}", "{{route}}"),),
            width=6,
            height=5,
        ),
        Panel(
            "Pairs in the window",
            "Requests that both answered: what the shares rest on; and those that wait until the monitor compares them, by meaning or by a judge.",
            "number",
            "short",
            (
                Query(f"{M}_pairs{{{BOTH}}}", "{{route}} {{adapter}}"),
                Query(f"{M}_pairs_left{{{ROUTE}}}", "wait for the monitor {{route}}"),
            ),
            width=6,
            height=5,
        ),
        Panel(
            "Flags that wait",
            "Records that a person should look at. The last step of a rollout may want reviews: `min_reviews`.",
            "number",
            "short",
            (Query(f"{M}_flags_open{{{ROUTE}}}", "{{route}}"),),
            width=6,
            height=5,
        ),
    ),
)

_QUALITY = Row(
    "Is the student as good as the teacher?",
    (
        Panel(
            "Disagreement, its interval and the noise floor",
            "By the monitor, over its window: the share with its 95 % interval, the teacher against itself, and the limit of "
            "the route's gate. The interval is for one look; the rollout decides by tests that may be looked at always.",
            "lines",
            "percentunit",
            (
                Query(f"{M}_disagreement_low{{{BOTH}}}", "low {{route}} {{adapter}}"),
                Query(f"{M}_disagreement_high{{{BOTH}}}", "high {{route}} {{adapter}}"),
                Query(f"{M}_disagreement_share{{{BOTH}}}", "{{route}} {{adapter}}"),
                Query(f"{M}_noise_floor_share{{{ROUTE}}}", "teacher itself {{route}}"),
                Query(f'{M}_limit_share{{{ROUTE},gate="disagreement"}}', "limit {{route}}"),
            ),
            width=12,
            band=("low ", "high "),
        ),
        Panel(
            "Disagreement as it comes",
            "By the router, request by request, not waiting for the monitor. An answer of the wrong form counts as different; "
            "pairs whose teacher answer has the wrong form are left out.",
            "lines",
            "percentunit",
            (Query(share(COMPARISONS, BAD, COMPARED), "{{route}}"),),
            width=12,
            most=1.0,
        ),
        Panel(
            "Comparisons",
            "How many pairs come in, by result.",
            "lines",
            "reqps",
            (Query(rate(COMPARISONS, ROUTE, "route, result"), "{{route}} {{result}}"),),
            is_stacked=True,
        ),
        Panel(
            "Guard failures and errors",
            "Share of the student's answers that a guard held back, and that never came. The caller got the teacher's answer.",
            "lines",
            "percentunit",
            (
                Query(
                    share(ANSWERS, 'role="student",outcome="guard"', 'role="student"'),
                    "guard {{route}}",
                ),
                Query(
                    share(ANSWERS, 'role="student",outcome!~"ok|guard"', 'role="student"'),
                    "errors {{route}}",
                ),
            ),
        ),
        Panel(
            "Wrong form",
            "Share of the student's answers in the monitor's window that are not of the answer's kind at all.",
            "lines",
            "percentunit",
            (Query(f"{M}_form_failure_share{{{BOTH}}}", "{{route}} {{adapter}}"),),
        ),
        Panel(
            "Worst slices and fields",
            "Parts of the traffic with the highest disagreement now, and the fields of a JSON answer. An average hides a broken slice.",
            "bars",
            "percentunit",
            (
                Query(
                    f"topk(8, {M}_slice_disagreement_share{{{BOTH}}})",
                    "{{route}} {{slice}}: {{value}}",
                ),
                Query(
                    f"topk(4, {M}_field_disagreement_share{{{BOTH}}})", "{{route}} field: {{field}}"
                ),
            ),
            width=12,
        ),
        Panel(
            "Cohen's kappa",
            "Agreement beyond chance over classes: 1 is full, 0 is what two coins of the same class mix would have.",
            "lines",
            "short",
            (Query(f"{M}_kappa{{{BOTH}}}", "{{route}} {{adapter}}"),),
            width=12,
        ),
    ),
)

_MORE = Row(
    "May it have more traffic?",
    (
        Panel(
            "Rollout",
            "The state of each rollout over time.",
            "states",
            "short",
            (Query(_state_codes(), "{{route}}"),),
            width=12,
            height=6,
            names={
                1: ("canary", "blue"),
                2: ("held", "yellow"),
                3: ("promoted", "green"),
                4: ("rolled back", "red"),
                5: ("waits for a person", "purple"),
                6: ("inconclusive", "orange"),
            },
        ),
        Panel(
            "Gates",
            "Each gate of the route's canary: kept and breached are shown by always-valid tests, open is want of evidence and holds.",
            "states",
            "short",
            (Query(f"{M}_gate_state{{{ROUTE}}}", "{{route}} {{gate}}"),),
            width=12,
            height=6,
            names={-1: ("breached", "red"), 0: ("open", "yellow"), 1: ("kept", "green")},
        ),
        Panel(
            "Share planned and share given",
            "What the rollout gives the student, and what share of the replies came from it. Guards and fallbacks lie between.",
            "lines",
            "percentunit",
            (
                Query(f"{M}_canary_share{{{ROUTE}}}", "planned {{route}}"),
                Query(
                    share("graduate_router_requests_total", 'served_by="student"', ""),
                    "given {{route}}",
                ),
            ),
            width=12,
            most=1.0,
        ),
        Panel(
            "Budget burned",
            "How many times faster than its limit allows a route disagrees or fails its guard, by the lower end of the interval over an "
            "hour: above 1 the limit is broken, above 3.36 a page is sent. Needs the recording rules.",
            "lines",
            "short",
            (
                Query(f"graduate:disagreement:burn1h{{{ROUTE}}}", "disagreement {{route}}"),
                Query(f"graduate:guard_failures:burn1h{{{ROUTE}}}", "guard failures {{route}}"),
            ),
            width=12,
            needs_rules=True,
        ),
    ),
)

_PEOPLE = Row(
    "What is there for people to do?",
    (
        Panel(
            "Flags that wait, by kind",
            "Why each waiting record was marked.",
            "lines",
            "short",
            (Query(f"{M}_flags_waiting{{{ROUTE}}}", "{{route}} {{kind}}"),),
            is_stacked=True,
        ),
        Panel(
            "Reviews that stand",
            "Decisions of people, by verdict: the labels that training reads.",
            "lines",
            "short",
            (Query(f"{M}_reviews{{{ROUTE}}}", "{{route}} {{verdict}}"),),
            is_stacked=True,
        ),
        Panel(
            "Distil again?",
            "Whether drift, disagreement, new labels or the teacher's shutdown say that a student be trained anew.",
            "states",
            "short",
            (Query(f"{M}_trigger_due{{{ROUTE}}}", "{{route}} {{kind}}"),),
            names={0: ("no", "green"), 1: ("due", "orange")},
        ),
        Panel(
            "What alone keeps a canary",
            "stale: no record comes; away: ticks are too far apart; approval: a person has not said yes; confirm: a webhook has not.",
            "states",
            "short",
            (Query(f"{M}_rollout_blocked{{{ROUTE}}}", "{{route}} {{reason}}"),),
            width=12,
            height=6,
            names={0: ("no", "green"), 1: ("keeps it", "orange")},
        ),
        Panel(
            "Webhooks told",
            "Tries a minute to tell a canary's moves (`canary.notify`), by result; failed ones are tried again.",
            "lines",
            "short",
            (
                Query(
                    f"60 * sum by (result) (rate({M}_notices_total[$__rate_interval]))",
                    "{{result}}",
                ),
            ),
            width=12,
            height=6,
        ),
    ),
)

_MONITOR = Row(
    "Is the monitor itself well?",
    (
        Panel(
            "Since the last tick",
            "Seconds since the monitor last looked. Rollouts do not move while it does not.",
            "lines",
            "s",
            (Query(f"time() - (max({M}_tick_timestamp_seconds) > 0)", "last tick"),),
            height=6,
        ),
        Panel(
            "Ticks",
            "Ticks a minute, by result.",
            "lines",
            "short",
            (
                Query(
                    f"60 * sum by (result) (rate({M}_ticks_total[$__rate_interval]))", "{{result}}"
                ),
            ),
            height=6,
        ),
        Panel(
            "Age of the newest record",
            "Seconds since the newest record that the last report rests on: a log that no longer comes in shows here.",
            "lines",
            "s",
            (Query(f"time() - {M}_window_end_timestamp_seconds{{{ROUTE}}}", "{{route}}"),),
            height=6,
        ),
    ),
)

BOARD = Board(
    "graduate-rollout",
    "Graduate: rollout and disagreement",
    "Is the student as good as its teacher, and may it have more traffic?",
    f"{M}_window_records",
    f"{M}_pairs",
    (_NOW, _QUALITY, _MORE, _PEOPLE, _MONITOR),
)
