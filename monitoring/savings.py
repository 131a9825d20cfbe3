"""What a route's student saves: tokens at the teacher's list price against tokens and node hours of the student. Pure.

    baseline   what the teacher would have cost for all replies
    spent      what was paid: replies of both, copies (shadows, audits, noise), the student's node
    saved      baseline - spent

Requests that the student answered were never priced by the teacher: an audited one has the teacher's own tokens, the rest
take the route's mean over teacher answers, and with none at all the student's tokens at the teacher's price. A node costs
its hours from its first answer on, busy or not, shared out to routes by the seconds that they kept it busy.
"""

import datetime
import functools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from router.policy import DEFAULT, Policy, Price
from router.records import Answer, Record

DAY = 86400.0
Basis = Literal["audited", "route mean", "student tokens"]


@dataclass(frozen=True, slots=True)
class Day:
    """One route on one UTC day. US dollars; None where a price is missing."""

    route: str
    day: str
    requests: int
    by_student: int
    baseline_usd: float | None
    teacher_usd: float | None
    """Replies of the teacher, fallbacks among them."""
    copies_usd: float | None
    """Copies that nobody waits for, of both."""
    student_tokens_usd: float | None
    node_usd: float | None
    spent_usd: float | None
    saved_usd: float | None


@dataclass(frozen=True, slots=True)
class RouteSavings:
    """One route over the window.

    Attributes:
        saved_per_request_usd: of a request that the student answers, its audits paid, its node not.
        node_usd_a_day: of the whole node, as if this route had it alone.
        break_even_a_day: requests that the student must answer a day before its node pays; None where there is no node by
            the hour, a price is missing, or it never pays (`why_not` says which).
        by_student_a_day: what it answers now.
        basis: where the teacher's cost of the student's requests comes from, in requests.
    """

    route: str
    days: float
    requests: int
    by_student: int
    baseline_usd: float | None
    spent_usd: float | None
    saved_usd: float | None
    saved_per_request_usd: float | None
    node_usd_a_day: float | None
    break_even_a_day: float | None
    by_student_a_day: float
    why_not: str | None
    basis: dict[str, int]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Savings:
    """All routes, each with its days."""

    routes: tuple[RouteSavings, ...]
    days: tuple[Day, ...]
    notes: tuple[str, ...]


@dataclass(slots=True)
class _Counts:
    """One route on one day, as it is read."""

    requests: int = 0
    by_student: int = 0
    teacher_replies: float = 0.0
    copies: float = 0.0
    audits: float = 0.0
    student_replies: float = 0.0
    audited: float = 0.0
    """The teacher's cost of student-answered requests that it was asked too."""
    num_audited: int = 0
    unaudited_tokens: float = 0.0
    """The other ones' student tokens, at the teacher's price."""
    teacher_answers: int = 0
    teacher_total: float = 0.0
    busy: dict[str, float] = field(default_factory=lambda: defaultdict(float))


def cost_of(answer: Answer, price: Price) -> float:
    """What was logged; where the price came later, the tokens at it."""
    if answer.cost_usd > 0:
        return answer.cost_usd
    usage = answer.usage
    return (usage.prompt_tokens * price.input + usage.completion_tokens * price.output) / 1e6


def day_of(at: float) -> str:
    """The UTC day of an epoch time, such as 2026-11-24."""
    return _day_name(int(at // DAY))


@functools.lru_cache(maxsize=1024)
def _day_name(number: int) -> str:
    return datetime.datetime.fromtimestamp(number * DAY, datetime.UTC).date().isoformat()


def has_token_price(price: Price) -> bool:
    """Whether tokens have a price, 0 included when the policy says so."""
    return bool({"input", "output"} & price.model_fields_set)


class Ledger:
    """Reads records one by one; `close` gives the balance."""

    def __init__(self, policy: Policy, nodes: float = 1.0) -> None:
        """`nodes`: how many nodes each student backend runs."""
        self._policy = policy
        self._nodes = nodes
        self._days: dict[tuple[str, str], _Counts] = defaultdict(_Counts)
        self._first: dict[str, float] = {}
        self._first_at: float | None = None
        self._gone: set[str] = set()
        self._without_usage: dict[str, int] = defaultdict(int)

    def add(self, record: Record) -> None:
        """Count one record."""
        self._first_at = record.at if self._first_at is None else self._first_at
        counts = self._days[record.route, day_of(record.at)]
        counts.requests += 1
        counts.by_student += record.served_by == "student"
        teacher_price = self._teacher_price(record.route)
        for answer in record.answers:
            self._count(counts, record, answer)
        if record.served_by != "student":
            return
        teacher = record.answer_of("teacher")
        if teacher is not None:
            counts.num_audited += 1
            counts.audited += cost_of(teacher, self._price(teacher.backend))
        elif record.reply is not None:
            usage = record.reply.usage
            counts.unaudited_tokens += (
                usage.prompt_tokens * teacher_price.input
                + usage.completion_tokens * teacher_price.output
            ) / 1e6

    def _count(self, counts: _Counts, record: Record, answer: Answer) -> None:
        price = self._price(answer.backend)
        usd = cost_of(answer, price)
        if answer.ok and not answer.usage.prompt_tokens and answer.cost_usd == 0:
            self._without_usage[answer.backend] += 1
        if answer.purpose != "reply":
            counts.copies += usd
            counts.audits += usd if answer.purpose == "audit" else 0.0
        elif answer.role == "teacher":
            counts.teacher_replies += usd
        else:
            counts.student_replies += usd
        if answer.role == "teacher" and answer.ok and answer.purpose != "noise":
            counts.teacher_answers += 1
            counts.teacher_total += usd
        if answer.role == "student":
            counts.busy[answer.backend] += answer.latency_seconds
            self._first.setdefault(answer.backend, record.at)

    def _price(self, backend: str) -> Price:
        found = self._policy.backends.get(backend)
        if found is None:
            self._gone.add(backend)
            return Price()
        return found.price

    def _teacher_price(self, route: str) -> Price:
        return self._policy.backends[self._teacher(route)].price

    def _teacher(self, route: str) -> str:
        spec = self._policy.routes.get(route)
        return spec.teacher.backend if spec else self._policy.default.teacher.backend

    def _student(self, route: str) -> str | None:
        spec = self._policy.routes.get(route)
        return spec.student.backend if spec and spec.student else None

    def _missing(self, route: str) -> tuple[str, ...]:
        """Backends of a route that lack a price, in words."""
        found = []
        teacher, student = self._teacher(route), self._student(route)
        if not has_token_price(self._policy.backends[teacher].price):
            found.append(f"backend {teacher} (teacher) has no token price")
        if student is not None:
            price = self._policy.backends[student].price
            if not has_token_price(price) and "per_hour" not in price.model_fields_set:
                found.append(f"backend {student} (student) has neither per_hour nor a token price")
        return tuple(found)

    def close(self, now: float) -> Savings:
        """The balance at `now`, epoch seconds."""
        self._fill_idle_days(now)
        node = self._node_costs(now)
        means = self._teacher_means()
        routes = sorted({route for route, _ in self._days}, key=lambda r: (r == DEFAULT, r))
        days = [
            self._day(route, day, counts, node.get((route, day), 0.0), means[route])
            for (route, day), counts in sorted(self._days.items())
        ]
        length = max((now - self._first_at) / DAY, 1 / 24) if self._first_at is not None else 0.0
        notes = [
            f"backend {b} is not in the policy any more: logged costs are used"
            for b in sorted(self._gone)
        ]
        notes += [
            f"{n} answers of backend {b} report no tokens and count as free"
            for b, n in sorted(self._without_usage.items())
            if has_token_price(self._price(b))
        ]
        found = [
            self._route(r, [d for d in days if d.route == r], length, means[r]) for r in routes
        ]
        return Savings(tuple(found), tuple(days), tuple(notes))

    def _teacher_means(self) -> dict[str, float | None]:
        """The mean cost of a teacher answer, by route; None without one."""
        found: dict[str, float | None] = {}
        for route in {r for r, _ in self._days}:
            mine = [c for (r, _), c in self._days.items() if r == route]
            answers = sum(c.teacher_answers for c in mine)
            found[route] = sum(c.teacher_total for c in mine) / answers if answers else None
        return found

    def _fill_idle_days(self, now: float) -> None:
        """A day without traffic is a day too: the node runs on."""
        for (route, _), counts in list(self._days.items()):
            begun = [self._first[backend] for backend in counts.busy]
            at = min(begun, default=now)
            while at <= now:
                _ = self._days[route, day_of(at)]
                at += DAY
            if begun:
                _ = self._days[route, day_of(now)]

    def _node_costs(self, now: float) -> dict[tuple[str, str], float]:
        """What nodes that are paid by the hour cost, by route and day: by busy seconds of the day, or of all days."""
        found: dict[tuple[str, str], float] = defaultdict(float)
        for backend, first in self._first.items():
            rate = self._price(backend).per_hour * self._nodes
            overall: dict[str, float] = defaultdict(float)
            by_day: dict[str, dict[str, float]] = defaultdict(dict)
            for (route, day), counts in self._days.items():
                by_day[day][route] = counts.busy.get(backend, 0.0)
                overall[route] += counts.busy.get(backend, 0.0)
            for day, busy in by_day.items():
                start = datetime.datetime.fromisoformat(f"{day}T00:00:00+00:00").timestamp()
                hours = max(0.0, min(now, start + DAY) - max(first, start)) / 3600
                parts = busy if any(busy.values()) else {r: overall[r] for r in busy}
                total = sum(parts.values())
                for route, seconds in parts.items():
                    if total > 0:
                        found[route, day] += rate * hours * seconds / total
        return found

    def _day(self, route: str, day: str, counts: _Counts, node: float, mean: float | None) -> Day:
        missing = self._missing(route)
        without = counts.by_student - counts.num_audited
        estimated = mean * without if mean is not None else counts.unaudited_tokens
        has_student, student = bool(counts.busy), self._student(route)
        student_priced = student is None or not any(f"backend {student} " in m for m in missing)
        teacher_priced = not any("(teacher)" in m for m in missing)
        baseline = counts.teacher_replies + counts.audited + estimated if teacher_priced else None
        whole = teacher_priced and (student_priced or not has_student)
        spent = counts.teacher_replies + counts.copies + counts.student_replies + node
        return Day(
            route, day, counts.requests, counts.by_student, baseline,
            counts.teacher_replies if teacher_priced else None,
            counts.copies if whole else None,
            counts.student_replies if student_priced else None,
            node if student_priced else None,
            spent if whole else None,
            baseline - spent if whole and baseline is not None else None,
        )  # fmt: skip

    def _route(
        self, route: str, days: list[Day], length: float, mean: float | None
    ) -> RouteSavings:
        mine = [c for (r, _), c in self._days.items() if r == route]
        by_student = sum(c.by_student for c in mine)
        audited = sum(c.num_audited for c in mine)
        missing = self._missing(route)
        gain = None if missing else self._gain(mine, by_student, audited, mean)
        student = self._student(route)
        per_day = self._price(student).per_hour * 24 * self._nodes if student else 0.0
        why_not, break_even = self._break_even(route, gain, per_day, missing)
        rest: Basis = "route mean" if mean is not None else "student tokens"
        basis = {"audited": audited, rest: by_student - audited}
        return RouteSavings(
            route, length, sum(c.requests for c in mine), by_student,
            _sum(d.baseline_usd for d in days), _sum(d.spent_usd for d in days),
            _sum(d.saved_usd for d in days), gain, per_day or None, break_even,
            by_student / length if length else 0.0, why_not,
            {name: n for name, n in basis.items() if n}, missing,
        )  # fmt: skip

    @staticmethod
    def _gain(
        mine: list[_Counts], by_student: int, audited: int, mean: float | None
    ) -> float | None:
        """What one request that the student answers saves in tokens; None when nothing says what the teacher costs."""
        if not by_student:
            return mean
        rest = by_student - audited
        unaudited = sum(c.unaudited_tokens for c in mine)
        instead = sum(c.audited for c in mine) + (mean * rest if mean is not None else unaudited)
        paid = sum(c.student_replies + c.audits for c in mine)
        return (instead - paid) / by_student

    def _break_even(
        self, route: str, gain: float | None, per_day: float, missing: tuple[str, ...]
    ) -> tuple[str | None, float | None]:
        if self._student(route) is None:
            return "no student", None
        if missing:
            return "; ".join(missing), None
        if gain is None:
            return "no answer tells what the teacher costs", None
        if gain <= 0:
            return (
                "a request that the student answers saves nothing: audits and tokens cost as much",
                None,
            )
        if per_day == 0:
            return "no node by the hour: every request pays", None
        return None, per_day / gain


def _sum(values: Iterable[float | None]) -> float | None:
    """The sum; None when any is."""
    found = list(values)
    return None if any(v is None for v in found) else sum(v for v in found if v is not None)
