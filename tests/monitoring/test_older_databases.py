"""Databases that an older Graduate made: opened, they get what is new, on SQLite and on PostgreSQL."""

import sqlite3
from pathlib import Path

import pytest

from monitoring import canary, rollout_events
from monitoring.rollout_events import Event
from monitoring.store import open_store
from router.policy import RouteRollout


def test_a_database_of_an_older_graduate_gets_the_new_columns(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "old.db")
    old.execute(
        "create table rollout_events (id integer primary key autoincrement, route varchar(200) not null, at float not null, "
        "action varchar(20) not null, share float not null, adapter varchar(200), evidence text not null)"
    )
    old.execute("create table schema_version (number integer primary key)")
    old.execute("insert into schema_version values (1)")
    row = "values ('mail', 1.0, 'begin', 0.1, 'mail/1', 'begun')"
    old.execute(f"insert into rollout_events (route, at, action, share, adapter, evidence) {row}")
    old.commit()
    old.close()
    for _ in range(2):
        store = open_store(f"sqlite:///{tmp_path / 'old.db'}")
        (event,) = store.rollout_events()
        assert (event.action, event.actor, event.gates) == ("begin", None, None)
        store.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:platformdirs")
def test_an_older_postgresql_gets_them_too_and_settles_moves(postgresql: str) -> None:
    from sqlalchemy import create_engine, text

    engine = create_engine(postgresql)
    with engine.begin() as connection:
        columns = "at float not null, action varchar(20) not null, share float not null, adapter varchar(200)"
        connection.execute(
            text(
                f"create table rollout_events (id serial primary key, route varchar(200) not null, {columns}, evidence text not null)"
            )
        )
        row = "values ('mail', 1.0, 'begin', 0.1, 'begun')"
        connection.execute(
            text(f"insert into rollout_events (route, at, action, share, evidence) {row}")
        )
    engine.dispose()
    store = open_store(postgresql)
    state = RouteRollout(share=0.5, step=1, version=1, since="t1")
    rollout_events.propose(store, Event("mail", 2.0, "advance", state, "why", actor="ada"))
    assert [e.action for e in store.rollout_events()] == ["begin"]
    assert len(rollout_events.settle(store, "mail", state, ["http://127.0.0.1:9/x"])) == 1
    assert [(e.action, e.actor) for e in store.rollout_events()] == [
        ("begin", None),
        ("advance", "ada"),
    ]
    assert canary.reviewed(store, "mail", "mail/1") == 0
    store.close()
