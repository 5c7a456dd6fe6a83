"""Each channel before a real receiver."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator

import pytest
import trio

from tests.alert.mailbox import client_context, mailbox
from tests.alert.told import NOW_US, alert, fields, receiver
from tproxy.alert.channel import Slack, Webhook
from tproxy.alert.mail import Mail, MailServer
from tproxy.export.post import Poster
from tproxy.export.sink import NotTaken
from tproxy.protocol import signature

SECRET = "whsec_c2VjcmV0LW9mLXRoZS10ZXN0cw=="
HOSTILE = "evil\r\nBcc: victim@example.com\r\n\r\n<!channel> & *bold* <http://x|y>"


@pytest.fixture
async def poster() -> AsyncIterator[Poster]:
    made = Poster()
    yield made
    await made.aclose()


async def test_the_webhook_is_signed_json(poster: Poster) -> None:
    async with receiver() as hook:
        sent = alert("It is <spent>.", spent_usd=1.5)
        await Webhook(hook.url, SECRET, poster.post).send(sent)
        await Webhook(hook.url, None, poster.post).send(alert(resolved=True))
    first, second = hook.requests
    head = fields(first)
    said = head["webhook-signature"]
    key = signature.key(SECRET)
    assert head["content-type"] == "application/json"
    assert signature.verify(key, head["webhook-id"], head["webhook-timestamp"], first.body, said, time.time())
    assert head["webhook-id"] == sent.id
    assert json.loads(first.body) == {
        "type": "alert.began",
        "id": sent.id,
        "kind": "budget_reached",
        "severity": "critical",
        "subject": {"kind": "key", "id": "abc", "name": "anna"},
        "summary": "It is <spent>.",
        "figures": {"spent_usd": 1.5},
        "began": "2026-11-18T11:06:40Z",
        "resolved": None,
    }
    assert "webhook-signature" not in fields(second)
    assert json.loads(second.body)["type"] == "alert.resolved"
    assert json.loads(second.body)["resolved"] == "2026-11-18T11:07:40Z"


async def test_slack_gets_text_in_which_nothing_from_outside_is_markup(poster: Poster) -> None:
    async with receiver() as hook:
        await Slack(hook.url, poster.post).send(alert(HOSTILE, name="*<@U1>*"))
    [request] = hook.requests
    said = json.loads(request.body)
    assert list(said) == ["text"]
    title, _, text = said["text"].partition("\n")
    assert title == "*[tproxy] critical: budget reached: &lt;@U1&gt;*"
    assert text == ("evil Bcc: victim@example.com &lt;!channel&gt; &amp; *bold* &lt;http://x|y&gt;")


@pytest.mark.parametrize("channel", ["webhook", "slack"])
async def test_a_refusal_says_nothing_of_the_address(channel: str, poster: Poster) -> None:
    async with receiver(statuses=[404, 503]) as hook:
        way = Slack(hook.url, poster.post) if channel == "slack" else Webhook(hook.url, SECRET, poster.post)
        with pytest.raises(NotTaken) as gone:
            await way.send(alert())
        with pytest.raises(NotTaken) as busy:
            await way.send(alert())
    assert (gone.value.final, busy.value.final) == (True, False)
    for fault in (gone, busy):
        assert "secret-part" not in repr(fault.value)
        assert "127.0.0.1" not in repr(fault.value)


def mail(port: int, scheme: str = "smtp", user: str = "", **more: object) -> Mail:
    server = MailServer.parse(f"{scheme}://{user}127.0.0.1:{port}")
    return Mail(server, "tproxy@example.com", ["ops@example.com", "cfo@example.com"], client_context())


@pytest.mark.parametrize(
    ("scheme", "starttls", "secure"),
    [
        pytest.param("smtps", False, True, id="TLS from the start"),
        pytest.param("smtp", True, True, id="STARTTLS where it is offered"),
        pytest.param("smtp", False, False, id="in the clear"),
    ],
)
async def test_e_mail(scheme: str, starttls: bool, secure: bool) -> None:
    async with mailbox(tls=scheme == "smtps", starttls=starttls) as box:
        await mail(box.port, scheme, "o%40ps:p%3Aw@").send(alert(spent_usd=1.5, resolved=True))
    [letter] = box.mails
    assert box.recipients == ["ops@example.com", "cfo@example.com"]
    assert letter["Subject"] == "[tproxy] resolved: budget reached: anna"
    assert (letter["From"], letter["To"]) == ("tproxy <tproxy@example.com>", "ops@example.com, cfo@example.com")
    assert letter["Date"].datetime.timestamp() == NOW_US / 1_000_000 + 60
    assert letter["Message-ID"] == f"<{alert(resolved=True).id}@example.com>"
    assert letter["Auto-Submitted"] == "auto-generated"
    assert letter.get_content().splitlines() == [
        "It is spent.",
        "",
        "Began: 2026-11-18T11:06:40Z",
        "Resolved: 2026-11-18T11:07:40Z",
        "spent_usd: 1.5",
    ]
    assert box.passwords == ["\0o@ps\0p:w"]
    if scheme == "smtp":
        assert all(line.startswith("tls ") for line in box.said if "AUTH" in line) == secure


async def test_no_text_adds_a_header_or_a_recipient() -> None:
    async with mailbox() as box:
        await mail(box.port).send(alert(HOSTILE + "\n.\nMAIL FROM:<x@y>", name=HOSTILE, model=HOSTILE + "é\udc80"))
    [letter] = box.mails
    assert box.recipients == ["ops@example.com", "cfo@example.com"]
    assert letter["Bcc"] is None
    assert "\n" not in letter["Subject"]
    assert letter["Subject"].startswith("[tproxy] critical: budget reached: evil Bcc: victim@example.com")
    assert "é" in letter.get_content()
    assert len([line for line in box.said if line.upper().startswith("MAIL FROM")]) == 1


async def test_a_password_is_not_sent_in_the_clear_to_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MailServer, "is_local", False)
    async with mailbox() as box:
        with pytest.raises(NotTaken, match="offers no TLS") as fault:
            await mail(box.port, user="ops:pa55@").send(alert())
    assert fault.value.final
    assert not [line for line in box.said if "AUTH" in line]


@pytest.mark.parametrize(
    ("answer", "final", "said"),
    [("451 later", False, "451"), ("554 spam", True, "554")],
)
async def test_what_a_mail_server_refuses(answer: str, final: bool, said: str) -> None:
    async with mailbox() as box:
        box.answer = answer
        with pytest.raises(NotTaken, match=said) as fault:
            await mail(box.port, user="ops:pa55@").send(alert())
    assert fault.value.final == final
    assert "pa55" not in repr(fault.value)


async def test_a_mail_server_that_nobody_vouches_for_gets_nothing() -> None:
    async with mailbox(tls=True) as box:
        server = MailServer.parse(f"smtps://ops:pa55@127.0.0.1:{box.port}")
        with pytest.raises(NotTaken, match="SSLCertVerificationError"):
            await Mail(server, "a@example.com", ["b@example.com"]).send(alert())
    assert box.said == []


async def test_a_mail_server_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tproxy.alert.mail.STEP_SECONDS", 1.0)  # so that its thread ends with the test
    async with mailbox() as box:
        box.hangs = True
        with trio.move_on_after(0.2) as waiting:
            await mail(box.port).send(alert())
        assert waiting.cancelled_caught


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("smtps://mail.example.com", ("mail.example.com", 465, True, None, None)),
        ("smtp://mail.example.com", ("mail.example.com", 587, False, None, None)),
        ("smtp://a:b%2Fc@[::1]:25/", ("::1", 25, False, "a", "b/c")),
    ],
)
def test_mail_servers_by_their_urls(url: str, expected: tuple[object, ...]) -> None:
    server = MailServer.parse(url)
    assert (server.host, server.port, server.tls, server.user, server.password) == expected
    assert "b/c" not in repr(server)
    assert server.is_local == (server.host == "::1")


@pytest.mark.parametrize("url", ["http://mail.example.com", "smtp://", "smtp://host/path", "mail.example.com"])
def test_what_names_no_mail_server(url: str) -> None:
    with pytest.raises(ValueError, match="must be smtp://"):
        MailServer.parse(url)
