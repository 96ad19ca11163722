#!/usr/bin/env bash
# Builds llama.cpp's own programs, the peers of `make bench-serving` and `make bench-cpu`, for this machine's processor into
# the cache, and prints their folder. In it `avx2` has those that use no newer instructions. Their sources come with the
# Python package llama-cpp-python.
set -euo pipefail
cd "$(dirname "$0")/.."
. dev/cache.sh

version=0.3.36
flags=(-DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF
  -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF)
native=(-DGGML_NATIVE=ON)
avx2=(-DGGML_NATIVE=OFF -DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_BMI2=ON -DGGML_FMA=ON -DGGML_F16C=ON)
# What was built for another processor may not run on this one.
digest=$({ echo "$version ${flags[*]} ${native[*]} ${avx2[*]}"; grep -m 1 -E '^(flags|Features)' /proc/cpuinfo; } | sha256sum)
target=$cache/llama.cpp-$version-${digest:0:12}
echo "$target"

mkdir -p "$cache/locks"
exec 9>"$cache/locks/llama.cpp"
flock 9
[ ! -d "$target" ] || exit 0
echo "building llama.cpp's programs (about 20 minutes on 2 cores, once)" >&2
folder=$(mktemp -d "$cache/llama.cpp.XXXXXX")
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/tools"
"$folder/tools/bin/pip" install --quiet --disable-pip-version-check cmake==4.4.5 ninja==1.13.2
"$folder/tools/bin/pip" download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python \
  --dest "$folder" "llama-cpp-python==$version"
tar -xzf "$folder"/llama_cpp_python-*.tar.gz -C "$folder"
PATH=$folder/tools/bin:$PATH

build() { # build INTO PROGRAMS FLAG...
  local into=$1 programs
  read -ra programs <<<"$2"
  shift 2
  {
    cmake -S "$folder/llama_cpp_python-$version/vendor/llama.cpp" -B "$folder/build" -G Ninja "${flags[@]}" "$@" &&
      cmake --build "$folder/build" --target "${programs[@]}"
  } >"$folder/log" 2>&1 || { tail -30 "$folder/log" >&2; exit 1; }
  mkdir -p "$into"
  (cd "$folder/build/bin" && mv "${programs[@]}" "$into/")
}
build "$folder/done" "llama-server llama-bench llama-batched-bench llama-quantize" "${native[@]}"
# In the same folder: only what has the processor's instructions is compiled again.
build "$folder/done/avx2" "llama-bench llama-batched-bench" "${avx2[@]}"
echo "$version" >"$folder/done/version"
mv "$folder/done" "$target"
