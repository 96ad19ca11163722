#!/usr/bin/env bash
# The tests of the kernels under AddressSanitizer, which sees reads and writes beyond what was lent. It needs a nightly
# compiler. Takes about 5 minutes at first.
set -euo pipefail
cd "$(dirname "$0")/.."
. dev/cache.sh

host=$(rustc -vV | sed -n 's/^host: //p')
# What is never freed is not asked for: the threads of tests keep their scratch memory.
export ASAN_OPTIONS=detect_leaks=0 RUSTFLAGS="-Zsanitizer=address"
exec cargo +nightly test --package escadre-kernels --target "$host" --target-dir target/asan "$@"
