from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.house import config_text
from tproxy.settings import SettingsFault, load

WITH = 'email_from = "tproxy@example.com"\nemail_to = ["ops@example.com"]\n'


def read(folder: Path, lines: str) -> object:
    file = folder / "config.toml"
    file.write_text(config_text("http://127.0.0.1:9", tproxy='access = "open"', tables=f"[tproxy.alerts]\n{lines}"))
    return load(file).alerts


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        pytest.param('smtp_url = "smtp://h"', "needs email_from and email_to", id="nobody to send to"),
        pytest.param(WITH, "smtp_url, which is not set", id="no server"),
        pytest.param(WITH + 'smtp_url = "http://pa55@h"', "must be smtp://", id="another scheme"),
        pytest.param(WITH + 'smtp_url = "smtps://u:pa55@"', "must be smtp://", id="no host"),
        pytest.param(WITH + 'smtp_url = "smtps://u:pa55@h:x"', "must be smtp://", id="no port"),
        pytest.param('slack_url = "hooks.slack.com/pa55"', "must be a URL of http", id="no scheme"),
        pytest.param('webhook_url = "ftp://h/"', "must be http://", id="no web"),
        pytest.param('webhook_url = "http://h:99999/"', "must be http://", id="no such port"),
        pytest.param('webhook_url = "http://a..b/"', "1 to 63 characters", id="no such host"),
        pytest.param('webhook_url = "http://u:pa55@h/"', "no user name", id="a secret in a URL"),
        pytest.param('webhook_secret = "pa55"', "webhook_url, which is not set", id="nothing to sign"),
        pytest.param('webhook_url = "http://h/"\nwebhook_secret = "whsec_*pa55"', "base64", id="no base64"),
        pytest.param('email_to = ["a@b\\nBcc: c@d"]', "must be an e-mail address", id="a header in an address"),
        pytest.param('email_from = ".a@b"', "must be an e-mail address", id="no address"),
        pytest.param("error_rate = 0", "greater than 0", id="a rate of nothing"),
    ],
)
def test_faults_are_found_at_the_start_and_tell_no_secret(lines: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsFault) as fault:
        read(tmp_path, lines)
    assert said in str(fault.value)
    assert "tproxy.alerts" in str(fault.value)
    assert "pa55" not in str(fault.value)


def test_all_of_it(tmp_path: Path) -> None:
    lines = WITH + (
        'smtp_url = "smtps://u:pa55@mail.example.com"\nslack_url = "https://hooks.slack.com/services/pa55"\n'
        'webhook_url = "https://hooks.example.com/x"\nwebhook_secret = "pa55"\nkey_expiry_days = 7\n'
    )
    assert "pa55" not in repr(read(tmp_path, lines))
