#!/usr/bin/env bash
# Compiles the runtime's library for graphics processors of NVIDIA on a machine that needs to have neither one nor the
# toolkit: that comes as Python packages into the cache. Nothing is linked or run. About 15 minutes on 2 cores at first.
set -euo pipefail
cd "$(dirname "$0")/.."
. dev/cache.sh

version=13.0.88
toolkit=$cache/cuda-$version
if [ ! -x "$toolkit/bin/nvcc" ]; then
  echo "downloading the CUDA toolkit $version (once)"
  folder=$(mktemp -d "$cache/cuda.XXXXXX")
  trap 'rm -rf "$folder"' EXIT
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$folder/wheels" \
    nvidia-cuda-nvcc==$version nvidia-nvvm==$version nvidia-cuda-crt==$version nvidia-cuda-runtime==13.0.96 \
    nvidia-cuda-cccl==13.0.85 nvidia-curand==10.4.0.35
  for wheel in "$folder"/wheels/*.whl; do
    python3 -m zipfile -e "$wheel" "$folder/unpacked"
  done
  chmod -R u+x "$folder/unpacked/nvidia/cu13/bin" "$folder/unpacked/nvidia/cu13/nvvm/bin"
  ln -sfn lib "$folder/unpacked/nvidia/cu13/lib64"
  rm -rf "$toolkit"
  mv "$folder/unpacked/nvidia/cu13" "$toolkit"
fi
export CUDA_HOME=$toolkit CUDA_PATH=$toolkit PATH=$toolkit/bin:$PATH
# Compute capability 9.0 unless something else is asked for: kernels are compiled for one.
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90}
cargo build --package escadre-runtime --lib --features cuda
echo "the runtime compiles with CUDA $version for compute capability $CUDA_COMPUTE_CAP; it was not run"
