"""The body of an answer as pieces to be sent, each with the output tokens that are complete when it has gone.

Everything that a script does to a body (end early, code, cut up, spoil) is done here, before a byte is sent: what is
left for the connection is to send piece after piece on time. So the books can say, for any number of pieces sent,
how many tokens went with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tproxy.sandbox.coding import encoder
from tproxy.sandbox.script import Place


@dataclass(frozen=True, slots=True)
class Body:
    """Pieces in order; `tokens[i]` are complete once `pieces[i]` has gone."""

    pieces: Sequence[bytes]
    tokens: Sequence[int]

    @classmethod
    def whole(cls, data: bytes, tokens: int = 0) -> Body:
        """One piece."""
        return cls((data,), (tokens,))

    @classmethod
    def of(cls, pieces: Iterable[tuple[bytes, int]]) -> Body:
        listed = list(pieces)
        return cls([data for data, _ in listed], [tokens for _, tokens in listed])

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(map(len, self.pieces))

    def delivered(self, pieces: int) -> int:
        """Output tokens in the first so many pieces."""
        return sum(self.tokens[:pieces])

    def first(self, pieces: int) -> Body:
        return Body(self.pieces[:pieces], self.tokens[:pieces])

    def coded(self, coding: str, *, ended: bool = True) -> Body:
        """With a content-coding over the whole, flushed after each piece; `ended`: with its end mark."""
        coder = encoder(coding)
        pieces = [coder.event(piece) for piece in self.pieces]
        if ended:
            last = coder.end()
            if pieces:
                pieces[-1] += last
            elif last:
                return Body.whole(last)
        return Body(pieces, self.tokens)

    def up_to(self, size: int) -> Body:
        """The first `size` bytes."""
        pieces: list[bytes] = []
        tokens: list[int] = []
        for piece, worth in zip(self.pieces, self.tokens, strict=True):
            if size <= 0:
                break
            pieces.append(piece[:size])
            tokens.append(worth if len(piece) <= size else 0)
            size -= len(piece)
        return Body(pieces, tokens)

    def before(self, place: Place) -> Body:
        """What comes before a place."""
        return self.first(place.number) if place.unit == "events" else self.up_to(place.number)

    def sliced(self, size: int) -> Body:
        """In pieces of `size` bytes; tokens go with the piece that holds their event's last byte."""
        joined = b"".join(self.pieces)
        tokens = [0] * -(-len(joined) // size)
        at = 0
        for piece, worth in zip(self.pieces, self.tokens, strict=True):
            at += len(piece)
            if worth:
                tokens[(at - 1) // size] += worth
        return Body([joined[i : i + size] for i in range(0, len(joined), size)], tokens)

    def spoiled(self) -> Body:
        """With the last byte turned over."""
        pieces = list(self.pieces)
        last = max((at for at, piece in enumerate(pieces) if piece), default=None)
        if last is None:
            return self
        pieces[last] = pieces[last][:-1] + bytes([pieces[last][-1] ^ 0xFF])
        return Body(pieces, self.tokens)
