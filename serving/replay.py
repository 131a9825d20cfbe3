"""A teacher's recorded answers, found again by the request's text, and the faults a teacher can have. Knows no HTTP.

A row is a JSON object a line: its input text under one key, the teacher's answer under another. A request matches a
row when its last user message is that text, or ends in it after an instruction ("Classify this ticket: ..."); runs of
white space count as one blank.
"""

import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.errors import OperatorError

MAX_PROBLEMS_SHOWN = 10
_QUOTES = "\"'`»”’"
_BEFORE_TEXT = ":\"'`>«“‘\n"
"""What may stand between an instruction and the text, so that "ok" is not found at the end of "look"."""


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """How the stand-in behaves. Shares are 0-1; 0 requests per second means no limit."""

    model: str = "replay"
    latency_seconds: float = 0.05
    error_share: float = 0.0
    requests_per_second: float = 0.0
    seed: int = 0
    jitter_share: float = 0.2


@dataclass(frozen=True, slots=True)
class Rows:
    """Recorded answers by their input's flattened text."""

    answers: Mapping[str, str]
    lengths: tuple[int, ...]
    """Lengths of the inputs, longest first."""

    def find(self, message: str) -> str | None:
        """The recorded answer to a user message; the longest input that the message ends in wins."""
        marked = _marked(message)
        for text in (marked, marked.rstrip(_QUOTES + " \n")):
            flat = text.replace("\n", " ")
            if (answer := self.answers.get(flat)) is not None:
                return answer
            for length in self.lengths:
                start = len(flat) - length
                if start <= 0 or (answer := self.answers.get(flat[start:])) is None:
                    continue
                if text[start - 1] in _BEFORE_TEXT or text[:start].rstrip(" ")[-1:] in _BEFORE_TEXT:
                    return answer
        return None

    def __len__(self) -> int:
        return len(self.answers)


def _marked(text: str) -> str:
    """White space runs as one character each: a line break when they hold one, a blank otherwise."""
    return re.sub(r"\s+", lambda run: "\n" if "\n" in run[0] else " ", text.strip())


def load(files: Sequence[Path], input_key: str, answer_key: str) -> Rows:
    """The rows of all files; of rows with one input the first counts.

    Raises:
        OperatorError: a file that cannot be read, or rows that are not what they should be, by file and line.
    """
    answers: dict[str, str] = {}
    problems: list[str] = []
    for file in files:
        for line, row in _lines(file):
            try:
                text, answer = _row(row, input_key, answer_key)
            except ValueError as why:
                problems.append(f"{file}: line {line}: {why}")
            else:
                answers.setdefault(text, answer)
    if problems:
        more = len(problems) - MAX_PROBLEMS_SHOWN
        shown = problems[:MAX_PROBLEMS_SHOWN] + ([f"… and {more} more"] if more > 0 else [])
        raise OperatorError("\n".join(shown))
    if not answers:
        raise OperatorError(f"{', '.join(map(str, files))}: no rows")
    return Rows(answers, tuple(sorted({len(text) for text in answers}, reverse=True)))


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    try:
        with file.open(encoding="utf-8") as source:
            for number, line in enumerate(source, 1):
                if line.strip():
                    yield number, line
    except OSError as why:
        raise OperatorError(f"{file}: {why.strerror}") from why
    except UnicodeDecodeError as why:
        raise OperatorError(f"{file}: not UTF-8 text: {why}") from why


def _row(line: str, input_key: str, answer_key: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except ValueError as why:
        raise ValueError(f"not JSON: {why}") from why
    if not isinstance(row, dict):
        raise ValueError(f"a JSON object is needed, this is {json.dumps(row)[:60]}")
    for key, option in ((input_key, "--input-key"), (answer_key, "--answer-key")):
        if row.get(key) is None:
            raise ValueError(
                f"no {key!r} ({option}); keys here: {', '.join(sorted(row)) or 'none'}"
            )
    text = row[input_key]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{input_key!r} must be a text that is not blank, this is {text!r:.60}")
    answer = row[answer_key]
    return " ".join(text.split()), answer if isinstance(answer, str) else _compact(answer)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def last_user_text(messages: Iterable[Any]) -> str | None:
    """The text of the last user message, text parts joined; None when there is none."""
    text = None
    for message in messages:
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                content = "".join(
                    str(part.get("text", ""))
                    for part in content
                    if isinstance(part, dict) and part.get("type") == "text"
                )
            text = content if isinstance(content, str) else None
    return text


def tokens(text: str) -> int:
    """Tokens that a text is counted as: four characters each, at least one."""
    return max(1, -(-len(text) // 4))


class Faults:
    """The seeded draws of a replay: how long each answer takes, and which ones fail."""

    def __init__(self, settings: ReplaySettings) -> None:
        self._settings = settings
        self._random = random.Random(settings.seed)

    def draw(self) -> tuple[float, bool]:
        """Seconds that the next answer takes, and whether it is an error instead."""
        jitter = self._settings.jitter_share * (2 * self._random.random() - 1)
        fails = self._random.random() < self._settings.error_share
        return self._settings.latency_seconds * (1 + jitter), fails


class RateLimit:
    """A token bucket that holds one second's requests, at least one."""

    def __init__(self, requests_per_second: float) -> None:
        self._rate = requests_per_second
        self._capacity = max(1.0, requests_per_second)
        self._left = self._capacity
        self._at: float | None = None

    def admit(self, now: float) -> float:
        """0 when a request may pass at `now` (seconds), else the seconds until one may."""
        if self._rate <= 0:
            return 0.0
        if self._at is not None:
            self._left = min(self._capacity, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left >= 1.0:
            self._left -= 1.0
            return 0.0
        return (1.0 - self._left) / self._rate
