#!/usr/bin/env bash
# The long form of the soak of rollouts: 100 rollouts of two replicas on a real node under traffic, while the operator
# is killed every few seconds and its calls to the API go wrong. ESCADRE_SOAK_ROLLOUTS and _SEED change it.
set -euo pipefail
cd "$(dirname "$0")/.."

export ESCADRE_SOAK_ROLLOUTS=${ESCADRE_SOAK_ROLLOUTS:-100}
dev/second-model.sh
dev/clients.sh
dev/build.sh -q
exec cargo test -q --workspace --test node_rollouts_soak -- --nocapture
