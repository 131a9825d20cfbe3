"""The walk-through's tasks: their rows, their route in the policy, and which rows are asked when.

`tickets` ships with the project. `jigsaw` is the playbook's own data, read from a folder that the user has: comments,
gold labels, and GPT-4's recorded answers as the teacher.
"""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Row:
    """One input with the teacher's recorded answer and the gold one."""

    id: str
    text: str
    teacher: str
    gold: str


@dataclass(frozen=True, slots=True)
class Task:
    """A task and its rows, by what they are used for: teacher traffic, frozen test, live traffic, shifted traffic."""

    name: str
    system: str
    answer: dict[str, Any]
    prompt: str
    max_input_chars: int
    traffic: list[Row]
    test: list[Row]
    live: list[Row]
    shifted: list[Row]
    shift: str
    """What the shifted rows are."""
    set_: tuple[str, ...] = ()
    """`--set` of `graduate train fit`, where the defaults are not right for the task."""
    hand_over: float | None = None
    """Share that the hybrid is planned to hand to the teacher; None lets validation rows decide."""


INTENTS = (
    "billing_question", "refund_request", "cancel_subscription", "account_access", "bug_report", "how_to",
    "feature_request", "integration_help",
)  # fmt: skip
URGENCIES = ("low", "normal", "high")


def tickets() -> Task:
    """Support tickets of an imaginary invoicing app: intent (8 classes) and urgency as JSON."""
    rows = list(_json_rows(HERE / "tickets" / "tickets.jsonl"))
    shifted = list(_json_rows(HERE / "tickets" / "shifted.jsonl"))
    fields = {"intent": {"enum": list(INTENTS)}, "urgency": {"enum": list(URGENCIES)}}
    return Task(
        name="tickets",
        system=(
            "You sort support tickets of an invoicing app. Reply with JSON only: "
            '{"intent": one of ' + ", ".join(INTENTS) + ', "urgency": low, normal or high}. '
            "The intent is what the sender wants done first; the urgency follows from the situation, not from the tone."
        ),
        answer={
            "kind": "json",
            "schema": {"type": "object", "required": list(fields), "properties": fields},
            "compare": {"fields": list(fields)},
        },
        prompt="Ticket: {input}\nAnswer:",
        max_input_chars=600,
        traffic=rows[:500],
        test=rows[500:680],
        live=rows[680:],
        shifted=shifted,
        shift="tickets about another product line, point-of-sale hardware",
    )


def _json_rows(path: Path) -> Iterator[Row]:
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield Row(row["id"], row["text"], row["teacher"], json.dumps(row["gold"]))


def jigsaw(folder: Path) -> Task:
    """Toxic comments: GPT-4's recorded answers as the teacher, people's labels as gold.

    Raises:
        FileNotFoundError: the folder does not hold the playbook's files.
    """
    gpt4 = "gpt-4-1106-preview"
    train = folder / f"train.5k.{gpt4}" / f"train.5k.{gpt4}.with_labels.csv"
    test = folder / f"test.balanced.{gpt4}" / f"test.balanced.{gpt4}.with_labels.csv"
    live = folder / f"test.indist.1.{gpt4}" / f"test.indist.1.{gpt4}.with_labels.csv"
    asked = list(_comments(train))
    toxic = [row for row in asked[1500:] if row.gold == '{"is_bad":1}']
    return Task(
        name="toxicity",
        system='Is the comment toxic? Reply with JSON only: {"is_bad": 1} or {"is_bad": 0}.',
        answer={
            "kind": "json",
            "schema": {
                "type": "object", "required": ["is_bad"], "properties": {"is_bad": {"enum": [0, 1]}},
            },
            "compare": {"fields": ["is_bad"]},
        },
        prompt="Comment: {input}\nToxic:",
        max_input_chars=400,
        traffic=asked[:1000],
        test=list(_comments(test)),
        live=list(_comments(live))[:120],
        shifted=toxic[:90],
        shift="a brigade: nothing but toxic comments",
        # What the study chose on this data (docs/results/jigsaw-recipe.md). The test is half toxic, the traffic is not;
        # long comments are cut on purpose: their beginning decides.
        set_=(
            "epochs=4", "optimizer.learning_rate=1e-3", "average_share=0.3", "target_mix.0=0.5", "target_mix.1=0.5",
            "max_cut_share=0.5",
        ),
        hand_over=0.25,
    )  # fmt: skip


def _comments(path: Path) -> Iterator[Row]:
    """Rows of a labelled file; GPT-4's text is mostly fenced JSON, read by a pattern because much of it is not valid."""
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found = re.search(r'"is_bad"\s*:\s*"?([01])', row["simple_prompt"])
            if found and row["comment_text"].strip():
                answer, gold = (
                    f'{{"is_bad": {found[1]}}}',
                    f'{{"is_bad":{int(row["is_bad"] in ("True", "1", "1.0"))}}}',
                )
                yield Row(row["id"], row["comment_text"], answer, gold)


def find_jigsaw(given: Path | None) -> Path:
    """The folder with the playbook's data: the one given, or `data/jigsaw` here or in a folder beside the project.

    Raises:
        FileNotFoundError: it is nowhere.
    """
    root = HERE.parent
    places = (
        [given] if given else [root / "data" / "jigsaw", *sorted(root.parent.glob("*/data/jigsaw"))]
    )
    for place in places:
        if place is not None and (place / "test.balanced.csv").is_file():
            return place
    raise FileNotFoundError(
        "the playbook's data is not here; give its folder (the one that holds test.balanced.csv) by --jigsaw PATH"
    )
