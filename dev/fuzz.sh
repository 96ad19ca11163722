#!/usr/bin/env bash
# Runs every fuzz target for a minute, or those that are named: dev/fuzz.sh [TARGET…]. FUZZ_SECONDS changes the time.
# What was learnt is kept in the cache, so that each run begins where the last one ended; inputs that fail are kept there
# too. Ends with a line for each target, and fails when an input did.
set -euo pipefail
cd "$(dirname "$0")/.."
. dev/cache.sh

version=0.13.2
seconds=${FUZZ_SECONDS:-60}
if ! cargo +nightly --version >/dev/null 2>&1; then
  echo "installing a nightly Rust toolchain: instrumentation needs one"
  rustup toolchain install nightly --profile minimal --no-self-update
fi
if ! cargo fuzz --version >/dev/null 2>&1; then
  echo "installing cargo-fuzz $version"
  cargo +nightly install --quiet --locked --version "$version" cargo-fuzz
fi

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target/fuzz}
# The versions of the dependencies are those that are served.
cp Cargo.lock fuzz/Cargo.lock
cargo +nightly update --quiet --manifest-path fuzz/Cargo.toml --workspace
if [ $# -gt 0 ]; then targets=("$@"); else mapfile -t targets < <(cargo +nightly fuzz list); fi
echo "building ${#targets[@]} fuzz targets"
for target in "${targets[@]}"; do
  cargo +nightly fuzz build "$target"
done

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
failed=0
lines=()
for target in "${targets[@]}"; do
  corpus=$cache/fuzz/$target
  crashes=$cache/fuzz/crashes/$target
  mkdir -p "$corpus" "$crashes"
  # An input may take a minute, since others may use the machine, 2 GiB in all and 512 MiB at once.
  options=(-max_total_time="$seconds" -timeout=60 -rss_limit_mb=2048 -malloc_limit_mb=512 -print_final_stats=1
    -artifact_prefix="$crashes/" -dict="fuzz/dictionaries/$target.dict")
  echo "fuzzing $target for $seconds s"
  status=0
  cargo +nightly fuzz run "$target" "$corpus" "fuzz/seeds/$target" -- "${options[@]}" >"$logs/$target" 2>&1 || status=$?
  executions=$(awk '/^stat::number_of_executed_units:/ { print $2 }' "$logs/$target")
  rate=$(awk '/^stat::average_exec_per_sec:/ { print $2 }' "$logs/$target")
  crashed=$(grep -cE 'Test unit written to .*/(crash|leak|oom|timeout)-' "$logs/$target" || true)
  if [ "$status" != 0 ]; then
    failed=1
    [ "$crashed" != 0 ] || crashed="failed without an input"
    tail -n 40 "$logs/$target"
  fi
  lines+=("$(printf '%-16s %10s executions %7s/s  crashes: %s' "$target" "${executions:-?}" "${rate:-?}" "$crashed")")
done
printf '%s\n' "${lines[@]}"
[ "$failed" = 0 ] || echo "inputs that fail are in $cache/fuzz/crashes; try one again with: cargo +nightly fuzz run TARGET FILE" >&2
exit "$failed"
