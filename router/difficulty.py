"""How hard a request looks before anybody answers it: rules, a language guess, and a scored difficulty. Pure.

The scored model is a hashed bag of words with a logistic output, trained by the monitor on disagreements and stored as
one JSON file; scoring 3,000 characters takes less than a millisecond and no library.
"""

import itertools
import json
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from router.errors import PolicyError, Problem
from router.policy import EasyIf

CHARS_PER_TOKEN = 4
"""Characters a token, on average, in English under BPE vocabularies: an estimate, and only used as one."""

_LEAD = 0.75
"""Stop words by which a language must be ahead."""
_WORDS = re.compile(r"[^\W\d_]+", re.UNICODE)
_STOP_WORDS = {
    "en": "the and is to of in it you that for with was on are have this not but what my can how please your they be we "
    "i a an at as so me no its there from by or if when where who why which has had does do did would could should will get "
    "got our us after before still only just then than them their all any been were am he she his her into out up off over "
    "till don doesn isn can't won t s m re ve ll",
    "de": "der die das und ist nicht ich sie wir ein eine mit für auf den zu von es wie kann bitte auch habe sind im am bei "
    "dem des einen einer mein meine meinen mir mich wo was wird wurde werden hat haben noch nur nach aus wenn oder aber "
    "sich zur zum kein keine sehr schon seit an in um er können möchte",
    "fr": "le la les et est pas je vous nous un une avec pour dans sur que qui ne il mais bonjour des du ce au aux mon ma mes "
    "votre notre où comment quand peux pouvez être été sont en on se son sa ses plus depuis cette ça veux suis ai l d j n c y à",
    "es": "el la los y es no yo usted un una con para en que por se lo como pero hola las del mi puedo al mis su sus está "
    "están cómo dónde qué cuándo quiero pueden ayudar me te nos le si más muy sin ya hay desde cuando tengo cobran de a o",
    "it": "il la gli e è non io un una con per in che di si come ma ciao le del mi posso sono ho lo i al alla della dei delle "
    "dal nel mio mia miei dove perché quando vorrei anche più questo questa ci se o a da ed c l dov all",
    "nl": "de het een en is niet ik je wij met voor op van te dat hoe maar kan aan zijn heb ook mijn waar wat wordt werd naar "
    "bij uit als dan nog geen deze dit er om u kunt mij wil in we die of heeft kunnen moet",
    "pt": "o a os e é não eu um uma com para em que de se como mas olá as do da meu posso minha meus no na dos das ao à está "
    "onde quando por mais já quero consigo pode foi são sem seu sua isso",
    "pl": "i w nie na się jest to że z do jak ale czy mam dla po proszę jestem moja mój moje gdzie kiedy od za co o mnie już "
    "tylko jeszcze są ten ta te nas chcę mogę przy",
    "sv": "och är inte jag det en ett med för på att som av hur men kan har ni vi till min mitt mina var när vad från den de du "
    "om så vill ha blir blev finns eller inte i alla logga",
}
_WEIGHTS: dict[str, tuple[tuple[str, float], ...]] = {}
"""What a word says: of which languages it is a stop word, and how much that counts. A word of several says less of each."""
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


def _weigh_stop_words() -> None:
    languages: dict[str, list[str]] = {}
    for language, words in _STOP_WORDS.items():
        for word in dict.fromkeys(words.split()):
            languages.setdefault(word, []).append(language)
    for word, found in languages.items():
        _WEIGHTS[word] = tuple((language, 1 / len(found)) for language in found)


_weigh_stop_words()


def language_of(text: str) -> str | None:
    """ISO 639-1 code of the text's language by script and stop words; None when nothing points anywhere clearly.

    Scripts stand for their most used language. Among Latin languages the one with most stop words wins, a word that
    several have counting less for each; it must lead by `_LEAD`, for names and single foreign words are in any text.
    """
    sample = text[:2000]
    if not sample.isascii():
        for language, pattern in _SCRIPTS:
            if len(pattern.findall(sample)) > max(3, len(sample) // 5):
                return language
    scores = dict.fromkeys(_STOP_WORDS, 0.0)
    for word in _WORDS.findall(sample.lower()):
        for language, weight in _WEIGHTS.get(word, ()):
            scores[language] += weight
    second, best = sorted(scores.values())[-2:]
    if best - second < _LEAD:
        return None
    return max(scores, key=scores.__getitem__)


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


FEATURES = 2
"""Number of the way in which texts become features; weights fit one way only. 1 hashed by BLAKE2b and was not numbered."""


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
    words = _WORDS.findall(text.lower())
    grams = [*words, *map(" ".join, itertools.pairwise(words))]
    counts: dict[int, float] = {}
    for gram in grams:
        slot = zlib.crc32(gram.encode()) % buckets
        counts[slot] = counts.get(slot, 0.0) + 1.0
    norm = math.sqrt(sum(v * v for v in counts.values())) or 1.0
    return {slot: value / norm for slot, value in counts.items()}


def load_model(path: Path) -> DifficultyModel:
    """The model in a JSON file: `{"features", "name", "bias", "buckets", "weights": {"slot": weight}}`.

    Raises:
        PolicyError: the file cannot be read or is not such a model.
    """
    try:
        data = json.loads(path.read_text())
        if (number := data.get("features", 1)) != FEATURES:
            raise ValueError(
                f"its weights are for features {number!r}, this router computes {FEATURES}: calibrate again"
            )
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
