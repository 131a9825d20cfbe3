"""One pass of the monitor: read the log, measure, flag, move canaries, write. Holds no state of its own.

Everything it writes can be written twice: flags have ids of their record, a report replaces that of the same window, a
canary's move is decided from its own state and the records since.
"""

import datetime
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import yaml

from monitoring import disagreement, drift, flags, rollout
from monitoring.evidence import Gathering
from monitoring.review import ReviewQueue
from monitoring.route_window import RouteWindow
from monitoring.settings import MonitorSettings
from monitoring.store import Store
from monitoring.windows import Inputs, Row, class_of, rows
from router import policy_file
from router.answer_spec import AnswerSpec
from router.policy import Rollouts, Route, RouteRollout
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


@dataclass(frozen=True, slots=True)
class _Standing:
    """How a route stands before its records are read."""

    name: str
    route: Route
    state: RouteRollout | None
    adapter: AdapterRef | None
    reference: list[Row] | None
    """The adapter's training data; None without it."""
    window: RouteWindow


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
    loaded = policy_file.load(settings.policy, settings.home.rollouts)
    moved: dict[str, RouteRollout] = dict(loaded.rollouts.routes)
    standing = {
        name: _standing(settings, store, name, spec, moved.get(name), now)
        for name, spec in loaded.policy.routes.items()
        if spec.student is not None and route in (None, name)
    }
    since = now.timestamp() - settings.since_seconds
    for record in scan(
        settings.logs or [settings.home.traffic], routes=list(standing), since=since
    ):
        standing[record.route].window.add(record)
    reports = []
    for name, found in standing.items():
        tell(name)
        report, state = _route(settings, store, found, now, html=html, move=move)
        if state is not None:
            moved[name] = state
        store.put_report(name, report.window_end, now.timestamp(), plain(report))
        reports.append(report)
    if move and moved != dict(loaded.rollouts.routes):
        write_rollouts(settings.home.rollouts, Rollouts(version=1, routes=moved))
    return reports


def _standing(
    settings: MonitorSettings,
    store: Store,
    name: str,
    route: Route,
    state: RouteRollout | None,
    now: datetime.datetime,
) -> _Standing:
    adapter = _adapter(settings, route)
    reference = None if adapter is None else _reference(settings, route, adapter)
    known = {row.id for row in reference or ()}
    sampled = SAMPLED_RECORDS if reference is None else 0
    window = RouteWindow(
        inputs=Inputs(settings.drift_rows, sampled, known),
        pairs=disagreement.Tally(route.answer),
        flags=flags.Candidates(route.flags, store.flagged(name)),
        canary=Gathering(adapter.id if adapter else None),
        canary_since=_since(state, now).timestamp(),
    )
    return _Standing(name, route, state, adapter, reference, window)


def _since(state: RouteRollout | None, now: datetime.datetime) -> datetime.datetime:
    return datetime.datetime.fromisoformat(state.since) if state and state.since else now


def _route(
    settings: MonitorSettings,
    store: Store,
    standing: _Standing,
    now: datetime.datetime,
    *,
    html: bool,
    move: bool,
) -> tuple[RouteReport, RouteRollout | None]:
    name, window, spec = standing.name, standing.window, standing.route.answer
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
    moved, shown = _canary(store, standing, now, move=move)
    end = now.timestamp() if window.last_at is None else window.last_at
    report = RouteReport(
        route=name,
        mode=standing.route.mode,
        records=window.records,
        window_start=end if window.first_at is None else window.first_at,
        window_end=end,
        served_by=dict(window.served_by),
        disagreement=window.pairs.measure(),
        drift=drifted,
        reference=origin,
        flags_new=added,
        flags_open=len(ReviewQueue(store).list(name, "open", limit=100_000)),
        rollout=shown,
        costs_usd=window.costs_usd,
    )
    return report, moved


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


def _canary(
    store: Store, standing: _Standing, now: datetime.datetime, *, move: bool
) -> tuple[RouteRollout | None, dict[str, Any] | None]:
    """The canary's new state when it moves, and what the report says of it."""
    name, route, state, adapter = standing.name, standing.route, standing.state, standing.adapter
    if route.mode != "canary":
        return None, None
    stamp = now.isoformat(timespec="milliseconds")
    if state is None or (adapter is not None and state.version != adapter.version):
        begun = rollout.first_step(route.canary, adapter.version if adapter else None, stamp)
        if move:
            _event(store, name, now, "begin", begun, adapter)
        return begun, {"action": "begin", "state": begun.model_dump(mode="json"), "gates": []}
    labels = ReviewQueue(store).labels(route=name)
    step = rollout.next_step(
        route.canary, standing.window.canary.evidence(len(labels)), state,
        seconds_on_step=(now - _since(state, now)).total_seconds(), now=stamp,
        segments=tuple(route.segments),
    )  # fmt: skip
    shown = {
        "action": step.action,
        "reason": step.reason,
        "state": step.state.model_dump(mode="json"),
        "gates": [asdict(g) for g in step.gates],
    }
    if step.state == state:
        return None, shown
    if move:
        _event(store, name, now, step.action, step.state, adapter)
    return step.state, shown


def _adapter(settings: MonitorSettings, route: Route) -> AdapterRef | None:
    assert route.student is not None
    try:
        return Registry(settings.home.adapters).resolve(
            f"{route.student.adapter}/{route.student.version}"
        )
    except RegistryError:
        return None


def _event(
    store: Store,
    name: str,
    now: datetime.datetime,
    action: str,
    state: RouteRollout,
    adapter: AdapterRef | None,
) -> None:
    store.add_rollout_event(
        route=name, at=now.timestamp(), action=action, share=state.share,
        adapter=adapter.id if adapter else None, evidence=state.evidence or "",
    )  # fmt: skip


def write_rollouts(path: Path, rollouts: Rollouts) -> None:
    """Write the overlay in one rename, so that no router reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (
        "# Written by the monitor: how far each canary has come. People edit policy.yaml instead.\n"
    )
    text += yaml.safe_dump(rollouts.model_dump(mode="json", exclude_none=True), sort_keys=False)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=".rollouts-", delete=False
    ) as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    Path(out.name).chmod(0o644)
    Path(out.name).replace(path)


def plain(report: RouteReport) -> dict[str, Any]:
    """A report as JSON values."""
    return json.loads(json.dumps(asdict(report)))  # type: ignore[no-any-return]
