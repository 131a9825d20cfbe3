"""Made-up inputs: words that mean nothing to a task, around one that does."""

import random

LABELS = ("refund", "order")
WORDS = [
    "apple",
    "river",
    "quiet",
    "stone",
    "yellow",
    "market",
    "paper",
    "window",
    "garden",
    "silver",
    "bridge",
    "candle",
    "forest",
    "mirror",
    "pocket",
    "ladder",
    "basket",
    "copper",
    "violet",
    "hammer",
    "winter",
    "summer",
    "kitchen",
    "island",
    "feather",
    "harbor",
    "marble",
    "orange",
    "pencil",
    "rabbit",
    "saddle",
]


def sentence(number: int) -> tuple[str, str]:
    """Seven random words around a key word, so that no two are near-duplicates; and the key word, in turn."""
    draw = random.Random(number)
    words = draw.sample(WORDS, 7)
    label = LABELS[number % 2]
    words.insert(draw.randint(0, 7), label)
    return " ".join(words), label
