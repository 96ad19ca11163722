#!/usr/bin/env bash
# Puts the second model of the tests into the cache: the first one with its weights as Q8_0, so that an update has
# another digest to come to. Made on this machine in less than a minute, once. Then the other models of the tests.
set -euo pipefail
cd "$(dirname "$0")/.."
. dev/cache.sh

dev/models.sh
dev/gemma-model.sh
file=SmolLM2-135M-Instruct.Q8_0-1.gguf # the last number changes with what dev/second_model.py writes
digest=0c1d3326cd9793cfb7296113c063dd5c24e2bd734b48ec1a3d01b7158eca9387
target=$cache/models/$file
is_there() { [ -f "$target" ] && echo "$digest  $target" | sha256sum --check --status; }

mkdir -p "$cache/locks"
exec 9>"$cache/locks/second-model"
flock 9
if is_there; then
  exit 0
fi
echo "making the second model of the tests: $file (145 MB)"
folder=$(mktemp -d "$cache/models.XXXXXX")
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet --disable-pip-version-check gguf==0.19.0 numpy==2.4.6
"$folder/environment/bin/python" dev/second_model.py "$cache/models/SmolLM2-135M-Instruct.Q4_1.gguf" "$folder/$file"
echo "$digest  $folder/$file" | sha256sum --check --quiet
mv "$folder/$file" "$target"
