"""How many output tokens a delivered text is worth: an estimate, for streams that were cut before the upstream said.

Claude's tokenizers are not published, but they come close to sums over small classes of text: a word costs one
token, or more when it is long or has a capital; three digits cost one; marks, line breaks and indentation one or
less. So a text is counted by class (how often each pattern of `_CLASSES` matches), and the counts are weighted.
Opus 4.7 brought a new tokenizer, which makes about 1.4 times as many tokens of the same English, so each class has
two weights, and the model's name tells which. Where the name tells nothing, it is their mean.

The weights are a least-squares fit over 450 texts of 0.3 to 6 kB, counted with ctok 1.3.0, a reconstruction of both
tokenizers; its counts are, to some four tokens, those billed in 86 recorded answers (Sonnet 4 to Opus 4.8).
The error of single texts, mean and 95th percentile, in the older and in the newer tokenizer:

    English prose    5 % 13 %    4 %  9 %        Python, JavaScript    3 %  8 %    4 %  7 %
    answers          5 % 11 %    5 % 14 %        C, Rust, Vim script  13 % 28 %   13 % 29 %
    JSON             3 % 10 %    5 % 13 %        other languages       9 % 32 %    9 % 30 %

Against what was billed, it is 5 % and at most 16 %, and 4 % and at most 9 %. Other tokenizers count less: those of
Claude 2, cl100k_base and o200k_base make 0.95, 0.89 and 0.88 of the older one's tokens of prose, 0.84, 0.80 and 0.81
of JSON.

Not known here: what was not delivered. Thinking that is summarised or left out is billed whole; the estimate is then
too low. Signatures and citations are not counted, as they are not billed as output.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from string import ascii_letters, ascii_lowercase, ascii_uppercase, digits, punctuation
from typing import Final

# Pattern, weight in the older tokenizer (Claude 3 to Opus 4.6), weight in the newer one (Opus 4.7 and all later).
# No match reaches from other text into white space that follows it: a text may be cut before any white space.
# How often each of these occurs is found by `_count_ascii`, in this order.
_CLASSES = (
    (r"[a-z]{1,16}", 0.97, 0.93),  # a word, or a part of a camelCase one
    (r"[a-z]{4,16}", 0.12, 0.86),  # … of some length, in addition
    (r"[A-Z][a-z]", 0.51, 1.19),  # … with a capital, in addition
    (r"[A-Z](?![a-z])", 0.30, 0.83),  # a letter of a word in capitals
    (r"[0-9][0-9]{0,2}", 1.21, 1.24),
    (r"[!-/:-@\[-`{-~]", 0.31, 0.52),  # a mark
    (r"[!-/:-@\[-`{-~]+", 0.65, 0.54),  # a run of marks, in addition
    (r"\n{1,16}", 0.81, 1.25),
    (r" {2,16}", 1.10, 0.46),  # an indentation
    (r"\t{1,16}", 1.00, 1.00),
    (r" [^A-Za-z ]", 0.25, 0.17),  # a space that is no part of a word
)
_BEYOND_ASCII = (
    (r"[\x80-\u036f]", 2.43, 2.95),  # an accented letter: it also breaks its word in two
    (r"[\u0400-\u04ff]", 0.41, 0.42),  # Cyrillic
    (r"[\u0370-\u03ff\u0500-\u1fff]", 0.73, 0.75),  # Greek, Arabic, Devanagari and others
    (r"[\u2000-\u21ff\u2500-\u257f]", 0.77, 0.62),  # typographic marks, arrows, boxes
    (r"[\u2200-\u24ff\u2580-\u2e7f]", 3.50, 3.50),  # mathematical and other symbols
    (r"[\u2e80-\uffff]", 1.00, 1.00),  # Chinese, Japanese, Korean
    (r"[\uac00-\ud7af]", 0.32, 0.36),  # Hangul, in addition
    (r"[\U00010000-\U0010ffff]", 2.80, 2.80),  # emoji
)
_NOTHING: Final[Sequence[int]] = (0,) * (len(_CLASSES) + len(_BEYOND_ASCII))
_PATTERNS_BEYOND_ASCII = tuple(re.compile(pattern) for pattern, _, _ in _BEYOND_ASCII)

Counts = Sequence[int]  # by class
Weights = tuple[float, ...]
_OLDER: Weights = tuple(older for _, older, _ in _CLASSES + _BEYOND_ASCII)
_NEWER: Weights = tuple(newer for _, _, newer in _CLASSES + _BEYOND_ASCII)
_BETWEEN: Weights = tuple((older + newer) / 2 for older, newer in zip(_OLDER, _NEWER, strict=True))
_FIRST_MODEL = re.compile(r"claude-(?:instant|[12](?!\d))")
_OLDER_MODEL = re.compile(r"claude-(?:instant|[123](?!\d)|(?:opus|sonnet|haiku)-4(?:-[0-6](?!\d)|-\d{8}|-latest|@|$))")

# The frame of a tool call, beside its name and input: 33 to 42 tokens for a first one, less for a further one.
_TOOL_CALL_TOKENS = 38

# Text is counted in portions: cheaper than per delta, and a word that is cut between two deltas is whole again.
_PORTION = 2_048
_WHITE = " \t\n"


def count_tokens(text: str, model: str | None = None) -> int:
    """Estimate the tokens of a whole text, as `model` would bill it as output."""
    counter = TokenCounter()
    counter.feed("text_delta", text)
    return counter.tokens(model)


def generation(model: str) -> str | None:
    """Which tokenizer a model has: those of one generation make the same tokens of a text. None: that is not known."""
    if not model.startswith("claude-"):
        return None
    if _FIRST_MODEL.match(model):
        return "first"
    return "older" if _OLDER_MODEL.match(model) else "newer"


class TokenCounter:
    """Estimates output tokens from the deltas of a stream.

    However a text is cut into deltas, the estimate is the same, save where 2,048 characters hold no white space.
    Holds about that many characters at a time.
    """

    __slots__ = ("_counts", "_extra", "_kind", "_pending", "_size")

    def __init__(self) -> None:
        self._counts = _NOTHING
        self._extra = 0
        self._kind = ""
        self._pending: list[str] = []
        self._size = 0

    def feed(self, kind: str, text: str) -> None:
        """Take the text of one delta. `kind` is the delta's type: texts of two kinds are never joined to a word."""
        if kind != self._kind:
            self._take(whole=True)
            self._kind = kind
        self._pending.append(text)
        self._size += len(text)
        if self._size >= _PORTION:
            self._take(whole=False)

    def tool_call(self, name: str) -> None:
        """Take the start of a tool call; its input comes through `feed`."""
        self.feed("tool_call", name)
        self._extra += _TOOL_CALL_TOKENS

    def tokens(self, model: str | None) -> int:
        """The estimate for all that was fed so far, as `model` would bill it. May be asked at any time."""
        counts = _added(self._counts, _count("".join(self._pending)))
        if not any(counts):
            return self._extra
        weighed = sum(count * weight for count, weight in zip(counts, _weights(model), strict=True))
        return max(round(weighed + self._extra), 1)

    def _take(self, *, whole: bool) -> None:
        """Count what is pending: all of it, or all before its last white space and what follows that."""
        text = "".join(self._pending)
        end = len(text)
        if not whole:
            body = text.rstrip(_WHITE)
            if len(body) == len(text):
                body = text[: max(text.rfind(white) for white in _WHITE) + 1].rstrip(_WHITE)
            end = len(body) or end
        self._counts = _added(self._counts, _count(text[:end]))
        self._pending = [text[end:]]
        self._size = len(text) - end


def _count(text: str) -> Counts:
    """How often each class occurs."""
    if not text:
        return _NOTHING
    counts = _count_ascii(text.encode("utf-8", "surrogatepass"))
    if text.isascii():
        return [*counts, *[0] * len(_BEYOND_ASCII)]
    return [*counts, *(len(pattern.findall(text)) for pattern in _PATTERNS_BEYOND_ASCII)]


def _table(x: str, y: str = "") -> bytes:
    """To translate bytes with: the characters of `x` become `x`, those of `y` become `y`."""
    table = bytearray(b"-" * 256)
    for mark, members in ((b"x", x), (b"y", y)):
        for byte in members.encode():
            table[byte : byte + 1] = mark
    return bytes(table)


_LOWER: Final = _table(ascii_lowercase)
_CASE: Final = _table(ascii_uppercase, ascii_lowercase)
_DIGIT: Final = _table(digits)
_MARK: Final = _table(punctuation)
_LINE: Final = _table("\n")
_SPACE: Final = _table(" ")
_TAB: Final = _table("\t")
_WORD: Final = _table(" ", ascii_letters)


def _count_ascii(text: bytes) -> Counts:
    """How often each of `_CLASSES` matches in a text in UTF-8, whose bytes beyond ASCII are in none.

    A seventh of the time that the patterns themselves take: translating and finding go over many bytes at a time.
    """
    lower = b"-" + text.translate(_LOWER)
    case = text.translate(_CASE)
    capitals, capitalized = case.count(b"x"), case.count(b"xy")
    marks = b"-" + text.translate(_MARK)
    return [
        _pieces(lower, 1, 16),
        _pieces(lower, 4, 16),
        capitalized,
        capitals - capitalized,
        _pieces(b"-" + text.translate(_DIGIT), 1, 3),
        marks.count(b"x"),
        marks.count(b"-x"),
        _pieces(b"-" + text.translate(_LINE), 1, 16) if b"\n" in text else 0,
        _pieces(b"-" + text.translate(_SPACE), 2, 16) if b"  " in text else 0,
        _pieces(b"-" + text.translate(_TAB), 1, 16) if b"\t" in text else 0,
        text.translate(_WORD).count(b"x-"),
    ]


_RUNS: Final = {longest: re.compile(b"x{%d,}" % (longest + 1)) for longest in (3, 16)}


def _pieces(marked: bytes, shortest: int, longest: int) -> int:
    """How many matches `x{shortest,longest}` has in a text of `x` and `-` that begins with `-`."""
    count = marked.count(b"-" + b"x" * shortest)  # runs, each of which is one match …
    if b"x" * (longest + 1) in marked:  # … or more
        for run in _RUNS[longest].findall(marked):
            whole, rest = divmod(len(run), longest)
            count += whole + (rest >= shortest) - 1
    return count


def _added(some: Counts, more: Counts) -> Counts:
    if some is _NOTHING or more is _NOTHING:
        return some if more is _NOTHING else more
    return [one + other for one, other in zip(some, more, strict=True)]


@lru_cache(maxsize=256)
def _weights(model: str | None) -> Weights:
    known = None if model is None else generation(model)
    return _BETWEEN if known is None else _NEWER if known == "newer" else _OLDER
