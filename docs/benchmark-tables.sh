#!/bin/sh
# Measures everything and prints docs/benchmark-tables.md. TRIMTAB is the command, SECONDS_EACH the time for a figure.
set -eu
trimtab=${TRIMTAB:-trimtab}
seconds=${SECONDS_EACH:-1}
engines=native,onnxruntime,onnxruntime-saturating,openvino,torch

bench() {
  echo; echo "    trimtab bench $*"; echo
  "$trimtab" bench "$@" --markdown
}

echo "# Benchmark tables"
echo
echo "Written by \`make bench\` on $(date -u '+%-d %B %Y, %H:%M') UTC; [benchmarks.md](benchmarks.md) says how to read them."
echo
"$trimtab" doctor | grep -E '^(trimtab|python|cpu|kernel_levels|cores|real_time_priority|torch|engines) ' | sed 's/^/    /'
levels=$("$trimtab" doctor --json | sed -n '/"kernel_levels"/,/]/s/^ *"\([a-z0-9_]*\)",\{0,1\}$/\1/p' | grep -v portable)
for level in $levels; do
  echo; echo "## Whole networks at the level $level"
  for network in resnet20 resnet56 resnet18 mobilenet_v2; do
    bench engines --networks "$network" --engines "$engines" --level "$level" --seconds "$seconds"
  done
  bench engines --networks resnet18 --engines "$engines" --forms fp32,int8 --threads 2 --level "$level" --seconds "$seconds"
  echo; echo "## Layers at the level $level"
  bench kernels --engines native,onnxruntime,onnxruntime-saturating,openvino --level "$level" --seconds "$seconds"
done
echo; echo "## Measurements and their intervals"
bench measure --networks resnet20 --minutes "${MINUTES:-10}"
bench measure --networks resnet20 --minutes "${MINUTES:-10}" --load
