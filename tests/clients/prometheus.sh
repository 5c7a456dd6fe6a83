#!/usr/bin/env bash
# A real Prometheus scrapes tproxy before the built-in sandbox, and is asked every query of the dashboard and the rules.
#
#     tests/clients/prometheus.sh FOLDER
#
# Needs prometheus and promtool (Debian: prometheus) and a .venv (make test makes one). Takes a minute; everything that it
# writes is in FOLDER. Not part of `make test`.
set -euo pipefail
. "$(dirname "$0")/serve.sh"

[ $# = 1 ] || fail "usage: $0 FOLDER"
for tool in prometheus promtool; do command -v "$tool" >/dev/null || fail "$tool is not installed"; done
mkdir -p "$1"
here=$(cd "$1" && pwd)
rm -rf "$here"/books.db* "$here/exports" "$here/data" "$here"/*.log "$here"/*.out
rules=$root/docs/prometheus/alerts.yml
MASTER=sk-master-of-this-run
export MASTER

promtool check rules "$rules"

cat >"$here/config.toml" <<TOML
bind = ["127.0.0.1:0"]
worker_class = "trio"
[tproxy]
database = "sqlite:books.db"
master_key = "$MASTER"
[tproxy.metrics]
emit_stream_label = true
enable_end_user_cost_tracking_prometheus_only = true
tags = ["prod-*", "User-Agent: load/*"]
metadata_labels = ["metadata.department"]
[tproxy.export.jsonl]
directory = "exports"
TOML
tproxy serve --sandbox --config "$here/config.toml" >"$here/tproxy.out" 2>"$here/tproxy.log" &
server=$!
scraper=
stop() {
    for each in $scraper $server; do kill "$each" 2>/dev/null || true; done
    wait
}
trap stop EXIT
for _ in $(seq 100); do
    URL=$(sed -n 's/^tproxy listening on //p' "$here/tproxy.out")
    [ -n "$URL" ] && break
    kill -0 "$server" || fail "tproxy ended: $(cat "$here/tproxy.log")"
    sleep 0.1
done
[ -n "$URL" ] || fail "tproxy does not listen"
say "tproxy before the sandbox: $URL"

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat >"$here/prometheus.yml" <<YAML
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: ["$rules"]
scrape_configs:
  - job_name: tproxy
    authorization: {credentials: $MASTER}
    static_configs: [{targets: ["${URL#http://}"]}]
YAML
promtool check config "$here/prometheus.yml"
prometheus --config.file="$here/prometheus.yml" --storage.tsdb.path="$here/data" --log.level=warn \
    --web.listen-address="127.0.0.1:$port" >"$here/prometheus.log" 2>&1 &
scraper=$!
say "Prometheus: http://127.0.0.1:$port"

python "$root/tests/clients/prometheus.py" "$URL" "http://127.0.0.1:$port" "$root/docs/grafana/tproxy.json" "$here"

# It ends with 3 where it has something to say: hours are no base unit, but LiteLLM's.
said=$(promtool check metrics <"$here/metrics.txt" 2>&1) || [ $? = 3 ] || fail "promtool: $said"
said=$(grep -v '^litellm_.*_budget_remaining_hours_metric use base unit' <<<"$said") || true
[ -z "$said" ] || fail "promtool: $said"
say "promtool has nothing to say against the page, but for LiteLLM's hours"
kill -0 "$scraper" && kill -0 "$server" || fail "one of them has ended"
say "all is well"
