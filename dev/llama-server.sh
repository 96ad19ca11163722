#!/usr/bin/env bash
# Builds llama.cpp's own server, the peer of `make bench-serving`, for this machine's processor into the cache. Its
# sources come with the Python package llama-cpp-python.
set -euo pipefail
cd "$(dirname "$0")/.."
. dev/cache.sh

version=0.3.36
target=$cache/llama-server-$version
[ ! -x "$target/llama-server" ] || exit 0
echo "building llama-server (about 15 minutes on 2 cores, once)"
folder=$(mktemp -d "$cache/llama-server.XXXXXX")
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/tools"
"$folder/tools/bin/pip" install --quiet --disable-pip-version-check cmake==4.4.5 ninja==1.13.2
"$folder/tools/bin/pip" download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python \
  --dest "$folder" "llama-cpp-python==$version"
tar -xzf "$folder"/llama_cpp_python-*.tar.gz -C "$folder"
PATH=$folder/tools/bin:$PATH
cmake -S "$folder/llama_cpp_python-$version/vendor/llama.cpp" -B "$folder/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
  -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=ON -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_TESTS=OFF \
  -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF >"$folder/log"
cmake --build "$folder/build" --target llama-server >>"$folder/log" || { tail -30 "$folder/log"; exit 1; }
mkdir -p "$target"
mv "$folder/build/bin/llama-server" "$target/"
