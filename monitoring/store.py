"""The monitor's tables: flags, reviews, reports, rollout events. SQLite by default, PostgreSQL by URL (SQLAlchemy 2).

Decides the stored form. What a flag means is in `flags`, what a review does in `review`. Times are UTC epoch seconds.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Connection,
    Engine,
    Float,
    Integer,
    String,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    func,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from monitoring.errors import StoreError

SCHEMA = 1


class Base(DeclarativeBase):
    """Root of the tables."""


class SchemaRow(Base):
    """The schema's number; one row."""

    __tablename__ = "schema_version"
    number: Mapped[int] = mapped_column(Integer, primary_key=True)


class FlagRow(Base):
    """A record that needs review. `id` is made of record and kind, so a tick that runs twice adds nothing."""

    __tablename__ = "flags"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    record_id: Mapped[str] = mapped_column(String(200), index=True)
    route: Mapped[str] = mapped_column(String(200), index=True)
    kind: Mapped[str] = mapped_column(String(40))
    reason: Mapped[str] = mapped_column(Text)
    score: Mapped[float] = mapped_column(Float)
    status: Mapped[str] = mapped_column(String(20), index=True, default="open")
    claimed_by: Mapped[str | None] = mapped_column(String(200), default=None)
    at: Mapped[float] = mapped_column(Float, index=True)
    record_at: Mapped[float] = mapped_column(Float)
    adapter: Mapped[str | None] = mapped_column(String(200), default=None)
    input_text: Mapped[str] = mapped_column(Text)
    teacher_text: Mapped[str | None] = mapped_column(Text, default=None)
    student_text: Mapped[str | None] = mapped_column(Text, default=None)


class ReviewRow(Base):
    """One verdict on a flag. Undone ones stay, marked: who said what is never lost."""

    __tablename__ = "reviews"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    flag_id: Mapped[str] = mapped_column(String(64), index=True)
    record_id: Mapped[str] = mapped_column(String(200), index=True)
    route: Mapped[str] = mapped_column(String(200), index=True)
    verdict: Mapped[str] = mapped_column(String(20))
    answer: Mapped[str | None] = mapped_column(Text, default=None)
    by: Mapped[str] = mapped_column("reviewer", String(200))
    note: Mapped[str | None] = mapped_column(Text, default=None)
    at: Mapped[float] = mapped_column(Float)
    undone_at: Mapped[float | None] = mapped_column(Float, default=None)


class SecondReviewRow(Base):
    """A second person's verdict on a decided flag; it is no label."""

    __tablename__ = "second_reviews"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    flag_id: Mapped[str] = mapped_column(String(64), index=True)
    route: Mapped[str] = mapped_column(String(200), index=True)
    verdict: Mapped[str] = mapped_column(String(20))
    answer: Mapped[str | None] = mapped_column(Text, default=None)
    by: Mapped[str] = mapped_column("reviewer", String(200))
    note: Mapped[str | None] = mapped_column(Text, default=None)
    at: Mapped[float] = mapped_column(Float)
    undone_at: Mapped[float | None] = mapped_column(Float, default=None)


class ReportRow(Base):
    """What one tick found on one route."""

    __tablename__ = "reports"
    __table_args__ = (UniqueConstraint("route", "window_end"),)
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    route: Mapped[str] = mapped_column(String(200), index=True)
    window_end: Mapped[float] = mapped_column(Float)
    at: Mapped[float] = mapped_column(Float)
    body: Mapped[dict[str, Any]] = mapped_column(JSON)


class RolloutEventRow(Base):
    """One move of a canary: what it went to, on what evidence, under which policy, by whom.

    `pending` until the overlay holds the move: one that never came there is taken away again. What rows of older
    versions did not keep is None.
    """

    __tablename__ = "rollout_events"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    route: Mapped[str] = mapped_column(String(200), index=True)
    at: Mapped[float] = mapped_column(Float)
    action: Mapped[str] = mapped_column(String(20))
    share: Mapped[float] = mapped_column(Float)
    adapter: Mapped[str | None] = mapped_column(String(200), default=None)
    evidence: Mapped[str] = mapped_column(Text)
    key: Mapped[str | None] = mapped_column(String(64), default=None)
    state: Mapped[str | None] = mapped_column(String(20), default=None)
    step: Mapped[int | None] = mapped_column(Integer, default=None)
    since: Mapped[str | None] = mapped_column(String(40), default=None)
    rows: Mapped[int | None] = mapped_column("requests", Integer, default=None)
    alpha: Mapped[float | None] = mapped_column(Float, default=None)
    gates: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON, default=None)
    policy_digest: Mapped[str | None] = mapped_column(String(64), default=None)
    actor: Mapped[str | None] = mapped_column(String(200), default=None)
    note: Mapped[str | None] = mapped_column(Text, default=None)
    pending: Mapped[bool | None] = mapped_column(Boolean, default=None)


class NoticeRow(Base):
    """An event that somebody is to be told of; tried again until it is taken, or given up."""

    __tablename__ = "rollout_notices"
    __table_args__ = (UniqueConstraint("event_key", "url"),)
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    event_key: Mapped[str] = mapped_column(String(64))
    route: Mapped[str] = mapped_column(String(200))
    url: Mapped[str] = mapped_column(String(2000))
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    next_try_at: Mapped[float | None] = mapped_column(Float, index=True)
    sent_at: Mapped[float | None] = mapped_column(Float, default=None)
    error: Mapped[str | None] = mapped_column(Text, default=None)


class VerdictRow(Base):
    """What the monitor said of a pair that the router left to it; once for each pair and comparator."""

    __tablename__ = "verdicts"
    route: Mapped[str] = mapped_column(String(200), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    pair_id: Mapped[str] = mapped_column(String(220), primary_key=True)
    agree: Mapped[bool | None] = mapped_column(Boolean, default=None)
    score: Mapped[float | None] = mapped_column(Float, default=None)
    at: Mapped[float] = mapped_column(Float, index=True)


class DriftWindowRow(Base):
    """A window of inputs that counted for drift over time, and the evidence after it."""

    __tablename__ = "drift_windows"
    route: Mapped[str] = mapped_column(String(200), primary_key=True)
    subject: Mapped[str] = mapped_column(String(200), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    end_at: Mapped[float] = mapped_column(Float)
    num_rows: Mapped[int] = mapped_column(Integer)
    p_value: Mapped[float] = mapped_column(Float)
    evidence: Mapped[float] = mapped_column(Float)


class Store:
    """An open database. Sessions are short; every method is one transaction."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def session(self) -> Session:
        """A session; use it in a `with`, commit by hand."""
        return Session(self.engine, expire_on_commit=False)

    def add_flags(self, rows: Sequence[dict[str, Any]]) -> int:
        """Insert flags that are not there yet, also when another tick adds them just now; how many were new."""
        # In one order, or two ticks could wait for each other.
        return self._add_new(FlagRow, sorted(rows, key=lambda row: str(row["id"])))

    def add_verdicts(self, rows: Sequence[dict[str, Any]]) -> int:
        """Insert verdicts on pairs that have none yet; how many were new."""
        return self._add_new(VerdictRow, sorted(rows, key=lambda row: str(row["pair_id"])))

    def add_drift_window(self, row: dict[str, Any]) -> int:
        """Insert a window that counts, unless another tick has counted it just now."""
        return self._add_new(DriftWindowRow, [row])

    def _add_new(self, kind: type[Base], rows: Sequence[dict[str, Any]]) -> int:
        if not rows:
            return 0
        make = postgresql.insert if self.engine.dialect.name == "postgresql" else sqlite.insert
        # The rows that come back are counted, because psycopg gives no row count here. The table and not the class: the
        # mapper would cost most of the time of thousands of rows.
        table = Base.metadata.tables[kind.__tablename__]
        statement = make(table).on_conflict_do_nothing().returning(*table.primary_key.columns)
        with self.engine.begin() as connection:
            return len(connection.execute(statement, rows).all())

    def put_report(self, route: str, window_end: float, at: float, body: dict[str, Any]) -> None:
        """Store a tick's report; the same window again replaces it."""
        with self.session() as session:
            found = session.scalar(
                select(ReportRow).where(
                    ReportRow.route == route, ReportRow.window_end == window_end
                )
            )
            if found is None:
                session.add(ReportRow(route=route, window_end=window_end, at=at, body=body))
            else:
                found.at, found.body = at, body
            session.commit()

    def latest_report(self, route: str) -> dict[str, Any] | None:
        """The newest report of a route."""
        with self.session() as session:
            found = session.scalar(
                select(ReportRow)
                .where(ReportRow.route == route)
                .order_by(ReportRow.at.desc(), ReportRow.id.desc())
                .limit(1)
            )
            return found.body if found else None

    def latest_report_at(self, route: str) -> float | None:
        """When a tick looked at a route last."""
        with self.session() as session:
            return session.scalar(select(func.max(ReportRow.at)).where(ReportRow.route == route))

    def add_rollout_event(self, **values: Any) -> None:
        """Note a move of a canary."""
        with self.session() as session:
            session.add(RolloutEventRow(**values))
            session.commit()

    def flagged(self, route: str) -> dict[str, float]:
        """Records of a route that have a flag, with the record's time."""
        query = select(FlagRow.record_id, FlagRow.record_at).where(FlagRow.route == route)
        with self.session() as session:
            return {record_id: at for record_id, at in session.execute(query)}

    def rollout_events(self, route: str | None = None) -> list[RolloutEventRow]:
        """Moves that were carried out, oldest first."""
        is_done = RolloutEventRow.pending.is_not(True)
        query = select(RolloutEventRow).where(is_done)
        query = query.order_by(RolloutEventRow.at, RolloutEventRow.id)
        if route is not None:
            query = query.where(RolloutEventRow.route == route)
        with self.session() as session:
            return list(session.scalars(query))

    def close(self) -> None:
        """Close connections."""
        self.engine.dispose()


def open_store(url: str) -> Store:
    """Open a database by URL, tables made when they are not there.

    Raises:
        StoreError: it cannot be opened, or was written by a newer Graduate.
    """
    shown = url.rpartition("@")[2]  # a password is not for messages
    try:
        engine = create_engine(url)
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _sqlite_pragmas)
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                # Two processes that start together must not both create tables.
                connection.execute(text("select pg_advisory_xact_lock(4711)"))
            Base.metadata.create_all(connection)
            _add_columns(connection)
            found = connection.execute(select(SchemaRow.number)).scalar()
            if found is None:
                connection.execute(insert(SchemaRow).values(number=SCHEMA))
            elif found > SCHEMA:
                raise StoreError(f"{shown}: schema {found} is newer than {SCHEMA}; update graduate")
    except (SQLAlchemyError, ImportError) as why:
        reason = str(getattr(why, "orig", None) or why).strip().splitlines()[0]
        raise StoreError(f"database {shown} cannot be opened: {reason}") from why
    return Store(engine)


def _add_columns(connection: Connection) -> None:
    """Tables of an older Graduate get the columns that came later. All of those may be NULL, so older programs still write."""
    seen = inspect(connection)
    quote = connection.dialect.identifier_preparer.quote
    for table in Base.metadata.sorted_tables:
        there = {column["name"] for column in seen.get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                kind = column.type.compile(connection.dialect)
                names = f"{quote(table.name)} add column {quote(column.name)}"
                connection.execute(text(f"alter table {names} {kind}"))


def _sqlite_pragmas(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    # Readers go on while the tick writes, and two writers wait for each other instead of failing.
    cursor.execute("pragma journal_mode=wal")
    cursor.execute("pragma busy_timeout=10000")
    cursor.close()
