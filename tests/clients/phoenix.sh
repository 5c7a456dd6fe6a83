#!/usr/bin/env bash
# A receiver of OTLP that is not ours, Arize Phoenix: every exchange is a span of it, once, with the figures of its row,
# also after it has been away for a while.
#
#     tests/clients/phoenix.sh FOLDER
#
# Needs Python 3.10 or newer and a .venv (make test makes one). Everything that it writes is in FOLDER; about 900 MB.
# Not part of `make test`: it installs the newest version.
set -euo pipefail
. "$(dirname "$0")/serve.sh"

[ $# = 1 ] || fail "usage: $0 FOLDER"
mkdir -p "$1"
here=$(cd "$1" && pwd)

if [ ! -x "$here/phoenix/bin/phoenix" ]; then
    say "pip install arize-phoenix"
    python3 -m venv "$here/phoenix"
    "$here/phoenix/bin/pip" install --quiet arize-phoenix
fi
say "$("$here/phoenix/bin/pip" list 2>/dev/null | grep '^arize-phoenix ')"

rm -rf "$here/spans" "$here"/books.db*
mkdir -p "$here/spans"
read -r port grpc < <(python3 -c '
import socket
found = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(each.getsockname()[1] for each in found))')
server=
receiver=
trap 'for pid in $server $receiver; do kill "$pid" 2>/dev/null; wait "$pid"; done' EXIT

receive() {
    PHOENIX_WORKING_DIR=$here/spans PHOENIX_HOST=127.0.0.1 PHOENIX_PORT=$port PHOENIX_GRPC_PORT=$grpc \
        PHOENIX_TELEMETRY_ENABLED=false "$here/phoenix/bin/phoenix" serve >>"$here/phoenix.log" 2>&1 &
    receiver=$!
}

cat >"$here/config.toml" <<TOML
bind = ["127.0.0.1:0"]
worker_class = "trio"
[tproxy]
database = "sqlite:books.db"
[tproxy.export.otlp]
endpoint = "http://127.0.0.1:$port"
TOML
tproxy serve --sandbox --config "$here/config.toml" >"$here/tproxy.out" 2>"$here/tproxy.log" &
server=$!
for _ in $(seq 100); do
    URL=$(sed -n 's/^tproxy listening on //p' "$here/tproxy.out")
    [ -n "$URL" ] && break
    kill -0 "$server" || fail "tproxy ended: $(cat "$here/tproxy.log")"
    sleep 0.1
done
[ -n "$URL" ] || fail "tproxy does not listen"

ask() {
    for _ in $(seq "$1"); do
        curl --silent --fail --show-error --output /dev/null "$URL/v1/messages" \
            -H 'x-api-key: any' -H 'anthropic-version: 2023-06-01' -H 'content-type: application/json' \
            -H "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01" \
            -d '{"model":"claude-opus-5-5","max_tokens":9,"stream":true,"messages":[{"role":"user","content":"Hello"}]}'
    done
}

# `compare COUNT` waits for as many spans, and fails if they are not those of the rows.
compare() {
    python3 - "$here/books.db" "$here/spans/phoenix.db" "$1" <<'PYTHON'
import json, sqlite3, sys, time

books, spans, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
found = []
for _ in range(180):
    try:
        with sqlite3.connect(f"file:{spans}?mode=ro", uri=True) as there:
            found = [json.loads(each) | {"name": name, "parent": parent} for each, name, parent in
                     there.execute("SELECT attributes, name, parent_id FROM spans")]
    except sqlite3.Error:
        pass
    if len(found) >= count:
        break
    time.sleep(1)
with sqlite3.connect(f"file:{books}?mode=ro", uri=True) as here:
    rows = {id: figures for id, *figures in here.execute(
        "SELECT id, model_served, coalesce(input_tokens, 0) + coalesce(cache_read_tokens, 0) "
        "+ coalesce(cache_write_5m_tokens, 0) + coalesce(cache_write_1h_tokens, 0), output_tokens, cost_nano "
        "FROM exchange WHERE ended != 'open'")}
told = {}
for span in found:
    assert (span["name"], span["parent"]) == ("chat claude-opus-5-5", "b7ad6b7169203331"), span
    usage = span["gen_ai"]["usage"]
    told[span["tproxy"]["exchange"]["id"]] = [
        span["gen_ai"]["response"]["model"], usage["input_tokens"], usage["output_tokens"], span["tproxy"]["cost_nano_usd"]]
assert len(found) == len(told) == count, f"{len(found)} spans of {len(told)} exchanges, not {count}"
assert told == rows, "the spans are not the rows"
PYTHON
}

say "20 exchanges, and nobody to tell"
ask 20
say "the receiver comes"
receive
compare 20
say "5 exchanges while it is there"
ask 5
compare 25
say "it goes, 5 exchanges, and it comes back"
kill "$receiver"
wait "$receiver" || true
ask 5
receive
compare 30
say "all 30 spans have arrived once, with the figures of their rows"
