#!/usr/bin/env bash
# LiteLLM's own command, `litellm-proxy`, and its Python client against tproxy's management API.
#
#     tests/clients/litellm_proxy.sh FOLDER
#
# Needs Python 3.10 or newer and a .venv (make test makes one). Everything that it writes is in FOLDER; about 800 MB.
# Not part of `make test`: it installs the newest client.
set -euo pipefail
. "$(dirname "$0")/serve.sh"

[ $# = 1 ] || fail "usage: $0 FOLDER"
mkdir -p "$1"
here=$(cd "$1" && pwd)

if [ ! -x "$here/litellm/bin/litellm-proxy" ]; then
    say "pip install litellm[proxy]"
    python3 -m venv "$here/litellm"
    "$here/litellm/bin/pip" install --quiet 'litellm[proxy]'
fi
say "$("$here/litellm/bin/pip" list 2>/dev/null | grep '^litellm ')"

TPROXY_MASTER_KEY=sk-master-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
export TPROXY_MASTER_KEY
rm -rf "$here/home" "$here"/books.db*
mkdir -p "$here/home"
cat >"$here/config.toml" <<'TOML'
bind = ["127.0.0.1:0"]
worker_class = "trio"
[tproxy]
master_key = "env:TPROXY_MASTER_KEY"
database = "sqlite:books.db"
TOML
tproxy serve --sandbox --config "$here/config.toml" >"$here/tproxy.out" 2>"$here/tproxy.log" &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server"' EXIT
for _ in $(seq 100); do
    URL=$(sed -n 's/^tproxy listening on //p' "$here/tproxy.out")
    [ -n "$URL" ] && break
    kill -0 "$server" || fail "tproxy ended: $(cat "$here/tproxy.log")"
    sleep 0.1
done
[ -n "$URL" ] || fail "tproxy does not listen"
say "tproxy before the sandbox: $URL"

cat >"$here/keys_info.py" <<'PYTHON'
import os, sys
from litellm.proxy.client import Client
client = Client(os.environ["LITELLM_PROXY_URL"], os.environ["LITELLM_PROXY_API_KEY"])
print(client.keys.info(sys.argv[1]))
PYTHON

output=$here/output.txt
failed=0

# A settings file of the user's own, or a proxy of the environment, would decide instead of what stands here.
client() {
    env -i PATH="$PATH" HOME="$here/home" TERM=dumb COLUMNS=250 \
        LITELLM_PROXY_URL="$URL" LITELLM_PROXY_API_KEY="${KEY:-$TPROXY_MASTER_KEY}" \
        timeout 120 "$here/litellm/bin/$@" </dev/null
}

# `passes CODE TEXT COMMAND…`: the command ends with CODE, and each line of TEXT is in what it says.
passes() {
    local code=$1 text=$2 got=0 missing=
    shift 2
    client "$@" >"$output" 2>&1 || got=$?
    while IFS= read -r line; do
        grep -qF -- "$line" "$output" || missing+=" [$line]"
    done <<<"$text"
    shown=$(printf '%s ' "${@/"$here/"/}" | sed -E 's/sk-[A-Za-z0-9_-]{8,}/sk-…/g')
    [ "$code" = 0 ] || shown+="(is refused)"
    if [ "$got" = "$code" ] && [ -z "$missing" ]; then
        printf 'PASS %s\n' "$shown"
    else
        failed=$((failed + 1))
        printf 'FAIL %s: ended with %s, without%s\n' "$shown" "$got" "$missing"
        tail -n 15 "$output" | sed 's/^/     | /'
    fi
}

# `holds WHAT CONDITION…`: something beside the client's commands.
holds() {
    local what=$1
    shift
    if "$@"; then
        printf 'PASS %s\n' "$what"
    else
        failed=$((failed + 1))
        printf 'FAIL %s\n' "$what"
    fi
}

# `field NAME` prints a field of the JSON that the last command printed after its notices.
field() {
    python3 -c '
import json, sys
text = open(sys.argv[1]).read()
print(json.loads(text[text.index("{"):]).get(sys.argv[2]) or "")' "$output" "$1"
}

# `status KEY MODEL` prints the status of one small message.
status() {
    curl -s -o /dev/null -w '%{http_code}' "$URL/anthropic/v1/messages" -H "x-api-key: $1" \
        -H 'anthropic-version: 2023-06-01' -H 'content-type: application/json' \
        -d "{\"model\": \"$2\", \"max_tokens\": 8, \"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}"
}

passes 0 "Server URL: $URL"$'\nServer Version: ' litellm-proxy version
passes 0 $'Available Models\nclaude-haiku-4-5' litellm-proxy models list
passes 0 '"id": "claude-haiku-4-5"' litellm-proxy models list --format json

passes 0 'Showing 0 keys out of 0' litellm-proxy keys list
passes 0 $'"key": "sk-\n"key_alias": "first"\nclaude-haiku-4-5' \
    litellm-proxy keys generate --key-alias first --models claude-haiku-4-5 --duration 1d --spend 0.25
first=$(field key)
hash=$(printf %s "$first" | sha256sum | cut -d' ' -f1)
holds "keys generate: the key opens its model" [ "$(status "$first" claude-haiku-4-5)" = 200 ]
holds "keys generate: and no other" [ "$(status "$first" claude-opus-4-5)" = 403 ]
passes 0 $'Showing 1 keys out of 1\n'"$hash"$'\nfirst' litellm-proxy keys list
passes 0 $'"key_alias": "first"\n"total_count": 1' litellm-proxy keys list --format json --page 1 --size 10
passes 0 'Showing 0 keys out of 0' litellm-proxy keys list --key-alias second
# The command has `keys info` in some versions; the Python client has it in all.
for key in "$first" "$hash"; do
    passes 0 "'key_alias': 'first'" python "$here/keys_info.py" "$key"
done
KEY=$first passes 0 "'key_alias': 'first'" python "$here/keys_info.py" "$first"
KEY=$first passes 1 'HTTP 403' litellm-proxy keys generate
KEY=sk-unknown passes 1 'UnauthorizedError' litellm-proxy keys list
passes 0 $'Found 1 keys\nfirst' litellm-proxy keys import --source-base-url "$URL" \
    --source-api-key "$TPROXY_MASTER_KEY" --dry-run
passes 0 $'deleted_keys\n'"$hash" litellm-proxy keys delete --key-aliases first
holds "keys delete: it opens nothing" [ "$(status "$first" claude-haiku-4-5)" = 401 ]
passes 0 '"key": "sk-' litellm-proxy keys generate --aliases '{"small": "claude-haiku-4-5"}' --config '{"a": 1}'
second=$(field key)
passes 0 deleted_keys litellm-proxy keys delete --keys "$second"
passes 0 'Showing 0 keys out of 0' litellm-proxy keys list

passes 0 'No teams found' litellm-proxy teams list
passes 0 team_id litellm-proxy http request POST /team/new \
    -j '{"team_alias": "red", "models": ["claude-haiku-4-5"], "max_budget": 5}'
team=$(field team_id)
passes 0 "red"$'\n'"$team"$'\nclaude-haiku-4-5\n$5' litellm-proxy teams list
passes 0 '' litellm-proxy teams available
passes 0 "\"team_id\": \"$team\"" litellm-proxy keys generate --key-alias of-red --team-id "$team"
holds "teams: a key of the team has its models" [ "$(status "$(field key)" claude-opus-4-5)" = 403 ]
passes 0 'Showing 1 keys out of 1' litellm-proxy keys list --team-id "$team"

passes 0 'No users found' litellm-proxy users list
passes 0 $'"user_email": "ann@example.com"\nuser_id' \
    litellm-proxy users create --email ann@example.com --alias ann --max-budget 3 --team "$team"
user=$(field user_id)
passes 0 "$user"$'\nann@example.com\ninternal_user\n'"$team" litellm-proxy users list
passes 0 "\"user_id\": \"$user\"" litellm-proxy users get --id "$user"
passes 0 '' litellm-proxy users delete "$user"
passes 1 NotFoundError litellm-proxy users get --id "$user"
passes 0 'No users found' litellm-proxy users list

for key in "$TPROXY_MASTER_KEY" "$first" "$second"; do
    holds "no key in clear in the log or the books" [ -z "$(grep -lF -- "$key" "$here"/tproxy.log "$here"/books.db*)" ]
done
[ "$failed" = 0 ] || fail "$failed of them"
say "all is well"
