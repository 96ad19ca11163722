#!/usr/bin/env bash
# Puts well-known chat templates into the cache, for the tests that render them. They come with the sources of llama.cpp
# inside the Python package llama-cpp-python.
set -euo pipefail
cd "$(dirname "$0")/.."
. dev/cache.sh

version=0.3.36
target=$cache/templates-$version
[ ! -d "$target" ] || exit 0
echo "downloading chat templates (77 MB, of which 1 MB is kept)"
folder=$(mktemp -d "$cache/templates.XXXXXX")
trap 'rm -rf "$folder"' EXIT
python3 -m pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python \
  --dest "$folder" "llama-cpp-python==$version"
mkdir "$folder/found"
tar -xzf "$folder"/llama_cpp_python-*.tar.gz -C "$folder/found" --strip-components=5 --wildcards '*/models/templates/*.jinja'
mv "$folder/found" "$target"
