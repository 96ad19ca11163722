#!/usr/bin/env bash
# Measures a model update under traffic beside a plain Deployment, on the demo's cluster, which it brings up first.
set -euo pipefail
cd "$(dirname "$0")/.."
. dev/cache.sh

dev/demo.sh demo
dev/second-model.sh
folder=$cache/mirror/HuggingFaceTB/SmolLM2-135M-Instruct-Q8-GGUF
mkdir -p "$folder"
ln -f "$cache/models/SmolLM2-135M-Instruct.Q8_0-1.gguf" "$folder/" 2>/dev/null ||
  cp "$cache/models/SmolLM2-135M-Instruct.Q8_0-1.gguf" "$folder/"
target/debug/escadre-testbed exec --name demo -- \
  kubectl delete --namespace escadre-demo -f examples/demo/smollm2.yaml --wait=true
python3 dev/bench/rollouts.py target/debug/escadre-testbed demo escadre-demo examples/demo/smollm2.yaml \
  "$cache/clients/python/bin/python" docs/benchmarks
