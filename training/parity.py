"""Whether a running server answers as training did: the same prompt ids, the same greedy answer, and not the base model's.

The rendered prompt is sent as the router sends it. What differs silently otherwise: a server that puts a
begin-of-sequence token before the prompt, cuts it, lays a chat template around it, or serves no adapter at all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import httpx

from router.prompt import render
from training.dataset import Example
from training.encode import encode_prompt
from training.errors import ConfigError, DataError
from training.gates import Gate, outcome
from training.predict import ModelPredictor

Dialect = Literal["lorax", "openai"]
DIALECTS: tuple[Dialect, ...] = get_args(Dialect)


def dialect(said: str) -> Dialect:
    """A policy's word for how the server speaks.

    Raises:
        ConfigError: there is no such dialect.
    """
    found = next((one for one in DIALECTS if one == said), None)
    if found is None:
        raise ConfigError(f"--kind {said!r}: allowed: {', '.join(DIALECTS)}")
    return found


@dataclass(frozen=True, slots=True)
class Expected:
    """One row as training has it."""

    id: str
    prompt: str
    prompt_ids: tuple[int, ...]
    answer: str
    base_answer: str


@dataclass(frozen=True, slots=True)
class Served:
    """One row as the server has it; `prompt_ids` is None where it does not tell them."""

    answer: str
    prompt_ids: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Parity:
    """All rows together; counts of rows, but `prefix_share`."""

    rows: int
    prompts_told: int
    """Rows whose prompt ids the server told."""
    prompts_equal: int
    answers_equal: int
    prefix_share: float
    """Mean share of training's answer that the server's begins with, in characters (0-1)."""
    base_differs: int
    """Rows on which training's answer is not the base model's: only they tell an adapter from none."""
    same_as_base: int
    """Of those, rows on which the server gave the base model's answer."""
    first_difference: str | None

    def gates(self, limits: "Limits") -> list[Gate]:
        """Three lines: the prompts, the answers, and that an adapter is served."""
        unequal = self.prompts_told - self.prompts_equal
        prompts = f"prompt ids equal in {self.prompts_equal} of {self.prompts_told} rows"
        if unequal:
            prompts = (
                f"prompt ids differ in {unequal} of {self.prompts_told} rows: the server adds, cuts or wraps something that "
                "training did not"
            )
        answers = f"{self.answers_equal} of {self.rows} answers are equal, mean prefix {self.prefix_share:.2f}"
        is_equal = self.answers_equal / self.rows >= limits.equal
        is_prefix = self.prefix_share >= limits.prefix
        needed = f"{limits.equal:.0%} are needed, and a mean prefix of {limits.prefix:.2f}"
        if not (is_equal and is_prefix):
            answers = f"{self.answers_equal} of {self.rows} answers are equal, {needed}; mean prefix {self.prefix_share:.2f}; {self.first_difference}"
        base = f"{self.same_as_base} of {self.base_differs} answers that the adapter changes are the base model's"
        is_base = bool(self.base_differs) and self.same_as_base == self.base_differs
        if is_base:
            base = f"all {self.base_differs} answers that the adapter changes are the base model's: the adapter is not served"
        told = outcome(not unequal) if self.prompts_told else "not measured"
        told_figure = prompts if self.prompts_told else "the server does not tell its prompt ids"
        served = outcome(not is_base) if self.base_differs else "not measured"
        return [
            Gate("parity: prompt ids", told, told_figure, "all rows", "always"),
            Gate("parity: greedy answers", outcome(is_equal and is_prefix), answers, needed, "always"),
            Gate("parity: not the base model", served, base, "fewer than all", "always"),
        ]  # fmt: skip

    def wrong(self, limits: "Limits") -> list[str]:
        """What does not hold, each in a sentence; [] when training and serving agree."""
        return [gate.figure for gate in self.gates(limits) if gate.state == "failed"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What must hold; below 1 because another precision may turn a close call."""

    equal: float = 0.9
    """Share of answers that must be equal."""
    prefix: float = 0.9
    """Mean share of training's answer that the server's must begin with."""


@dataclass(frozen=True, slots=True)
class Target:
    """A running server and what it calls the adapter."""

    url: str
    """Without /v1."""
    adapter: str
    dialect: Dialect = "lorax"
    adapter_source: str | None = None
    """LoRAX's: `local`, `s3`, `hub`; None leaves it to the server."""
    timeout_seconds: float = 60


def expected(
    examples: Sequence[Example], student: ModelPredictor, base_answers: Sequence[str]
) -> list[Expected]:
    """What training's own code makes of these rows, greedy."""
    found = student.predict(examples)
    rows = []
    for example, prediction, base in zip(examples, found, base_answers, strict=True):
        text, _ = render(student.template, example.messages, student.max_input_chars, example.tools)
        ids, _ = encode_prompt(
            example.messages,
            student.tokenizer,
            student.template,
            student.max_input_chars,
            example.tools,
        )
        rows.append(Expected(example.id, text, ids, prediction.text, base))
    return rows


def through(
    target: Target, wanted: Sequence[Expected], max_new_tokens: int, tell: Callable[[int], None]
) -> Parity:
    """Ask a running server for every row; `tell` hears how many are done.

    Raises:
        DataError: it cannot be reached, refuses, or answers in another form.
    """
    served = []
    url = target.url.rstrip("/") + "/"
    with httpx.Client(base_url=url, timeout=target.timeout_seconds, trust_env=False) as client:
        for row in wanted:
            served.append(ask(client, target, row.prompt, max_new_tokens))
            tell(len(served))
    return compare(wanted, served)


def ask(client: httpx.Client, target: Target, prompt: str, max_new_tokens: int) -> Served:
    """The server's greedy answer to a rendered prompt.

    Raises:
        DataError: it cannot be reached, refuses, or answers in another form.
    """
    try:
        if target.dialect == "lorax":
            return _lorax(client, target, prompt, max_new_tokens)
        return _openai(client, target.adapter, prompt, max_new_tokens)
    except httpx.HTTPStatusError as why:
        raise DataError(
            f"{why.request.url}: {why.response.status_code} {why.response.text[:300]}"
        ) from why
    except httpx.HTTPError as why:
        raise DataError(f"{client.base_url}: {why}") from why
    except (KeyError, IndexError, TypeError, ValueError) as why:
        raise DataError(
            f"{client.base_url}: not an answer in the form of {target.dialect}: {why!r}"
        ) from why


def _lorax(client: httpx.Client, target: Target, prompt: str, limit: int) -> Served:
    parameters = {"adapter_id": target.adapter, "max_new_tokens": limit, "decoder_input_details": True, "details": True}  # fmt: skip
    if target.adapter_source is not None:
        parameters["adapter_source"] = target.adapter_source
    reply = _posted(client, "generate", {"inputs": prompt, "parameters": parameters})
    ids = tuple(int(token["id"]) for token in reply["details"]["prefill"])
    return Served(str(reply["generated_text"]).strip(), ids or None)


def _openai(client: httpx.Client, adapter: str, prompt: str, limit: int) -> Served:
    body = {"model": adapter, "prompt": prompt, "max_tokens": limit, "temperature": 0}
    reply = _posted(client, "v1/completions", body)
    return Served(str(reply["choices"][0]["text"]).strip(), _tokenized(client, adapter, prompt))


def _tokenized(client: httpx.Client, adapter: str, prompt: str) -> tuple[int, ...] | None:
    """What vLLM's `/tokenize` makes of the prompt; None where there is no such route."""
    reply = client.post("tokenize", json={"model": adapter, "prompt": prompt})
    if reply.status_code != 200:
        return None
    found = reply.json()
    return tuple(found["tokens"]) if isinstance(found, dict) else None


def _posted(client: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    reply = client.post(path, json=body)
    reply.raise_for_status()
    return reply.json()


def compare(rows: Sequence[Expected], served: Sequence[Served]) -> Parity:
    """Training's rows beside the server's."""
    told = [(r, s) for r, s in zip(rows, served, strict=True) if s.prompt_ids is not None]
    differing = [(r, s) for r, s in zip(rows, served, strict=True) if r.answer != s.answer]
    changed = [(r, s) for r, s in zip(rows, served, strict=True) if r.answer != r.base_answer]
    first = None
    if differing:
        row, reply = differing[0]
        first = f"row {row.id}: trained {row.answer[:80]!r}, served {reply.answer[:80]!r}"
    shares = [_prefix(r.answer, s.answer) for r, s in zip(rows, served, strict=True)]
    return Parity(
        rows=len(rows),
        prompts_told=len(told),
        prompts_equal=sum(r.prompt_ids == s.prompt_ids for r, s in told),
        answers_equal=len(rows) - len(differing),
        prefix_share=sum(shares) / len(shares),
        base_differs=len(changed),
        same_as_base=sum(s.answer == r.base_answer for r, s in changed),
        first_difference=first,
    )


def _prefix(wanted: str, found: str) -> float:
    same = 0
    for one, other in zip(wanted, found, strict=False):
        if one != other:
            break
        same += 1
    return same / len(wanted) if wanted else float(wanted == found)
