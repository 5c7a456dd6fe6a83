"""`tproxy captures`: the bodies that were kept, from a terminal, as the conversations that they were.

What clients and models wrote is printed without control characters: no body moves the cursor of who reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from tproxy.client import DEFAULT_URL, ApiFault
from tproxy.commands.keys import Json, Url, out, talk
from tproxy.plaintext import plain

app = typer.Typer(
    help="Captured bodies ([tproxy.capture]): list them, read them, delete them. Asks a running server.",
    no_args_is_help=True,
)

Id = Annotated[str, typer.Argument(metavar="ID", help="The exchange's x-tproxy-id.")]


@app.command("list")
def list_captures(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, the newest.")] = 50,
    before: Annotated[str | None, typer.Option(help="Only what is older than this capture.")] = None,
    caller: Annotated[str | None, typer.Option(help="Only those of a caller: an alias, or key:HASH.")] = None,
    ended: Annotated[str | None, typer.Option(help="Only those that ended so, as the ledger has it.")] = None,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """List the captures, newest first, one a line."""
    with talk(url) as api:
        answer: Any = api.get("/capture/list", limit=limit, before=before, caller=caller, ended=ended)
        rows = answer.get("captures") if isinstance(answer, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ApiFault(f"{api.url} gave no captures: is it tproxy's?")
    if as_json:
        out(answer)
        return
    for row in rows:
        caller_name = row.get("caller_alias") or row.get("caller")
        told = (row.get("id"), _time(row.get("at_us")), row.get("status"), row.get("ended"), row.get("model"))
        typer.echo(plain("  ".join(str(each if each is not None else "-") for each in (*told, caller_name))))
    if answer.get("next"):
        typer.echo(plain(f"there are more: --before {answer['next']}"), err=True)


@app.command()
def show(id: Id, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Print one as the conversation that it was."""
    with talk(url) as api:
        row: Any = api.get("/capture/info", id=id)
        if not isinstance(row, dict):
            raise ApiFault(f"{api.url} gave no capture: is it tproxy's?")
    if as_json:
        out(row)
        return
    for line in told(row):
        typer.echo(_lines(line))


@app.command()
def delete(id: Id, url: Url = DEFAULT_URL) -> None:
    """Delete the bodies of one exchange; its row in the ledger stays."""
    with talk(url) as api:
        api.post("/capture/delete", {"id": id})
    typer.echo(plain(f"deleted: {id}"))


def told(row: dict[str, Any]) -> Iterator[str]:
    """A capture for people, part by part."""
    caller = row.get("caller_alias") or row.get("caller")
    yield f"{row.get('id')}  {_time(row.get('at_us'))}  {caller}"
    yield f"{row.get('path')}  {row.get('model')}  status {row.get('status')}  {row.get('ended')}"
    yield from _request(row.get("request"))
    if row.get("request") is None:
        yield f"\n── request ──\n({row.get('request_bytes')} bytes, not captured: it was streamed through)"
    if row.get("request_cut"):
        yield f"(cut: it had {row.get('request_bytes')} bytes)"
    yield from _answer(row)


def _request(request: Any) -> Iterator[str]:
    if isinstance(request, str):
        yield f"\n── request ──\n{request}"
    if not isinstance(request, dict):
        return
    rest = {name: value for name, value in request.items() if name not in ("messages", "system", "tools")}
    yield f"\n── request ──\n{_json(rest)}"
    tools = request.get("tools")
    if isinstance(tools, list):
        yield "tools: " + ", ".join(str(each.get("name")) if isinstance(each, dict) else "?" for each in tools)
    if request.get("system"):
        yield "\n── system ──\n" + _content(request["system"])
    messages = request.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict):
            yield f"\n── {message.get('role')} ──\n{_content(message.get('content'))}"


def _answer(row: dict[str, Any]) -> Iterator[str]:
    answer = row.get("answer")
    if isinstance(answer, dict) and isinstance(answer.get("content"), list):
        yield f"\n── {answer.get('role') or 'answer'} ──\n{_content(answer['content'])}"
        figures = [f"stop_reason {answer.get('stop_reason')}"]
        usage = answer.get("usage")
        for name, value in usage.items() if isinstance(usage, dict) else ():
            if isinstance(value, int) and value:
                figures.append(f"{name} {value:,}")
        yield "\n" + ", ".join(figures)
    elif answer is None:
        yield "\n── answer ──\n(none was captured)"
    else:
        yield f"\n── answer ──\n{answer if isinstance(answer, str) else _json(answer)}"
    if row.get("answer_whole") is False:
        yield "(incomplete: the stream ended before its message did)"
    if row.get("answer_cut"):
        yield f"(cut: it had {row.get('answer_bytes')} bytes or more)"
    if row.get("answer_error"):
        yield f"(error: {_json(row['answer_error'])})"
    elif row.get("error_type"):
        yield f"(error: {row['error_type']})"
    if row.get("redacted"):
        yield f"({row['redacted']} redacted)"


def _content(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(_block(block) for block in content)
    return content if isinstance(content, str) else _json(content)


def _block(block: Any) -> str:
    """One block of content: text as it is, the others with what they are."""
    kind = block.get("type") if isinstance(block, dict) else None
    if kind == "text" and isinstance(block.get("text"), str):
        cited = block.get("citations")
        return str(block["text"]) + (f"\n[{len(cited)} citations]" if isinstance(cited, list) and cited else "")
    if kind == "thinking":
        return f"[thinking] {block.get('thinking')}"
    if kind in ("tool_use", "server_tool_use", "mcp_tool_use"):
        return f"[{kind} {block.get('name')} {block.get('id')}] {_json(block.get('input'))}"
    if isinstance(kind, str) and kind.endswith("tool_result"):
        failed = " error" if block.get("is_error") else ""
        return f"[{kind}{failed} {block.get('tool_use_id')}] {_content(block.get('content'))}"
    if kind in ("image", "document") and isinstance(block.get("source"), dict):
        source = block["source"]
        return f"[{kind}] {source.get('data') or source.get('url') or source.get('file_id') or _json(source)}"
    return f"[{kind}] {_json(block)}" if kind else _json(block)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _time(us: Any) -> str:
    if not isinstance(us, int):
        return "-"
    return datetime.fromtimestamp(us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _lines(text: str) -> str:
    return "\n".join(plain(line.replace("\t", "    ")) for line in text.split("\n"))
