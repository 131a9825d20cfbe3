"""The rows that every way trains on, and what a plain user of TRL would make of them. Real rows, drawn once by a seed."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.dataset import Dataset, DatasetInfo, Example, digest_of, sha256_of
from training.encode import Encoded, canonical

SEED = 7
INSTRUCTION = (
    "You moderate the talk pages of an encyclopedia. Read the comment below and decide whether it is toxic: an insult, a "
    "threat, obscene, or hateful towards a group of people. Answer with the single word yes or no and nothing else.\n\n"
    "Comment: {input}\n\nIs the comment toxic?"
)
"""A prompt as one writes it for a teacher; the student's is short, because its instruction is in its weights."""


def rows(jigsaw: Path | None, train: int, held: int) -> tuple[Dataset, str]:
    """The dataset under the student's short prompt and cut, and the teacher's prompt with `{input}`.

    Args:
        jigsaw: folder with the playbook's files (subset A is taken); None takes the shipped tickets.
    """
    examples, info, teacher = _jigsaw(jigsaw) if jigsaw else _tickets()
    draw = random.Random(SEED)
    draw.shuffle(examples)
    if len(examples) < train + held:
        raise SystemExit(f"--rows {train} and --held {held}: there are {len(examples)} rows")
    from msgspec.structs import replace

    chosen = [replace(e, split="validation") for e in examples[:held]]
    chosen += [replace(e, split="train") for e in examples[held : held + train]]
    info["digest"] = digest_of(chosen)
    made = DatasetInfo(query={}, counts={}, classes={}, teachers=(), **info)
    return Dataset(Path(), made, tuple(chosen)), teacher


def _jigsaw(folder: Path) -> tuple[list[Example], dict[str, Any], str]:
    from training import study_data

    found = [study_data.example(row, "train") for row in study_data.arm_rows(folder, "A")]
    info = {
        "task": "jigsaw", "answer": dict(study_data.ANSWER),
        "prompt": "Comment: {input}\nToxic (yes or no):", "max_input_chars": 500,
    }  # fmt: skip
    return found, info, INSTRUCTION


def _tickets() -> tuple[list[Example], dict[str, Any], str]:
    from examples.tasks import tickets

    task = tickets()
    found = []
    for row in (*task.traffic, *task.live):
        messages = ({"role": "user", "content": row.text},)
        answer = canonical(row.teacher, task.answer)
        found.append(
            Example(row.id, task.name, messages, answer, row.teacher, row.gold, sha256=sha256_of(messages, answer))
        )  # fmt: skip
    info = {
        "task": task.name, "answer": task.answer, "prompt": task.prompt,
        "max_input_chars": task.max_input_chars,
    }  # fmt: skip
    return found, info, task.system + "\n\nTicket: {input}"


def conversational(examples: Sequence[Example], teacher: str) -> list[dict[str, Any]]:
    """Prompt–completion rows as TRL's documentation has them: the teacher's prompt, nothing cut."""
    return [
        {
            "prompt": [
                {"role": "user", "content": teacher.replace("{input}", e.messages[-1]["content"])}
            ],
            "completion": [{"role": "assistant", "content": e.completion}],
        }
        for e in examples
    ]


def chat_encoded(rows_: Sequence[dict[str, Any]], tokenizer: Any) -> list[Encoded]:
    """The same rows as token ids under the model's chat template, for validation."""
    found = []
    for number, row in enumerate(rows_):
        prompt = tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, return_dict=False
        )
        whole = tokenizer.apply_chat_template(
            [*row["prompt"], *row["completion"]], return_dict=False
        )
        found.append(Encoded(str(number), tuple(prompt), tuple(whole[len(prompt) :])))
    return found
