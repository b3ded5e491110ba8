#!/usr/bin/env bash
# Everything that a GPU has to show, in one call of under 9 minutes: dfdx's own operations against the CPU (in f16 and with
# AMP, too), every test of our kernels, resuming to the same bits, and times. Needs nothing installed but a driver and the CUDA 13 libraries
# (NVRTC, cuBLAS, cuRAND; those of Python packages are found).
#
#   scripts/gpu-check.sh --pack          on the machine that builds, after scripts/cuda-setup.sh: target/gpu-check.tar.gz
#   scripts/gpu-check.sh [OUT]           on the GPU machine, in a copy of the repository with that file: prints the table,
#                                        writes OUT/gpu-check.json and logs (OUT: target/gpu-check/out)
set -uo pipefail
cd "$(dirname "$0")/.."
pack=target/gpu-check

if [ "${1:-}" = --pack ]; then
  set -e
  toolkit=$PWD/target/cuda-toolkit
  . "$toolkit/env.sh"
  export CARGO_TARGET_DIR=$PWD/target/cuda
  cargo build --release --locked --features cuda
  cargo build --release --locked --manifest-path scripts/dfdx-half/Cargo.toml
  built() { # the executable that cargo names for a target
    cargo "$@" --release --locked --features cuda --message-format json |
      python3 -c 'import json, sys; print([m["executable"] for m in map(json.loads, sys.stdin) if m.get("executable")][-1])'
  }
  mkdir -p "$pack"
  cp target/cuda/release/snclr "$pack/snclr"
  cp "$(built test --lib --no-run)" "$pack/tests"
  cp "$(built build --bench gpu)" "$pack/gpu"
  cp target/cuda/release/dfdx-half "$pack/half"
  strip "$pack/snclr" "$pack/tests" "$pack/gpu" "$pack/half"
  rm -rf "$pack/include" && cp -r "$toolkit/include" "$pack/include"
  echo "$toolkit/include" >"$pack/include-path" # where the programs look for dfdx's headers
  tar -C target -czf "$pack.tar.gz" gpu-check
  du -h "$pack.tar.gz"
  exit
fi
[ -d "$pack" ] || tar -C target -xzf "$pack.tar.gz"

out=${1:-$pack/out}
mkdir -p "$out"
where=$(cat "$pack/include-path")
[ -e "$where" ] || { mkdir -p "$(dirname "$where")" && cp -r "$pack/include" "$where"; }
for libraries in $(python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' 2>/dev/null)/nvidia/{cu13,cublas,cuda_nvrtc,curand}/lib; do
  [ -d "$libraries" ] && export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
done
status=0
part() { # name, seconds at most, command...
  local name=$1 limit=$2
  shift 2
  local begin=$SECONDS
  if timeout "$limit" "$@" >"$out/$name.log" 2>&1; then echo "$name: ok, $((SECONDS - begin)) s"; else
    echo "$name: FAILED ($?), $((SECONDS - begin)) s; the end of $out/$name.log:"
    tail -n 15 "$out/$name.log"
    status=1
  fi
}
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
part doctor 30 "$pack/snclr" doctor --runs "$out/runs"
grep cuda "$out/doctor.log"
# The tests read reference numbers from the repository; without a GPU they fail instead of emulating one.
CARGO_MANIFEST_DIR=$PWD SNCLR_ONLY_CUDA=1 part kernels 120 "$pack/tests" cuda gpu queue --test-threads 4
tail -n 4 "$out/kernels.log"
part gpu 240 "$pack/gpu" "$out/gpu-check.json"
cat "$out/gpu.log"
part half 30 "$pack/half"
cat "$out/half.log"
part resume 80 "$pack/snclr" --device cuda:0 --runs "$out/runs" verify resume specs/quickstart.yaml --steps 6
tail -n 3 "$out/resume.log"
exit $status
