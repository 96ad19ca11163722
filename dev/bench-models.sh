#!/usr/bin/env bash
# Puts the models that `make bench-cpu` measures into the cache: those of the tests, and what the `llama-quantize` that is
# named makes of the first one and of random numbers. They are made on this machine within minutes, once.
#
#   bench-models.sh LLAMA_QUANTIZE
set -euo pipefail
cd "$(dirname "$0")/.."
. dev/cache.sh

quantize=$1
dev/models.sh
dev/gemma-model.sh
model=$cache/models/SmolLM2-135M-Instruct.Q4_1.gguf
mkdir -p "$cache/locks"
exec 9>"$cache/locks/bench-models"
flock 9
folder=$(mktemp -d "$cache/models.XXXXXX")
trap 'rm -rf "$folder"' EXIT

make() { # make FILE DIGEST FROM TYPE
  local target=$cache/models/$1
  if [ -f "$target" ] && echo "$2  $target" | sha256sum --check --status; then
    return
  fi
  echo "making a model of the benchmark: $1"
  if [ "$3" = random ]; then
    python3 -m venv "$folder/environment"
    "$folder/environment/bin/pip" install --quiet --disable-pip-version-check gguf==0.19.0 numpy==2.4.6
    "$folder/environment/bin/python" dev/bench/llama_shaped.py "$model" "$folder/random"
    set -- "$1" "$2" "$folder/random" "$4"
  fi
  "$quantize" --allow-requantize "$3" "$folder/$1" "$4" >"$folder/log" 2>&1 || { tail -30 "$folder/log" >&2; exit 1; }
  rm -f "$folder/random"
  echo "$2  $folder/$1" | sha256sum --check --quiet
  mv "$folder/$1" "$target"
}
# The last number of each name changes with what is written.
make bench-SmolLM2-135M.Q4_0-1.gguf aa4256f3b46eb4add75ece1c0eeac1c6e4f1ec0c93e6fbe64fe1770f4ad09ae8 "$model" Q4_0
make bench-SmolLM2-135M.Q8_0-1.gguf 7b46609d11703c058397e5cfe4cc6e4b2508cb1eb4c80ddc472a5d421fbdb508 "$model" Q8_0
make bench-llama-0.55B.Q4_K_M-1.gguf 01ca1de58b7fe6fdcf3c6e5e0ab67c2259cc7e6b29081a63283ee8dd3555f82a random Q4_K_M
