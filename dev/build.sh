#!/usr/bin/env bash
# Builds programs of the workspace: all, or those that `--bin NAME` names. Further arguments are cargo's.
# The test named here makes cargo choose the same features as for the whole test build, so that no dependency is
# compiled twice.
set -euo pipefail
cd "$(dirname "$0")/.."
case " $* " in *" --bin "*) ;; *) set -- --bins "$@" ;; esac
exec cargo build --workspace --test testbed_mirror "$@"
