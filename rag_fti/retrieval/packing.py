"""Fitting retrieved text into a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from rag_fti import prompts
from rag_fti.schemas import Hit


def pack_passages(
    hits: Sequence[Hit], *, count_tokens: Callable[[str], int], budget: int
) -> tuple[list[Hit], list[prompts.Passage]]:
    """The hits that fit into a token budget, in rank order.

    A passage goes in whole or not at all; one that does not fit is passed over and a later,
    shorter one may still go in. Only when the first hit alone is too long is it cut, at its
    end, so that the best hit is always there; where its title and heading leave no room for a
    word of it, the next hit takes its place.

    Args:
        hits: Retrieved chunks, best first.
        count_tokens: Tokens of a text as the generator's tokenizer counts them.
        budget: Most tokens of all rendered passages together, tags and markers included.

    Returns:
        The hits kept, in marker order (the first is ``[1]``), and the passages to render. A
        cut hit has its ``text`` and ``end`` shortened.
    """
    kept: list[Hit] = []
    left = budget
    for hit in hits:
        cost = count_tokens(prompts.render_passage(len(kept) + 1, passage_of(hit)))
        if cost <= left and hit.text:
            kept.append(hit)
            left -= cost
        elif not kept and (cut := _cut(hit, cost, count_tokens=count_tokens, budget=left)).text:
            return [cut], [passage_of(cut)]  # it takes the whole budget
    return kept, [passage_of(hit) for hit in kept]


def passage_of(hit: Hit) -> prompts.Passage:
    """A hit as it is shown to a model."""
    return prompts.Passage(text=hit.text, title=hit.title, heading=hit.heading)


def _cut(hit: Hit, cost: int, *, count_tokens: Callable[[str], int], budget: int) -> Hit:
    """The longest start of a hit that fits, where the whole does not.

    Tokens grow with characters, nearly evenly, so they are interpolated (regula falsi, with the
    weight of the side that stays put halved): half as many counts as by bisection.
    """

    def excess(length: int) -> float:
        passage = passage_of(replace(hit, text=hit.text[:length]))
        return count_tokens(prompts.render_passage(1, passage)) - budget - 0.5

    low, high = 0, len(hit.text)
    below, above = excess(low), cost - budget - 0.5
    while below < 0 and high - low > 1:
        step = round((high - low) * below / (below - above))
        middle = min(max(low + step, low + 1), high - 1)
        if (found := excess(middle)) < 0:
            low, below, above = middle, found, above / 2
        else:
            high, above, below = middle, found, below / 2
    text = hit.text[:low]
    return replace(hit, text=text, end=hit.start + len(text))
