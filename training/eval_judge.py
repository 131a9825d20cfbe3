"""What an LLM says of the student's answers: each by a rubric, and beside the teacher's in both orders. Pure.

A judge prefers a place, length and its own kin. So a pair is won only when both orders say so, and how often they do is a
figure; the win rate is given at equal length too; a judge of the teacher's or the student's family is named as one. It may gate only
when enough of people's labels say that it judges as they do. The pairs' prompt and what two orders come to are the monitor's.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from monitoring.judge import INSTRUCTION as PAIR_INSTRUCTION
from monitoring.judge import Judged, Said, messages, said_of, settled
from monitoring.text_pairs import TextPair
from router.answer_spec import AnswerSpec
from router.policy import Price
from training.eval_judge_figures import (
    MIN_ROWS,
    Agreement,
    LengthControl,
    Pairwise,
    Pointwise,
    agreement,
    length_control,
    pairwise,
    pointwise,
)
from training.label import Job, Teacher
from training.label_cache import Reply, request_hash

RUBRIC = (
    "5: right, complete and to the point; a specialist would send it as it is.\n"
    "4: right; something small is missing or too much.\n"
    "3: usable after an edit: partly right, or incomplete.\n"
    "2: mostly wrong or beside the point.\n"
    "1: wrong, harmful or no answer."
)
INSTRUCTION = (
    "Grade an assistant's answer to a request from 1 to 5 by this rubric. Judge what is right and complete, not style or length."
    "\n\n{rubric}\n\n"
    'Answer with one JSON object and nothing else: {"reason": "one short sentence", "score": N}.'
)
FORM = AnswerSpec(kind="label", labels=("A", "B", "tie", "1", "2", "3", "4", "5"))
"""What a verdict is once it is found in a reply."""
FOUND_BY = r'(?i)"?(?:better|score)"?\s*[:=]\s*"?(A|B|tie|[1-5])\b'
MAX_TOKENS = 200
_SCORE = re.compile(r'"?score"?\s*[:=]\s*"?([1-5])(?:\.0+)?\b(?!\.\d)', re.IGNORECASE)
Kind = Literal["student first", "teacher first", "student", "teacher"]
"""A pair in one of two orders, or one answer alone."""
LEAST_LABELS, LEAST_KAPPA, LEAST_CONSISTENCY = 50, 0.6, 0.8
"""Below these a judge may not gate. Kappa from 0.6 on is "substantial" (Landis and Koch 1977)."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One question to the judge."""

    pair: TextPair
    kind: Kind
    job: Job


@dataclass(frozen=True, slots=True)
class Human:
    """A person's word on a pair."""

    is_worse: bool
    """The student's answer is."""
    score: float | None = None
    """Of the student's answer, 1-5."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What a judge said of one pair; None where no reply can be read."""

    pair: TextPair
    student_first: Said | None
    teacher_first: Said | None
    student_score: int | None
    teacher_score: int | None

    @property
    def judged(self) -> Judged:
        """Both orders as one; equal texts are a tie that nobody was asked about."""
        if is_equal(self.pair):
            return Judged(self.pair, "tie")
        return settled(self.pair, self.student_first, self.teacher_first)


@dataclass(frozen=True, slots=True)
class JudgeReport:
    """One judge on rows of a test set."""

    model: str
    answered_by: tuple[str, ...]
    """Model names in its replies: more than one, or another than was asked for, is no pinned judge."""
    instructions: str
    """Digest of what it was told, 16 hex digits: figures of other instructions are of another series."""
    rows: int
    unread: int
    """Questions without a reply that can be read."""
    pairwise: Pairwise
    pointwise: Pointwise
    length: LengthControl
    human_labels: Mapping[str, int]
    """Where people's labels come from, and how many pairs of each the judge said something of."""
    agreement: Agreement | None
    """With people; None without a label."""
    may_gate: bool
    why: str
    warnings: tuple[str, ...] = ()
    usd: float = 0.0
    """What its replies cost, those that were paid for before included."""
    kappa_with_first: float | None = None
    """Of a second judge: agreement with the first one on who is worse."""


def is_equal(pair: TextPair) -> bool:
    """Whether there is nothing to choose between the answers."""
    return pair.student.strip() == pair.teacher.strip()


def asks(
    pairs: Iterable[TextPair], url: str, model: str, price: Price, rubric: str = RUBRIC
) -> list[Ask]:
    """Every question about these pairs: both orders unless the answers are equal, and each answer by the rubric."""
    judge = Teacher(url, model, price, max_tokens=MAX_TOKENS, extract=FOUND_BY)
    found = []
    for number, pair in enumerate(pairs):
        chats: dict[Kind, list[dict[str, str]]] = {}
        if not is_equal(pair):
            chats["student first"] = messages(pair, student_first=True)
            chats["teacher first"] = messages(pair, student_first=False)
        chats["student"] = graded(pair.text, pair.student, rubric)
        chats["teacher"] = graded(pair.text, pair.teacher, rubric)
        for kind, chat in chats.items():
            body = {"model": model, "messages": chat, "temperature": 0, "max_tokens": MAX_TOKENS}
            found.append(Ask(pair, kind, Job(number, judge, body, request_hash(url, body))))
    return found


def graded(text: str, answer: str, rubric: str) -> list[dict[str, str]]:
    """The chat that asks for one answer's score."""
    system = INSTRUCTION.replace("{rubric}", rubric.strip())
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": f"Request:\n{text}\n\nAnswer:\n{answer}"},
    ]


def instructions_digest(rubric: str) -> str:
    """What identifies the judge's instructions, pair and score."""
    return hashlib.sha256(
        "\0".join([PAIR_INSTRUCTION, INSTRUCTION, rubric.strip()]).encode()
    ).hexdigest()[:16]


def score_of(text: str) -> int | None:
    """The score in a reply; None when there is none from 1 to 5."""
    try:
        value = json.loads(text)
        number = value["score"] if isinstance(value, dict) else value
        if isinstance(number, bool):
            return None
        return int(float(number)) if float(number) in (1, 2, 3, 4, 5) else None
    except (ValueError, KeyError, TypeError, OverflowError):
        found = _SCORE.findall(text)
        return int(found[-1]) if found else None


def verdicts(asked: Sequence[Ask], replies: Mapping[str, Reply]) -> list[Verdicts]:
    """What was said, pair by pair, in the pairs' order.

    Args:
        replies: by the request's hash; a missing one was not answered.
    """
    texts: dict[str, dict[Kind, str]] = {}
    pairs: dict[str, TextPair] = {}
    for ask in asked:
        pairs[ask.pair.id] = ask.pair
        said = texts.setdefault(ask.pair.id, {})
        if ask.job.hash in replies:
            said[ask.kind] = replies[ask.job.hash].text
    return [
        Verdicts(
            pair,
            _read(said_of, texts[name], "student first"),
            _read(said_of, texts[name], "teacher first"),
            _read(score_of, texts[name], "student"),
            _read(score_of, texts[name], "teacher"),
        )
        for name, pair in pairs.items()
    ]


def _read(reader: Any, texts: Mapping[Kind, str], kind: Kind) -> Any:
    return reader(texts[kind]) if kind in texts else None


def report(
    model: str,
    rows: Sequence[Verdicts],
    replies: Mapping[str, Reply],
    human: Mapping[str, Mapping[str, Human]],
    labelled: Sequence[Verdicts] = (),
    others: Sequence[tuple[str, str]] = (),
    rubric: str = RUBRIC,
) -> JudgeReport:
    """All figures of one judge.

    Args:
        rows: its verdicts on the test set.
        human: where labels come from → pair id → a person's word; ids of `rows` or of `labelled`.
        labelled: its verdicts on pairs that people judged elsewhere.
        others: (whose, model name) of teacher and student, for kinship.
    """
    told = [v for v in rows if v.judged.winner is not None]
    # Equal answers were not asked about: that nobody calls one worse is no agreement.
    said = {
        v.pair.id: v
        for v in [*labelled, *rows]
        if v.judged.winner is not None and not is_equal(v.pair)
    }
    words = {source: {n: h for n, h in labels.items() if n in said} for source, labels in human.items()}  # fmt: skip
    known = {name: word for labels in words.values() for name, word in labels.items()}
    asked = [(v.judged, v.student_first, v.teacher_first) for v in told if not is_equal(v.pair)]
    found = JudgeReport(
        model=model,
        answered_by=tuple(dict.fromkeys(r.model for r in replies.values() if r.model)),
        instructions=instructions_digest(rubric),
        rows=len(rows),
        unread=_unread([*labelled, *rows]),
        pairwise=pairwise(asked, len(told) - len(asked)),
        pointwise=pointwise([(v.student_score, v.teacher_score) for v in rows]),
        length=length_control(
            [(v.judged, v.student_score, v.teacher_score) for v in rows]
        ),
        human_labels={source: len(labels) for source, labels in words.items()},
        agreement=agreement(
            {n: (said[n].judged.is_worse, w.is_worse) for n, w in known.items()},
            _scores([(said[n].student_score, w) for n, w in known.items()]),
        ) if known else None,
        may_gate=False,
        why="",
    )  # fmt: skip
    why_not = _why_not(found, len(known))
    return replace(
        found, may_gate=not why_not, warnings=tuple(_warnings(found, others)),
        why="; ".join(why_not) or "it judges as people do on enough of their labels, and the same in both orders",
    )  # fmt: skip


def _scores(both: Sequence[tuple[int | None, Human]]) -> list[tuple[int | None, float]]:
    """The judge's scores with people's where enough people gave one, else with their verdicts: never two scales at once."""
    scored = [(said, word.score) for said, word in both if word.score is not None]
    if len(scored) >= MIN_ROWS:
        return scored
    return [(said, float(not word.is_worse)) for said, word in both]


def _unread(rows: Sequence[Verdicts]) -> int:
    missing = sum((v.student_score is None) + (v.teacher_score is None) for v in rows)
    orders = [said for v in rows if not is_equal(v.pair) for said in (v.student_first, v.teacher_first)]  # fmt: skip
    return missing + sum(said is None for said in orders)


def _why_not(found: JudgeReport, labels: int) -> list[str]:
    """What keeps a judge from gating."""
    said = []
    if labels < LEAST_LABELS:
        said.append(f"{labels} of people's labels, {LEAST_LABELS} are needed")
    held = found.agreement
    if held is not None and not (held.caught.rows and held.false_alarms.rows):
        said.append(
            "people's labels are all alike: they cannot show that it tells worse answers from others"
        )
    elif held is not None and (held.kappa or 0.0) < LEAST_KAPPA:
        said.append(f"kappa with people is {held.kappa or 0.0:.2f}, {LEAST_KAPPA} is needed")
    consistent = found.pairwise.consistent
    if consistent.rows and consistent.share < LEAST_CONSISTENCY:
        said.append(f"both orders agree on {100 * consistent.share:.0f} % of the pairs, {100 * LEAST_CONSISTENCY:.0f} % are needed")  # fmt: skip
    return said


def _warnings(found: JudgeReport, others: Sequence[tuple[str, str]]) -> list[str]:
    said = [
        f"the judge {found.model} and the {whose} {name} are of one family ({family_of(name)}): judges favour their kin; ask a second judge"
        for whose, name in others
        if family_of(name) == family_of(found.model)
    ]  # fmt: skip
    first, consistent = found.pairwise.favours_first, found.pairwise.consistent
    if consistent.rows and consistent.share < LEAST_CONSISTENCY:
        place = "first" if first.share > 0.5 else "second"
        said.append(f"it favours a place: the orders disagree on {consistent.rows - consistent.right} of {consistent.rows} pairs, mostly for the {place} answer")  # fmt: skip
    if found.length.favours_length:
        said.append(f"its scores go with length: Spearman {found.length.correlation:+.2f} with an answer's words")  # fmt: skip
    if len(found.answered_by) > 1:
        said.append(f"several models answered as {found.model}: {', '.join(found.answered_by)}")
    if found.unread:
        said.append(f"{found.unread} questions have no verdict that can be read")
    return said


_FAMILIES = {
    "openai": ("gpt", "chatgpt", "o1", "o3", "o4", "davinci", "text-davinci"),
    "anthropic": ("claude",),
    "google": ("gemini", "gemma", "palm", "bison"),
    "meta": ("llama", "meta-llama", "codellama"),
    "mistral": ("mistral", "mixtral", "ministral", "codestral", "magistral", "devstral"),
    "alibaba": ("qwen", "qwq"),
    "deepseek": ("deepseek",),
    "microsoft": ("phi",),
    "cohere": ("command", "aya"),
    "smollm": ("smollm",),
}


def family_of(model: str) -> str:
    """The maker of a model, by its name without an owner's prefix; else the name's first word."""
    name = model.lower().rsplit("/", 1)[-1]
    for family, starts in _FAMILIES.items():
        if name.startswith(starts):
            return family
    found = re.match(r"[a-z]+", name)
    return found[0] if found else name
