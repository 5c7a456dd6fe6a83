"""Every way that a stream of bytes may be cut: what each parser test runs its rows through."""

from __future__ import annotations

import random
from collections.abc import Iterator


def every_cut(data: bytes, *, random_cuts: int = 20) -> Iterator[list[bytes]]:
    """Yield `data` whole, byte by byte, and at random cuts (the same ones in every run).

    Joining any yielded list gives `data` again. Empty pieces occur at random cuts, as they do from decoders.
    """
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    dice = random.Random(len(data))
    for _ in range(random_cuts):
        edges = sorted(dice.randint(0, len(data)) for _ in range(dice.randint(1, 8)))
        yield [data[a:b] for a, b in zip([0, *edges], [*edges, len(data)], strict=True)]
