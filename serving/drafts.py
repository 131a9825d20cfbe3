"""What an adapter is likely to say next, guessed from what was said before: a step checks several guessed tokens at once.

A student's answers repeat: a label's first token decides the others, and so do most tokens of a small JSON object. Guesses are
looked up in what was generated lately, as in SuffixDecoding (Oliaro et al. 2024, arXiv:2411.04975), by the last few
tokens of the answer alone: in what the same adapter said, and where it has not said it yet in what any adapter said. Whether they are
right is for the model to say. Knows no model, no tensor and no row.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence

CONTEXT = 4
"""Tokens that a guess goes by; an answer's beginning goes by as many as there are."""

MOST_CONTEXTS = 8192
"""Contexts remembered over all adapters, and as many for any adapter, some 0.3 KB each; the one not met for longest goes."""

MOST_TRUST = 3

TRUSTED = 2
"""Trust that an answer's first token needs: it is the one that the prompt decides."""


class _Table:
    """For each key and context the token that came next, with trust in it.

    Trust goes up by one each time that it came again and down when another came, which replaces it at the bottom: as processors
    predict branches, so that one odd answer does not displace the usual one.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._next: OrderedDict[tuple[Hashable, tuple[int, ...]], tuple[int, int]] = OrderedDict()

    def get(self, key: Hashable, context: tuple[int, ...]) -> tuple[int, int] | None:
        """The token and the trust in it; None for a context that was not met."""
        return self._next.get((key, context))

    def saw(self, key: Hashable, context: tuple[int, ...], came: int) -> None:
        """What came after a context."""
        token, trust = self._next.get((key, context), (came, -1))
        if token == came:
            trust = min(trust + 1, MOST_TRUST)
        elif trust:
            trust -= 1
        else:
            token = came
        self._next[key, context] = token, trust
        self._next.move_to_end((key, context))
        if len(self._next) > self._most:
            self._next.popitem(last=False)


class Drafts:
    """What every adapter said lately, and what any of them did."""

    def __init__(self, most_contexts: int = MOST_CONTEXTS) -> None:
        self._own, self._any = _Table(most_contexts), _Table(most_contexts)

    def guess(self, adapter_id: str | None, generated: Sequence[int], most: int) -> list[int]:
        """The tokens that are likely to follow an answer's tokens so far, at most `most`, or to begin it; it may be none."""
        recent = list(generated[-CONTEXT:])
        found: list[int] = []
        while len(found) < most:
            context = tuple(recent[-CONTEXT:])
            entry = self._own.get(adapter_id, context)
            if entry is None and recent:
                entry = self._any.get(None, context)
            if entry is None or (not recent and entry[1] < TRUSTED):
                break
            found.append(entry[0])
            recent.append(entry[0])
        return found

    def saw(self, adapter_id: str | None, generated: Sequence[int]) -> None:
        """The last of an answer's tokens so far came after the others."""
        context = tuple(generated[-1 - CONTEXT : -1])
        self._own.saw(adapter_id, context, generated[-1])
        self._any.saw(None, context, generated[-1])
