"""What a teacher's provider says of training on its answers, and a base model's licence: looked up, judged, signed for.

Decides which entry of the register a model's name falls under and whether publishing may go on. It is no legal advice: the
register (`terms.yaml`, and a file of the user's) holds a few plain words with a date, and the terms themselves are the
provider's. Reads files; asks nobody.
"""

import datetime
import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from training.errors import ConfigError
from training.gates import Gate, outcome

Class = Literal["allowed", "restricted", "forbidden", "unknown"]
Role = Literal["teacher", "base model"]
OWN = Path(__file__).with_name("terms.yaml")
NOTICE = "no legal advice: a few plain words with the date on which they were noted; read the provider's own terms"
NOT_NAMED = "(not named)"
PERMISSIVE = ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "unlicense", "isc")
"""Licences, as model cards write them, that allow a derivative for the price of a notice."""
REFUSED: tuple[Class, ...] = ("restricted", "forbidden")


class Judgement(BaseModel):
    """What an entry says of a model in one role."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    class_: Class = Field(alias="class")
    """`restricted` and `forbidden` refuse without a signature; `unknown` warns."""
    clause: str = Field(min_length=1)
    """In a few plain words."""


class Entry(BaseModel):
    """Models of one provider under the same terms."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: str = Field(min_length=1)
    models: tuple[str, ...] = Field(min_length=1)
    """Patterns with `*`, over the whole model id and over what stands behind its last `/`; capitals do not count."""
    noted: datetime.date
    """When the words were written down."""
    basis: Literal["licence", "reports", "own reading"] = "own reading"
    url: str | None = None
    """Where the terms are."""
    teacher: Judgement | None = None
    base: Judgement | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "Entry":
        if self.teacher is None and self.base is None:
            raise ValueError("allowed: `teacher`, `base`, or both")
        return self

    def fits(self, model: str) -> bool:
        """Whether one of the patterns fits the model's id."""
        names = {model.lower(), model.lower().rsplit("/", 1)[-1]}
        return any(fnmatch.fnmatchcase(n, p.lower()) for n in names for p in self.models)


class Register(BaseModel):
    """Entries in order; the first that fits counts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of one model in one role."""

    role: Role
    model: str
    cls: Class
    clause: str
    provider: str | None = None
    noted: str | None = None
    """ISO date; None where nothing is known."""
    basis: str | None = None
    url: str | None = None

    @property
    def sentence(self) -> str:
        """In a line, for a report."""
        by = f" ({self.provider}, noted {self.noted}, {self.basis})" if self.provider else ""
        return f"{self.cls}: {self.clause}{by}"


@dataclass(frozen=True, slots=True)
class Signature:
    """Somebody who takes it upon themselves that this use is within the terms."""

    by: str
    reason: str
    at: str
    """UTC, ISO 8601."""


def sign(said: tuple[str, str] | None, now: datetime.datetime) -> Signature | None:
    """`--accept-terms NAME REASON`; None when nothing was said.

    Raises:
        ConfigError: a name or a reason that says nothing.
    """
    if said is None:
        return None
    name, reason = (part.strip() for part in said)
    if not name or len(reason.split()) < 2:
        raise ConfigError(
            f"--accept-terms {said[0]!r} {said[1]!r}: allowed: a person's name and a reason of two words or more"
        )
    return Signature(name, reason, now.isoformat(timespec="seconds"))


def load(own: Path | None = None) -> Register:
    """The register, a user's file before ours.

    Raises:
        ConfigError: the file, the entry and key, its value and what is allowed.
    """
    entries = _read(own).entries if own is not None else ()
    return Register(entries=(*entries, *_read(OWN).entries))


def _read(file: Path) -> Register:
    try:
        data: Any = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as why:
        raise ConfigError(f"{file}: {why}") from why
    try:
        return Register.model_validate(data)
    except ValidationError as why:
        wrong = why.errors()[0]
        path = ".".join(str(part) for part in wrong["loc"]) or "the whole file"
        raise ConfigError(f"{file}: {path} = {wrong['input']!r:.120}: {wrong['msg']}") from why


def look_up(register: Register, role: Role, model: str, licence: str | None = None) -> Found:
    """The first entry that fits the name and speaks of the role.

    Args:
        licence: what the base model's own card says; it counts where the register knows nothing.
    """
    if model == NOT_NAMED:
        return Found(
            role,
            model,
            "unknown",
            "rows carry no teacher's id; say whose answers they are by --teacher",
        )
    for entry in register.entries:
        said = entry.teacher if role == "teacher" else entry.base
        if said is not None and entry.fits(model):
            return Found(
                role, model, said.class_, said.clause, entry.provider, entry.noted.isoformat(), entry.basis, entry.url
            )  # fmt: skip
    if licence is not None:
        cls: Class = "allowed" if licence.lower() in PERMISSIVE else "unknown"
        return Found(role, model, cls, f"its model card says {licence}")
    return Found(
        role,
        model,
        "unknown",
        "no entry in the register; add one by --terms FILE when you have read them",
    )


def licence_of(folder: Path) -> str | None:
    """What the `license:` line at the head of a model card says; None without one."""
    try:
        text = (folder / "README.md").read_text(errors="replace")
    except OSError:
        return None
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    said = re.search(r"^license:\s*(\S+)\s*$", head[1], re.MULTILINE) if head else None
    return said[1].strip("'\"") if said else None


def judge(
    register: Register, teachers: Sequence[str], base_model: str, licence: str | None
) -> tuple[Found, ...]:
    """Every teacher of the lineage, then the base model."""
    found = [look_up(register, "teacher", teacher) for teacher in teachers]
    return (*found, look_up(register, "base model", base_model, licence))


def refused(found: Sequence[Found]) -> list[Found]:
    """Those that nobody may publish on without a signature."""
    return [one for one in found if one.cls in REFUSED]


def gates(found: Sequence[Found], signature: Signature | None) -> list[Gate]:
    """A line for each model: failed where the terms restrict or forbid it and nobody has signed."""
    limit = 'allowed, or signed for by --accept-terms NAME "REASON" once somebody has read them'
    lines = []
    for one in found:
        name, figure = f"terms of {one.role} {one.model}", one.sentence
        if one.cls == "unknown":
            lines.append(Gate(name, "not measured", figure, limit, "signature"))
            continue
        is_signed = one.cls in REFUSED and signature is not None
        if signature is not None and is_signed:
            figure += f"; signed for by {signature.by} at {signature.at}: {signature.reason}"
        lines.append(
            Gate(name, outcome(one.cls == "allowed" or is_signed), figure, limit, "signature")
        )
    return lines


def record(found: Sequence[Found], signature: Signature | None) -> dict[str, Any]:
    """The part of `lineage.json`: what was known, and who signed for what."""
    covers = [f"{one.role} {one.model}: {one.cls}" for one in refused(found)]
    return {
        "notice": NOTICE,
        "checked": [
            {
                "role": one.role, "model": one.model, "class": one.cls, "clause": one.clause, "provider": one.provider,
                "noted": one.noted, "basis": one.basis, "url": one.url,
            }
            for one in found
        ],
        "accepted": None
        if signature is None
        else {"by": signature.by, "reason": signature.reason, "at": signature.at, "covers": covers},
    }  # fmt: skip
