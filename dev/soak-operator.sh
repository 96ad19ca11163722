#!/usr/bin/env bash
# The long form of the soak: 10,000 random operations over 50 objects in bad weather, then ten idle minutes without a
# write. ESCADRE_SOAK_OPERATIONS, _OBJECTS, _IDLE_SECONDS and _SEED change it.
set -euo pipefail
cd "$(dirname "$0")/.."

export ESCADRE_SOAK_OPERATIONS=${ESCADRE_SOAK_OPERATIONS:-10000}
export ESCADRE_SOAK_OBJECTS=${ESCADRE_SOAK_OBJECTS:-50}
export ESCADRE_SOAK_IDLE_SECONDS=${ESCADRE_SOAK_IDLE_SECONDS:-600}
dev/build.sh -q
exec cargo test -q --workspace --test control_plane_soak -- --nocapture
