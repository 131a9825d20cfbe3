"""API keys of the router's own: who calls, and what that caller may do.

The file holds hashes only. A key is 256 random bits, so one SHA-256 is as good as a slow password hash: there is
nothing to guess. Written by `graduate router keys`, read again within two seconds of a change. Knows no HTTP but the
names of the headers that carry a key.
"""

import datetime
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AwareDatetime, Field, field_validator, model_validator

from router.answer_spec import Strict, at_key
from router.errors import Forbidden, PolicyError, Problem, SettingsError, Unauthorized
from router.policy_file import LoadedPolicy, parse

PREFIX = "grad-"
"""What every key begins with, so that a leaked one is recognised by secret scanners."""
SHOWN_CHARS = len(PREFIX) + 6
"""Characters of a key that are kept in the clear to tell keys apart."""
MAX_KEYS = 2000
KEY_HEADERS = (b"authorization", b"x-api-key", b"api-key")
"""Headers that carry a key: OpenAI's, Anthropic's, Azure's. None of ours reaches a backend in them."""


class KeyEntry(Strict):
    """One key of the file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")
    """The caller's name: in records, `match.caller` and metrics."""
    hash: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    """Of the whole key."""
    shown: str = ""
    """The key's first characters, to tell keys apart."""
    routes: tuple[str, ...] = ()
    """Routes that the caller may use, `default` among them; none given allows all."""
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    created: AwareDatetime | None = None
    expires: AwareDatetime | None = None

    @field_validator("created", "expires", mode="before")
    @classmethod
    def _time_as_text(cls, value: Any) -> Any:
        if isinstance(value, datetime.datetime) and value.tzinfo is None:
            return value.replace(tzinfo=datetime.UTC)  # YAML's own timestamps are UTC
        return value


class KeyFile(Strict):
    """The whole file."""

    version: Literal[1] = 1
    keys: tuple[KeyEntry, ...] = Field(default=(), max_length=MAX_KEYS)

    @model_validator(mode="after")
    def _told_apart(self) -> "KeyFile":
        for what in ("name", "hash"):
            values = [getattr(entry, what) for entry in self.keys]
            twice = sorted({v for v in values if values.count(v) > 1})
            if twice:
                raise at_key("keys", f"the {what} {twice[0]!r} is given twice")
        return self


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys in force, by hash."""

    by_hash: Mapping[str, KeyEntry]

    def identify(self, headers: Mapping[str, str], now: float) -> KeyEntry:
        """Whose key a request carries.

        Raises:
            Unauthorized: none, an unknown one, or one that has expired.
        """
        key = _key_of(headers)
        if not key:
            raise Unauthorized("no API key: send the router's key as `Authorization: Bearer …`")
        entry = self.by_hash.get(digest(key))
        if entry is None:
            raise Unauthorized("the API key is not one of this router's")
        if entry.expires is not None and entry.expires.timestamp() <= now:
            raise Unauthorized(f"the API key of {entry.name} expired on {entry.expires:%Y-%m-%d}")
        return entry


def _key_of(headers: Mapping[str, str]) -> str:
    given = headers.get("authorization", "")
    scheme, _, key = given.partition(" ")
    if scheme.lower() == "bearer" and key:
        return key.strip()
    return (headers.get("x-api-key") or headers.get("api-key") or "").strip()


def permit(entry: KeyEntry, route: str) -> None:
    """Let the caller use `route`.

    Raises:
        Forbidden: it may not.
    """
    if entry.routes and route not in entry.routes:
        allowed = ", ".join(entry.routes)
        raise Forbidden(f"the key of {entry.name} may not use route {route}; allowed: {allowed}")


def digest(key: str) -> str:
    """The hash that the file holds for a key."""
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def read(path: Path) -> KeyFile:
    """The key file.

    Raises:
        PolicyError: it cannot be read, or does not hold.
    """
    return parse(path, KeyFile)


def ring_of(loaded: LoadedPolicy) -> KeyRing | None:
    """The keys that a policy names, looked for from its own folder; None when it names none.

    Raises:
        PolicyError: the file cannot be read, does not hold, or names a route that the policy does not have.
    """
    path = keys_path(loaded)
    if path is None:
        return None
    file = read(path)
    problems = unknown_routes(file, loaded.policy.routes)
    if problems:
        raise PolicyError(str(path), problems)
    return KeyRing({entry.hash: entry for entry in file.keys})


def keys_path(loaded: LoadedPolicy) -> Path | None:
    """Where the policy's key file lies."""
    keys = loaded.policy.keys
    return None if keys is None else Path(loaded.source).parent / keys.file


def issue(
    name: str,
    *,
    routes: Iterable[str] = (),
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    created: datetime.datetime,
    expires: datetime.datetime | None = None,
) -> tuple[str, KeyEntry]:
    """A new key, to be shown once, and the entry that is kept of it."""
    key = PREFIX + secrets.token_urlsafe(32)
    entry = KeyEntry(
        name=name, hash=digest(key), shown=key[:SHOWN_CHARS], routes=tuple(routes), created=created,
        requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute, expires=expires,
    )  # fmt: skip
    return key, entry


def write(path: Path, file: KeyFile) -> None:
    """Write the file whole or not at all, readable by its owner alone.

    Raises:
        SettingsError: the folder cannot be written.
    """
    body = yaml.safe_dump(
        file.model_dump(mode="json", exclude_defaults=True) | {"version": 1}, sort_keys=False
    )
    head = "# Written by `graduate router keys`: hashes of API keys, never the keys.\n"
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as new:
            new.write(head + body)
        os.chmod(new.name, 0o600)
        os.replace(new.name, path)
    except OSError as why:
        raise SettingsError(f"{path} cannot be written: {why.strerror}") from why


def unknown_routes(file: KeyFile, known: Iterable[str]) -> list[Problem]:
    """Entries that name routes which the policy does not have: what each allows is then nothing."""
    allowed = {*known, "default"}
    return [
        Problem(
            1, f"keys.{entry.name}.routes", route, f"no such route; allowed: {', '.join(sorted(allowed))}"
        )
        for entry in file.keys
        for route in entry.routes
        if route not in allowed
    ]  # fmt: skip
