"""The policy: which requests are a route, and how a route's requests are answered.

Holds the shape of `policy.yaml` and of the monitor's `rollouts.yaml`, one line a key. Reading files, line numbers
and the overlay are in `policy_file`; deciding is in `decide`. Knows no HTTP and no clock.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from router.answer_spec import AnswerSpec, Guard, Judge, Regex, Strict, Template, at_key, regex
from router.quantities import Seconds, Share

DEFAULT = "default"
"""Name, in records and counts, of what meets no route; so no route may have it."""

Mode = Literal["teacher", "dark_launch", "canary", "hybrid", "student"]
FlagFeedback = Literal["negative", "any", "off"]


class Timeout(Strict):
    """How long to wait for a backend."""

    connect: Seconds = 2.0
    """Until the connection stands."""
    first_token: Seconds = 20.0
    """Until the first byte of the body."""
    total: Seconds = 120.0
    """Until the last byte."""


class Retries(Strict):
    """When a call is tried again, before the first byte only."""

    attempts: int = Field(default=2, ge=1, le=10)
    """Calls in all, the first one counted."""
    on: Annotated[
        tuple[Literal["connect", "timeout", "429", "5xx"], ...],
        WithJsonSchema(
            {"type": "array", "items": {"enum": ["connect", "timeout", "429", 429, "5xx"]}}
        ),
    ] = ("connect", "429", "5xx")
    """What is worth another try."""
    backoff: Seconds = 0.25
    """Wait before the second try, doubled each time; `Retry-After` wins."""

    @model_validator(mode="before")
    @classmethod
    def _codes_as_text(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("on"), list):
            return {**data, "on": [str(item) for item in data["on"]]}  # YAML reads 429 as a number
        return data


class Breaker(Strict):
    """When a sick backend is left alone."""

    failures: int = Field(default=5, ge=1)
    """Failures within the window that open the breaker."""
    window: Seconds = 10.0
    """The window."""
    open_for: Seconds = 15.0
    """Until one probe may try again."""


class Price(Strict):
    """What a backend costs, in US dollars."""

    input: float = Field(default=0.0, ge=0)
    """A million prompt tokens."""
    output: float = Field(default=0.0, ge=0)
    """A million completion tokens."""
    per_hour: float = Field(default=0.0, ge=0)
    """An hour of the node, whatever it answers."""


class Backend(Strict):
    """Something that answers chat requests over HTTP."""

    kind: Literal["openai", "lorax"]
    """`openai`: any OpenAI-style API, an adapter is its `model`. `lorax`: LoRAX's native dialect."""
    base_url: str = Field(pattern=r"^https?://[^\s/]+(/\S*)?$")
    """With `/v1` for `openai`, without for `lorax`."""
    api_key_env: str | None = None
    """Environment variable that holds the key."""
    timeout: Timeout = Timeout()
    retries: Retries = Retries()
    max_concurrency: int = Field(default=256, ge=1)
    """Calls in flight; what comes above it counts as overload."""
    breaker: Breaker = Breaker()
    price: Price = Price()


class Match(Strict):
    """Which requests are this route's: all given keys must hold; none given matches everything."""

    model: str | None = None
    """The requested model, exactly."""
    header: dict[str, str] = Field(default={})
    """Header names (any case) and their exact values."""
    metadata: dict[str, str] = Field(default={})
    """Keys of the body's `metadata` and their exact values; `x-graduate-task` is `metadata.task`."""
    caller: str | None = None
    """Name of the caller's key."""
    system_prompt: str | None = None
    """Beginning of the system message, or `/regex/`."""

    @model_validator(mode="after")
    def _regex_compiles(self) -> "Match":
        pattern = self.system_prompt
        if pattern and len(pattern) > 2 and pattern.startswith("/") and pattern.endswith("/"):
            try:
                regex(pattern[1:-1])
            except ValueError as why:
                raise at_key("system_prompt", str(why)) from why
        return self


class Teacher(Strict):
    """Who answers by default and on fallback."""

    backend: str
    model: str | None = None
    """Model to ask for; none given passes the caller's through."""


class Student(Strict):
    """The adapter that learns the route."""

    backend: str
    adapter: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name in the registry."""
    version: Annotated[int, Field(ge=1)] | Literal["latest"] = "latest"
    """A published version; a rollout pins one."""
    prompt: Template | None = None
    """Shorter template for the student, as it was trained; none sends the chat as it is."""
    max_input_chars: int | None = Field(default=None, ge=1)
    """Characters of the input that the template keeps, as in training."""
    max_tokens: int = Field(default=256, ge=1)
    """Tokens of an answer when the caller names no number."""


class Fallback(Strict):
    """When the teacher answers instead of the student."""

    on: tuple[Literal["error", "timeout", "overload", "guard"], ...] = (
        "error", "timeout", "overload", "guard",
    )  # fmt: skip
    to: Literal["teacher", "error"] = "teacher"


class DarkLaunch(Strict):
    """Unseen copies of teacher-answered requests to the student."""

    share: Share = 1.0
    max_per_minute: int | None = Field(default=None, ge=1)
    noise: Share = 0.0
    """Share of shadowed requests that the teacher answers a second time: its own disagreement."""


class Gates(Strict):
    """Limits that a canary must be shown to keep."""

    class Maximum(Strict):
        max: Share

    class Ratio(Strict):
        max_ratio: float = Field(gt=0)

    class Minimum(Strict):
        min: Share

    disagreement: Maximum | None = None
    guard_failures: Maximum | None = None
    errors: Maximum | None = None
    latency_p95: Ratio | None = None
    """Student's p95 over the teacher's."""
    feedback: Minimum | None = None


class GiveUp(Strict):
    """How long a canary may stay on a step with a gate still open; then it is held as inconclusive."""

    requests: int | None = Field(default=None, ge=1)
    """Requests that the student was asked for on the step; none given sets no such cap."""
    duration: Seconds = 30 * 86400.0
    """Time on the step."""


class Webhook(Strict):
    """Somebody who is asked or told over HTTP about a canary."""

    url: str = Field(pattern=r"^https?://[^\s/]+(/\S*)?$")
    """Where the JSON is sent by POST; of `alertmanager` its address, without `/api/v2/alerts`."""
    timeout: Seconds = Field(default=10.0, gt=0, le=60)
    """How long an answer may take."""
    secret_env: str | None = None
    """Environment variable whose value is sent as `x-graduate-secret`."""


class Notify(Webhook):
    """Somebody who is told of each move."""

    kind: Literal["webhook", "alertmanager"] = "webhook"
    """`webhook`: our JSON. `alertmanager`: an alert by its API v2."""


class Canary(Strict):
    """The student answers a growing share of live traffic."""

    steps: tuple[Share, ...] = Field(default=(0.01, 0.1, 0.5, 1.0), min_length=1)
    sticky: str = Field(
        default="user", pattern=r"^(user|conversation|request|header:[A-Za-z0-9-]+)$"
    )
    """What keeps its arm."""
    hold: Seconds = 3600.0
    """At least this long on a step."""
    audit: Share = 0.1
    """Share of student-answered requests that the teacher answers too, unseen."""
    gates: Gates = Gates()
    confidence: Share = 0.95
    min_reviews: int = Field(default=0, ge=0)
    """Flagged answers of this adapter version that people have reviewed, before the last step."""
    on_breach: Literal["rollback", "hold"] = "rollback"
    approval: Literal["automatic", "manual"] = "automatic"
    """`manual`: each step is left only when a person has said so."""
    give_up_after: GiveUp = GiveUp()
    stale_after: Seconds = Field(default=3600.0, gt=0)
    """No record for so long, or no tick for so long before this one: the canary is given no more traffic."""
    confirm: tuple[Webhook, ...] = ()
    """Asked before each move to more traffic; any answer but 2xx holds."""
    notify: tuple[Notify, ...] = ()
    """Told of each move, tried again until it is taken."""

    @model_validator(mode="after")
    def _steps_grow(self) -> "Canary":
        if any(a >= b for a, b in zip(self.steps, self.steps[1:], strict=False)):
            raise at_key("steps", "steps must grow")
        return self


class EasyIf(Strict):
    """Requests that the student may try: all given keys must hold."""

    max_prompt_tokens: int | None = Field(default=None, ge=1)
    """Estimated as characters / 4."""
    max_chars: int | None = Field(default=None, ge=1)
    languages: tuple[str, ...] = ()
    """ISO 639-1 codes, by a word-and-script guess."""
    not_matching: tuple[Regex, ...] = ()
    no_tools: bool = False


class Difficulty(Strict):
    """A scored difficulty: above `max` the teacher answers."""

    model: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of a difficulty model under the registry."""
    max: Share


class Cascade(Strict):
    """The student answers first; below this confidence the teacher answers instead."""

    min_confidence: Share


class Hybrid(Strict):
    """Easy requests to the student, the rest to the teacher."""

    easy_if: EasyIf | None = None
    difficulty: Difficulty | None = None
    cascade: Cascade | None = None


class Log(Strict):
    """What the traffic log keeps of this route."""

    share: Share = 1.0
    text: bool = True
    """Keep prompts and replies; otherwise only figures."""
    redact: tuple[Annotated[str, AfterValidator(regex)], ...] = ()
    """`email`, `phone`, `credit_card`, or a regular expression."""


class Flags(Strict):
    """What the monitor marks for review."""

    disagreement: bool = True
    guard: bool = True
    low_confidence: Share | None = None
    drift_outlier: bool = True
    feedback: FlagFeedback = "negative"
    audit: Share = 0.0
    """Share of agreeing pairs marked all the same, as a sampled audit."""
    per_hour: int = Field(default=50, ge=1)


class DefaultRoute(Strict):
    """What happens to requests that match no route."""

    teacher: Teacher
    mode: Literal["teacher"] = "teacher"
    log: Log = Log()


class Route(Strict):
    """A class of requests and how it is answered."""

    match: Match = Match()
    teacher: Teacher
    student: Student | None = None
    mode: Mode = "teacher"
    answer: AnswerSpec = AnswerSpec()
    guard: Guard = Guard()
    fallback: Fallback = Fallback()
    dark_launch: DarkLaunch = DarkLaunch()
    canary: Canary = Canary()
    hybrid: Hybrid = Hybrid()
    segments: dict[str, Match] = Field(default={})
    """Named parts of the route, first match wins; gates hold in each."""
    log: Log = Log()
    flags: Flags = Flags()

    @model_validator(mode="after")
    def _student_where_needed(self) -> "Route":
        if self.mode != "teacher" and self.student is None:
            raise at_key("mode", f"mode {self.mode} needs a student")
        return self


def judge_of(route: Route) -> tuple[str, str | None]:
    """Backend and model of the route's judge; what `answer.compare.judge` leaves open is the teacher's."""
    named = route.answer.compare.judge or Judge()
    if named.backend is not None and named.backend != route.teacher.backend:
        return named.backend, named.model  # another backend need not have the teacher's model
    return route.teacher.backend, named.model or route.teacher.model


class Keys(Strict):
    """Where the hashed API keys are."""

    file: str


class Policy(Strict):
    """The whole file."""

    version: Literal[1]
    backends: dict[str, Backend] = Field(min_length=1)
    keys: Keys | None = None
    routes: dict[str, Route] = Field(default={})
    default: DefaultRoute

    def backend_names(self) -> set[str]:
        """Backends that some route names."""
        named = {self.default.teacher.backend}
        for route in self.routes.values():
            named.add(route.teacher.backend)
            if route.student:
                named.add(route.student.backend)
        return named


class RouteRollout(Strict):
    """How far one route's canary has come."""

    state: Literal["canary", "waiting", "held", "inconclusive", "promoted", "rolled_back"] = (
        "canary"
    )
    """`waiting`: its gates are kept and a person must approve. `held`: breached under `on_breach: hold`. `inconclusive`:
    too little evidence by the cap. All three keep their share."""
    share: Share
    """The student's share now; 0 when rolled back."""
    step: int = Field(default=0, ge=0)
    """Index into the route's steps."""
    version: int | None = None
    """The adapter version that this rollout is about."""
    since: str | None = None
    """UTC time of the last change, ISO 8601."""
    step_since: str | None = None
    """UTC time from which evidence of this step counts; none in older files, which mean `since`."""
    approved: int | None = Field(default=None, ge=0)
    """The step that a person lets it go on from."""
    evidence: str | None = None
    """Why, in one line."""


class Rollouts(Strict):
    """The monitor's file, laid over the policy."""

    version: Literal[1]
    routes: dict[str, RouteRollout] = Field(default={})
