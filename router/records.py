"""What is written about one request: the record, the answers, and what arrives later under its id.

Decides the stored form of the traffic log and nothing else: it knows no file, no policy and no backend.

A log line is one of three things, told apart by its `kind`:

    record    one request and the answers on the caller's way (`Record`)
    answer    an answer that settled after the reply had gone out: a shadow, an audit (`LateAnswer`)
    feedback  what the caller said about the reply afterwards (`Feedback`)

`merge` lays the late lines over their record. Times are UTC seconds since the epoch, durations are
seconds, shares and probabilities are 0-1, costs are US dollars.
"""

from collections.abc import Iterable
from typing import Literal

import msgspec

SCHEMA = 1
"""Number of the stored form. A reader reads every number ever written."""

NO_BODY = msgspec.Raw(b"")
"""A body that was not kept; it is false, and left out of the line (msgspec has no optional Raw)."""

Role = Literal["teacher", "student"]
ServedBy = Literal["teacher", "student", "none"]
Purpose = Literal["reply", "shadow", "audit", "noise"]
"""Why a backend was asked: for the caller; as an unseen copy of a teacher-answered request; as the teacher's
unseen check of a student-answered one; as the teacher asked again, to measure its own disagreement."""


class ToolCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """One tool call of an answer; `arguments` is the JSON text as the model wrote it."""

    name: str
    arguments: str = "{}"
    id: str = ""


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens that a backend reported for one answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Comparison(msgspec.Struct, frozen=True, omit_defaults=True):
    """Student against teacher on one request, under the route's named comparator.

    `agree` is None when one of the two gave nothing that can be compared (an error, unparseable JSON):
    `comparable` is then False and `student_form_ok` says whether it was the student's fault. Or the pair is left to the
    monitor, whose comparators (`embedding`, `judge`) a request cannot wait for: `comparable` is then True.
    """

    comparator: str
    agree: bool | None = None
    score: float | None = None
    fields: dict[str, bool] = {}
    comparable: bool = True
    student_form_ok: bool = True

    @property
    def is_left(self) -> bool:
        """Whether it is left to the monitor."""
        return self.agree is None and self.comparable


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """One backend's reply to one request.

    `status` is the HTTP status, 0 when none came. `error` is a word of a small closed set (`connect`,
    `timeout`, `overload`, `status`, `stream`, `garbage`, `cancelled`, `breaker`), None when the answer is whole.
    `verdict` names the guard rule that failed, None when all held or none was asked. `confidence` is 0-1 from
    the token log-probabilities, None when the backend gave none. `body` is the reply verbatim (a stream
    re-assembled into one body), `NO_BODY` when the route does not log text.
    """

    role: Role
    backend: str
    model: str
    adapter: str | None = None
    purpose: Purpose = "reply"
    status: int = 0
    text: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    usage: Usage = Usage()
    latency_seconds: float = 0.0
    first_token_seconds: float | None = None
    confidence: float | None = None
    error: str | None = None
    verdict: str | None = None
    cost_usd: float = 0.0
    body: msgspec.Raw = NO_BODY

    @property
    def ok(self) -> bool:
        """Whether a whole answer came (guard verdicts aside)."""
        return self.error is None and 200 <= self.status < 300


class Feedback(msgspec.Struct, frozen=True, omit_defaults=True, tag="feedback", tag_field="kind"):
    """What a caller said about a reply: `score` 0 (bad) to 1 (good), a corrected answer, a comment."""

    id: str
    at: float
    route: str = ""
    score: float | None = None
    correction: str | None = None
    comment: str | None = None
    schema: int = SCHEMA


class LateAnswer(msgspec.Struct, frozen=True, omit_defaults=True, tag="answer", tag_field="kind"):
    """An answer that settled after the reply, under the request's id."""

    id: str
    at: float
    route: str
    answer: Answer
    comparison: Comparison | None = None
    schema: int = SCHEMA


class Record(msgspec.Struct, frozen=True, omit_defaults=True, tag="record", tag_field="kind"):
    """One request: what was asked, who answered, and why; enough to recompute the decision.

    `answers` holds the caller's way in order (a student that failed comes before the teacher that fell in), and
    after `merge` the late answers too. `propensity` is the probability that this request had of getting `arm`,
    `shadow_share` the probability of its being shadowed or audited, `draw` the uniform number behind both.
    `request` is the body verbatim (redacted as the route says), `NO_BODY` when the route does not log text.
    """

    id: str
    at: float
    route: str
    mode: str
    policy_digest: str
    arm: Role
    served_by: ServedBy
    reason: str
    status: int
    answers: tuple[Answer, ...] = ()
    path: str = "/v1/chat/completions"
    model: str = ""
    request: msgspec.Raw = NO_BODY
    draw: float = 0.0
    propensity: float = 1.0
    shadow_share: float = 0.0
    segment: str | None = None
    conversation: str | None = None
    user: str | None = None
    caller: str | None = None
    metadata: dict[str, str] = {}
    headers: dict[str, str] = {}
    """Those that the policy decides by (`match.header`, a header-sticky canary), names in lower case."""
    stream: bool = False
    latency_seconds: float = 0.0
    comparison: Comparison | None = None
    feedback: tuple[Feedback, ...] = ()
    schema: int = SCHEMA

    def answer_of(self, role: Role) -> Answer | None:
        """The first whole answer of `role`, whatever it was asked for; None when there is none."""
        return next(
            (a for a in self.answers if a.role == role and a.ok and a.purpose != "noise"), None
        )

    @property
    def reply(self) -> Answer | None:
        """The answer that the caller saw."""
        return next(
            (
                a
                for a in reversed(self.answers)
                if a.purpose == "reply" and a.role == self.served_by
            ),
            None,
        )


Line = Record | LateAnswer | Feedback

_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)
_encoder = msgspec.json.Encoder()


def dump(line: Line) -> bytes:
    """One log line, newline included.

    Bodies are verbatim but for raw line breaks between JSON tokens (OpenAI's replies are indented), which become spaces:
    a line break inside a JSON string is always escaped.
    """
    data = _encoder.encode(line)
    if b"\n" in data:
        data = data.replace(b"\n", b" ")
    return data + b"\n"


def load(data: bytes) -> Line:
    """The line that `dump` wrote.

    Raises:
        msgspec.DecodeError: the bytes are not a line of a known schema (a torn last line, say).
    """
    return _decoder.decode(data)


def merge(record: Record, late: Iterable[LateAnswer | Feedback]) -> Record:
    """`record` with the late answers, their comparison and the feedback laid over it."""
    answers, comparison, feedback = list(record.answers), record.comparison, list(record.feedback)
    for line in late:
        if isinstance(line, Feedback):
            feedback.append(line)
        else:
            answers.append(line.answer)
            comparison = line.comparison or comparison
    return msgspec.structs.replace(
        record, answers=tuple(answers), comparison=comparison, feedback=tuple(feedback)
    )
