#!/usr/bin/env bash
# Measures prompts, answers, servers, memory and starts on processors beside llama.cpp, on files of five kinds. Builds both
# with all optimisations first, and makes the files, once. Prints the bars, and keeps the results in docs/benchmarks/ when
# everything is measured.
#
# A trial: dev/bench-cpu.sh --only q4_0,q4_k --parts prefill,decode --rounds 1
# ESCADRE_BENCH_RUNTIME names another build of the runtime; without it a release build is made.
set -euo pipefail
cd "$(dirname "$0")/.."
. dev/cache.sh

peer=$(dev/llama-server.sh)
dev/bench-models.sh "$peer/llama-quantize"
if [ -z "${ESCADRE_BENCH_RUNTIME:-}" ]; then
  cargo build --quiet --release --workspace --bin escadre-runtime
  ESCADRE_BENCH_RUNTIME=target/release/escadre-runtime
fi
results=docs/benchmarks
[ $# = 0 ] || results=${TMPDIR:-/tmp}
exec python3 dev/bench/cpu.py "$@" "$ESCADRE_BENCH_RUNTIME" "$peer" "$cache/models" "${ESCADRE_BENCH_RESULTS:-$results}"
