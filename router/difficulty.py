"""How hard a request looks before anybody answers it: rules, a language guess, and a scored difficulty. Pure.

The scored model is a hashed bag of words with a logistic output, trained by the monitor on disagreements and stored as
one JSON file; scoring it takes microseconds and no library.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from router.errors import PolicyError, Problem
from router.policy import EasyIf

CHARS_PER_TOKEN = 4
"""Characters a token, on average, in English under BPE vocabularies: an estimate, and only used as one."""

_WORDS = re.compile(r"[^\W\d_]+", re.UNICODE)
_STOP_WORDS = {
    "en": "the and is to of in it you that for with was on are have this not but what my can how please your they be we",
    "de": "der die das und ist nicht ich sie wir ein eine mit für auf den zu von es wie kann bitte auch habe sind",
    "fr": "le la les et est pas je vous nous un une avec pour dans sur que qui ne il mais bonjour des du ce",
    "es": "el la los y es no yo usted un una con para en que por se lo como pero hola las del mi puedo",
    "it": "il la gli e è non io un una con per in che di si come ma ciao le del mi posso sono ho",
    "nl": "de het een en is niet ik je wij met voor op van te dat hoe maar kan aan zijn heb ook",
    "pt": "o a os e é não eu um uma com para em que de se como mas olá as do da meu posso",
    "pl": "i w nie na się jest to że z do jak ale czy mam dla po proszę jestem",
    "sv": "och är inte jag det en ett med för på att som av hur men kan har ni vi till",
}
_LANGUAGE_WORDS = {language: frozenset(words.split()) for language, words in _STOP_WORDS.items()}
_SCRIPTS = (
    ("ru", re.compile(r"[Ѐ-ӿ]")),
    ("el", re.compile(r"[Ͱ-Ͽ]")),
    ("ar", re.compile(r"[؀-ۿ]")),
    ("he", re.compile(r"[֐-׿]")),
    ("hi", re.compile(r"[ऀ-ॿ]")),
    ("ja", re.compile(r"[぀-ヿ]")),
    ("ko", re.compile(r"[가-힯]")),
    ("zh", re.compile(r"[一-鿿]")),
    ("th", re.compile(r"[฀-๿]")),
)


def language_of(text: str) -> str | None:
    """ISO 639-1 code of the text's language by script and stop words; None when nothing points anywhere.

    Scripts stand for their most used language. Among Latin languages the one with most stop words wins; a tie, or none
    found, is None.
    """
    sample = text[:2000]
    if not sample.isascii():
        for language, pattern in _SCRIPTS:
            if len(pattern.findall(sample)) > max(3, len(sample) // 5):
                return language
    words = _WORDS.findall(sample.lower())
    counts = sorted(
        ((sum(map(known.__contains__, words)), name) for name, known in _LANGUAGE_WORDS.items()),
        reverse=True,
    )
    (best, language), (second, _) = counts[0], counts[1]
    return language if best > second else None


def estimated_tokens(chars: int) -> int:
    """Prompt tokens that so many characters make, estimated."""
    return math.ceil(chars / CHARS_PER_TOKEN)


def not_easy(rule: EasyIf, text: str, total_chars: int, has_tools: bool) -> str | None:
    """The first condition of `easy_if` that does not hold, in words; None when the request is easy.

    Args:
        text: the last user message.
        total_chars: characters of the whole prompt.
    """
    tokens = estimated_tokens(total_chars)
    if rule.max_prompt_tokens is not None and tokens > rule.max_prompt_tokens:
        return f"about {tokens} prompt tokens > {rule.max_prompt_tokens}"
    if rule.max_chars is not None and len(text) > rule.max_chars:
        return f"{len(text)} characters > {rule.max_chars}"
    if rule.no_tools and has_tools:
        return "has tools"
    if rule.languages:
        language = language_of(text)
        if language is not None and language not in rule.languages:
            return f"language {language}"
    for pattern in rule.not_matching:
        if re.search(pattern, text):
            return f"matches {pattern}"
    return None


@dataclass(frozen=True, slots=True)
class DifficultyModel:
    """Logistic regression over hashed word 1- and 2-grams: P(the student gets this wrong)."""

    name: str
    bias: float
    weights: Mapping[int, float]
    buckets: int

    def score(self, text: str) -> float:
        """Difficulty of a text, 0-1."""
        found = features(text, self.buckets)
        total = self.bias + sum(self.weights.get(i, 0.0) * v for i, v in found.items())
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, total))))


def features(text: str, buckets: int) -> dict[int, float]:
    """Hashed counts of word 1- and 2-grams, scaled to length one."""
    words = [w.lower() for w in _WORDS.findall(text)]
    grams = words + [f"{a} {b}" for a, b in itertools.pairwise(words)]
    counts: dict[int, float] = {}
    for gram in grams:
        digest = hashlib.blake2b(gram.encode(), digest_size=4).digest()
        slot = int.from_bytes(digest) % buckets
        counts[slot] = counts.get(slot, 0.0) + 1.0
    norm = math.sqrt(sum(v * v for v in counts.values())) or 1.0
    return {slot: value / norm for slot, value in counts.items()}


def load_model(path: Path) -> DifficultyModel:
    """The model in a JSON file: `{"name", "bias", "buckets", "weights": {"slot": weight}}`.

    Raises:
        PolicyError: the file cannot be read or is not such a model.
    """
    try:
        data = json.loads(path.read_text())
        if int(data["buckets"]) < 1:
            raise ValueError("buckets must be at least 1")
        return DifficultyModel(
            str(data["name"]),
            float(data["bias"]),
            {int(slot): float(weight) for slot, weight in data["weights"].items()},
            int(data["buckets"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as why:
        raise PolicyError(
            str(path), [Problem(1, "(file)", None, f"not a difficulty model: {why}")]
        ) from why
