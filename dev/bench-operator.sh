#!/usr/bin/env bash
# Measures the operator at fleet size on simulated nodes, beside plain Deployments; about 20 minutes on two cores. Prints
# the bars, and keeps the results in docs/benchmarks/ when the workload is the whole one.
#
# A trial: ESCADRE_BENCH_NODES=10 ESCADRE_BENCH_DEPLOYMENTS=50 ESCADRE_BENCH_IDLE=100 ESCADRE_BENCH_IDLE_SECONDS=20 \
#   ESCADRE_BENCH_SECRETS=100 ESCADRE_BENCH_PODS=100 ESCADRE_BENCH_YARDSTICK_SECONDS=60 dev/bench-operator.sh
# ESCADRE_BENCH_OPERATOR names another build of the operator; without it a release build is made.
set -euo pipefail
cd "$(dirname "$0")/.."

dev/build.sh -q
if [ -z "${ESCADRE_BENCH_OPERATOR:-}" ]; then
  cargo build --release -p escadre-operator --bin escadre-operator
  export ESCADRE_BENCH_OPERATOR=target/release/escadre-operator
fi
target/debug/escadre-testbed build etcd kube-apiserver kubectl kube-controller-manager kube-scheduler kwok >/dev/null
exec target/debug/bench-operator
