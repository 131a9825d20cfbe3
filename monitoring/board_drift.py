"""The second dashboard: have the inputs changed."""

from monitoring.panels import ROUTE, Board, Colour, Panel, Query, Row

M = "graduate_monitoring"
P_VALUE = f"{M}_drift_adjusted_p_value{{{ROUTE}}}"
ALARM_RATE = f"{M}_drift_alarm_rate{{{ROUTE}}}"
NAMES: dict[float, tuple[str, Colour]] = {
    0: ("no drift", "green"),
    1: ("drift", "red"),
    2: ("not enough rows", "gray"),
}
STATE = Query(f"{M}_drift{{{ROUTE}}} + 2 * (1 - {M}_drift_enough{{{ROUTE}}})", "{{route}}")


def _mean(window: str) -> str:
    return f'{M}_drift_column_mean{{{ROUTE},window="{window}"}}'


_NOW = Row(
    "Now",
    (
        Panel(
            "Drift",
            "Whether any column of the inputs differs from the reference: the adapter's training data, or the older half of the "
            "traffic. Without enough rows it says so instead.",
            "number",
            "short",
            (STATE,),
            width=6,
            height=5,
            names=NAMES,
        ),
        Panel(
            "Columns that alarm",
            "How many columns have an adjusted p-value below the alarm rate.",
            "number",
            "short",
            (
                Query(
                    f"sum by (route) ({P_VALUE} < bool on (route) group_left {ALARM_RATE})",
                    "{{route}}",
                ),
            ),
            width=6,
            height=5,
        ),
        Panel(
            "Rows compared",
            "Rows of the reference and of the current window.",
            "number",
            "short",
            (Query(f"{M}_drift_rows{{{ROUTE}}}", "{{route}} {{window}}"),),
            width=6,
            height=5,
        ),
        Panel(
            "Chance of a false alarm",
            "That a window without drift alarms, over all columns together. Many windows a week mean some false alarms: "
            "the alert waits for the evidence of several.",
            "number",
            "percentunit",
            (Query(ALARM_RATE, "{{route}}"),),
            width=6,
            height=5,
        ),
    ),
)

_COLUMNS = Row(
    "Which columns, and how",
    (
        Panel(
            "Alarms",
            "When a route's inputs differed from the reference.",
            "states",
            "short",
            (STATE,),
            width=24,
            height=5,
            names=NAMES,
        ),
        Panel(
            "Evidence over time",
            "Of windows that share no row, at most one a quarter of an hour, added up. Above the line drift is no chance: without it so many "
            "windows pass on average before the line is reached.",
            "lines",
            "short",
            (
                Query(f"{M}_drift_evidence{{{ROUTE}}}", "evidence {{route}}"),
                Query(f"{M}_drift_evidence_wanted{{{ROUTE}}}", "wanted {{route}}"),
            ),
            width=24,
            height=7,
            is_log=True,
        ),
        Panel(
            "Adjusted p-values",
            "By column, tested together by one permutation test. Below the alarm rate a column alarms.",
            "lines",
            "short",
            (Query(P_VALUE, "{{route}} {{column}}"), Query(ALARM_RATE, "alarm rate {{route}}")),
            width=12,
            height=9,
            is_log=True,
        ),
        Panel(
            "How far means have moved",
            "Mean of a numeric column in the current window over its mean in the reference: 1 is unchanged.",
            "lines",
            "short",
            (
                Query(
                    f"{_mean('current')} / ignoring (window) ({_mean('reference')} != 0)",
                    "{{route}} {{column}}",
                ),
            ),
            width=12,
            height=9,
        ),
        Panel(
            "Columns, the most changed first",
            "The lowest adjusted p-values now.",
            "bars",
            "short",
            (Query(f"bottomk(10, {P_VALUE})", "{{route}} {{column}}"),),
            width=12,
            most=1.0,
        ),
        Panel(
            "Means",
            "Of every numeric column, in both windows. evidently's report, with the distributions and example rows, is at the monitor's console.",
            "table",
            "short",
            (
                Query(_mean("reference"), "{{route}} {{column}} reference"),
                Query(_mean("current"), "{{route}} {{column}} current"),
            ),
            width=12,
        ),
    ),
)

_ROWS = Row(
    "What it rests on",
    (
        Panel(
            "Records in the window",
            "What the monitor read of each route.",
            "lines",
            "short",
            (Query(f"{M}_window_records{{{ROUTE}}}", "{{route}}"),),
            width=12,
            height=7,
        ),
        Panel(
            "Flags that wait",
            "Drift outliers are flagged for review too, while drift alarms.",
            "lines",
            "short",
            (Query(f"{M}_flags_open{{{ROUTE}}}", "{{route}}"),),
            width=12,
            height=7,
        ),
    ),
)

BOARD = Board(
    "graduate-drift",
    "Graduate: drift",
    "Have the inputs changed since the student was trained?",
    f"{M}_drift",
    f"{M}_pairs",
    (_NOW, _COLUMNS, _ROWS),
)
