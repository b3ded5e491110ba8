#!/usr/bin/env bash
# Sets a machine up for building with the feature `cuda`, whether or not it has a GPU or CUDA: NVIDIA's compiler and
# headers from PyPI, and stub libraries to link against. Prints what to do next.
# usage: scripts/cuda-setup.sh [FOLDER]     default target/cuda-toolkit; the path is built into the program, as the place of dfdx's headers
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
mkdir -p "${1:-target/cuda-toolkit}"
folder=$(cd "${1:-target/cuda-toolkit}" && pwd)

# 1. The compiler. Later versions than 13.0 emit PTX that drivers of the 580 series do not read.
toolkit=$folder/python/nvidia/cu13
if [ ! -x "$toolkit/bin/nvcc" ]; then
  PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --no-deps --only-binary=:all: --target "$folder/python" \
    nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
fi

# 2. Headers: build scripts look for cuda.h; dfdx compiles some kernels at run time, which include half precision's.
mkdir -p "$folder/include/nv" "$folder/lib64/stubs"
touch "$folder/include/cuda.h" "$folder/include/cudnn.h"
cp "$toolkit"/include/cuda_fp16.h* "$folder/include/"
cp -r "$toolkit/include/nv/." "$folder/include/nv/"
cargo fetch --quiet --locked
sources() { # folder of a dependency of ours
  cargo metadata --format-version 1 --locked --features cuda | python3 -c '
import json, pathlib, sys
found = [p for p in json.load(sys.stdin)["packages"] if p["name"] == sys.argv[1]]
print(pathlib.Path(found[0]["manifest_path"]).parent)' "$1"
}
cp "$(sources dfdx)"/src/tensor_ops/utilities/*.cuh "$folder/include/"

# 3. Stubs: a function that fails for every symbol that cudarc may call, under the name of the real library. The program
# links against them, and starts with them where there is no driver: then it says that there is no device.
cudarc=$(sources cudarc)
stub() { # library, name at run time, error, declarations
  local text=$folder/lib64/stubs/$1.c
  grep -ohE 'pub fn (cu|nvrtc|nccl)[A-Za-z0-9_]+' "$cudarc/src/$4" | awk '{print $3}' | sort -u |
    grep -vxE 'cuGetErrorString|ncclGetErrorString|ncclGetLastError' |
    awk -v error="$3" '{print "int " $1 "(void) { return " error "; }"}' >"$text"
  if [ "$1" = cuda ]; then
    echo 'int cuGetErrorString(int e, const char **s) { *s = "no CUDA driver (stub library)"; return 0; }' >>"$text"
  fi
  if [ "$1" = nccl ]; then
    echo 'const char *ncclGetErrorString(int e) { return "no NCCL (stub library)"; }' >>"$text"
    echo 'const char *ncclGetLastError(void *c) { return ""; }' >>"$text"
  fi
  cc -shared -fPIC -nostdlib -w -fno-builtin -Wl,-soname,"$2" -o "$folder/lib64/stubs/lib$1.so" "$text"
  ln -sf "lib$1.so" "$folder/lib64/stubs/$2"
  rm "$text"
}
stub cuda libcuda.so.1 100 driver/sys.rs # 100: no device
stub nvrtc libnvrtc.so.13 11 nvrtc/sys.rs
stub cublas libcublas.so.13 1 cublas/sys.rs
stub cublasLt libcublasLt.so.13 1 cublaslt/sys.rs
stub curand libcurand.so.10 101 curand/sys.rs
# What cudarc declares of NCCL has to be in the library that users have: its names are recorded.
declared=$(grep -ohE 'pub fn nccl[A-Za-z0-9_]+' "$cudarc/src/nccl/sys.rs" | awk '{print $3}' | LC_ALL=C sort -u)
unknown=$(LC_ALL=C comm -23 <(echo "$declared") <(grep -v '^#' scripts/nccl-names.txt))
if [ "$(wc -w <<<"$declared")" != 27 ] || [ -n "$unknown" ]; then
  echo "error: cudarc declares $(wc -w <<<"$declared") functions of NCCL; not in scripts/nccl-names.txt: ${unknown:-none}" >&2
  exit 1
fi
stub nccl libnccl.so.2 2 nccl/sys.rs # 2: a failure of the system

cat >"$folder/env.sh" <<END
export CUDA_PATH=$folder CUDNN_LIB=$folder CUDA_COMPUTE_CAP=\${CUDA_COMPUTE_CAP:-90}
export PATH=$root/scripts/shim:$toolkit/bin:\$PATH
END
cat <<END
ready. To build:
  . $folder/env.sh && CARGO_TARGET_DIR=target/cuda cargo build --release --features cuda
To start the program on a machine without a driver (it says that there is no device):
  LD_LIBRARY_PATH=$folder/lib64/stubs target/cuda/release/snclr doctor
END
