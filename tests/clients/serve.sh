# Sourced by the scripts beside it: `serve FOLDER` starts tproxy before the built-in sandbox, on a free port, with its
# files in FOLDER, and sets URL. It ends with the script. `books` prints what the ledger holds, as JSON.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PATH=$root/.venv/bin:$PATH

say() { printf '== %s\n' "$*"; }

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    exit 1
}

serve() {
    folder=$1
    rm -f "$folder"/books.db*
    printf 'bind = ["127.0.0.1:0"]\nworker_class = "trio"\n[tproxy]\ndatabase = "sqlite:books.db"\n' >"$folder/config.toml"
    tproxy serve --sandbox --config "$folder/config.toml" >"$folder/tproxy.out" 2>"$folder/tproxy.log" &
    server=$!
    trap 'kill "$server" 2>/dev/null; wait "$server"' EXIT
    for _ in $(seq 100); do
        URL=$(sed -n 's/^tproxy listening on //p' "$folder/tproxy.out")
        [ -n "$URL" ] && break
        kill -0 "$server" || fail "tproxy ended: $(cat "$folder/tproxy.log")"
        sleep 0.1
    done
    [ -n "$URL" ] || fail "tproxy does not listen"
    say "tproxy before the sandbox: $URL"
}

books() {
    tproxy spend --json --config "$folder/config.toml"
}

# `column NAME` prints the sum of a column of `tproxy spend --json`.
column() {
    books | python3 -c 'import json, sys; print(sum(day[sys.argv[1]] for day in json.load(sys.stdin)["days"]))' "$1"
}
