"""Which language a text is in, where that can be told: py3langid, and None below a probability.

Offline work takes this rather than the router's guess by stop words (`router.difficulty`), which costs microseconds and
takes 2.4 % of the shipped English tickets for another language.
"""

import functools
from typing import Any

SURE = 0.7
"""Probability from which a language counts: on the shipped tickets (850 English, 72 of the shifted set) no English text
reaches it in another language, and 17 of 18 foreign ones do."""


@functools.lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language_of(text: str) -> tuple[str | None, float]:
    """ISO 639-1 code and its probability; None for the code where the probability is below `SURE`."""
    language, probability = _identifier().classify(text)
    return (language if probability >= SURE else None), float(probability)
