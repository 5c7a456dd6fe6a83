"""`tproxy keys`: virtual keys from a terminal.

A key that is made is printed on stdout, alone, and what is said of it on stderr: `KEY=$(tproxy keys create)` works.
`KEY` of a command is an alias, a hash or the beginning of one; `-` reads the key itself from stdin.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer

from tproxy import terminal
from tproxy.client import DEFAULT_URL, KEY_VARIABLE, URL_VARIABLE, Api, ApiFault
from tproxy.commands import fields
from tproxy.commands.find import STDIN, every_key, find, read_key
from tproxy.plaintext import plain
from tproxy.protocol.keys import CHANCE_BYTES, CHOSEN_MIN, compose, hash_key

app = typer.Typer(
    help="Virtual keys: make them, look at them, change, block, replace and delete them. Asks a running server.",
    no_args_is_help=True,
)

Url = Annotated[
    str,
    typer.Option("--url", envvar=URL_VARIABLE, help=f"The server's address; the master key is in ${KEY_VARIABLE}."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Key = Annotated[
    str, typer.Argument(metavar="KEY", help="Its alias, its hash or the beginning of it; - reads the key from stdin.")
]


@app.command()
def create(
    alias: fields.Alias = None,
    team: fields.Team = None,
    user: fields.User = None,
    model: fields.Models = None,
    budget: fields.Budget = None,
    every: fields.Every = None,
    limit: fields.Limits = None,
    soft: fields.Soft = None,
    mode: fields.ModeOption = None,
    cut: fields.Cut = None,
    rpm: fields.Rpm = None,
    tpm: fields.Tpm = None,
    itpm: fields.Itpm = None,
    otpm: fields.Otpm = None,
    parallel: fields.Parallel = None,
    expires: fields.Expires = None,
    tag: fields.Tags = None,
    route: fields.Routes = None,
    role: fields.RoleOption = None,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Make a key. It is shown this once, on stdout."""
    if every is not None and budget is None and soft is None:
        raise typer.BadParameter("it says when a budget starts anew: give --budget or --soft too", param_hint="--every")
    asked = fields.request(
        alias=alias, team=team, user=user, models=model, budget=budget, every=every, limits=limit, soft=soft,
        mode=mode, cut=cut, rpm=rpm, tpm=tpm, itpm=itpm, otpm=otpm, parallel=parallel, expires=expires,
        tags=tag, routes=route, role=role,
    )  # fmt: skip
    with talk(url) as api:
        _show_made(api.post("/key/generate", asked), as_json=as_json)


@app.command("list")
def list_keys(
    team: Annotated[str | None, typer.Option(help="Only those of a team.")] = None,
    user: Annotated[str | None, typer.Option(help="Only those of a user.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the newest.")] = None,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """List the keys, newest first."""
    with talk(url) as api:
        rows = list(every_key(api, limit, team_id=team, user_id=user))
    out(rows) if as_json else terminal.show_keys(rows)


@app.command()
def info(key: Key, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Show all that is known of a key."""
    with talk(url) as api:
        row = find(api, key)
    out(row) if as_json else terminal.show_key(row)


@app.command()
def update(
    key: Key,
    alias: fields.Alias = None,
    team: fields.Team = None,
    user: fields.User = None,
    model: fields.Models = None,
    budget: fields.Budget = None,
    every: fields.Every = None,
    limit: fields.Limits = None,
    soft: fields.Soft = None,
    mode: fields.ModeOption = None,
    cut: fields.Cut = None,
    rpm: fields.Rpm = None,
    tpm: fields.Tpm = None,
    itpm: fields.Itpm = None,
    otpm: fields.Otpm = None,
    parallel: fields.Parallel = None,
    expires: fields.Expires = None,
    tag: fields.Tags = None,
    route: fields.Routes = None,
    role: fields.RoleOption = None,
    unset: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"Take back what was set: {', '.join(fields.UNSET)}; can be repeated."),
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Change a key. What is not named stays; of models, limits, tags and routes, the new ones replace the old."""
    asked = fields.request(
        alias=alias, team=team, user=user, models=model, budget=budget, every=every, limits=limit, soft=soft,
        mode=mode, cut=cut, rpm=rpm, tpm=tpm, itpm=itpm, otpm=otpm, parallel=parallel, expires=expires,
        tags=tag, routes=route, role=role,
    )  # fmt: skip
    taken_back = fields.unset(unset or ())
    if asked.keys() & taken_back.keys():
        raise typer.BadParameter("it names what is set in the same command", param_hint="--unset")
    asked |= taken_back
    if not asked:
        raise typer.BadParameter("nothing to change: give at least one option")
    with talk(url) as api:
        row = find(api, key)
        _show_done("changed", row, api.post("/key/update", {"key": row["token"], **asked}), as_json=as_json)


@app.command()
def block(key: Key, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Let a key open nothing, until it is unblocked. What runs goes on."""
    with talk(url) as api:
        row = find(api, key)
        _show_done("blocked", row, api.post("/key/block", {"key": row["token"]}), as_json=as_json)


@app.command()
def unblock(key: Key, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Let a blocked key open things again."""
    with talk(url) as api:
        row = find(api, key)
        _show_done("unblocked", row, api.post("/key/unblock", {"key": row["token"]}), as_json=as_json)


@app.command()
def rotate(
    key: Key,
    grace: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="The old key works for so long, such as 24h; default: not at all."),
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Make a new key in place of an old one, with its name and all its terms. It is shown this once, on stdout."""
    grace = fields.lasting("--grace", grace)
    with talk(url) as api:
        row = find(api, key)
        asked = {"key": row["token"]} | ({"grace_period": grace} if grace else {})
        _show_made(api.post("/key/regenerate", asked), as_json=as_json)
        if not as_json:
            say(f"The old one, {_name(row)}, {f'works for {grace}.' if grace else 'opens nothing any more.'}")


@app.command()
def delete(
    key: Key,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Delete a key, for ever. What it spent stays in the ledger."""
    if key == STDIN and not yes:
        raise typer.BadParameter("stdin holds the key, so that nothing can be asked there: give --yes too")
    with talk(url) as api:
        row = find(api, key)
        if not yes:
            typer.confirm(plain(f"Delete {_name(row)}?"), abort=True, err=True)
        _show_done("deleted", row, api.post("/key/delete", {"keys": [row["token"]]}), as_json=as_json)


@app.command("hash")
def hash_command(
    source: Annotated[str | None, typer.Argument(metavar="-", help="The key is read from stdin, always.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Make a key, and print it and its hash.")] = False,
) -> None:
    """Print the hash of a key, for `hash = "…"` in keys.toml. Asks no server."""
    if source not in (None, STDIN):
        raise typer.BadParameter("a key does not belong in an argument, where others can read it: give it on stdin")
    if new:
        key = compose(secrets.token_bytes(CHANCE_BYTES))
        typer.echo(f"key  {key}\nhash {hash_key(key)}")
        say("The key is shown only now. keys.toml needs its hash alone.")
    else:
        typer.echo(hash_key(read_key(CHOSEN_MIN)))


@contextmanager
def talk(url: str) -> Iterator[Api]:
    """The API at `url` with the key of the environment; what it says no to ends the command."""
    try:
        api = Api(url, os.environ.get(KEY_VARIABLE, ""))
    except ValueError as fault:
        end(str(fault), 2)
    try:
        with api:
            yield api
    except ApiFault as fault:
        end(str(fault), 1)


def out(content: object) -> None:
    """Print JSON, with everything outside ASCII as escapes: no terminal takes it for a command."""
    typer.echo(json.dumps(content, indent=2))


def say(sentence: str) -> None:
    """Print a remark on stderr, beside what programs read."""
    typer.echo(plain(sentence), err=True)


def end(sentence: str, code: int) -> NoReturn:
    """Say why a command failed, and end it."""
    say(f"tproxy: {sentence}")
    sys.exit(code)


def _show_made(answer: Any, *, as_json: bool) -> None:
    if not isinstance(answer, dict) or not isinstance(answer.get("key"), str):
        raise ApiFault("the answer holds no key; whether one was made, `tproxy keys list` tells")
    if as_json:
        out(answer)
        return
    typer.echo(plain(answer["key"]))
    digest = hash_key(answer["key"])
    say(
        f"The key is shown only now; tproxy keeps its hash, {digest[:16]}…  Alias: {answer.get('key_alias') or 'none'}."
    )


def _show_done(what: str, row: dict[str, Any], answer: Any, *, as_json: bool) -> None:
    out(answer) if as_json else typer.echo(plain(f"{what}: {_name(row)}"))


def _name(row: dict[str, Any]) -> str:
    """A key for people: `alice (sk-...abcd, hash 0123456789abcdef…)`."""
    names = [row.get("key_name"), f"hash {row['token'][:16]}…"]
    shown = ", ".join(str(name) for name in names if name)
    return f"{row['key_alias']} ({shown})" if row.get("key_alias") else shown
