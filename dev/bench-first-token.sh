#!/usr/bin/env bash
# Measures the time from `kubectl apply` to the first token on the demo's cluster, which it brings up first.
set -euo pipefail
cd "$(dirname "$0")/.."

dev/demo.sh demo
target/debug/escadre-testbed exec --name demo -- \
  kubectl delete --namespace escadre-demo -f examples/demo/smollm2.yaml --wait=true
python3 dev/bench/first_token.py target/debug/escadre-testbed demo escadre-demo examples/demo/smollm2.yaml docs/benchmarks
