#!/usr/bin/env bash
# The long form of the soak of the runtime: 20,000 requests of every kind to a tiny model, many of them given up.
# ESCADRE_SOAK_REQUESTS and _SEED change it.
set -euo pipefail
cd "$(dirname "$0")/.."

export ESCADRE_SOAK_REQUESTS=${ESCADRE_SOAK_REQUESTS:-20000}
exec cargo test -q --workspace --test api_soak -- --nocapture
