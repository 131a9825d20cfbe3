"""What logged traffic can say of a decision that was not taken: the request as the router saw it, and the weights. Pure.

A record keeps no headers, and no text where the route says so. A request that is rebuilt from one raises `Unknown` as
soon as a decision asks for what was not kept, so nothing is decided on a guess.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from scipy import special

from router import wire
from router.errors import BadRequest
from router.records import Answer, Record
from router.wire import RequestView

_PLACEHOLDER = re.compile(r"\[(EMAIL|PHONE|CREDIT_CARD|REDACTED)\]")


class Unknown(Exception):
    """The decision needs what the log does not hold; the message says what, in words that can be counted."""


class _LoggedHeaders(Mapping[str, str]):
    """Headers that a record tells; asking for another one is `Unknown`, not absent."""

    def __init__(self, known: Mapping[str, str | None]) -> None:
        self._known = known

    def __getitem__(self, name: str) -> str:
        if name not in self._known:
            raise Unknown(f"header {name} is not logged")
        value = self._known[name]
        if value is None:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


class LoggedRequest(RequestView):
    """A record's request as `decide` takes it."""

    def __init__(self, view: RequestView, record: Record) -> None:
        self.__dict__.update({k: v for k, v in vars(view).items() if k not in ("user", "tools")})
        self._tools = view.tools
        self._record = record
        self.headers = _LoggedHeaders(
            {"x-graduate-conversation": record.conversation, "x-graduate-log": None}
        )
        self.model = record.model
        self.metadata = dict(record.metadata)
        self.conversation = record.conversation
        self.may_log = True

    @property
    def user(self) -> str | None:  # type: ignore[override]  # a plain attribute where nothing can be missing
        """Who asked, as the record says."""
        user = self._record.user
        if user is not None and _PLACEHOLDER.search(user):
            raise Unknown("the user is redacted")
        return user

    @property
    def tools(self) -> bool:
        """Whether tools were offered. Without the body: the router asked the student, so they did not matter."""
        if self._record.request:
            return self._tools
        if self._record.mode == "teacher" or self._record.reason.startswith("student cannot"):
            raise Unknown("text is not logged")
        return False

    @cached_property
    def messages(self) -> list[dict[str, Any]]:
        """The chat messages; Unknown where the route logs no text."""
        if not self._record.request:
            raise Unknown("text is not logged")
        try:
            return super().messages
        except BadRequest as why:
            raise Unknown("the messages are not a chat") from why

    @property
    def read_text(self) -> bool:
        """Whether somebody has looked at the messages."""
        return "messages" in vars(self)


def request_of(record: Record) -> LoggedRequest:
    """The request of a record.

    Raises:
        Unknown: the logged body is not a request.
    """
    body = bytes(record.request)
    if not body:
        body = msgspec.json.encode({"model": record.model, "stream": record.stream})
    try:
        view = wire.parse(record.path, {}, body, record.caller)
    except BadRequest as why:
        raise Unknown("the body is not a request") from why
    return LoggedRequest(view, record)


def both_answers(record: Record) -> tuple[Answer, Answer] | None:
    """The student's answer, whole or not, and the teacher's whole one; None unless both are there."""
    student = next((a for a in record.answers if a.role == "student"), None)
    teacher = record.answer_of("teacher")
    return None if student is None or teacher is None else (student, teacher)


def pair_probability(record: Record, student: Answer, teacher: Answer) -> float:
    """The probability that both were asked, given who answered first; 1 where a fallback made both answer.

    Copies that the router shed under load or by `max_per_minute` are taken to be missing at random.
    """
    if student.purpose == "reply" and teacher.purpose == "reply":
        return 1.0
    return record.shadow_share if record.shadow_share > 0 else 1.0


def effective_size(weights: npt.ArrayLike) -> float:
    """Kish's effective sample size, (sum w)^2 / sum w^2; 0 without rows."""
    w = np.asarray(weights, dtype=float)
    squares = float(np.dot(w, w))
    return float(w.sum()) ** 2 / squares if squares > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A weighted share or mean with its interval; `rows` were seen, `ess` is their effective number."""

    value: float
    low: float
    high: float
    rows: int
    ess: float


def weighted_share(
    values: npt.ArrayLike, weights: npt.ArrayLike, confidence: float = 0.95
) -> Estimate | None:
    """Hájek's estimate of a share, sum(w v) / sum(w), with Wilson's interval at the effective sample size.

    Wilson's and not the linearised one, because the latter has no width when every row agrees. None without rows.
    """
    w = np.asarray(weights, dtype=float)
    if not len(w) or w.sum() <= 0:
        return None
    share = float(np.dot(w, np.asarray(values, dtype=float)) / w.sum())
    ess = effective_size(w)
    z = float(special.ndtri(0.5 + confidence / 2))
    scale = 1 + z * z / ess
    middle = (share + z * z / (2 * ess)) / scale
    half = z * math.sqrt(share * (1 - share) / ess + z * z / (4 * ess * ess)) / scale
    rows = int(np.count_nonzero(w))
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half), rows, ess)


def weighted_mean(
    values: npt.ArrayLike, weights: npt.ArrayLike, confidence: float = 0.95
) -> Estimate | None:
    """Self-normalised mean, sum(w v) / sum(w), with the linearised interval (the delta method). None without rows."""
    v, w = np.asarray(values, dtype=float), np.asarray(weights, dtype=float)
    if not len(w) or w.sum() <= 0:
        return None
    mean = float(np.dot(w, v) / w.sum())
    error = math.sqrt(float(np.dot(w**2, (v - mean) ** 2))) / float(w.sum())
    half = float(special.ndtri(0.5 + confidence / 2)) * error
    return Estimate(mean, mean - half, mean + half, int(np.count_nonzero(w)), effective_size(w))


def weighted_quantile(values: npt.ArrayLike, weights: npt.ArrayLike, q: float) -> float | None:
    """The smallest value with at least a share `q` of the weight at or below it; None without rows."""
    v, w = np.asarray(values, dtype=float), np.asarray(weights, dtype=float)
    if not len(w) or w.sum() <= 0:
        return None
    order = np.argsort(v)
    place = int(np.searchsorted(np.cumsum(w[order]), q * w.sum() * (1 - 1e-12)))
    return float(v[order][min(place, len(v) - 1)])
