#!/usr/bin/env bash
# Measures serving to many clients at once beside llama.cpp's own server. Builds both with all optimisations first, once.
# ESCADRE_BENCH_TRACE is a trace of arrivals and lengths (TIMESTAMP,ContextTokens,GeneratedTokens), ESCADRE_BENCH_RUNTIME
# another build of the runtime.
#
# A trial: ESCADRE_BENCH_PACE=0.2 ESCADRE_BENCH_RESULTS=/tmp dev/bench-serving.sh
set -euo pipefail
cd "$(dirname "$0")/.."
. dev/cache.sh

dev/models.sh
peer=$(dev/llama-server.sh)
if [ -z "${ESCADRE_BENCH_RUNTIME:-}" ]; then
  cargo build --quiet --release --workspace --bin escadre-runtime
  ESCADRE_BENCH_RUNTIME=target/release/escadre-runtime
fi
exec python3 dev/bench/serving.py "$ESCADRE_BENCH_RUNTIME" "$peer/llama-server" "$(cat "$peer/version")" \
  "$cache/models/SmolLM2-135M-Instruct.Q4_1.gguf" \
  "${ESCADRE_BENCH_TRACE:-../shared/testdata/traces/azure2023_conv.csv}" "${ESCADRE_BENCH_RESULTS:-docs/benchmarks}"
