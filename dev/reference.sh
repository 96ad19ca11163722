#!/usr/bin/env bash
# Computes the reference values of runtime/tests/reference/ again: builds llama.cpp from the sources of its Python
# package into a virtual environment in the cache, then runs the generators on the model of the tests.
set -euo pipefail
cd "$(dirname "$0")/.."
. dev/cache.sh

dev/models.sh
model=$cache/models/SmolLM2-135M-Instruct.Q4_1.gguf
environment=$cache/reference-0.3.36
if [ ! -f "$environment/done" ]; then
  echo "building llama.cpp (about 10 minutes on 2 cores)"
  python3 -m venv "$environment"
  "$environment/bin/pip" install --quiet --disable-pip-version-check gguf==0.19.0 numpy==2.4.6
  CMAKE_ARGS="-DLLAVA_BUILD=OFF" "$environment/bin/pip" install --quiet --disable-pip-version-check \
    --no-binary llama-cpp-python llama-cpp-python==0.3.36
  touch "$environment/done"
fi
export OMP_NUM_THREADS=1
cd runtime/tests/reference
"$environment/bin/python" tokens.py "$model"
"$environment/bin/python" logits.py "$model"
"$environment/bin/python" embeddings.py "$model"
