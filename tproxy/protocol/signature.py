"""Signed webhooks, as standardwebhooks.com has them: what a receiver checks to know who sent a body, and when.

    webhook-id:         names the message; it stays the same when the message is sent again
    webhook-timestamp:  seconds since the epoch, when this attempt was made
    webhook-signature:  v1,<base64 of HMAC-SHA256(key, "<id>.<timestamp>.<body>")>; several are parted by spaces

A secret `whsec_<base64>` is a key in base64; any other text is its own UTF-8. Not known here: the time, and whether an
id was seen before; a receiver that must act once keeps the ids.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
from base64 import b64decode, b64encode
from typing import Final

ENCODED: Final = "whsec_"
TOLERANCE_SECONDS: Final = 300

_VERSION: Final = "v1,"


def key(secret: str) -> bytes:
    """The key that a secret stands for.

    Raises:
        ValueError: it is empty, or begins with `whsec_` and does not go on in base64.
    """
    if not secret.startswith(ENCODED):
        found = secret.encode()
    else:
        try:
            found = b64decode(secret.removeprefix(ENCODED), validate=True)
        except binascii.Error:
            raise ValueError(f"must go on in base64 after {ENCODED}") from None
    if not found:
        raise ValueError("must not be empty")
    return found


def sign(key: bytes, id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`."""
    digest = hmac.new(key, b"%b.%d.%b" % (id.encode(), timestamp, body), hashlib.sha256).digest()
    return _VERSION + b64encode(digest).decode()


def verify(key: bytes, id: str, timestamp: str, body: bytes, signature: str, now: float) -> bool:
    """Whether a message is from who has the key, and not older or newer than `TOLERANCE_SECONDS`.

    Args:
        id, timestamp, signature: the values of the three headers.
        now: seconds since the epoch.
    """
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 15):
        return False
    sent = int(timestamp)
    if abs(now - sent) > TOLERANCE_SECONDS:
        return False
    right = sign(key, id, sent, body).encode()
    return any(hmac.compare_digest(right, one.encode()) for one in signature.split(" "))
