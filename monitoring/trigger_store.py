"""Where triggers are kept, and where their evidence comes from: stored reports, labels, the registry, the teacher's API."""

import datetime
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import httpx
from sqlalchemy import JSON, Float, String, Table, Text, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Mapped, mapped_column

from monitoring.review import ReviewQueue
from monitoring.settings import MonitorSettings
from monitoring.store import Base, Store
from monitoring.triggers import RouteEvidence, Trigger
from router.policy import Backend, Policy, Route
from router.policy_file import LoadedPolicy
from serving.registry import AdapterRef, Registry, RegistryError


class TriggerRow(Base):
    """A trigger, told once. `id` is made of route, kind and subject, so evidence that stays adds nothing."""

    __tablename__ = "triggers"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    route: Mapped[str] = mapped_column(String(200), index=True)
    kind: Mapped[str] = mapped_column(String(20))
    subject: Mapped[str] = mapped_column(String(400))
    reason: Mapped[str] = mapped_column(Text)
    evidence: Mapped[dict[str, Any]] = mapped_column(JSON)
    at: Mapped[float] = mapped_column(Float, index=True)


def _make_table(store: Store) -> None:
    """The table, also in a database that was opened before this module was imported."""
    table = TriggerRow.__table__
    assert isinstance(table, Table)
    with store.engine.begin() as connection:
        if store.engine.dialect.name == "postgresql":
            # The store's own lock: two processes that start together must not both create the table.
            connection.execute(text("select pg_advisory_xact_lock(4711)"))
        table.create(connection, checkfirst=True)


def remember(store: Store, found: Sequence[Trigger], at: float) -> list[Trigger]:
    """Store the triggers; those that were not there yet, also when another process stores them just now."""
    _make_table(store)
    make = postgresql.insert if store.engine.dialect.name == "postgresql" else sqlite.insert
    statement = make(TriggerRow).on_conflict_do_nothing().returning(TriggerRow.id)
    with store.engine.begin() as connection:
        return [
            t
            for t in sorted(found, key=lambda t: t.id)
            if connection.execute(statement.values(**asdict(t), at=at)).all()
        ]


def triggers(store: Store, route: str | None = None) -> list[TriggerRow]:
    """All that were ever due, oldest first."""
    _make_table(store)
    query = select(TriggerRow).order_by(TriggerRow.at, TriggerRow.id)
    if route is not None:
        query = query.where(TriggerRow.route == route)
    with store.session() as session:
        return list(session.scalars(query))


def evidence(
    settings: MonitorSettings,
    store: Store,
    loaded: LoadedPolicy,
    name: str,
    shutdowns: Mapping[tuple[str, str], datetime.datetime],
) -> RouteEvidence:
    """What is known of one route, from the last tick's report and the store.

    Args:
        shutdowns: by backend and model, from `announced`.
    """
    route = loaded.policy.routes[name]
    rollout = loaded.rollouts.routes.get(name)
    ref = _adapter(settings, route, rollout.version if rollout else None)
    report = store.latest_report(name) or {}
    rates = report.get("disagreement") or []
    # Without a registry to say which version is meant, the one with most pairs is.
    mine = next((d for d in rates if ref is None or d["adapter"] == ref.id), None)
    rate = mine["rate"] if mine is not None and mine["rate"]["rows"] else None
    gate = route.canary.gates.disagreement
    model = teacher_model(route)
    made_at = _made_at(settings, ref)
    labels = ReviewQueue(store).labels(route=name)
    return RouteEvidence(
        route=name,
        adapter=ref.id if ref else (mine["adapter"] if mine else None),
        drifted=_drifted(report),
        disagreement=rate["share"] if rate else None,
        disagreement_low=rate["low"] if rate else None,
        pairs=rate["rows"] if rate else 0,
        gate=gate.max if gate else None,
        labels=sum(label.answer is not None and label.at > made_at for label in labels),
        teacher=model,
        shutdown=shutdowns.get((route.teacher.backend, model)) if model else None,
    )


def _drifted(report: Mapping[str, Any]) -> dict[str, float]:
    """Columns that alarm now, where drift has lasted: one window alone alarms falsely in one of fifty."""
    drift, lasting = report.get("drift") or {}, report.get("lasting")
    if not drift.get("drifted") or (lasting is not None and not lasting["is_drift"]):
        return {}
    return {c["name"]: c["adjusted"] for c in drift["columns"] if c["drifted"]}


def teacher_model(route: Route) -> str | None:
    """The teacher's model, the caller's where it is passed through."""
    return route.teacher.model or route.match.model


def _adapter(settings: MonitorSettings, route: Route, pinned: int | None) -> AdapterRef | None:
    if route.student is None:
        return None
    version = pinned if pinned is not None else route.student.version
    try:
        return Registry(settings.home.adapters).resolve(f"{route.student.adapter}/{version}")
    except RegistryError:
        return None


def _made_at(settings: MonitorSettings, ref: AdapterRef | None) -> float:
    """When the adapter was published; the beginning of time without one."""
    if ref is None:
        return 0.0
    registry = Registry(settings.home.adapters)
    try:
        manifest = json.loads((registry.open_local(ref) / "manifest.json").read_text())
        return datetime.datetime.fromisoformat(manifest["created_at"]).timestamp()
    except (RegistryError, OSError, ValueError, KeyError):
        return 0.0


def announced(
    policy: Policy, names: Sequence[str], timeout_seconds: float = 10.0
) -> tuple[dict[tuple[str, str], datetime.datetime], list[str]]:
    """Shutdown dates that the teachers' `GET /v1/models` announces, by backend and model; and what could not be asked."""
    found: dict[tuple[str, str], datetime.datetime] = {}
    failures = []
    backends = sorted({policy.routes[name].teacher.backend for name in names})
    for backend in backends:
        try:
            for model, date in _models(policy.backends[backend], timeout_seconds).items():
                found[backend, model] = date
        except (httpx.HTTPError, ValueError) as why:
            failures.append(f"backend {backend}: its models cannot be asked for: {why}")
    return found, failures


def _models(backend: Backend, timeout_seconds: float) -> dict[str, datetime.datetime]:
    key = os.environ.get(backend.api_key_env, "") if backend.api_key_env else ""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    url = f"{backend.base_url.rstrip('/')}/models"
    reply = httpx.get(url, headers=headers, timeout=timeout_seconds)
    reply.raise_for_status()
    body = reply.json()
    models = body.get("data") if isinstance(body, dict) else None
    if not isinstance(models, list):
        raise ValueError(f"{url}: not a list of models")
    found = {}
    for model in models:
        date = date_of(model.get("shutdown_date")) if isinstance(model, dict) else None
        if date is not None:
            found[str(model.get("id"))] = date
    return found


def date_of(value: Any) -> datetime.datetime | None:
    """A date as APIs write it: ISO 8601, or epoch seconds; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        if isinstance(value, int | float):
            return datetime.datetime.fromtimestamp(value, datetime.UTC)
        date = datetime.datetime.fromisoformat(value) if isinstance(value, str) else None
    except (ValueError, OverflowError, OSError):
        return None
    return date.replace(tzinfo=date.tzinfo or datetime.UTC) if date else None
