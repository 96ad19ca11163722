#!/usr/bin/env bash
# Everything that must hold before a change lands. The Go programs of the test bed are built in the background while
# the Rust code is built, linted and unit-tested; then the scenarios run on the real Kubernetes.
#
#   dev/test.sh          all
#   dev/test.sh quick    format, lints, generated files, unit tests
set -uo pipefail
cd "$(dirname "$0")/.."
. dev/cache.sh

mode=${1:-all}
passed=0
failed=0
failures=()
logs=$(mktemp -d)
background=()
declare -A running started
trap 'for pid in "${background[@]}"; do kill "$pid" 2>/dev/null; done; rm -rf "$logs"' EXIT

# step NAME COMMAND…: one check that passes or fails as a whole.
step() {
  local name=$1 start=$SECONDS
  shift
  printf '== %s\n' "$name"
  if "$@"; then
    passed=$((passed + 1))
    printf '   ok: %s (%d s)\n' "$name" $((SECONDS - start))
  else
    failed=$((failed + 1))
    failures+=("$name")
    printf '   FAILED: %s\n' "$name"
  fi
}

# tests NAME COMMAND…: a run of cargo test, whose single tests are counted.
tests() {
  local name=$1 log=$logs/tests start=$SECONDS
  shift
  printf '== %s\n' "$name"
  "$@" 2>&1 | tee "$log"
  count "$name" "$log" "${PIPESTATUS[0]}" "$start"
}

# beside NAME COMMAND…: the same while others run; `join NAME` waits for it, shows and counts it.
beside() {
  local name=$1
  shift
  printf '== %s, beside what follows\n' "$name"
  "$@" >"$logs/$name" 2>&1 &
  running[$name]=$!
  started[$name]=$SECONDS
  background+=("$!")
}

join() {
  local name=$1 status=0
  wait "${running[$name]}" || status=$?
  printf '== %s\n' "$name"
  cat "$logs/$name"
  count "$name" "$logs/$name" "$status" "${started[$name]}"
}

# count NAME LOG STATUS START: what a run of cargo test came to.
count() {
  local name=$1 status=$3 counts
  counts=$(awk '/^test result:/ { p += $4; f += $6 } END { print p + 0, f + 0 }' "$2")
  passed=$((passed + ${counts% *}))
  failed=$((failed + ${counts#* }))
  if [ "$status" != 0 ]; then
    failures+=("$name")
    # A run that broke before its tests could count has failed as a whole.
    [ "${counts#* }" != 0 ] || failed=$((failed + 1))
  fi
  printf '   %s: %d s\n' "$name" $((SECONDS - $4))
}

finish() {
  local name
  for name in "${failures[@]}"; do printf 'failed: %s\n' "$name"; done
  printf '%d passed, %d failed\n' "$passed" "$failed"
  [ "$failed" = 0 ]
  exit
}

# A test file whose prefix no suite below selects would never run.
every_test_has_a_suite() {
  local stray
  stray=$(ls ./*/tests/*.rs | grep -vE '/(api|fetch|lifecycle|model|signature|chart|testbed|control_plane|node)_[^/]*$')
  [ -z "$stray" ] || { echo "no suite runs: $stray"; return 1; }
}

dev/prerequisites.sh || exit 1

step "format" cargo fmt --all --check
step "every test file has a suite" every_test_has_a_suite
if [ "$mode" = all ]; then
  # The test bed's own program first: it builds the Go programs while cargo goes on.
  step "test bed program" dev/build.sh -q --bin escadre-testbed
  nice target/debug/escadre-testbed build >"$logs/components" 2>&1 &
  components=$!
  background+=("$components")
fi
step "models of the tests" dev/second-model.sh
step "chat templates" dev/templates.sh
step "OpenAI clients and frameworks" dev/clients.sh
step "reference tool for signatures" dev/model-signing.sh
step "build" cargo build --workspace --all-targets
step "registry and object storage of the tests" target/debug/escadre-testbed build registry versitygw
step "generated files are up to date" target/debug/crdgen --check
step "lints" cargo clippy -q --workspace --all-targets -- -D warnings
step "dependencies: licences, bans, sources" dev/deny.sh
step "documentation" env RUSTDOCFLAGS="-D warnings" cargo doc -q --workspace --no-deps --document-private-items
tests "unit tests" cargo test -q --no-fail-fast --workspace --lib --bins
tests "doc tests" cargo test -q --no-fail-fast --workspace --doc
tests "signatures" cargo test -q --no-fail-fast --workspace --test 'signature_*'
tests "runtime" cargo test -q --no-fail-fast --workspace --test 'fetch_*' --test 'model_*' --test 'api_*' --test 'lifecycle_*'
[ "$mode" = all ] || finish

printf '== waiting for the programs of the test bed\n'
if ! wait "$components"; then
  cat "$logs/components"
  failed=$((failed + 1))
  failures+=("programs of the test bed")
  finish
fi
# The control plane waits more than it computes: the rest fits beside it.
beside "control plane" cargo test -q --no-fail-fast --workspace --test 'control_plane_*'
tests "chart" cargo test -q --no-fail-fast --workspace --test 'chart_*'
tests "test bed" cargo test -q --no-fail-fast --workspace --test 'testbed_*'
tests "node" cargo test -q --no-fail-fast --workspace --test 'node_*'
join "control plane"
finish
