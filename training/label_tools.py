"""Whether `train label` asks with tools, and with which: a route of that kind, or rows with tools of which nothing else is said."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from router.answer_spec import AnswerKind
from training.build import Row
from training.errors import ConfigError, DataError
from training.form import json_of
from training.label import Teacher
from training.tools import Tools, schemas_of, tools_of

CHOICES = ("auto", "none", "required")


@dataclass(frozen=True, slots=True)
class ToolFlags:
    """The flags that have to do with it."""

    tools: Path | None = None
    choice: str | None = None
    extra: tuple[str, ...] = ()
    extract: str | None = None


@dataclass(frozen=True, slots=True)
class LabelTools:
    """What rows that bring no tools, or no choice among them, are asked with."""

    tools: Tools
    choice: Any = None

    def given_to(self, teacher: Teacher) -> Teacher:
        """The teacher, asked that way."""
        return replace(teacher, calls_tools=True, tools=self.tools, tool_choice=self.choice)


def of(flags: ToolFlags, rows: Sequence[Row], kind: AnswerKind | None) -> LabelTools | None:
    """What to ask with; None where answers are no tool calls.

    Args:
        kind: of the answers, None where neither route nor flags say it.

    Raises:
        ConfigError: flags that do not fit the kind of answer.
        DataError: the file holds no tools.
    """
    given = flags.tools is not None or any(row.tools for row in rows)
    calls = kind == "tool_call" or (kind is None and given)
    for flag, value in (("--tools", flags.tools), ("--tool-choice", flags.choice)):
        if value is not None and not calls:
            why = (
                f"answers are of kind {kind}"
                if kind
                else "no row has tools and there is no --tools"
            )
            raise ConfigError(f"{flag} {value}: {why}: allowed: with answers of kind tool_call")
    by_hand = next(
        (a for a in flags.extra if a.partition("=")[0] in ("tools", "tool_choice")), None
    )
    if by_hand is not None:
        raise ConfigError(f"--body {by_hand!r:.60}: allowed: --tools FILE and --tool-choice")
    if not calls:
        return None
    if flags.extract is not None:
        raise ConfigError(
            f"--extract {flags.extract!r}: allowed: with answers that are no tool calls"
        )
    tools = () if flags.tools is None else _load(flags.tools)
    names = {name for some in (tools, *(row.tools for row in rows)) for name in schemas_of(some)}
    return LabelTools(tools, _choice(flags.choice, names))


def _load(path: Path) -> Tools:
    try:
        return tools_of(str(path), json_of(path.read_text(encoding="utf-8"), str(path)))
    except (OSError, UnicodeDecodeError) as why:
        raise DataError(f"{path}: cannot be read: {why}") from why


def _choice(said: str | None, names: set[str]) -> Any:
    if said is None or said in CHOICES:
        return said
    if said not in names:
        allowed = ", ".join((*CHOICES, *sorted(names)))
        raise ConfigError(f"--tool-choice {said!r}: allowed: {allowed}")
    return {"type": "function", "function": {"name": said}}
