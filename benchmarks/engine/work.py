"""The work that every peer is given: two kinds of request, the same texts in the same order wherever they are sent.

classify    some 120 prompt tokens of which 60 are a shared instruction, 4 tokens out
generate    some 60 prompt tokens, 64 tokens out

Every user text is different, so only the instruction can come out of a prefix cache. Sizes hold for SmolLM2's tokenizer
and chat template. Standard library only: the load generator must not weigh on the machine that it measures.
"""

import json
import random
from dataclasses import dataclass

WORDS = [
    "account",
    "order",
    "late",
    "refund",
    "invoice",
    "delivery",
    "parcel",
    "box",
    "broken",
    "screen",
    "battery",
    "phone",
    "charge",
    "price",
    "offer",
    "free",
    "prize",
    "click",
    "link",
    "meeting",
    "report",
    "monday",
    "friday",
    "team",
    "manager",
    "plan",
    "price",
    "market",
    "train",
    "ticket",
    "weather",
    "rain",
    "game",
    "player",
    "score",
    "coach",
    "movie",
    "actor",
    "song",
    "album",
    "recipe",
    "butter",
    "sugar",
    "oven",
    "bread",
    "garden",
    "flower",
    "tree",
    "river",
    "city",
    "street",
    "house",
    "door",
    "window",
    "table",
    "chair",
    "school",
    "teacher",
    "student",
    "lesson",
    "book",
    "page",
    "story",
    "letter",
    "word",
]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of request."""

    name: str
    system: str
    num_words: int
    max_tokens: int
    windows: int = 1
    """How many times the plain window's length it is measured for: a window must hold several requests of each caller."""


CLASSIFY = Kind(
    "classify",
    "You are a careful message classifier. Read the message that the user sends and decide which one of these labels "
    "fits it best: spam, billing, delivery, praise, complaint, other. Answer with the label only, in lower case, "
    "without any explanation, quotation marks or full stop.",
    50,
    4,
)
GENERATE = Kind(
    "generate", "You are a helpful writer. Continue the text in plain sentences.", 32, 64, windows=2
)
KINDS = {kind.name: kind for kind in (CLASSIFY, GENERATE)}


def messages(kind: Kind, number: int, seed: str) -> list[dict[str, str]]:
    """The chat of a request number."""
    draw = random.Random(f"{seed}:{kind.name}:{number}")
    user = " ".join(draw.choice(WORDS) for _ in range(kind.num_words))
    return [{"role": "system", "content": kind.system}, {"role": "user", "content": user}]


def body(kind: Kind, model: str, number: int, seed: str) -> bytes:
    """The request as OpenAI's routes take it; the number of output tokens is fixed on every server."""
    return json.dumps(
        {
            "model": model,
            "messages": messages(kind, number, seed),
            "temperature": 0,
            "max_tokens": kind.max_tokens,
            "ignore_eos": True,  # vLLM's name
            "ignore_eos_token": True,  # LoRAX's name
        }
    ).encode()
