#!/usr/bin/env bash
# Builds programs of the workspace: all, or those named by further arguments of cargo (`--bin NAME`).
# The test named here makes cargo choose the same features as for the whole test build, so that no dependency is
# compiled twice.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- --bins
exec cargo build --workspace --test testbed_mirror "$@"
