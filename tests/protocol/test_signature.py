from __future__ import annotations

import pytest

from tproxy.protocol.signature import key, sign, verify

# The vector of the Standard Webhooks specification's own libraries.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
TIMESTAMP = 1614265330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

KEY = key(SECRET)


def test_the_vector_of_the_specification() -> None:
    assert sign(KEY, ID, TIMESTAMP, BODY) == SIGNATURE
    assert verify(KEY, ID, str(TIMESTAMP), BODY, SIGNATURE, TIMESTAMP)


def test_a_plain_secret_is_its_own_key() -> None:
    assert key("päss") == "päss".encode()


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_*", "whsec_abc"])
def test_no_key(secret: str) -> None:
    with pytest.raises(ValueError, match="must"):
        key(secret)


@pytest.mark.parametrize(
    ("changes", "right"),
    [
        pytest.param({}, True, id="as it was sent"),
        pytest.param({"signature": f"v1,AAAA v1a,x {SIGNATURE}"}, True, id="one of several"),
        pytest.param({"now": TIMESTAMP + 300}, True, id="just young enough"),
        pytest.param({"now": TIMESTAMP + 301}, False, id="too old"),
        pytest.param({"now": TIMESTAMP - 301}, False, id="from the future"),
        pytest.param({"key": b"another"}, False, id="another key"),
        pytest.param({"id": "msg_2"}, False, id="another id"),
        pytest.param({"body": BODY + b" "}, False, id="another body"),
        pytest.param({"timestamp": str(TIMESTAMP + 1)}, False, id="another time"),
        pytest.param({"timestamp": ""}, False, id="no time"),
        pytest.param({"timestamp": "-1"}, False, id="a sign"),
        pytest.param({"timestamp": "\u0661"}, False, id="digits of another script"),
        pytest.param({"timestamp": "1" * 5000}, False, id="a long number"),
        pytest.param({"signature": ""}, False, id="no signature"),
        pytest.param({"signature": SIGNATURE.removeprefix("v1,")}, False, id="no version"),
        pytest.param({"signature": "v1,\u00fc"}, False, id="no base64"),
    ],
)
def test_verify(changes: dict[str, object], right: bool) -> None:
    said = {"key": KEY, "id": ID, "timestamp": str(TIMESTAMP), "body": BODY, "signature": SIGNATURE, "now": TIMESTAMP}
    assert verify(**(said | changes)) is right  # type: ignore[arg-type]
