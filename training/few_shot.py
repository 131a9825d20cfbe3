"""The base model shown a few answered rows before the question: what a student must beat without any training. Pure."""

from collections.abc import Sequence

from router.prompt import render
from training.dataset import Example


def shots(examples: Sequence[Example], count: int) -> list[Example]:
    """`count` short rows with as many different answers as there are; the same ones each time."""
    ordered = sorted(examples, key=lambda e: (len(str(e.messages[-1].get("content"))), e.id))
    chosen: dict[str, Example] = {}
    for example in ordered:
        chosen.setdefault(example.completion, example)
    first = list(chosen.values())[:count]
    rest = [e for e in ordered if e not in first]
    return first + rest[: max(0, count - len(first))]


def template(
    prompt: str, max_input_chars: int | None, examples: Sequence[Example], count: int
) -> str:
    """The student's template behind `count` rows with their answers; braces in them stand for themselves."""
    told = []
    for example in shots(examples, count):
        text, _ = render(prompt, example.messages, max_input_chars, example.tools)
        told.append((text + example.completion).replace("{", "{{").replace("}", "}}"))
    return "\n\n".join([*told, prompt])
