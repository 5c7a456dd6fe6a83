"""The header fields of an HTTP/1.1 head, as long as they are of the plain kind.

Plain is a block of lines `name: value`, each ended by CRLF, with a token for a name and visible characters, spaces
and tabs in the value (RFC 9110 section 5.5, RFC 9112 section 5). Whatever else a head may hold, folded lines, bare
line ends, control characters, is not judged here: `plain_fields` says None, and a full parser takes over.
"""

from __future__ import annotations

import re

from tproxy.errors import Header

_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([\t\x20-\x7e\x80-\xff]*)\r\n")
_FIELDS = re.compile(rb"(?:%s)*" % _FIELD.pattern)


def plain_fields(block: bytes) -> list[Header] | None:
    """The fields of `block` in their spelling, order and repetition, values without surrounding whitespace.

    Args:
        block: the lines between the first line of a head and the empty one; each with its CRLF.

    Returns:
        None where the block is not of the plain kind.
    """
    if _FIELDS.fullmatch(block) is None:
        return None
    return [(name, value.strip(b" \t")) for name, value in _FIELD.findall(block)]
