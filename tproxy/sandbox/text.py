"""English-looking text of an exact number of tokens, the same for the same seed.

A token here is what one match of `TOKEN` covers: up to six letters, three digits or three other signs, with the
blanks before them. That is near to what real tokenizers make of prose (about four letters a token) and of JSON, and
it adds up: a text cut at token borders counts the same in its pieces as in one. Some sentences hold letters of two,
three and four UTF-8 bytes, so that a stream of them can be cut inside a letter.
"""

from __future__ import annotations

import random
import re
from functools import lru_cache

TOKEN = re.compile(r"\s*(?:[A-Za-z]{1,6}|[0-9]{1,3}|[^\sA-Za-z0-9]{1,3})|\s+")

# What one delta carries: its text and its tokens.
Piece = tuple[str, int]

# How many tokens a delta carries, in turn, where the script does not say.
_RHYTHM = (1, 2, 1, 3, 1, 1, 2)

_SENTENCES = (
    "The ferry left the harbour before the rain came over the hills.",
    "Nobody on the quay had seen the keeper of the lighthouse that morning.",
    "A clock in the station hall had stopped at ten past four, and no one had wound it since.",
    "She counted the boxes twice, wrote the sum on the lid, and locked the door behind her.",
    "In Zürich the trams ran on time; in Łódź they ran when the driver had finished his coffee.",
    "The map was old, but the river had not moved.",
    "Every bridge in the valley carries less than it was built for.",
    "When the lamps went out, the crew steered by the sound of the bell.",
    "He kept a ledger of small things: nails, stamps, candles, the price of bread.",
    "The letter arrived on a Tuesday, three weeks late and quite dry.",
    "Two of the engines were running warm, so they took turns.",
    "It is easier to mend a net in winter than to find a new one in spring.",
    "The café by the gate sells naïve little paintings of boats 🚢 and gulls.",
    "After the storm the beach was covered with bright, useless things.",
    "A good pilot says little and looks often.",
    "They agreed on a price, shook hands, and went on talking about the weather.",
    "The orchard belongs to whoever remembers to water it.",
    "Her brother repaired clocks, radios and, on Sundays, arguments.",
    "The last train carries the newspapers of the next day.",
    "On the far side of the bay a dog barked at the tide — as it did every evening.",
    "Nothing in the cellar had been touched, except the ladder.",
    "The children drew a line in the sand and waited for the sea to cross it.",
    "By noon the fog had gone, and the islands stood where they had always been.",
    "The answer was short: yes, if the wind allows. 🙂",
)


def tokens(text: str) -> list[str]:
    """The tokens of `text`; joined, they are `text` again."""
    return TOKEN.findall(text)


def count(text: str) -> int:
    """How many tokens `text` has."""
    return len(TOKEN.findall(text))


_TOKENS = tuple(tuple(tokens(" " + sentence)) for sentence in _SENTENCES)


@lru_cache(maxsize=16)
def prose(seed: int, wanted: int, per: int = 0) -> tuple[Piece, ...]:
    """Sentences in an order that `seed` decides, in pieces of `per` tokens (0: one to three, mixed).

    Returns:
        Pieces whose tokens sum up to exactly `wanted`; joined, they are the text.
    """
    dice = random.Random(seed)  # noqa: S311 (text, not secrets)
    stock: list[str] = []
    while len(stock) < wanted:
        for number in dice.sample(range(len(_TOKENS)), len(_TOKENS)):
            stock.extend(_TOKENS[number])
    del stock[wanted:]
    if stock:
        stock[0] = stock[0].lstrip()
    return grouped(stock, per)


def grouped(parts: list[str], per: int = 0) -> tuple[Piece, ...]:
    """Join tokens into pieces of `per` tokens each (0: one to three, mixed)."""
    pieces: list[Piece] = []
    at = turn = 0
    while at < len(parts):
        size = per or _RHYTHM[turn % len(_RHYTHM)]
        taken = parts[at : at + size]
        pieces.append(("".join(taken), len(taken)))
        at += size
        turn += 1
    return tuple(pieces)


def fitted(pieces: tuple[Piece, ...], room: int) -> tuple[Piece, ...]:
    """The first `room` tokens of `pieces`; the piece that the border falls into is cut."""
    kept: list[Piece] = []
    for text, size in pieces:
        if size > room:
            if room > 0:
                kept.append(("".join(tokens(text)[:room]), room))
            break
        kept.append((text, size))
        room -= size
    return tuple(kept)
