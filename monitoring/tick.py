"""One pass of the monitor: read the log, measure, flag, move canaries, write. Holds no state of its own.

Everything it writes can be written twice: flags have ids of their record, a report replaces that of the same window, a
canary's move is decided from its own state and the records since.
"""

import datetime
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq

from monitoring import canary, disagreement, drift, flags, rollout
from monitoring.balance import Balance, balances
from monitoring.evidence import Gathering
from monitoring.lasting import Lasting, count_window
from monitoring.review import ReviewQueue
from monitoring.route_window import RouteWindow
from monitoring.savings import Ledger
from monitoring.settings import MonitorSettings
from monitoring.store import Store
from monitoring.verdicts import Compared, Verdicts, compare_left, known_verdicts
from monitoring.windows import Inputs, Row, class_of, rows
from router import policy_file
from router.answer_spec import AnswerSpec
from router.policy import Route
from router.policy_file import LoadedPolicy
from router.prompt import last_user_text
from router.traffic import scan
from serving.registry import AdapterRef, Registry, RegistryError

SAMPLED_RECORDS = 4_000
"""Of all records of a route without training data; some half of them become drift's reference."""


@dataclass(frozen=True, slots=True)
class RouteReport:
    """What a tick found on one route."""

    route: str
    mode: str
    records: int
    window_start: float
    window_end: float
    served_by: dict[str, int]
    disagreement: list[disagreement.Disagreement]
    drift: drift.DriftReport
    reference: str
    """Where drift's reference comes from."""
    flags_new: int
    flags_open: int
    rollout: dict[str, Any] | None
    costs_usd: dict[str, float]
    compared: Compared | None = None
    """Pairs that the router left to the monitor; None where it compares them itself."""
    balance: Balance | None = None
    """Money; None when one route alone was looked at, because routes share a node."""
    lasting: Lasting | None = None
    """Drift over time."""
    waiting: dict[str, int] | None = None
    """Open flags by kind."""
    reviews: dict[str, int] | None = None
    """Decisions that stand, by verdict."""


@dataclass(frozen=True, slots=True)
class _Standing:
    """How a route stands before its records are read."""

    canary: canary.Standing
    adapter: AdapterRef | None
    reference: list[Row] | None
    """The adapter's training data; None without it."""
    window: RouteWindow
    verdicts: Verdicts
    compared: Compared | None

    @property
    def is_running(self) -> bool:
        """Whether a canary's evidence is gathered."""
        state = self.canary.state
        runs = state is not None and state.state in rollout.RUNNING
        return self.canary.route.mode == "canary" and runs and not canary.begins(self.canary)


def run_tick(
    settings: MonitorSettings,
    store: Store,
    *,
    now: datetime.datetime,
    route: str | None = None,
    html: bool = True,
    move: bool = True,
    tell: Callable[[str], None] = lambda message: None,
) -> list[RouteReport]:
    """Look at every route that has a student (or at one) and write down what was found.

    Records are read once and pass by: memory grows with flags, pairs' kinds and latencies, not with the log.

    Args:
        move: False says what the canaries would do and leaves them where they are.

    Raises:
        PolicyError: the policy does not hold.
        RouterError: a log cannot be read.
    """
    if move:
        canary.settle(store, settings.home.rollouts, settings.policy)
    loaded = policy_file.load(settings.policy, settings.home.rollouts)
    standing = {
        name: _standing(settings, store, name, loaded, now)
        for name, spec in loaded.policy.routes.items()
        if spec.student is not None and route in (None, name)
    }
    # A canary may be on its step for longer than the report looks back: its evidence begins with the step.
    since = min((s.window.since for s in standing.values()), default=now.timestamp())
    since = min([since, *(s.window.canary_since for s in standing.values() if s.is_running)])
    ledger = Ledger(loaded.policy) if route is None else None
    for record in scan(_logs(settings), routes=list(standing), since=since):
        found = standing[record.route]
        found.window.add(found.verdicts.over(record))
        if ledger is not None and record.at >= found.window.since:
            ledger.add(record)
    money = balances(ledger.close(now.timestamp()), now.timestamp()) if ledger else {}
    reports = []
    for name, found in standing.items():
        tell(name)
        report = _route(settings, store, found, now, html=html, move=move)
        report = replace(report, balance=money.get(name))
        store.put_report(name, report.window_end, now.timestamp(), plain(report))
        reports.append(report)
    return reports


def _standing(
    settings: MonitorSettings,
    store: Store,
    name: str,
    loaded: LoadedPolicy,
    now: datetime.datetime,
) -> _Standing:
    route, state = loaded.policy.routes[name], loaded.rollouts.routes.get(name)
    adapter = _adapter(settings, route)
    reference = None if adapter is None else _reference(settings, route, adapter)
    known = {row.id for row in reference or ()}
    sampled = SAMPLED_RECORDS if reference is None else 0
    begin = now.timestamp() - settings.since_seconds
    canary_since = canary.evidence_since(state, now).timestamp()
    said, compared = _compared(settings, store, name, loaded, min(begin, canary_since), now)
    window = RouteWindow(
        inputs=Inputs(settings.drift_rows, sampled, known),
        pairs=disagreement.Tally(route.answer, None if compared is None else said.noise),
        flags=flags.Candidates(route.flags, store.flagged(name)),
        canary=Gathering(adapter.id if adapter else None),
        canary_since=canary_since,
        since=begin,
    )
    found = canary.Standing(
        name, route, state, adapter.id if adapter else None, adapter.version if adapter else None,
        loaded.digest,
    )  # fmt: skip
    return _Standing(found, adapter, reference, window, said, compared)


def _compared(
    settings: MonitorSettings,
    store: Store,
    name: str,
    loaded: LoadedPolicy,
    since: float,
    now: datetime.datetime,
) -> tuple[Verdicts, Compared | None]:
    """Verdicts on pairs that the router left to the monitor, some new ones among them; None where it leaves none."""
    route = loaded.policy.routes[name]
    if not route.answer.compare.is_deferred:
        return Verdicts({}), None
    records = scan(_logs(settings), routes=[name], since=since)
    compared = compare_left(
        settings, store, loaded.policy, name, records, since=since, now=now.timestamp()
    )
    return known_verdicts(store, name, route, since), compared


def _logs(settings: MonitorSettings) -> list[Any]:
    return list(settings.logs) or [settings.home.traffic]


def _route(
    settings: MonitorSettings,
    store: Store,
    standing: _Standing,
    now: datetime.datetime,
    *,
    html: bool,
    move: bool,
) -> RouteReport:
    name, window, spec = standing.canary.name, standing.window, standing.canary.route.answer
    reference, origin = standing.reference, "older half of the traffic"
    if reference is None:
        reference = rows(window.inputs.older_half(), spec)
    elif standing.adapter is not None:
        origin = f"training data of {standing.adapter.id}"
    newest = window.inputs.current()
    current = rows(newest, spec)
    path = settings.home.reports / f"drift-{name}.html" if html else None
    drifted = drift.measure(
        reference, current, html_path=path, alarm_rate=settings.alarm_rate, seed=len(current)
    )
    for record in newest if drifted.drifted else ():
        window.flags.add(record, drifted.outliers)
    found = window.flags.flags()
    added = store.add_flags([{**asdict(f), "at": now.timestamp(), "status": "open"} for f in found])
    shown = canary.look(
        store, settings.home.rollouts, standing.canary, window.canary, now,
        policy=settings.policy, move=move,
    )  # fmt: skip
    end = now.timestamp() if window.last_at is None else window.last_at
    queue = ReviewQueue(store)
    return RouteReport(
        route=name,
        mode=standing.canary.route.mode,
        records=window.records,
        window_start=end if window.first_at is None else window.first_at,
        window_end=end,
        served_by=dict(window.served_by),
        disagreement=window.pairs.measure(),
        drift=drifted,
        reference=origin,
        flags_new=added,
        flags_open=queue.count(name),
        rollout=shown,
        costs_usd=window.costs_usd,
        compared=standing.compared,
        lasting=count_window(store, name, origin, current, drifted),
        waiting=queue.waiting_by_kind(name),
        reviews=queue.standing_by_verdict(name),
    )


def _reference(settings: MonitorSettings, route: Route, adapter: AdapterRef) -> list[Row] | None:
    """The adapter's training data; None when it is not here."""
    try:
        folder = Registry(settings.home.adapters).open_local(adapter)
        lineage = json.loads((folder / "lineage.json").read_text())
        return training_rows(Path(lineage["dataset"]), route.answer)
    except (RegistryError, OSError, ValueError, KeyError):
        return None


def training_rows(dataset: Path, spec: AnswerSpec) -> list[Row]:
    """Inputs of a dataset's training and validation rows.

    Raises:
        OSError: there is no such dataset.
    """
    table = pq.read_table(
        dataset / "examples.parquet", columns=["id", "messages", "completion", "split"]
    )
    return [
        Row(
            row["id"],
            last_user_text(msgspec.json.decode(row["messages"])),
            class_of(spec, row["completion"]),
        )
        for row in table.to_pylist()
        if row["split"] in ("train", "validation")
    ]


def _adapter(settings: MonitorSettings, route: Route) -> AdapterRef | None:
    assert route.student is not None
    try:
        return Registry(settings.home.adapters).resolve(
            f"{route.student.adapter}/{route.student.version}"
        )
    except RegistryError:
        return None


def plain(report: RouteReport) -> dict[str, Any]:
    """A report as JSON values."""
    return json.loads(json.dumps(asdict(report)))  # type: ignore[no-any-return]
