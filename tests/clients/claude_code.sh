#!/usr/bin/env bash
# Claude Code, headless, does a task with a tool call through tproxy, against the built-in sandbox.
#
#     tests/clients/claude_code.sh FOLDER
#
# Needs Node 18 or newer, npm and a .venv (make test makes one). Everything that it writes is in FOLDER; about 250 MB.
# Not part of `make test`: it installs the newest client.
set -euo pipefail
. "$(dirname "$0")/serve.sh"

[ $# = 1 ] || fail "usage: $0 FOLDER"
mkdir -p "$1"
here=$(cd "$1" && pwd)

if [ ! -x "$here/node_modules/.bin/claude" ]; then
    say "npm install @anthropic-ai/claude-code"
    npm install --no-audit --no-fund --prefix "$here" @anthropic-ai/claude-code
fi
# npm may be set up not to run the package's own script, which puts the program in its place.
(cd "$here/node_modules/@anthropic-ai/claude-code" && node install.cjs)

serve "$here"
home=$here/home work=$here/work
rm -rf "$home" "$work"
mkdir -p "$home" "$work"

# A Claude Code that is started from within another would take its settings from there.
claude() {
    (cd "$work" && env -i \
        PATH="$PATH" HOME="$home" TERM=dumb IS_SANDBOX=1 \
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1 DISABLE_AUTOUPDATER=1 \
        ANTHROPIC_BASE_URL="$URL/anthropic" "$@" \
        timeout 120 "$here/node_modules/.bin/claude" "${arguments[@]}" </dev/null)
}

for credential in ANTHROPIC_AUTH_TOKEN ANTHROPIC_API_KEY; do
    file=$work/$credential
    arguments=(-p "run: echo tproxy-was-here > $file" --output-format json --allowedTools Bash)
    claude "$credential=sk-anything" >"$here/$credential.json" 2>"$here/$credential.err" ||
        fail "claude ended with $?: $(cat "$here/$credential.json" "$here/$credential.err")"
    [ "$(cat "$file" 2>/dev/null)" = tproxy-was-here ] ||
        fail "the tool was not called: $(cat "$here/$credential.json")"
    python3 - "$here/$credential.json" <<'PYTHON'
import json, sys
result = json.load(open(sys.argv[1]))
assert result["subtype"] == "success" and not result["is_error"], result
print(f"== {result['num_turns']} turns, {result['duration_ms']} ms:", result["result"][:70])
PYTHON
    say "with $credential: rc 0, the file is there"
done

exchanges=$(column exchanges)
[ "$exchanges" -ge 4 ] || fail "the ledger has $exchanges exchanges"
for certain in unpriced estimated open; do
    [ "$(column "$certain")" = 0 ] || fail "$certain exchanges: $(books)"
done
[ "$(column cost_nano)" -gt 0 ] || fail "they cost nothing: $(books)"
say "the ledger has $exchanges exchanges:"
tproxy spend --config "$here/config.toml"
python3 - "$here/tproxy.log" <<'PYTHON'
import json, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
found = [line for line in lines if line["event"] == "exchange"]
for line in found:
    print("  ", line["method"], line["path"], line["model"], line["status"], line["ended"], line["certainty"])
odd = [line for line in lines if line["level"] == "error" or line.get("ended", "finished") != "finished"]
assert not odd, odd
PYTHON
say "all is well"
