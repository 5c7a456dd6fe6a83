#!/usr/bin/env bash
# The official TypeScript SDK through tproxy, against the built-in sandbox: typescript.mjs, run by Node.
#
#     tests/clients/typescript.sh FOLDER
#
# Needs Node 18 or newer, npm and a .venv (make test makes one). Everything that it writes is in FOLDER.
# Not part of `make test`: it installs the newest client.
set -euo pipefail
. "$(dirname "$0")/serve.sh"

[ $# = 1 ] || fail "usage: $0 FOLDER"
mkdir -p "$1"
here=$(cd "$1" && pwd)

if [ ! -d "$here/node_modules/@anthropic-ai/sdk" ]; then
    say "npm install @anthropic-ai/sdk"
    npm install --no-audit --no-fund --prefix "$here" @anthropic-ai/sdk
fi

serve "$here"
cp "$root/tests/clients/typescript.mjs" "$here/"
for base in "$URL/anthropic" "$URL"; do
    env -u ANTHROPIC_API_KEY -u ANTHROPIC_AUTH_TOKEN node "$here/typescript.mjs" "$base"
done

python3 - "$here/tproxy.log" <<'PYTHON'
import collections, json, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
assert not [line for line in lines if line["level"] == "error"], lines
found = collections.Counter((line["ended"], line["certainty"]) for line in lines if line["event"] == "exchange")
assert set(ended for ended, _ in found) == {"finished", "refused", "upstream_error", "upstream_broken"}, found
assert found["upstream_broken", "estimated"] == 8, found
for (ended, certainty), count in sorted(found.items()):
    print("==", count, ended, certainty)
PYTHON
[ "$(column cost_nano)" -gt 0 ] || fail "nothing was spent: $(books)"
tproxy spend --config "$here/config.toml"
say "all is well"
