#!/usr/bin/env bash
# Everything that a GPU has to show, in calls of under 8 minutes: dfdx's own operations against the CPU (in f16 and with AMP, too),
# every test of our kernels, killing and resuming to the same bits, and speed beside PyTorch. Ours needs nothing installed but a
# driver and the CUDA 13 libraries (NVRTC, cuBLAS, cuRAND, and NCCL for one part; those of Python packages are found); the other
# side PyTorch.
#
#   scripts/gpu-check.sh --pack            on the machine that builds, after scripts/cuda-setup.sh: target/gpu-check.tar.xz
#   scripts/gpu-check.sh [OUT]             on the GPU machine, in a copy of the repository with that file: prints the table,
#                                          writes OUT/gpu-check.json and logs (OUT: target/gpu-check/out)
#   scripts/gpu-check.sh --part GROUP ... [OUT]  only these, beside what earlier calls left in OUT: checks, speed, compiled, times;
#                                          and three that take a call of their own: library, sanitizer, cifar10
#   scripts/gpu-check.sh --without-gpu ... without a GPU, with target/release/snclr: the same as far as a CPU has it, small
#
# PYTHON names the Python that has PyTorch (python3); SECONDS_IN_ALL is the time after which nothing goes on (460). The group cifar10
# trains for CIFAR10_EPOCHS (20) on the folder CIFAR10, which has train.parquet and test.parquet.
set -uo pipefail
cd "$(dirname "$0")/.."
pack=target/gpu-check
python=${PYTHON:-python3}
deadline=${SECONDS_IN_ALL:-460} # the table and the last part's end fit into what is left of 8 minutes
without_gpu=

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
  cp "$(built test -p snclr-engine --lib --no-run)" "$pack/tests"
  cp "$(built build -p snclr-engine --bench gpu)" "$pack/gpu"
  # A program of its own: without NCCL's library it does not start.
  cp "$(built build -p snclr-engine --bench gpu --features nccl)" "$pack/gpu-nccl"
  cp target/cuda/release/dfdx-half "$pack/half"
  strip "$pack/snclr" "$pack/tests" "$pack/gpu" "$pack/gpu-nccl" "$pack/half"
  rm -rf "$pack/include" && cp -r "$toolkit/include" "$pack/include"
  echo "$toolkit/include" >"$pack/include-path" # where the programs look for dfdx's headers
  XZ_OPT=-9 tar -C target -cJf "$pack.tar.xz" gpu-check
  du -h "$pack.tar.xz"
  exit
fi
groups=()
while [ $# -gt 0 ]; do
  case $1 in
    --without-gpu) without_gpu=yes ;;
    --part)
      case ${2:-} in
        checks | speed | compiled | times | library | sanitizer | cifar10) groups+=("$2") ;;
        *) echo "--part ${2:-}: one of checks, speed, compiled, times, library, sanitizer, cifar10 is wanted" >&2 && exit 2 ;;
      esac
      shift
      ;;
    -*) echo "$1: one of --pack, --part, --without-gpu is wanted" >&2 && exit 2 ;;
    *) break ;;
  esac
  shift
done

out=${1:-$pack/out}
mkdir -p "$out"
parts=$out/parts.log # a JSON object per line
if [ ${#groups[@]} = 0 ]; then
  groups=(checks speed compiled times)
  rm -f "$out"/*.json "$out"/*.log
fi
touch "$parts"
wants() { # group
  [[ " ${groups[*]} " = *" $1 "* ]]
}
status=0
record() { # name, result, seconds or null, why
  # What an earlier call recorded of the part counts no more.
  grep -v "^{\"part\": \"$1\"," "$parts" >"$parts.new"
  mv "$parts.new" "$parts"
  printf '{"part": "%s", "result": "%s", "seconds": %s, "why": "%s"}\n' "$@" >>"$parts"
  echo "$1: $2${4:+: $4}$([ "$3" = null ] || echo ", $3 s")"
}
part() { # name, seconds at most, command...
  local name=$1 limit=$2 left=$((deadline - SECONDS)) begin=$SECONDS code
  shift 2
  if [ "$left" -lt 10 ]; then
    record "$name" "not run" null "no time was left"
    status=1
    return 1
  fi
  [ "$limit" -le "$left" ] || limit=$left
  timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1
  code=$?
  case $code in
    0) record "$name" ok $((SECONDS - begin)) "" ;;
    124 | 137) record "$name" failed $((SECONDS - begin)) "stopped after its $limit s" ;;
    *) record "$name" failed $((SECONDS - begin)) "exit code $code" ;;
  esac
  [ "$code" = 0 ] && return
  echo "the end of $out/$name.log:"
  tail -n 15 "$out/$name.log"
  status=1
  return 1
}
figures() { # name, seconds at most, command that prints JSON...
  local name=$1 limit=$2
  shift 2
  part "$name" "$limit" bash -c 'to=$1; shift; exec "$@" >"$to"' figures "$out/$name.json" "$@"
}
left_out() { # name, why
  record "$1" "not run" null "$2"
}

# --- what is measured with, and how much

if [ -n "$without_gpu" ]; then
  ours=(target/release/snclr --quiet)
  device=cpu precision=f32
  large=(small --batch 16 --queue-length 512) small=(small --batch 32 --queue-length 512)
  vit=(vit_tiny --batch 16 --queue-length 512)
  search=(--queries 64 --queue-length 8192) epoch=(--batch 4 --images 16 --queue-length 64 -k 5) steps=2 resumed=4
else
  [ -d "$pack" ] || tar -C target -xJf "$pack.tar.xz" || exit 2
  where=$(cat "$pack/include-path")
  [ -e "$where" ] || { mkdir -p "$(dirname "$where")" && cp -r "$pack/include" "$where"; }
  libraries=${LD_LIBRARY_PATH:-}
  for folder in $("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' 2>/dev/null)/nvidia/{cu13,cublas,cuda_nvrtc,curand,nccl}/lib; do
    [ -d "$folder" ] && libraries=$folder${libraries:+:$libraries}
  done
  # For our programs alone: PyTorch finds its own.
  on_gpu=(env "LD_LIBRARY_PATH=$libraries")
  ours=("${on_gpu[@]}" "$pack/snclr" --quiet --device cuda:0)
  device=cuda precision=f16
  large=(resnet50 --batch 256) small=(resnet18 --batch 512) vit=(vit_small --batch 256)
  search=(--queries 1024) epoch=(--batch 256 --images 1024) steps=12 resumed=6
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
fi
reference=("$python" scripts/bench_reference.py --device "$device" --steps "$steps")
no_torch=
if ! "$python" -c 'import torch, torchvision, sys; sys.exit(sys.argv[1] == "cuda" and not torch.cuda.is_available())' "$device" 2>/dev/null; then
  no_torch="$python has no PyTorch that sees the device; $python -m pip install torch torchvision"
fi
beside() { # the same of PyTorch: name, seconds at most, arguments
  if [ -n "$no_torch" ]; then left_out "$1" "$no_torch"; else figures "$1" "$2" "${reference[@]}" "${@:3}"; fi
}
beside_vit() { # name, seconds at most, more arguments: PyTorch's vision transformers are timm's
  if [ -z "$no_torch" ] && ! "$python" -c 'import timm' 2>/dev/null; then
    left_out "$1" "$python has no timm; $python -m pip install timm"
  else
    beside "$1" "$2" "${vit[@]}" --precision "$precision" "${@:3}"
  fi
}
needs_gpu() { # name, seconds at most, command...
  if [ -n "$without_gpu" ]; then left_out "$1" "needs a GPU"; else part "$@"; fi
}
tail_of() { # name, lines at most
  if [ -e "$out/$1.log" ]; then tail -n "$2" "$out/$1.log"; fi
}
# The tests read reference numbers from the repository; without a GPU they fail instead of emulating one.
kernel_tests=("${on_gpu[@]:-}" "CARGO_MANIFEST_DIR=$PWD/src" SNCLR_ONLY_CUDA=1)
chosen_tests=("$pack/tests" cuda gpu queue)

# --- the parts, the most important ones first

if wants checks; then
  part doctor 20 "${ours[@]}" --runs "$out/runs" doctor
  grep cuda "$out/doctor.log"
  needs_gpu checks 90 "${on_gpu[@]:-}" "$pack/gpu" checks "$out/checks.json"
  tail_of checks 1000
  # One rank by NCCL has the bits of one without. PyTorch brings the library.
  needs_gpu nccl 60 "${on_gpu[@]:-}" "$pack/gpu-nccl" nccl "$out/nccl.json"
  tail_of nccl 1000
  needs_gpu half 30 "${on_gpu[@]:-}" "$pack/half"
fi
if wants speed; then
  # Side by side: ours, then PyTorch's.
  figures large 60 "${ours[@]}" bench --json --steps "$steps" --precision "$precision" --case "${large[@]}"
  beside large-torch 60 "${large[@]}" --precision "$precision"
  figures small 40 "${ours[@]}" bench --json --steps "$steps" --precision "$precision" --case "${small[@]}"
  beside small-torch 45 "${small[@]}" --precision "$precision"
  figures vit 40 "${ours[@]}" bench --json --steps "$steps" --precision "$precision" --case "${vit[@]}"
  beside_vit vit-torch 45
  figures queue 30 "${ours[@]}" bench --json --steps 20 --case queue "${search[@]}"
  beside queue-torch 40 queue "${search[@]}" --steps 20
  # From JPEG in Parquet to the step, with every core that there is.
  figures epoch 75 "${ours[@]}" bench --json --steps $((2 * steps)) --precision "$precision" --case epoch-imagenet "${epoch[@]}"
fi
if wants checks; then
  needs_gpu kernels 90 "${kernel_tests[@]}" "${chosen_tests[@]}" --test-threads 4
  tail_of kernels 4
  part resume 60 "${ours[@]}" --runs "$out/runs" verify resume specs/quickstart.yaml --steps "$resumed"
  tail_of resume 3
fi
if wants compiled; then
  # Compiling takes one to two minutes, of which the figures above know nothing: the better of both counts.
  if [ -n "$without_gpu" ]; then
    left_out large-compiled "takes minutes on a CPU"
    left_out small-compiled "takes minutes on a CPU"
    left_out vit-compiled "takes minutes on a CPU"
  else
    beside large-compiled 140 "${large[@]}" --precision "$precision" --compile
    beside_vit vit-compiled 100 --compile
    beside small-compiled 100 "${small[@]}" --precision "$precision" --compile
  fi
fi
if wants times; then
  # For orientation, as far as there is time: other precisions, the vision transformer, augmentation.
  beside queue-f16 20 queue "${search[@]}" --precision f16
  needs_gpu times 60 "${on_gpu[@]:-}" "$pack/gpu" times "$out/times.json"
  tail_of times 1000
fi
if wants library; then
  # The same with cuBLASLt's products in place of ours.
  needs_gpu library-checks 90 "${on_gpu[@]:-}" SNCLR_CUBLASLT=1 "$pack/gpu" checks "$out/library-checks.json"
  tail_of library-checks 1000
  needs_gpu library-kernels 120 "${kernel_tests[@]}" SNCLR_CUBLASLT=1 "${chosen_tests[@]}" --test-threads 4
  tail_of library-kernels 4
  figures large-library 60 env SNCLR_CUBLASLT=1 "${ours[@]}" bench --json --steps "$steps" --precision "$precision" --case "${large[@]}"
  figures small-library 40 env SNCLR_CUBLASLT=1 "${ours[@]}" bench --json --steps "$steps" --precision "$precision" --case "${small[@]}"
  figures vit-library 40 env SNCLR_CUBLASLT=1 "${ours[@]}" bench --json --steps "$steps" --precision "$precision" --case "${vit[@]}"
fi
if wants sanitizer; then
  for tool in memcheck racecheck; do
    if [ -z "$without_gpu" ] && ! command -v compute-sanitizer >/dev/null; then
      left_out "$tool" "there is no compute-sanitizer, a program of the CUDA toolkit"
    else
      needs_gpu "$tool" 220 "${kernel_tests[@]}" compute-sanitizer --tool "$tool" --error-exitcode 9 "${chosen_tests[@]}" --test-threads 1
      tail_of "$tool" 2
    fi
  done
fi
if wants cifar10; then
  # The whole pipeline on real images; so few epochs that the time suffices.
  for method in snclr infonce; do
    if [ ! -e "${CIFAR10:-}/train.parquet" ]; then
      left_out "cifar10-$method" "CIFAR10 names no folder with train.parquet and test.parquet"
    else
      figures "cifar10-$method" 225 "${ours[@]}" --runs "$out/runs" run "specs/cifar10-fast/$method.yaml" --json \
        --set "data.train=$CIFAR10/train.parquet" --set "data.test=$CIFAR10/test.parquet" --set "epochs=${CIFAR10_EPOCHS:-20}" \
        --set "precision=$precision"
      tail_of "cifar10-$method" 8
    fi
  done
fi

files=()
for name in checks nccl large large-library large-torch large-compiled small small-library small-torch small-compiled vit vit-library vit-torch vit-compiled queue queue-torch queue-f16 epoch times; do
  [ -e "$out/$name.json" ] && files+=("$out/$name.json")
done
echo
"$python" scripts/gpu_table.py --parts "$parts" --json "$out/gpu-check.json" "${files[@]}" | tee "$out/table.log"
echo "$SECONDS s in all; $out/gpu-check.json"
exit $status
