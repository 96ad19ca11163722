#!/usr/bin/env bash
# Rolls a fleet that holds every GPU of its simulated nodes at once, beside plain Deployments on the same nodes.
# Prints the bars, and keeps the results in docs/benchmarks/.
#
# A trial: ESCADRE_FLEET=16 ESCADRE_BENCH_RESULTS=/tmp dev/bench-fleet.sh
set -euo pipefail
cd "$(dirname "$0")/.."

export ESCADRE_FLEET=${ESCADRE_FLEET:-200}
dev/build.sh -q
output=$(mktemp)
trap 'rm -f "$output"' EXIT
cargo test -q --workspace --test control_plane_fleet -- --nocapture | tee "$output"
python3 dev/bench/fleet.py "$output" "${ESCADRE_BENCH_RESULTS:-docs/benchmarks}"
