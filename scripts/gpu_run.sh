#!/usr/bin/env bash
# What a GPU says of this project, in one call of at most BUDGET seconds on a machine that has one:
# build, first kernels, doctor, tests, compute-sanitizer, benchmarks, ncu, training, a slice of a
# study, and a build with the machine's own compiler and environment.
#
#   OUT=folder scripts/gpu_run.sh        from the project's root; `make gpu-run` where a GPU is local
#
# OUT is results/perf/cuda/<today> where none is given, or a temporary folder in a rehearsal. The exit
# code is 1 if a step failed.
# The steps stand in order of value. Each has its own limit, log and line in summary.txt (name, exit
# code, seconds); a failed one stops nothing but what cannot go on without it. results.tar.gz is
# written anew after every step that measures. OUT gets at most eight files.
#
#   BUDGET=560    seconds that all of it may take; PYTHON=path of the Python that has torch
#   FROM=folder   OUT of an earlier call, another folder: steps that ended well there are left out, if
#                 it was of the same commit
#   BRING=folder  wheels (whl/*.whl) of packages that the machine lacks, and the commit's name (commit)
#   DRY=1         only what needs no GPU: for a rehearsal
#   ARCHITECTURES=list  what a build is for, as in TORCH_CUDA_ARCH_LIST; without it, what the card is
# Libraries that lie in moge_bench/ are used if they load here, are of this csrc and hold code for the
# card; else it builds. Where their first kernels crash it builds too; where those of the build crash
# nothing else is run.
set -u
BUDGET=${BUDGET:-560}
DRY=${DRY:-0}
BRING=${BRING:-/nothing-brought}
ROOT=$PWD
[ -f moge_bench/ops/route.py ] || { echo "run it from the project's root"; exit 2; }
[ -z "${OUT:-}" ] && OUT=$([ "$DRY" = 1 ] && mktemp -d || echo "results/perf/cuda/$(date -u +%F)")
OUT=$(realpath -m "$OUT")
[ -n "${FROM:-}" ] && [ "$(realpath -m "$FROM")" = "$OUT" ] && { echo "FROM must be another folder than OUT, got $OUT for both"; exit 2; }
COMMIT=$(cat "$BRING/commit" 2>/dev/null || git rev-parse HEAD 2>/dev/null || echo unknown)
T=$(mktemp -d)
mkdir -p "$T/results" "$OUT"
[ -f "${FROM:-}/results.tar.gz" ] && tar -C "$T" -xzf "$FROM/results.tar.gz"
SUMMARY=$OUT/summary.txt MACHINE=$OUT/machine.log TESTS=$OUT/tests.log SANITIZER=$OUT/sanitizer.log
PERF=$OUT/perf.log TRAIN=$OUT/train.log NCU=$OUT/ncu.log
: >"$SUMMARY"
SECONDS=0 FAILED=

note() { echo "$*" | tee -a "$SUMMARY"; }
line() {
  note "$(printf '%-28s rc=%-4s %4s s  (ended at %s s) %s' "$1" "$2" "$3" "$SECONDS" "${4:-}")"
  [ "$2" = 0 ] || [ "$2" = skip ] || FAILED="$FAILED $1"
}
left() { echo $((BUDGET - SECONDS - 6)); }
done_before() {  # what prepares the machine is done in every call
  case $1 in machine|wheels|libraries-brought|build|first-kernel|first-kernel-rebuilt) return 1;; esac
  grep -qx "commit: $COMMIT" "${FROM:-}/machine.log" 2>/dev/null && grep -qE "^$1 +rc=0 " "$FROM/summary.txt"
}
# step NAME LIMIT LOG COMMAND...: run it in at most LIMIT seconds, output to LOG, a line to summary
step() {
  local name=$1 limit=$2 log=$3 begin=$SECONDS rc; shift 3
  if done_before "$name"; then line "$name" 0 0 "in an earlier call"; return 0; fi
  [ "$limit" -gt "$(left)" ] && limit=$(left)
  if [ "$limit" -lt 8 ]; then line "$name" skip 0 "no time left"; return 125; fi
  printf '\n===== %s (limit %s s, begun at %s s)\n' "$name" "$limit" "$begin" >>"$log"
  timeout -k 5 "$limit" "$@" >>"$log" 2>&1 </dev/null; rc=$?
  line "$name" "$rc" $((SECONDS - begin))
  return $rc
}
save() { tar -C "$T" -czf "$T/results.new" results && mv "$T/results.new" "$OUT/results.tar.gz"; }
finish() {  # what comes back must fit: both ends of a long log
  for log in "$OUT"/*.log; do
    if [ -f "$log" ] && [ "$(stat -c %s "$log")" -gt 6000000 ]; then
      { head -c 1000000 "$log"; printf '\n[... cut ...]\n'; tail -c 4000000 "$log"; } >"$T/cut"
      cp "$T/cut" "$log"
    fi
  done
  save
  rm -rf "$T"
  [ -z "$FAILED" ] || echo "not well ended:$FAILED"
}
stop() { tail -60 "$MACHINE"; note "$1: nothing more is run"; finish; exit 1; }
trap 'note "terminated at $SECONDS s"; finish; exit 143' TERM INT

PY=$(realpath -s "${PYTHON:-$(command -v python3)}")  # of a venv, so the link itself
NVCC=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null)
if [ -z "${CUDA_HOME:-}" ]; then  # where the headers are: nvcc on PATH may be a wrapper elsewhere
  for home in "$(dirname "$(dirname "$(readlink -f "${NVCC:-/none/bin/nvcc}")")")" /usr/local/cuda; do
    [ -f "$home/include/cuda_runtime_api.h" ] && export CUDA_HOME=$home && break
  done
fi
SMI=$(command -v nvidia-smi || echo /usr/local/nvidia/bin/nvidia-smi)
for folder in "${CUDA_HOME:-/usr/local/cuda}/bin" /usr/local/cuda/compute-sanitizer /opt/nvidia/nsight-compute/* \
  "$("$PY" -c 'import sys; print(sys.prefix)')/bin"; do  # the last: ninja, without which a build is serial
  [ -d "$folder" ] && PATH="$folder:$PATH"
done
export PATH="$T/site/bin:$PATH"  # programs of wheels that were brought, such as ninja
export PYTHONUNBUFFERED=1 PYTHONPATH="$T/site:$ROOT" TOKENIZERS_PARALLELISM=false
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 COLUMNS=160
# Not the list of the machine's environment, which may leave out this card; build-here takes that one.
export OWN_ARCHITECTURES=${TORCH_CUDA_ARCH_LIST:-}
CARD=$("$SMI" --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u | paste -sd ' ' -)
export MOGE_CUDA=1 TORCH_CUDA_ARCH_LIST=${ARCHITECTURES:-${CARD:-9.0}}
export NVIDIA_TF32_OVERRIDE=0  # float32 is float32, in cuDNN too
CLI=("$PY" -m moge_bench.cli)
PROGRAM=("$PY" -m)

# ---------------------------------------------------------------------------------------- machine
facts() {
  echo "commit: $COMMIT"
  date -u; uname -srm; nproc; ldd --version | head -1; free -g | head -2
  "$SMI" || true
  "$SMI" --query-gpu=name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu --format=csv || true
  echo "CUDA_HOME=${CUDA_HOME:-} nvcc=$NVCC"; "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" --version | tail -2
  g++ --version | head -1; command -v git ncu compute-sanitizer ninja cuda-gdb gdb
  echo "built for $TORCH_CUDA_ARCH_LIST; the environment's own list: ${OWN_ARCHITECTURES:-none}"; env | grep -E 'FLAGS|^CC=|^CXX='
  "$PY" -c 'import sysconfig; print([sysconfig.get_config_var(name) for name in ("CXX", "CFLAGS", "LDCXXSHARED")])'
  "$PY" -c 'import sys, torch; print(sys.version, torch.__version__, torch.version.cuda, torch.cuda.is_available())'
  "$PY" -m pip list 2>/dev/null | grep -iE '^(numpy|scipy|pandas|transformers|accelerate|tokenizers|pydantic|rich|typer|statsmodels|pytest|hypothesis|triton)'
}
wheels() {
  ls "$BRING"/whl/*.whl >/dev/null 2>&1 || { echo "no wheels brought"; return 0; }
  "$PY" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$T/site" "$BRING"/whl/*.whl &&
  "$PY" -c 'import pydantic; print("pydantic", pydantic.VERSION, pydantic.__file__)'
}
build() {  # in this folder
  rm -f moge_bench/_C.*.so moge_bench/_cuda*.so
  MAX_JOBS=$(nproc) "$PY" setup.py build_ext --inplace && "$PY" -W ignore -m tools.gpu_run.libraries
}
build_here() {  # in a copy of the tree, as a user of this machine would build
  mkdir -p "$HERE" && cp -r csrc moge_bench scripts tools setup.py pyproject.toml README.md LICENSE "$HERE" && cd "$HERE" || return 1
  export PYTHONPATH="$T/site:$HERE" TORCH_CUDA_ARCH_LIST=$OWN_ARCHITECTURES
  time build
  local rc=$?; grep -E 'warning:' build/compile.log | head -20; return $rc
}
first_kernel() { cd "$1" && PYTHONPATH="$T/site:$1" "$PY" -X faulthandler -W ignore -m tools.gpu_run.first_kernel "$DEVICE"; }
backtrace() {  # where first_kernel ends on the host, by the first debugger that can say it
  cd "$1" || return 1
  for debugger in cuda-gdb gdb; do
    command -v "$debugger" || { echo "$debugger: not here"; continue; }
    PYTHONPATH="$T/site:$1" "$debugger" -q -batch -ex 'set pagination off' -ex 'set confirm off' -ex run -ex 'bt 40' -ex 'bt full 6' \
      -ex 'info registers' -ex 'x/24i $pc-48' -ex 'info sharedlibrary moge' -ex 'info sharedlibrary libcuda' -ex 'info sharedlibrary libtorch' \
      --args "$PY" -W ignore -m tools.gpu_run.first_kernel "$DEVICE" 2>&1 | tee "$T/backtrace"
    grep -q '^#0' "$T/backtrace" && return 0
  done
  return 1
}
DEVICE=$([ "$DRY" = 1 ] && echo cpu || echo cuda) HERE=$T/here
export -f facts wheels build build_here first_kernel backtrace
export PY BRING T SMI NVCC ROOT DRY DEVICE HERE COMMIT

step machine 30 "$MACHINE" bash -c facts
step wheels 60 "$MACHINE" bash -c wheels
rebuild() { step build 220 "$MACHINE" bash -c build || stop "no libraries"; }
starts() {  # NAME FOLDER: whether the first kernels of the libraries there run; if not, where they end
  step "$1" 60 "$MACHINE" bash -c "first_kernel '$2'" && return 0
  step "$1-backtrace" 100 "$MACHINE" bash -c "backtrace '$2'"
  return 1
}
keep() { mkdir -p "$T/results/crashed" && cp "$1"/moge_bench/*.so "$1/build/compile.log" "$T/results/crashed" 2>/dev/null; save; }
if step libraries-brought 45 "$MACHINE" "$PY" -W ignore -m tools.gpu_run.libraries; then
  starts first-kernel "$ROOT" || { keep "$ROOT"; rebuild; starts first-kernel-rebuilt "$ROOT" || stop "the first kernels crash"; }
else
  rebuild; starts first-kernel "$ROOT" || stop "the first kernels crash"
fi

# ------------------------------------------------------------------------------------ correctness
step doctor 60 "$MACHINE" "${CLI[@]}" doctor

sanitize() {  # TOOL. Allocations of their own, so that a neighbour is no cover; mangled names are matched
  case $1 in memcheck|initcheck) export PYTORCH_NO_CUDA_MEMORY_CACHING=1;; esac
  local only="--kernel-name kernel_substring=moge"
  [ "$1" = initcheck ] && only=""  # it must see what torch's kernels write
  compute-sanitizer --tool "$1" --error-exitcode 7 --launch-timeout 120 --print-limit 30 $only "$PY" -m tools.gpu_run.every_kernel small
  local rc=$?; echo $rc >"$T/$1.rc"; return $rc
}
export -f sanitize
SAN_BEGIN=$SECONDS
declare -A SAN_PID
if command -v compute-sanitizer >/dev/null && [ "$DRY" = 0 ]; then
  for tool in memcheck racecheck; do
    done_before "sanitizer-$tool" && continue
    timeout -k 5 150 bash -c "sanitize $tool" >"$T/$tool.log" 2>&1 </dev/null &
    SAN_PID[$tool]=$!
  done
else note "compute-sanitizer: not here, or DRY"; fi

GPU_TESTS=("$PY" -m pytest tests/gpu -m gpu -k "not compute_sanitizer" -q -ra --tb=short -p no:cacheprovider
  --junitxml="$T/junit.xml" --durations=12 --maxfail=60)
if [ "$DRY" = 1 ]; then GPU_TESTS+=(--collect-only); else GPU_TESTS+=(-n 8); fi
if ! step pytest-gpu 190 "$TESTS" "${GPU_TESTS[@]}" && [ -f "$T/junit.xml" ]; then
  step failed-tests-alone 60 "$TESTS" "${PROGRAM[@]}" tools.gpu_run.failed_again "$T/junit.xml"
fi
# All skipped is exit code 0 too: the count is what tells.
note "  pytest: $(grep -hE '[0-9]+ (passed|failed|skipped|error|tests? collected|deselected)' "$TESTS" | tail -1)"
cp "$T/junit.xml" "$T/results/" 2>/dev/null

runs() {  # all runs of both grids but one, which the timed ablate trains; and one config once more
  "$PY" -m moge_bench.cli ablate tools/gpu_run/first_vit.yaml --results "$T/results/train" --jobs 5 --limit 5 & local a=$!
  "$PY" -m moge_bench.cli ablate tools/gpu_run/first_lm.yaml --results "$T/results/train" --jobs 5 --limit 5 & local b=$!
  "$PY" -m moge_bench.cli train tiny-lm --method moge --set training.steps=100 --set device=cuda --results "$T/results/again" & local c=$!
  local rc=0; wait $a || rc=1; wait $b || rc=1; wait $c || rc=1
  "$PY" -m tools.gpu_run.compare_records "$T/results/train" "$T/results/again"; return $rc
}
export -f runs
TRAINED=0
[ "$DRY" = 1 ] || { step train 110 "$TRAIN" bash -c runs && TRAINED=1; }

for tool in "${!SAN_PID[@]}"; do  # what follows is timed: nothing else may run beside it
  while kill -0 "${SAN_PID[$tool]}" 2>/dev/null && [ $((SECONDS - SAN_BEGIN)) -lt 155 ] && [ "$(left)" -gt 160 ]; do sleep 1; done
  kill "${SAN_PID[$tool]}" 2>/dev/null; wait "${SAN_PID[$tool]}" 2>/dev/null
  { printf '\n===== %s\n' "$tool"; cat "$T/$tool.log"; } >>"$SANITIZER"
  line "sanitizer-$tool" "$(cat "$T/$tool.rc" 2>/dev/null || echo cut)" $((SECONDS - SAN_BEGIN)) "$(tail -1 "$T/$tool.log" | cut -c1-90)"
done
save

# -------------------------------------------------------------------------------------- measuring
if [ "$DRY" = 1 ]; then
  step perf-dry 60 "$PERF" "${CLI[@]}" perf run --device cuda --no-compiled --dry-run
  for grid in vit lm; do step "ablate-$grid-dry" 60 "$TRAIN" "${CLI[@]}" ablate tools/gpu_run/first_$grid.yaml --results "$T/results/train" --dry-run; done
  for name in probes every_kernel large_cases failed_again compare_records; do  # the others have run
    step "import-$name" 40 "$PERF" "$PY" -c "import tools.gpu_run.$name"
  done
  finish; [ -z "$FAILED" ]; exit
fi
step probes 60 "$MACHINE" env -u NVIDIA_TF32_OVERRIDE "${PROGRAM[@]}" tools.gpu_run.probes
step perf-large 80 "$PERF" "${PROGRAM[@]}" tools.gpu_run.large_cases "$T/results/perf/large"
save
# What torch.compile makes of the same formulas: the headline cases, as far as time goes.
step perf-large-compiled 90 "$PERF" "${PROGRAM[@]}" tools.gpu_run.large_cases "$T/results/perf/large" compiled
save
if command -v ncu >/dev/null; then
  profile=(ncu --clock-control none --profile-from-start off --target-processes application-only --kernel-name-base function
    --kernel-name 'regex:route|group_norm|choices|gather_rows|combine|bias|segment' --launch-count 60 --csv --page raw)
  step ncu 80 "$NCU" "${profile[@]}" --section LaunchStats --section Occupancy --section SpeedOfLight --section MemoryWorkloadAnalysis \
    --section WarpStateStats --metrics gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum,smsp__inst_executed.sum,l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum \
    "${PROGRAM[@]}" tools.gpu_run.every_kernel large || step ncu-plain 50 "$NCU" "${profile[@]}" --set basic "${PROGRAM[@]}" tools.gpu_run.every_kernel large
else note "ncu: not here"; fi
step perf-core 90 "$PERF" "${CLI[@]}" perf run --device cuda --no-compiled --rounds 20 --output "$T/results/perf/core"
save
# What failed would be trained again here, alone and for nothing. A pass takes up to 40 s of training
# steps and as many of scoring, after the last run of the grid and a start of some 10 s.
[ "$TRAINED" = 1 ] && for grid in vit lm; do step "speed-pass-$grid" 100 "$TRAIN" "${CLI[@]}" ablate tools/gpu_run/first_$grid.yaml --results "$T/results/train" --jobs 1; done
step compare 20 "$TRAIN" "${PROGRAM[@]}" tools.gpu_run.compare_records "$T/results/train" "$T/results/again"
save
# As a user of this machine builds: its compiler, its flags, the environment's architectures.
step build-here 150 "$MACHINE" bash -c build_here && { starts first-kernel-of-that-build "$HERE" || keep "$HERE"; }
for tool in initcheck synccheck; do step "sanitizer-$tool" 60 "$SANITIZER" bash -c "sanitize $tool"; done
"$SMI" --query-gpu=clocks.sm,clocks.mem,temperature.gpu,power.draw --format=csv,noheader >>"$MACHINE" 2>&1
echo; grep -h '^PROBE' "$MACHINE" | cut -c1-700
grep -hE '^(FAILED|ERROR)|passed|failed' "$TESTS" | tail -25 | cut -c1-200
sed -n '/^| case | ours/,/^| least/p' "$PERF" | head -40
grep -h 'SAME BITS' "$TRAIN"; echo; cat "$SUMMARY"
finish
[ -z "$FAILED" ]
