"""What is asked of a teacher, what it will cost, and whether its answers have the route's form. Pure.

The asking itself is in `label_teacher`, answers already paid for in `label_cache`, comparing teachers in `label_grid`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from router import guard
from router.answer_spec import AnswerSpec, GuardRule
from router.compare import parse
from router.difficulty import estimated_tokens
from router.policy import Price
from router.prompt import render, text_of
from router.records import Answer
from router.tool_calls import openai_form, read
from training.build import Row
from training.curate.votes import tally
from training.errors import ConfigError, DataError
from training.form import misfit
from training.label_cache import Reply, request_hash
from training.tools import Tools

CHECKED_FIRST = 16
"""Answers that are asked and checked before the rest is paid."""
MESSAGE_TOKENS = 8
"""Tokens of a chat template around one message: an allowance, not a count."""

TOOLS_TOKENS = 512
"""Words that a chat template puts around tools, at most: an allowance; each tool counts with the most spaces that one writes."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """One way to ask: which model where, with which prompt and parameters."""

    url: str
    model: str
    price: Price
    system: str | None = None
    prompt: str | None = None
    """The user message, with `{input}`; None sends the row's messages as they are."""
    temperature: float | None = 0.0
    max_tokens: int = 256
    extra: Mapping[str, Any] = field(default_factory=dict)
    """More keys of the request body."""
    extract: str | None = None
    """A regular expression whose first group (or whole match) in the reply is the answer; the last match counts."""
    calls_tools: bool = False
    """Whether answers are tool calls: rows are then asked with their tools."""
    tools: Tools = ()
    """Of rows that bring none."""
    tool_choice: Any = None
    """Of rows that bring none."""

    def body(self, row: Row) -> dict[str, Any]:
        """The request for one row."""
        messages = [dict(m) for m in row.messages]
        if self.prompt is not None:
            said, _ = render(self.prompt, row.messages, None, row.tools or self.tools)
            messages = [m for m in messages if m["role"] in ("system", "developer")]
            messages.append({"role": "user", "content": said})
        if self.system is not None:
            messages = [m for m in messages if m["role"] not in ("system", "developer")]
            messages.insert(0, {"role": "system", "content": self.system})
        body: dict[str, Any] = {"model": self.model, "messages": messages}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if "max_completion_tokens" not in self.extra:
            body["max_tokens"] = self.max_tokens
        if self.calls_tools:
            body["tools"] = list(row.tools or self.tools)
            choice = row.tool_choice if row.tool_choice is not None else self.tool_choice
            if choice is not None:
                body["tool_choice"] = choice
        return body | dict(self.extra)

    def answer(self, reply: Reply) -> str:
        """The answer in a reply: all of it, or what `extract` finds last; "" when it finds nothing."""
        if self.extract is None:
            return reply.text
        found = list(re.finditer(self.extract, reply.text))
        if not found:
            return ""
        return found[-1][1] if found[-1].re.groups else found[-1][0]


@dataclass(frozen=True, slots=True)
class Job:
    """One request: which row it is for, and its place among several samples of one teacher."""

    row: int
    teacher: Teacher
    body: dict[str, Any]
    hash: str
    sample: int = 0


def jobs_of(rows: Sequence[Row], teachers: Sequence[Teacher], samples: int = 1) -> list[Job]:
    """Every row asked of every teacher `samples` times, row by row.

    Raises:
        ConfigError: several samples without a temperature would all be the same.
        DataError: answers are tool calls, and a row has no tools.
    """
    cold = next((t for t in teachers if t.temperature == 0), None)
    if samples > 1 and cold is not None:
        raise ConfigError(
            f"--samples {samples} with temperature 0: allowed: a temperature above 0, or one sample"
        )
    found = []
    for number, row in enumerate(rows):
        for teacher in teachers:
            body = teacher.body(row)
            if teacher.calls_tools and not body["tools"]:
                raise DataError(f"row {row.id}: tools: none: allowed: tools in the row, or --tools")
            found += [
                Job(number, teacher, body, request_hash(teacher.url, body, n), n)
                for n in range(samples)
            ]
    return found


# Costs, in US dollars


def prompt_tokens(body: Mapping[str, Any]) -> int:
    """Prompt tokens of a request, estimated at four characters each."""
    return sum(estimated_tokens(len(text)) + MESSAGE_TOKENS for text in _texts(body))


def most_prompt_tokens(body: Mapping[str, Any]) -> int:
    """What a prompt cannot exceed: byte-level tokenizers make no token of less than a byte."""
    tools = body.get("tools") or []
    shown = sum(len(json.dumps(tool, indent=4).encode()) + MESSAGE_TOKENS for tool in tools)
    said = sum(len(text.encode()) + MESSAGE_TOKENS for text in _texts({**body, "tools": []}))
    return said + (shown + TOOLS_TOKENS if tools else 0)


def _texts(body: Mapping[str, Any]) -> list[str]:
    """What a model reads of a request: messages with the calls in them, and tools."""
    texts = [text_of(m.get("content")) for m in body["messages"]]
    calls = [json.dumps(m["tool_calls"]) for m in body["messages"] if m.get("tool_calls")]
    return texts + calls + [json.dumps(tool) for tool in body.get("tools") or []]


def most_completion_tokens(job: Job) -> int:
    """What an answer cannot exceed."""
    return int(
        job.body.get("max_tokens", job.body.get("max_completion_tokens", job.teacher.max_tokens))
    )


def cost(price: Price, prompt: float, completion: float) -> float:
    """Dollars of so many tokens."""
    return (price.input * prompt + price.output * completion) / 1e6


def cost_of(job: Job, reply: Reply) -> float:
    """Dollars of one answer."""
    return cost(job.teacher.price, reply.prompt_tokens, reply.completion_tokens)


def most_cost(job: Job) -> float:
    """Dollars that one request cannot exceed: what the budget sets aside before it is sent."""
    return cost(job.teacher.price, most_prompt_tokens(job.body), most_completion_tokens(job))


@dataclass(frozen=True, slots=True)
class Estimate:
    """What asking will cost; requests that are the same count once. `likely_usd` takes answers as long as those that are known, the longest allowed without any."""

    num_requests: int
    num_cached: int
    prompt_tokens: int
    likely_usd: float
    most_usd: float


def estimate(
    jobs: Sequence[Job], cached: Mapping[str, Reply], known_answers: Sequence[str]
) -> Estimate:
    """The cost of the jobs that are not answered yet."""
    # Equal requests are asked once.
    unique = list({job.hash: job for job in jobs}.values())
    open_jobs = [job for job in unique if job.hash not in cached]
    lengths = [r.completion_tokens for r in cached.values()]
    lengths = lengths or [estimated_tokens(len(text)) for text in known_answers]
    mean = sum(lengths) / len(lengths) if lengths else None
    prompts = [prompt_tokens(job.body) for job in open_jobs]
    likely = sum(
        cost(job.teacher.price, p, most_completion_tokens(job) if mean is None else mean)
        for job, p in zip(open_jobs, prompts, strict=True)
    )
    return Estimate(
        len(unique),
        len(unique) - len(open_jobs),
        sum(prompts),
        likely,
        sum(map(most_cost, open_jobs)),
    )


# Form


def problem(
    spec: AnswerSpec, text: str, finish_reason: str, tools: Sequence[dict[str, Any]] = ()
) -> str | None:
    """What is wrong with the form of an answer; None when nothing is.

    Args:
        tools: those that it may call.
    """
    form: dict[str, tuple[str, ...]] = {"label": ("label",), "json": ("schema",)}
    # To call no tool and say so is an answer where tools may be called.
    words = () if spec.kind == "tool_call" else ("not_refusal",)
    names = ("not_empty", "not_truncated", *form.get(spec.kind, ()), *words)
    said = Answer(
        role="teacher", backend="", model="", status=200, text=text, finish_reason=finish_reason
    )
    checks = tuple(GuardRule(rule=name) for name in names)
    verdict = guard.check(spec, checks, said)
    if not verdict.ok:
        return f"{verdict.rule}: {verdict.detail}"
    if spec.kind == "tool_call":
        return misfit(spec, text, tools)
    return None if parse(spec, text) is not None else "the compared fields are missing"


def _problem(spec: AnswerSpec, job: Job, reply: Reply) -> str | None:
    tools = job.body.get("tools") or ()
    return problem(spec, job.teacher.answer(reply), reply.finish_reason, tools)


def first_jobs(jobs: Sequence[Job], count: int = CHECKED_FIRST) -> list[Job]:
    """The jobs that are asked first: spread evenly over all, so that the check sees more than the file's beginning."""
    if len(jobs) <= count:
        return list(jobs)
    return [jobs[i * len(jobs) // count] for i in range(count)]


def check_first(
    spec: AnswerSpec,
    answers: Sequence[tuple[Job, Reply]],
    min_share: float,
    failures: Sequence[str],
) -> None:
    """Nothing, when enough of the first answers have the route's form.

    Raises:
        DataError: they have not; with the problems and three answers as they came.
    """
    wrong = [
        (job, reply, why)
        for job, reply in answers
        if (why := _problem(spec, job, reply)) is not None
    ]
    asked = len(answers) + len(failures)
    fine = len(answers) - len(wrong)
    if asked and fine / asked >= min_share:
        return
    shown = [f"  {why}: {reply.text[:160]!r}" for _, reply, why in wrong[:3]]
    shown += [f"  no answer: {why}" for why in failures[:3]]
    raise DataError(
        f"of the first {asked} answers {fine} have the form of the answer spec; allowed: at least {min_share:.0%} "
        f"(--min-first). Nothing more was asked.\n" + "\n".join(shown)
    )


# Results


@dataclass(frozen=True, slots=True)
class Labelled:
    """One row with its answers, in order of teachers and samples. `answer` is the majority's, or the first when none."""

    row: Row
    answers: tuple[str, ...]
    answer: str
    agreement: float
    entropy_bits: float
    problem: str | None
    finish_reason: str
    model: str
    tools: Tools = ()
    """Those that the teacher was asked with."""

    def as_line(self) -> dict[str, Any]:
        """A line that `train build --file` and `curate`'s votes read; calls are in OpenAI's form, with the tools beside them."""
        calls = read(self.answer) if self.tools else None
        line: dict[str, Any] = {
            "id": self.row.id, "messages": list(self.row.messages), "teacher": openai_form(calls) if calls else self.answer,
            "teacher_model": self.model, "finish_reason": self.finish_reason,
        }  # fmt: skip
        if self.tools:
            line["tools"] = list(self.tools)
            if self.row.tool_choice is not None:
                line["tool_choice"] = self.row.tool_choice
        if self.row.gold is not None:
            line["gold"] = self.row.gold
        if self.problem is not None:
            line["problem"] = self.problem
        if len(self.answers) > 1:
            line |= {
                "votes": list(self.answers), "agreement": round(self.agreement, 4),
                "entropy_bits": round(self.entropy_bits, 4),
            }  # fmt: skip
        return line


def labelled(
    rows: Sequence[Row], answers: Sequence[tuple[Job, Reply]], spec: AnswerSpec
) -> list[Labelled]:
    """Rows with at least one answer, in the rows' order."""
    by_row: dict[int, list[tuple[Job, Reply]]] = {}
    for job, reply in answers:
        by_row.setdefault(job.row, []).append((job, reply))
    found = []
    for number in sorted(by_row):
        pairs = by_row[number]
        texts = tuple(job.teacher.answer(reply) for job, reply in pairs)
        votes = tally(spec, texts)
        chosen = texts.index(votes.answer) if votes.answer is not None else 0
        finish = pairs[chosen][1].finish_reason
        models = dict.fromkeys(reply.model or job.teacher.model for job, reply in pairs)
        found.append(
            Labelled(
                rows[number], texts, texts[chosen], votes.agreement, votes.entropy_bits,
                _problem(spec, *pairs[chosen]), finish, "+".join(models), tuple(pairs[chosen][0].body.get("tools") or ()),
            )
        )  # fmt: skip
    return found
