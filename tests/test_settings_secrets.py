"""What may be a secret is shown by no fault and no repr."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tproxy.settings import Settings, SettingsFault, load

ENVIRON = {"ANTHROPIC_API_KEY": "sk-ant-real"}

Load = Callable[..., Settings]


@pytest.fixture
def load_text(tmp_path: Path) -> Load:
    def load_text(text: str, environ: Mapping[str, str] = ENVIRON) -> Settings:
        path = tmp_path / "config.toml"
        path.write_text(text)
        return load(path, environ)

    return load_text


CANARY = "canary 7f3a"  # the space makes it a faulty key
SECRETS = {
    "master key": f"[tproxy]\nmaster_key = '{CANARY}'",
    "api key": f"[tproxy.upstream]\napi_keys = ['{CANARY}']",
    "from the environment": "[tproxy]\nmaster_key = 'env:CANARY'",
    "from a file": "[tproxy]\nmaster_key = 'file:canary'",
    "where a variable is named": f"[tproxy]\nmaster_key = 'env:{CANARY}'",
    "wrong type": f"[tproxy]\nmaster_key = ['{CANARY}']",
    "wrong type in a list": f"[tproxy.upstream]\napi_keys = [['{CANARY}']]",
    "no list": f"[tproxy.upstream]\napi_keys = '{CANARY}'",
    "a table": f"[tproxy.master_key]\nvalue = '{CANARY}'",
    "in the URL": f"[tproxy.upstream]\nbase_url = 'https://u:{CANARY}@host'",
    "beside another fault": f"nope = 1\nkeyfile_password = '{CANARY}'\n[tproxy]\nmaster_key = 'canary-7f3a'",
    "not TOML": f"[tproxy]\nmaster_key = '{CANARY}' '",
    "key file password": f"keyfile_password = ['{CANARY}']",
}


@pytest.mark.parametrize("text", SECRETS.values(), ids=SECRETS)
def test_no_fault_shows_a_secret(load_text: Load, tmp_path: Path, text: str) -> None:
    (tmp_path / "canary").write_text(CANARY)
    with pytest.raises(SettingsFault) as caught:
        load_text(text, {**ENVIRON, "CANARY": CANARY})
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + str(caught.value)
    shown += repr(caught.value.faults) + repr(caught.value.__context__) + repr(caught.value.__cause__)
    assert "7f3a" not in shown


def test_no_repr_shows_a_secret(load_text: Load) -> None:
    settings = load_text(
        "keyfile_password = 'canary1'\n[tproxy]\nmaster_key = 'canary2'\n[tproxy.upstream]\napi_keys = ['canary3']"
    )
    assert settings.hypercorn["keyfile_password"] == "canary1"
    assert "canary" not in repr(settings) + str(settings)


def test_a_private_key_in_place_of_its_path_is_not_shown(load_text: Load, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("-----BEGIN PRIVATE KEY-----\ncanary/" + "canary" * 100)
    with pytest.raises(SettingsFault) as caught:
        load_text("certfile = 'env:PEM'\nkeyfile = 'file:key.pem'", {**ENVIRON, "PEM": "canary\n"})
    assert [fault.place for fault in caught.value.faults] == ["config.toml: certfile", "config.toml: keyfile"]
    assert "canary" not in str(caught.value)
