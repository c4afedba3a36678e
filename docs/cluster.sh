#!/usr/bin/env bash
# A job that survives its terminal and its head: docs/cluster.md has what this prints. Needs trimtab and ray on the PATH.
set -euo pipefail
folder=$(mktemp -d) address=http://127.0.0.1:8265 run=$(mktemp -d)/run
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | base64 | tr -d '/+=' | head -c 40)

start() {
  until CLUSTER=$folder ray start --head --port=6379 --dashboard-host=127.0.0.1 --num-cpus=2 --temp-dir="$folder/ray" \
    --labels trimtab.timing=true --disable-usage-stats &>"$folder/head.log"; do kill_cluster; done
  until trimtab submit --address $address --out "$run" --dry-run &>/dev/null; do sleep 1; done
}
kill_cluster() { # whatever carries the mark of it: head, job server, node, driver, workers
  grep -lsz "^CLUSTER=$folder\$" /proc/[0-9]*/environ | cut -d/ -f3 | xargs kill -9 2>/dev/null || true
}
evaluations() { grep -c '"kind":"result"' "$run/journal" 2>/dev/null || true; }
more_than() { until [ "$(evaluations)" -gt "$1" ] 2>/dev/null; do sleep 0.5; done; }
said() { echo; echo "\$ $*"; }
trap kill_cluster EXIT
search=(--set budgets='{size: 0.5x, macs: 0.6x}' --set agent=random --set 'baselines=[]' --set trials=200 --set workers=1
  --set network.training.epochs=2 --set finish=false --set network.options.width=8 --set 'space.bits=[[8, 8], [32, 32]]'
  --set 'space.ranks=[]' --set measure.link_seconds=1 --set measure.probes=2)

start
said trimtab submit --address $address --out RUN --dry-run
trimtab submit --address $address --out "$run" "${search[@]}" --dry-run
said trimtab submit --address $address --out RUN
trimtab submit --address $address --out "$run" "${search[@]}" >/dev/null 2>&1 & terminal=$!
more_than 20
kill -9 $terminal
said "(the terminal is killed) trimtab submit, the same command again"
trimtab submit --address $address --out "$run" "${search[@]}" --detach | tail -1
more_than 60
kill_cluster
said "(the cluster is killed, driver and head) trimtab status RUN"
trimtab status "$run" | tail -1 || true
before=$(evaluations)
start
said "(a new head) trimtab submit, the same command again"
code=0
trimtab submit --address $address --out "$run" "${search[@]}" | grep -E "submitted|trimtab:" || code=$?
said "evaluations before and after, and how many of them twice"
echo "$before $(evaluations) $(grep '"kind":"result"' "$run/journal" | grep -o '"policy":{.*},"accuracy"' | sort | uniq -d | wc -l)"
said trimtab status RUN
trimtab status "$run" --address $address | tail -1
said trimtab fetch RUN --to GOT
trimtab fetch "$run" --address $address --to "$folder/got"
ls "$folder/got"
exit $code
