#!/usr/bin/env bash
# Installs the reference tool for signatures of models into the cache, at a pinned version; tests compare with it.
# Prints the Python interpreter that has it.
set -euo pipefail
cd "$(dirname "$0")/.."
. dev/cache.sh

version=1.1.1
# Needed by its certificates, and not among what it says that it needs.
openssl=26.4.0
environment=$cache/model-signing-$version
if [ ! -f "$environment/done" ]; then
  echo "installing the reference tool model-signing $version" >&2
  rm -rf "$environment"
  python3 -m venv "$environment"
  "$environment/bin/pip" install --quiet --disable-pip-version-check \
    "model-signing==$version" "pyOpenSSL==$openssl"
  touch "$environment/done"
fi
echo "$environment/bin/python"
