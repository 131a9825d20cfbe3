"""One pass of the monitor: read the log, measure, flag, move canaries, write. Holds no state of its own.

Everything it writes can be written twice: flags have ids of their record, a report replaces that of the same window, a
canary's move is decided from its own state and the records since.
"""

import datetime
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import yaml

from monitoring import disagreement, drift, flags, rollout
from monitoring.evidence import gather
from monitoring.review import ReviewQueue
from monitoring.settings import MonitorSettings
from monitoring.store import Store
from monitoring.windows import Row, class_of, pairs, rows
from router import policy_file
from router.answer_spec import AnswerSpec
from router.policy import Rollouts, Route, RouteRollout
from router.prompt import last_user_text
from router.records import Record
from router.traffic import scan
from serving.registry import AdapterRef, Registry, RegistryError


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


def run_tick(
    settings: MonitorSettings,
    store: Store,
    *,
    now: datetime.datetime,
    route: str | None = None,
    html: bool = True,
    tell: Callable[[str], None] = lambda message: None,
) -> list[RouteReport]:
    """Look at every route that has a student (or at one) and write down what was found.

    Raises:
        PolicyError: the policy does not hold.
    """
    loaded = policy_file.load(settings.policy, settings.home.rollouts)
    names = [
        name
        for name, spec in loaded.policy.routes.items()
        if spec.student is not None and route in (None, name)
    ]
    since = now.timestamp() - settings.since_seconds
    by_route: dict[str, list[Record]] = {name: [] for name in names}
    if settings.home.traffic.exists():
        for record in scan(settings.home.traffic, routes=names, since=since):
            by_route[record.route].append(record)
    reports = []
    moved: dict[str, RouteRollout] = dict(loaded.rollouts.routes)
    for name in names:
        tell(name)
        report, state = _route(
            settings,
            store,
            name,
            loaded.policy.routes[name],
            by_route[name],
            moved.get(name),
            now,
            html,
        )
        if state is not None:
            moved[name] = state
        store.put_report(name, report.window_end, now.timestamp(), plain(report))
        reports.append(report)
    if moved != dict(loaded.rollouts.routes):
        write_rollouts(settings.home.rollouts, Rollouts(version=1, routes=moved))
    return reports


def _route(
    settings: MonitorSettings,
    store: Store,
    name: str,
    route: Route,
    records: list[Record],
    state: RouteRollout | None,
    now: datetime.datetime,
    html: bool,
) -> tuple[RouteReport, RouteRollout | None]:
    newest = max((r.at for r in records), default=now.timestamp())
    reference, origin, known = _reference(settings, route, records)
    current = [row for row in rows(records, route.answer) if row.id not in known]
    current = current[-settings.drift_rows :]
    path = settings.home.reports / f"drift-{name}.html" if html else None
    drifted = drift.measure(
        reference, current, html_path=path, alarm_rate=settings.alarm_rate, seed=len(current)
    )
    outliers = drifted.outliers if drifted.drifted else ()
    found = flags.find(records, route.flags, outliers, store.flagged(name))
    added = store.add_flags([{**asdict(f), "at": now.timestamp(), "status": "open"} for f in found])
    moved, shown = _canary(settings, store, name, route, records, state, now)
    served: dict[str, int] = {}
    costs = {"teacher": 0.0, "student": 0.0}
    for record in records:
        served[record.served_by] = served.get(record.served_by, 0) + 1
        for answer in record.answers:
            costs[answer.role] += answer.cost_usd
    open_flags = len(ReviewQueue(store).list(name, "open", limit=100_000))
    report = RouteReport(
        route=name,
        mode=route.mode,
        records=len(records),
        window_start=min((r.at for r in records), default=newest),
        window_end=newest,
        served_by=served,
        disagreement=disagreement.measure(pairs(records), route.answer, records),
        drift=drifted,
        reference=origin,
        flags_new=added,
        flags_open=open_flags,
        rollout=shown,
        costs_usd=costs,
    )
    return report, moved


def _reference(
    settings: MonitorSettings, route: Route, records: Sequence[Record]
) -> tuple[list[Row], str, set[str]]:
    """The adapter's training data; without it the older half of the traffic. Also the ids that it covers."""
    assert route.student is not None
    registry = Registry(settings.home.adapters)
    try:
        ref = registry.resolve(f"{route.student.adapter}/{route.student.version}")
        lineage = json.loads((registry.open_local(ref) / "lineage.json").read_text())
        found = training_rows(Path(lineage["dataset"]), route.answer)
    except (RegistryError, OSError, ValueError, KeyError):
        older = rows(records, route.answer)
        older = older[: len(older) // 2]
        return older, "older half of the traffic", {row.id for row in older}
    return found, f"training data of {ref.id}", {row.id for row in found}


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
    settings: MonitorSettings,
    store: Store,
    name: str,
    route: Route,
    records: Sequence[Record],
    state: RouteRollout | None,
    now: datetime.datetime,
) -> tuple[RouteRollout | None, dict[str, Any] | None]:
    """The canary's new state when it moves, and what the report says of it."""
    if route.mode != "canary":
        return None, None
    stamp = now.isoformat(timespec="milliseconds")
    adapter = _adapter(settings, route)
    if state is None or (adapter is not None and state.version != adapter.version):
        begun = rollout.first_step(route.canary, adapter.version if adapter else None, stamp)
        _event(store, name, now, "begin", begun, adapter)
        return begun, {"action": "begin", "state": begun.model_dump(mode="json"), "gates": []}
    since = datetime.datetime.fromisoformat(state.since) if state.since else now
    recent = [r for r in records if r.at >= since.timestamp() and r.mode == "canary"]
    labels = ReviewQueue(store).labels(route=name)
    evidence = gather(recent, adapter.id if adapter else None, len(labels))
    step = rollout.next_step(
        route.canary, evidence, state,
        seconds_on_step=(now - since).total_seconds(), now=stamp, segments=tuple(route.segments),
    )  # fmt: skip
    shown = {
        "action": step.action,
        "reason": step.reason,
        "state": step.state.model_dump(mode="json"),
        "gates": [asdict(g) for g in step.gates],
    }
    if step.state == state:
        return None, shown
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
