"""What a policy would have done on logged traffic: who answers, how often the reply is the teacher's, cost, latency. Pure.

Every decision is computed again by the router's own `decide`, on the record's request and draw. What a decision leads
to is read off the answers that the log holds:

* *Pairs*, requests that both answered, tell all that the policy could have done. They are weighted by one over the
  logged probability of being a pair (Hájek), and say how often the reply would have agreed, cost and latency.
* Requests of a canary, of which one arm is known, are weighted by the policy's probability of that arm over the logged
  one (self-normalised inverse propensity, SNIPS: Swaminathan and Joachims 2015); they say what callers saw and said.

Counts are of records: a route that logs a share of its requests has as many fewer. Cost is of tokens, at the policy's prices.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace

from monitoring.counterfactual import (
    Estimate,
    LoggedRequest,
    Unknown,
    both_answers,
    pair_probability,
    request_of,
    weighted_mean,
    weighted_quantile,
    weighted_share,
)
from monitoring.replay_outcome import (
    agreed,
    is_adapter,
    teacher_replies,
    token_cost,
    why_falls,
)
from router.decide import Decision, decide
from router.policy import DEFAULT, Route
from router.policy_file import LoadedPolicy
from router.records import Answer, Record


@dataclass(slots=True)
class _Sample:
    """Weighted values."""

    values: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def add(self, value: float, weight: float) -> None:
        if weight > 0:
            self.values.append(value)
            self.weights.append(weight)


@dataclass(slots=True)
class _Arm:
    """What one arm would have led to, as far as the log tells."""

    cost: _Sample = field(default_factory=_Sample)
    seconds: _Sample = field(default_factory=_Sample)


@dataclass(slots=True)
class _Tally:
    """One route under one policy."""

    records: int = 0
    approximate: int = 0
    student_arm: float = 0.0
    unknown: Counter[str] = field(default_factory=Counter)
    shadows: float = 0.0
    noises: int = 0
    shadow_cost: _Sample = field(default_factory=_Sample)
    audit_cost: _Sample = field(default_factory=_Sample)
    teacher: _Arm = field(default_factory=_Arm)
    student: _Arm = field(default_factory=_Arm)
    agree: _Sample = field(default_factory=_Sample)
    served_agree: _Sample = field(default_factory=_Sample)
    served: _Sample = field(default_factory=_Sample)
    other_adapters: int = 0
    randomised: int = 0
    unsupported: int = 0
    seen: dict[str, _Sample] = field(default_factory=lambda: defaultdict(_Sample))


@dataclass(frozen=True, slots=True)
class RouteReplay:
    """One route under one policy. Shares are of its recomputed records; None where the log cannot tell.

    Attributes:
        approximate: decisions that looked at text which is redacted in the log.
        student_arm: share that the student is asked for.
        student_served: share that the student answers; the rest of its arm falls back.
        agreement: share of replies that agree with the teacher's, a reply of the teacher counted as agreeing.
        disagreement: of the replies that are the student's.
        usd_per_1000, copies_usd_per_1000: tokens of replies; of shadows, audits and noise.
        seen: by SNIPS on randomised records: feedback, errors, seconds, usd_per_1000.
    """

    route: str
    records: int
    approximate: int
    student_arm: float
    student_served: float | None
    agreement: Estimate | None
    disagreement: Estimate | None
    usd_per_1000: float | None
    copies_usd_per_1000: float | None
    seconds_mean: float | None
    seconds_p95: float | None
    randomised: int
    unsupported: int
    seen: dict[str, Estimate]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PolicyReplay:
    """A whole policy. `reproduced` of `same_digest` records have the decision that they were logged with."""

    digest: str
    records: int
    unknown: dict[str, int]
    same_digest: int
    reproduced: int
    differs: tuple[str, ...]
    routes: dict[str, RouteReplay]


MOST_DIFFERENCES = 5


class Replay:
    """Gathers one policy's outcomes, a record at a time."""

    def __init__(self, rules: LoadedPolicy, only: str | None = None) -> None:
        self._rules = rules
        self._only = only
        self._routes: dict[str, _Tally] = defaultdict(_Tally)
        self._unknown: Counter[str] = Counter()
        self._records = self._same = self._reproduced = 0
        self._differs: list[str] = []

    def add(self, record: Record) -> None:
        """Decide one record again, and count what that leads to."""
        self._records += 1
        try:
            request = request_of(record)
            decision = decide(self._rules, request, record.draw)
        except Unknown as why:
            self._unknown[str(why)] += 1
            return
        if record.policy_digest == self._rules.digest:
            self._check(record, decision)
        if self._only is None or decision.route == self._only:
            self._count(record, request, decision)

    def _check(self, record: Record, decision: Decision) -> None:
        self._same += 1
        difference = differs(record, decision)
        if difference is None:
            self._reproduced += 1
        elif len(self._differs) < MOST_DIFFERENCES:
            self._differs.append(f"{record.id}: {difference}")

    def _count(self, record: Record, request: LoggedRequest, decision: Decision) -> None:
        tally = self._routes[decision.route]
        tally.records += 1
        route = None if decision.route == DEFAULT else self._rules.policy.routes[decision.route]
        if request.read_text and route is not None and route.log.redact:
            tally.approximate += 1
        share = student_probability(decision)
        tally.student_arm += share
        self._teacher_outcome(tally, record, route, share)
        if route is not None:
            self._copies(tally, record, decision, route)
        if route is not None and share > 0:
            self._student_outcome(tally, record, decision, route, share)
        self._randomised(tally, record, share)

    def _teacher_outcome(
        self, tally: _Tally, record: Record, route: Route | None, share: float
    ) -> None:
        teacher = record.answer_of("teacher")
        if teacher is None or share >= 1:
            return
        on_the_way = teacher.purpose == "reply"
        weight = (1 - share) / (1.0 if on_the_way else record.shadow_share or 1.0)
        usd = self._cost(teacher, route, "teacher")
        tally.teacher.cost.add(usd, weight)
        tally.teacher.seconds.add(teacher.latency_seconds, weight)

    def _copies(self, tally: _Tally, record: Record, decision: Decision, route: Route) -> None:
        """How often the student would be asked unseen beside the teacher, and what one such call costs."""
        is_teacher = decision.arm == "teacher"
        # A canary's other arm has its own share, which the decision of this arm does not hold.
        asked = decision.shadow_share if is_teacher else route.dark_launch.share
        tally.shadows += asked * (1 - student_probability(decision))
        tally.noises += decision.noise
        both = both_answers(record)
        if both is not None:
            weight = 1 / pair_probability(record, *both)
            tally.shadow_cost.add(self._cost(both[0], route, "student"), weight)

    def _student_outcome(
        self, tally: _Tally, record: Record, decision: Decision, route: Route, share: float
    ) -> None:
        """What asking the student would have led to, where the log has both answers of this adapter."""
        both = both_answers(record)
        if both is None:
            return
        student, teacher = both
        if not is_adapter(student, route, self._rules, decision.route):
            tally.other_adapters += 1
            return
        agree, comparable = agreed(record, student, teacher, route)
        reason = why_falls(student, route, decision.cascade_min_confidence)
        falls = reason is not None
        has_reply = reason is None or teacher_replies(reason, route)
        if not falls and not comparable:
            return  # the teacher's own answer has no form: nothing can be said
        weight = share / pair_probability(record, student, teacher)
        asked = self._cost(student, route, "student")
        instead = self._cost(teacher, route, "teacher") if falls and has_reply else 0.0
        audited = 0.0 if falls else route.canary.audit
        tally.student.cost.add(asked + instead, weight)
        tally.audit_cost.add(audited * self._cost(teacher, route, "teacher"), weight)
        tally.student.seconds.add(
            student.latency_seconds + (teacher.latency_seconds if falls and has_reply else 0.0),
            weight,
        )
        tally.agree.add(float(has_reply and (falls or agree)), weight)
        tally.served.add(float(not falls), weight)
        if not falls:
            tally.served_agree.add(float(not agree), weight)

    def _cost(self, answer: Answer, route: Route | None, role: str) -> float:
        """Tokens at this policy's price; the logged cost where it has none."""
        policy = self._rules.policy
        spec = route.student if route is not None and role == "student" else None
        teacher = route.teacher if route is not None else policy.default.teacher
        price = policy.backends[spec.backend if spec is not None else teacher.backend].price
        return token_cost(answer, price)

    def _randomised(self, tally: _Tally, record: Record, share: float) -> None:
        """What callers saw, where the log drew the arm."""
        if not 0 < record.propensity < 1:
            return
        tally.randomised += 1
        chance = share if record.arm == "student" else 1 - share
        weight = chance / record.propensity
        if weight == 0:
            tally.unsupported += 1
            return
        seen = tally.seen
        seen["seconds"].add(record.latency_seconds, weight)
        seen["errors"].add(float(record.status >= 500), weight)
        spent = sum(a.cost_usd for a in record.answers if a.purpose == "reply")
        seen["usd_per_1000"].add(1000 * spent, weight)
        for said in record.feedback:
            if said.score is not None:
                seen["feedback"].add(said.score, weight)

    def result(self) -> PolicyReplay:
        """What was gathered."""
        routes = {name: _route(name, t, self._rules) for name, t in sorted(self._routes.items())}
        return PolicyReplay(
            self._rules.digest, self._records, dict(self._unknown.most_common()),
            self._same, self._reproduced, tuple(self._differs), routes,
        )  # fmt: skip


def student_probability(decision: Decision) -> float:
    """The probability, over a canary's draw, that the policy asks the student first."""
    return decision.propensity if decision.arm == "student" else 1 - decision.propensity


def differs(record: Record, decision: Decision) -> str | None:
    """The first part of a decision that is not as it was logged; None when all are."""
    for name in ("route", "mode", "arm", "propensity", "shadow_share", "segment"):
        before, now = getattr(record, name), getattr(decision, name)
        if before != now:
            return f"{name} was {before!r}, is {now!r}"
    if not record.reason.startswith(decision.reason):
        return f"reason was {record.reason!r}, is {decision.reason!r}"
    return None


def _route(name: str, tally: _Tally, rules: LoadedPolicy) -> RouteReplay:
    share = tally.student_arm / tally.records if tally.records else 0.0
    asked = weighted_share(tally.agree.values, tally.agree.weights)
    served = weighted_share(tally.served.values, tally.served.weights)
    known = share == 0 or asked is not None
    agreement = None
    if asked is not None:
        agreement = replace(
            asked, value=1 - share * (1 - asked.value), low=1 - share * (1 - asked.low),
            high=1 - share * (1 - asked.high),
        )  # fmt: skip
    cost = _mixed(tally, share, "cost") if known else None
    seconds = _mixed(tally, share, "seconds") if known else None
    return RouteReplay(
        name, tally.records, tally.approximate, share,
        share * served.value if served else (0.0 if share == 0 else None),
        agreement,
        weighted_share(tally.served_agree.values, tally.served_agree.weights),
        1000 * cost.mean if cost else None,
        _copies_usd_per_1000(tally, share),
        seconds.mean if seconds else None, seconds.p95 if seconds else None,
        tally.randomised, tally.unsupported,
        {
            what: found for what, sample in sorted(tally.seen.items())
            if (found := weighted_mean(sample.values, sample.weights)) is not None
        },
        tuple(_notes(name, tally, share, rules)),
    )  # fmt: skip


def _copies_usd_per_1000(tally: _Tally, share: float) -> float | None:
    """Tokens of shadows, of the teacher asked twice, and of audits; None when one that is taken has no known cost."""
    total = 0.0
    for often, sample in (
        (tally.shadows / tally.records, tally.shadow_cost),
        (tally.noises / tally.records, tally.teacher.cost),
        (share, tally.audit_cost),
    ):
        mean = weighted_mean(sample.values, sample.weights)
        if often > 0 and mean is None:
            return None
        total += often * mean.value if mean is not None else 0.0
    return 1000 * total


@dataclass(frozen=True, slots=True)
class _Mixed:
    mean: float
    p95: float


def _mixed(tally: _Tally, share: float, what: str) -> _Mixed | None:
    """Both arms' samples, each at the arm's share; None when an arm that is taken has no sample."""
    values: list[float] = []
    weights: list[float] = []
    for arm, part in ((tally.teacher, 1 - share), (tally.student, share)):
        sample: _Sample = getattr(arm, what)
        total = sum(sample.weights)
        if part <= 1e-12:
            continue
        if total <= 0:
            return None
        values += sample.values
        weights += [part * w / total for w in sample.weights]
    mean, p95 = weighted_mean(values, weights), weighted_quantile(values, weights, 0.95)
    return None if mean is None or p95 is None else _Mixed(mean.value, p95)


def _notes(name: str, tally: _Tally, share: float, rules: LoadedPolicy) -> list[str]:
    notes = []
    route = rules.policy.routes.get(name)
    if share > 0 and not tally.agree.values:
        notes.append("the student would be asked, and the log has no pairs of that adapter")
    if tally.other_adapters:
        notes.append(f"{tally.other_adapters} pairs are of another adapter or version")
    if tally.unsupported:
        notes.append(
            f"{tally.unsupported} of {tally.randomised} randomised records took an arm that this policy never takes"
        )
    if route is not None:
        if any(r.rule == "http" for r in route.guard.rules):
            notes.append("guard rules that ask outside are not asked again")
        names = {route.teacher.backend} | ({route.student.backend} if route.student else set())
        notes += [
            f"backend {backend} has no price: logged costs are used"
            for backend in sorted(names)
            if not rules.policy.backends[backend].price.model_fields_set
        ]
    return notes
