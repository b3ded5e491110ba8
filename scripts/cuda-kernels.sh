#!/usr/bin/env bash
# Compiles every CUDA kernel of ours for sm_80 and sm_90a with NVIDIA's run-time compiler, from PyPI. Needs no GPU.
# usage: scripts/cuda-kernels.sh [FOLDER]     FOLDER keeps the compiler (default target/cuda-toolkit); ends with 3 where
# it cannot be had.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-target/cuda-toolkit}
library=$folder/nvrtc/nvidia/cu13/lib/libnvrtc.so.13
if [ ! -e "$library" ]; then
  echo "fetching NVRTC from PyPI (90 MB) into $folder" >&2
  PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --no-deps --only-binary=:all: --target "$folder/nvrtc" nvidia-cuda-nvrtc==13.0.88 || exit 3
fi
export LD_LIBRARY_PATH=$(dirname "$library")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} # its own parts lie beside it
python3 scripts/cuda-kernels.py "$library" sm_80 sm_90a
