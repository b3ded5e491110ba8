#!/usr/bin/env bash
# What takes longer than the gate allows; run before a release, on x86-64 Linux.
#
#   scripts/soak.sh
#
# 1. The full list of tests/golden/content_hashes.txt on every vector unit of this CPU, with 1, 2 and 3 threads.
# 2. A tiny ResNet and a tiny vision transformer on emulated CPUs (Debian's package qemu-user), against the same list: one with
#    AVX2 and FMA and no AVX-512 (Haswell), and one without AVX and FMA (Nehalem). Left out, aloud, without qemu-x86_64.
#
# 3. 10,000 mutations of image files: the repository's own, and those of the suites that SNCLR_CONFORMANCE names.
#
# 4. A runs folder that two machines share, as two FUSE mounts (Debian's bindfs): 200 runs of one spec at once, and 100 cleanings on one
#    mount while a run is at work on the other. Left out, aloud, without bindfs.
#
# 5. The curves of 1,000 runs with 2,000 steps each in one file, read by DuckDB (SNCLR_PYTHON names a Python that has it).
#
# 6. A training under a time limit of Slurm, which ends it with a checkpoint, put back into the queue and finished to the same bits.
#
# 7. The shared cache: every object of it harmed in every way, and 100 uploads that are killed.
#
# 8. Training on 1, 2 and 4 ranks over MPI, and on 16: every method, and 100 ranks that are killed. The same over TCP instead of shared
#    memory, and with a build for MPICH (Debian's libmpich-dev). Each is left out, aloud, without its MPI. Then ranks with an emulated
#    GPU each.
#
# Ends with 0 when all of it came to the recorded bits, and nothing panicked.
set -euo pipefail
cd "$(dirname "$0")/.."

soak() { # a test, what it does, and its file, or `lib`
  echo "== $2"
  local begun=$SECONDS target=(--test "${3:-equal_bits}")
  if [ "${3:-}" = lib ]; then target=(--lib); fi
  cargo test --release --locked --quiet --features remote "${target[@]}" -- --ignored --exact --nocapture "$1"
  echo "== $2: $((SECONDS - begun)) s"
}

failed=0
SNCLR_TEST_UNDER='' soak soak_every_run_on_every_unit "every run, every unit, 1 to 3 threads" || failed=1
if command -v qemu-x86_64 >/dev/null; then
  for cpu in Haswell Nehalem; do
    SNCLR_TEST_UNDER="qemu-x86_64 -cpu $cpu" soak soak_an_emulated_cpu "an emulated $cpu" || failed=1
  done
else
  echo "skipped: no emulated CPUs: qemu-x86_64 is missing (apt-get install qemu-user)" >&2
fi
soak soak_mutations_end_without_a_panic "mutations of image files" conformance || failed=1
soak soak_two_hundred_runs_at_once "200 runs at once on two mounts" shared_folder || failed=1
soak soak_a_hundred_cleanings_take_nothing_away "100 cleanings beside a run" shared_folder || failed=1
soak soak_two_million_steps_are_read_in_a_moment "two million steps in one file" thousands || failed=1
soak soak_a_time_limit_ends_with_a_checkpoint "a time limit of Slurm" cluster || failed=1
soak soak_every_object_harmed_in_every_way "every object of a cache harmed in every way" remote || failed=1
soak soak_a_hundred_killed_uploads "100 killed uploads" remote || failed=1
mpi() { # the tests of many ranks, with the launcher and the compiler of an MPI; what it is called
  if ! command -v "${1%% *}" >/dev/null || ! command -v "$2" >/dev/null; then
    echo "skipped: no ranks over $3: $1 or $2 is missing" >&2
    return 0
  fi
  echo "== ranks over $3: $1"
  # A folder for each: the program is built for one of them.
  MPICC=$2 SNCLR_MPIRUN="$1" SNCLR_REQUIRE_MPI=1 CARGO_TARGET_DIR=target/$3 \
    cargo test --release --locked --quiet --features mpi --test mpi -- --test-threads 1 --include-ignored --nocapture
}
mpi mpirun.openmpi mpicc.openmpi openmpi || failed=1
mpi "mpirun.openmpi --mca btl tcp,self" mpicc.openmpi openmpi || failed=1
mpi mpirun.mpich mpicc.mpich mpich || failed=1
soak train::gpu_tests::soak_more_ranks_with_a_gpu "ranks with an emulated GPU" lib || failed=1
exit "$failed"
