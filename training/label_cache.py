"""Answers that were paid for, in SQLite under the hash of their request: asking again is free, and so is going on after a kill.

One row an answer, written before anything else happens with it. Knows no teacher and no prices.
"""

import hashlib
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from training.errors import DataError

_TABLE = """create table if not exists answers (
    request text primary key, text text, finish_reason text, model text, prompt_tokens integer,
    completion_tokens integer, latency_seconds real, is_estimated integer, at text default current_timestamp
)"""


class Reply(msgspec.Struct, frozen=True):
    """A teacher's answer. Tokens are counted by the teacher, or estimated where it counted none."""

    text: str
    finish_reason: str = ""
    model: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_seconds: float = 0.0
    is_estimated: bool = False
    is_cached: bool = False


def request_hash(url: str, body: Mapping[str, Any], sample: int = 0) -> str:
    """What identifies a request: where it goes, its body, and which of several samples it is."""
    text = msgspec.json.encode([url.rstrip("/"), body, sample], order="deterministic")
    return hashlib.sha256(text).hexdigest()


class Cache:
    """The file. Not for several threads; several processes may share it."""

    def __init__(self, path: Path) -> None:
        """Open or make the file.

        Raises:
            DataError: it is something else.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = sqlite3.connect(path, timeout=30)
            self._database.execute("pragma journal_mode=wal")
            # WAL with "normal" survives a killed process; only a power cut may lose the last answers.
            self._database.execute("pragma synchronous=normal")
            self._database.execute(_TABLE)
            self._database.commit()
        except sqlite3.Error as why:
            raise DataError(f"{path}: not a cache of answers: {why}") from why

    def find(self, request: str) -> Reply | None:
        """The answer to a request that was made before."""
        row = self._database.execute(
            "select text, finish_reason, model, prompt_tokens, completion_tokens, latency_seconds, is_estimated"
            " from answers where request = ?",
            (request,),
        ).fetchone()
        if row is None:
            return None
        text, finish_reason, model, prompt, completion, latency, is_estimated = row
        return Reply(
            text,
            finish_reason,
            model,
            prompt,
            completion,
            latency,
            bool(is_estimated),
            is_cached=True,
        )

    def put(self, request: str, reply: Reply) -> None:
        """Keep an answer."""
        values = (
            request, reply.text, reply.finish_reason, reply.model, reply.prompt_tokens, reply.completion_tokens,
            reply.latency_seconds, int(reply.is_estimated),
        )  # fmt: skip
        with self._database:
            self._database.execute(
                "insert or replace into answers (request, text, finish_reason, model, prompt_tokens, completion_tokens,"
                " latency_seconds, is_estimated) values (?, ?, ?, ?, ?, ?, ?, ?)",
                values,
            )

    def close(self) -> None:
        """Close the file."""
        self._database.close()
