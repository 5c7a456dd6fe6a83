from __future__ import annotations

import re
import string
import tempfile
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.manage.desk import MASTER, Office, digest, office
from tproxy.protocol.keys import is_misspelt
from tproxy.store.base import EXPECTED, Claim
from tproxy.store.subjects import KEY, Budget, Subject, Terms

FILE_KEY = "sk-one-that-stands-in-the-file"
IN_FILE = Subject(
    kind=KEY,
    id=digest(FILE_KEY),
    alias="of the file",
    last4="file",
    team="t",
    terms=Terms(budgets=(Budget("1mo", 5_000_000_000),)),
    in_file=True,
)


async def info(o: Office, key: str) -> dict[str, Any]:
    page: dict[str, Any] = (await o.get("/key/info", key=key)).ok["info"]
    return page


def written(folder: Path) -> bytes:
    """All that is in the files of a folder."""
    return b"".join(file.read_bytes() for file in folder.iterdir())


async def test_a_key_is_shown_once(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        answer = await o.post(
            "/key/generate", key_alias="a", max_budget=2.5, budget_duration="1mo", models=["claude-*"]
        )
        made = answer.ok
        key, id = made["key"], made["token"]
        assert re.fullmatch(r"sk-[0-9A-Za-z]{49}", key)
        assert not is_misspelt(key)
        assert id == made["token_id"] == digest(key)
        assert made["key_name"] == f"sk-...{key[-4:]}"
        assert (made["max_budget"], made["budget_duration"], made["models"]) == (2.5, "1mo", ["claude-*"])
        assert (made["spend"], made["budget_reset_at"]) == (0, "2026-12-01T00:00:00.000000Z")
        assert (made["created_by"], made["created_at"]) == ("master", "2026-11-18T11:06:40.000000Z")
        known = o.desk.directory.key(id)
        assert known is not None
        assert known.terms == Terms(budgets=(Budget("1mo", 2_500_000_000),))

        shown = (await o.get("/key/info", key=key)).ok
        assert shown["key"] == id
        assert "token" not in shown["info"]
        assert {**shown["info"], "key": key, "token": id, "token_id": id} == made
        others = [await o.get("/key/list", return_full_object=True), await o.post("/key/update", key=key, rpm_limit=1)]
        others += [await o.post("/key/block", {"key": key}), await o.post("/key/unblock", {"key": key})]
        others += [await o.post("/v2/key/info", keys=[key]), await o.post("/key/delete", keys=[key])]
        for answer in others:
            assert key not in str(answer.ok)
            assert id in str(answer.ok)
        left, left_id = await o.make()
    files = written(tmp_path)
    assert left_id.encode() in files
    assert left[-4:].encode() in files
    assert left[-5:].encode() not in files
    assert key[-5:].encode() not in files


async def test_a_key_of_ones_own_choice(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        mine = "sk-my-own-and-long-enough"
        assert (await o.post("/key/generate", {"key": mine})).ok["token"] == digest(mine)
        again = await o.post("/key/generate", {"key": mine})
        assert again.status == 400
        assert mine not in again.response.text
        assert (await o.post("/key/generate", {"key": MASTER})).status == 400
        misspelt = "sk-" + "A" * 49
        for wrong in ("my-own-and-long-enough", "sk-short", "sk-with a blank in it", "sk-ant-of-anthropic's", misspelt):
            answer = await o.post("/key/generate", {"key": wrong})
            assert (answer.status, answer.error["param"]) == (422, "key"), wrong
            assert answer.json["detail"][0]["loc"] == ["body", "key"]
            assert wrong[3:] not in answer.response.text
        assert (await o.get("/key/list")).ok["total_count"] == 1


async def test_an_alias_is_had_by_one(tmp_path: Path) -> None:
    async with office(tmp_path, file_keys=[IN_FILE]) as o:
        await o.make(key_alias="a")
        _, other = await o.make(key_alias="b")
        for answer in (
            await o.post("/key/generate", key_alias="a"),
            await o.post("/key/generate", key_alias="of the file"),
            await o.post("/key/update", key=other, key_alias="a"),
        ):
            assert (answer.status, answer.error["param"]) == (400, "key_alias")
        assert sorted((await o.get("/key/aliases")).ok["aliases"]) == ["a", "b", "of the file"]
        assert (await o.post("/key/update", key=other, key_alias=None)).ok["key_alias"] is None
        assert sorted((await o.get("/key/aliases")).ok["aliases"]) == ["a", "of the file"]


async def test_a_service_account_has_a_team_and_no_user(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        for fields, param in (({}, "team_id"), ({"team_id": "t", "user_id": "u"}, "user_id")):
            answer = await o.post("/key/service-account/generate", fields)
            assert (answer.status, answer.error["param"]) == (422, param)
        await o.post("/team/new", team_id="t")
        assert (await o.post("/key/service-account/generate", team_id="t")).ok["team_id"] == "t"


async def test_a_team_that_does_not_exist_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """LiteLLM takes such a key, and programs make keys before their teams."""
    async with office(tmp_path) as o:
        await o.post("/team/new", team_id="red")
        key, id = await o.make(team_id="red", user_id="somebody of elsewhere")
        written = capsys.readouterr()
        assert "does not exist" not in written.out + written.err
        for path, fields in (
            ("/key/generate", {}),
            ("/key/service-account/generate", {}),
            ("/key/update", {"key": id}),
            ("/key/regenerate", {"key": key}),
        ):
            answer = (await o.post(path, {**fields, "team_id": f"rde{path}"})).ok
            assert answer["team_id"] == f"rde{path}"
            written = capsys.readouterr()
            assert "does not exist" in written.out + written.err


async def test_a_moment_that_no_calendar_has_spoils_no_list(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        answer = await o.post("/key/generate", expires="9999-12-31T23:59:59-14:00")
        assert (answer.status, answer.error["param"]) == (422, "expires")
        assert (await o.get("/key/list")).ok["total_count"] == 0
        stored = Subject(kind=KEY, id=digest("sk-of-before"), expires_us=2**62)
        await o.desk.directory.create(stored)
        [row] = (await o.get("/key/list", return_full_object=True)).ok["keys"]
        assert row["expires"] == (await info(o, stored.id))["expires"] == "9999-12-31T23:59:59.999999Z"


async def test_a_key_is_named_in_three_ways(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        key, id = await o.make(key_alias="a")
        for n, named in enumerate(({"key": key}, {"key": id}, {"key": id.upper()}, {"key_alias": "a"}), start=1):
            changed = (await o.post("/key/update", {**named, "rpm_limit": n})).ok
            assert (changed["token"], changed["rpm_limit"], changed["key_alias"]) == (id, n, "a")
        for named in ({"key": "sk-unknown-to-everybody"}, {"key": digest("x")}, {"key_alias": "x"}):
            assert (await o.post("/key/update", {**named, "rpm_limit": 9})).status == 404
        assert (await o.post("/key/update", rpm_limit=9)).error["param"] == "key"
        assert (await info(o, id))["rpm_limit"] == 4


async def test_a_limit_is_changed_and_taken_back_while_money_stays(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        _, id = await o.make(
            max_budget=5, budget_duration="1mo", budget_limits=[{"budget_duration": "1d", "max_budget": 1}]
        )
        await o.spend(300_000_000, key=id)
        page = (await o.post("/key/update", key=id, max_budget=9)).ok
        assert (page["max_budget"], page["spend"]) == (9, 0.3)
        assert [(each["max_budget"], each["spent"]) for each in page["budgets"]] == [(9, 0.3), (1, 0.3)]
        page = (await o.post("/key/update", key=id, budget_limits=None)).ok
        assert [each["spent"] for each in page["budgets"]] == [0.3]
        page = (await o.post("/key/update", key=id, max_budget=None, budget_duration=None)).ok
        assert (page["budgets"], page["max_budget"], page["spend"]) == ([], None, 0.3)
        key = o.desk.directory.key(id)
        assert key is not None
        assert not key.governs


async def test_a_row_that_is_sent_back_changes_nothing(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        await o.post("/budget/new", budget_id="b", otpm_limit=7)
        _, id = await o.make(
            key_alias="a",
            max_budget=5,
            budget_duration="1mo",
            budget_limits=[{"budget_duration": "1d", "max_budget": 1}],
            models=["m"],
            metadata={"a": 1},
            config={"c": 1},
            duration="1d",
            budget_id="b",
            key_type="read_only",
            spend=0.5,
        )
        page = await info(o, id)
        assert (page["budget_id"], page["otpm_limit"], page["max_budget"]) == ("b", 7, 5)
        assert (await o.post("/key/update", {**page, "key": id})).status == 200
        assert await info(o, id) == page


async def test_what_a_key_has_spent(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        _, id = await o.make(max_budget=5, budget_duration="1d")
        _, free = await o.make()
        await o.spend(
            1_000_000_001, key=id, expected_nano=2_000_000_000, claims=[Claim(KEY, id, EXPECTED, 2_000_000_000)]
        )
        await o.spend(250_000_000, key=free)
        page = await info(o, id)
        assert page["spend"] == 1.000000001
        assert page["budgets"][0]["held"] == 0
        assert page["budget_estimate"] == {
            "exchanges": 1,
            "expected": 2.0,
            "actual": 1.000000001,
            "mean_error": 0.999999999,
        }
        assert page["last_active"] == "2026-11-18T11:06:40.000000Z"
        assert (await info(o, free))["spend"] == 0.25
        o.clock.pass_seconds(86_400)  # its budget is that of another day
        page = await info(o, id)
        assert (page["spend"], page["budget_reset_at"]) == (0, "2026-11-20T00:00:00.000000Z")
        assert (await info(o, free))["spend"] == 0.25


async def test_a_spend_is_set(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        made = (await o.post("/key/generate", max_budget=5, spend=0.1 + 0.2)).ok
        id = made["token"]
        assert (made["spend"], made["budgets"][0]["spent"]) == (0.3, 0.3)
        assert (await o.post("/key/update", key=id, spend=2)).ok["spend"] == 2
        await o.spend(500_000_000, key=id)
        assert (await info(o, id))["spend"] == 2.5
        assert (await o.post(f"/key/{id}/reset_spend", reset_to=0.5)).ok["spend"] == 0.5
        assert (await o.post("/key/update", key=id, max_budget=None, spend=None)).ok["spend"] == 0.5
        for wrong in (True, -1, None, "x"):
            answer = await o.post(f"/key/{id}/reset_spend", reset_to=wrong)
            assert (answer.status, answer.error["param"]) == (422, "reset_to")
        assert (await o.post(f"/key/{digest('x')}/reset_spend", reset_to=1)).status == 404
        assert (await info(o, id))["spend"] == 0.5


async def test_keys_are_deleted_together_or_not_at_all(tmp_path: Path) -> None:
    async with office(tmp_path, file_keys=[IN_FILE]) as o:
        a, a_id = await o.make(key_alias="a")
        _, b_id = await o.make(key_alias="b")
        _, c_id = await o.make(key_alias="c")
        answer = await o.post("/key/delete", keys=[a, "sk-unknown-to-everybody"], key_aliases=["b", "nobody"])
        assert answer.status == 404
        assert "2 of the 4 keys" in answer.error["message"]
        assert (await o.post("/key/delete", keys=[a], key_aliases=["of the file"])).status == 400
        none_named: list[dict[str, Any]] = [{}, {"keys": None, "key_aliases": None}, {"keys": [], "key_aliases": []}]
        for nothing in none_named:
            assert (await o.post("/key/delete", nothing)).status == 422
        assert (await o.get("/key/list")).ok["total_count"] == 4
        deleted = (await o.post("/key/delete", keys=[a, a_id], key_aliases=["b"])).ok
        assert deleted == {"deleted_keys": [a_id, b_id]}
        assert (await o.post("/key/delete", keys=[a])).status == 404
        assert (await o.get("/key/list")).ok["keys"] == [IN_FILE.id, c_id]
        assert (await o.post("/key/delete", {"keys": None, "key_aliases": ["c"]})).ok == {"deleted_keys": [c_id]}


async def test_keys_are_listed_page_by_page(tmp_path: Path) -> None:
    async with office(tmp_path, file_keys=[IN_FILE]) as o:
        await o.post("/team/new", team_id="t")
        made = []
        for n in range(5):
            o.clock.pass_seconds(1)
            made.append(
                (await o.make(key_alias=f"k{n}", team_id="t" if n % 2 else None, user_id="u" if n > 2 else None))[1]
            )
        newest = [IN_FILE.id, *reversed(made)]
        pages = [(await o.get("/key/list", page=page, size=4)).ok for page in (1, 2, 3)]
        assert [page["keys"] for page in pages] == [newest[:4], newest[4:], []]
        assert pages[0] | {"keys": 0} == {"keys": 0, "total_count": 6, "current_page": 1, "total_pages": 2}
        for query, expected in (
            ({"team_id": "t"}, [IN_FILE.id, made[3], made[1]]),
            ({"user_id": "u"}, [made[4], made[3]]),
            ({"user_id": "u", "team_id": "t"}, [made[3]]),
            ({"key_alias": "k2"}, [made[2]]),
            ({"key_alias": "of the file"}, [IN_FILE.id]),
            ({"key_hash": made[0]}, [made[0]]),
            ({"key_hash": made[0][:10]}, [made[0]]),
            ({"key_hash": IN_FILE.id[:10].upper()}, [IN_FILE.id]),
            ({"user_id": "' OR 1=1 --"}, []),
            ({"user_id": "", "team_id": ""}, newest),
            ({"sort_by": "created_at", "sort_order": "asc"}, [IN_FILE.id, *made]),
        ):
            page = (await o.get("/key/list", size=100, include_team_keys="false", **query)).ok
            assert (page["keys"], page["total_count"]) == (expected, len(expected)), query
        rows = (await o.get("/key/list", return_full_object="true", size=100)).ok["keys"]
        assert [each["token"] for each in rows] == newest
        assert rows[1] == {**(await info(o, made[4])), "token": made[4]}
        for name, value in (("size", 0), ("size", 1001), ("page", "x"), ("sort_by", "spend"), ("user_id", "x" * 300)):
            answer = await o.ask("GET", "/key/list", params={name: str(value)})
            assert answer.error["param"] == name


async def test_keys_of_the_file_are_shown_and_not_changed(tmp_path: Path) -> None:
    async with office(tmp_path, file_keys=[IN_FILE]) as o:
        await o.spend(1_000_000_000, key=IN_FILE.id)
        page = await info(o, FILE_KEY)
        assert (page["key_alias"], page["in_key_file"], page["max_budget"], page["spend"]) == (
            "of the file",
            True,
            5,
            1,
        )
        for path, body in (
            ("/key/update", {"key": FILE_KEY, "rpm_limit": 1}),
            ("/key/update", {"key_alias": "of the file", "rpm_limit": 1}),
            ("/key/block", {"key": FILE_KEY}),
            ("/key/unblock", {"key": IN_FILE.id}),
            ("/key/delete", {"keys": [FILE_KEY]}),
            ("/key/regenerate", {"key": FILE_KEY}),
            (f"/key/{FILE_KEY}/regenerate", {}),
            (f"/key/{FILE_KEY}/reset_spend", {"reset_to": 0}),
            ("/key/generate", {"key": FILE_KEY}),
        ):
            answer = await o.post(path, body)
            assert answer.status == 400, path
            assert "key file" in answer.error["message"] or path == "/key/generate"
        assert await info(o, FILE_KEY) == page


@pytest.mark.parametrize("in_path", [False, True])
async def test_a_key_is_regenerated(tmp_path: Path, in_path: bool) -> None:
    async with office(tmp_path) as o:
        await o.post("/team/new", team_id="t")
        old, old_id = await o.make(key_alias="a", max_budget=5, rpm_limit=3, team_id="t", spend=1)
        path = f"/key/{old}/regenerate" if in_path else "/key/regenerate"
        named = {} if in_path else {"key": old}
        made = (await o.post(path, {**named, "rpm_limit": 4, "tpm_limit": None, "max_budget": None})).ok
        assert made["key"] != old
        assert made["token"] == digest(made["key"])
        assert made["key_name"] == f"sk-...{made['key'][-4:]}"
        shown = {name: made[name] for name in ("key_alias", "max_budget", "rpm_limit", "team_id", "spend")}
        assert shown == {"key_alias": "a", "max_budget": 5, "rpm_limit": 4, "team_id": "t", "spend": 1}
        assert (await o.get("/key/info", key=old_id)).status == 404
        assert (await o.post(path, named)).status == 404
        assert (await o.get("/key/list")).ok["keys"] == [made["token"]]


async def test_a_key_goes_on_for_a_time_of_grace(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        old, old_id = await o.make(max_budget=5)
        mine = "sk-my-own-and-long-enough"
        for fields, param in (
            ({"new_key": "short"}, "new_key"),
            ({"grace_period": "soon"}, "grace_period"),
            ({"new_key": mine, "max_budget": -1}, "max_budget"),
        ):
            answer = await o.post("/key/regenerate", {"key": old, **fields})
            assert (answer.status, answer.error["param"]) == (422, param)
        made = (await o.post("/key/regenerate", {"key": old, "new_key": mine, "grace_period": "24h", "spend": 2})).ok
        assert (made["token"], made["spend"]) == (digest(mine), 2)
        page = await info(o, old_id)
        assert (page["replaced_by"], page["expires"]) == (digest(mine), "2026-11-19T11:06:40.000000Z")
        assert page["spend"] == 2  # the money is one
        for path, body in (
            ("/key/update", {"key": old, "max_budget": 100}),
            ("/key/regenerate", {"key": old}),
            (f"/key/{old}/reset_spend", {"reset_to": 0}),
        ):
            answer = await o.post(path, body)
            assert answer.status == 400, path
            assert digest(mine) in answer.error["message"]
        assert (await o.post("/key/block", {"key": old})).ok["blocked"] is True
        assert (await info(o, mine))["blocked"] is False
        assert (await o.post("/key/delete", keys=[mine])).ok == {"deleted_keys": [digest(mine)]}
        assert (await o.get("/key/list")).ok["keys"] == []


async def test_a_shared_budget(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        await o.post("/budget/new", budget_id="b", max_budget=3, budget_duration="1mo", rpm_limit=9)
        _, id = await o.make(budget_id="b", rpm_limit=1)
        page = await info(o, id)
        assert (page["budget_id"], page["max_budget"], page["rpm_limit"]) == ("b", 3, 1)
        assert page["litellm_budget_table"]["max_budget"] == 3
        assert page["budgets"][0]["max_budget"] == 3
        await o.post("/budget/update", budget_id="b", max_budget=4, rpm_limit=8)
        page = await info(o, id)
        assert (page["max_budget"], page["budgets"][0]["max_budget"], page["rpm_limit"]) == (4, 4, 1)
        page = (await o.post("/key/update", key=id, budget_id="b")).ok
        assert (page["max_budget"], page["rpm_limit"]) == (4, 1)
        page = (await o.post("/key/update", key=id, budget_id=None)).ok
        assert (page["budget_id"], page["max_budget"], page["rpm_limit"]) == (None, None, 1)
        for path, body in (
            ("/key/generate", {"budget_id": "none"}),
            ("/key/update", {"key": id, "budget_id": "none"}),
            ("/key/regenerate", {"key": id, "budget_id": "none"}),
        ):
            answer = await o.post(path, body)
            assert answer.status == 404
            assert answer.error["message"] == "There is no budget 'none'."
        made = (await o.post("/key/regenerate", {"key": id, "budget_id": "b"})).ok
        assert (made["budget_id"], made["max_budget"]) == ("b", 4)


async def test_two_changes_at_a_time_are_both_made(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        _, id = await o.make()
        names = ("rpm_limit", "tpm_limit", "itpm_limit", "otpm_limit", "max_parallel_requests", "max_budget")
        async with trio.open_nursery() as nursery:
            for n, name in enumerate(names):
                nursery.start_soon(o.post, "/key/update", {"key": id, name: n + 1})
        page = await info(o, id)
        assert [page[name] for name in names] == [1, 2, 3, 4, 5, 6]


# What somebody may try in a field that is text.
ATTACKS = [
    "'; DROP TABLE subject; --",
    "' OR '1'='1",
    '" OR ""="',
    "x' UNION SELECT document FROM subject --",
    "%' OR alias LIKE '%",
    "*",
    "?",
    ":id",
    "$.members",
    '"}, "role": "admin", "x": {"',
    '{"$ref": "#/x"}',
    "\\",
    "\\u0000",
    "\\x00",
    "${jndi:ldap://x}",
    "{{7*7}}",
    "<script>alert(1)</script>",
    "../../etc/passwd",
    "a%0d%0aset-cookie: x",
    "null",
    "true",
    "0",
    "-1",
    "1e999",
    "NaN",
    "__proto__",
    "\u00e9",
    "e\u0301",
    "\U0001f511",
    "\uff07 OR 1=1",
    " leading and trailing ",
    "x" * 256,
]
CONTROL = ["a\x00b", "a\r\nset-cookie: x", "\x1b[31m", "\u202e", "\u2028", "\x85"]


async def attacked(o: Office, texts: list[str]) -> None:
    """Put each text into every field that is text, and see that it is there, and nothing else is changed."""
    await o.post("/team/new", team_id="t")
    _, untouched = await o.make(key_alias="untouched", metadata={"a": "b"}, team_id="t", rpm_limit=7)
    before = await info(o, untouched)
    count = (await o.get("/key/list")).ok["total_count"]
    for n, text in enumerate(texts):
        fields = {
            "key_alias": f"{text}"[:250] + str(n),
            "user_id": text,
            "team_id": text,
            "models": [text],
            "allowed_routes": [text],
            "tags": [text],
            "metadata": {text: text, "nested": [{text: [text]}]},
            "model_rpm_limit": {text: 5},
            "config": {text: text},
            "organization_id": text,
        }
        await o.post("/team/new", team_id=text)
        made = (await o.post("/key/generate", fields)).ok
        page = await info(o, made["key"])
        assert {name: page[name] for name in fields} == fields
        assert (page["role"], page["rpm_limit"], page["blocked"], page["max_budget"]) == (None, None, False, None)
        listed = (await o.get("/key/list", team_id=text, user_id=text, key_alias=fields["key_alias"])).ok
        assert listed["keys"] == [made["token"]]
        assert (await o.post("/key/update", key=text, rpm_limit=1)).status == 404
        assert (await o.get("/key/info", key=text)).status == 404
        assert (await o.post("/key/update", key_alias=fields["key_alias"], rpm_limit=1)).ok["token"] == made["token"]
        assert (await o.post("/key/delete", key_aliases=[fields["key_alias"]])).ok["deleted_keys"] == [made["token"]]
    assert (await o.get("/key/list")).ok["total_count"] == count
    assert await info(o, untouched) == before
    assert (await o.post("/key/delete", keys=[untouched])).status == 200


async def test_attacks_change_nothing_but_their_field(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        await attacked(o, ATTACKS)
        for text in CONTROL:
            for name in ("key_alias", "user_id", "team_id", "key"):
                answer = await o.post("/key/generate", {name: text})
                assert (answer.status, answer.error["param"]) == (422, name)
            for name in ("models", "tags", "allowed_routes"):
                assert (await o.post("/key/generate", {name: [text]})).error["param"] == f"{name}.0"
            made = (await o.post("/key/generate", metadata={text: text})).ok
            assert made["metadata"] == {text: text}
            assert (await o.get("/key/list", user_id=text)).ok["keys"] == []


TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
ANY_TEXT = st.text(
    alphabet=st.one_of(
        st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters=TURNING),
        st.sampled_from(string.punctuation + " "),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ANY_TEXT, min_size=1, max_size=8))
def test_no_text_changes_anything_but_its_field(texts: list[str]) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with office(Path(folder)) as o:
                await attacked(o, texts)

    trio.run(run)
