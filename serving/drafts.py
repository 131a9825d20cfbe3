"""What an adapter is likely to say next, guessed from what it said before: a step checks several guessed tokens at once.

A student's answers repeat: a label's first token decides the others, and so do most tokens of a small JSON object. Guesses are
looked up in what the same adapter generated lately, as in SuffixDecoding (Oliaro et al. 2024, arXiv:2411.04975), by the last few
tokens of the answer alone; whether they are right is for the model to say. Knows no model, no tensor and no row.
"""

from collections import OrderedDict
from collections.abc import Sequence

CONTEXT = 4
"""Tokens that a guess goes by; an answer's beginning goes by as many as there are."""

MOST_CONTEXTS = 8192
"""Contexts remembered over all adapters, some 0.3 KB each; the one not met for longest goes."""

MOST_TRUST = 3

TRUSTED = 2
"""Trust that an answer's first token needs: it is the one that the prompt decides."""

Context = tuple[str | None, tuple[int, ...]]


class Drafts:
    """For each adapter and context the token that came next, with trust in it.

    Trust goes up by one each time that it came again and down when another came, which replaces it at the bottom: as processors
    predict branches, so that one odd answer does not displace the usual one.
    """

    def __init__(self, most_contexts: int = MOST_CONTEXTS) -> None:
        self._most = most_contexts
        self._next: OrderedDict[Context, tuple[int, int]] = OrderedDict()

    def guess(self, adapter_id: str | None, generated: Sequence[int], most: int) -> list[int]:
        """The tokens that are likely to follow an answer's tokens so far, at most `most`, or to begin it; it may be none."""
        recent = list(generated[-CONTEXT:])
        found: list[int] = []
        while len(found) < most:
            entry = self._next.get((adapter_id, tuple(recent[-CONTEXT:])))
            if entry is None or (not recent and entry[1] < TRUSTED):
                break
            found.append(entry[0])
            recent.append(entry[0])
        return found

    def saw(self, adapter_id: str | None, generated: Sequence[int]) -> None:
        """The last of an answer's tokens so far came after the others."""
        context = adapter_id, tuple(generated[-1 - CONTEXT : -1])
        token, trust = self._next.get(context, (generated[-1], -1))
        if token == generated[-1]:
            trust = min(trust + 1, MOST_TRUST)
        elif trust:
            trust -= 1
        else:
            token = generated[-1]
        self._next[context] = token, trust
        self._next.move_to_end(context)
        if len(self._next) > self._most:
            self._next.popitem(last=False)
