#!/usr/bin/env bash
# One call on a machine with a GPU, under ten minutes: build, every test of the GPU backends (none may be skipped for
# want of one), compute-sanitizer on small inputs where it is installed, then the benchmark table. A step that fails or
# takes too long costs no other step.
# gpu_check.sh [FOLDER [STEP...]]: logs and results are left in FOLDER, too; steps: build tests sanitizers bench. Needs
# what is installed already, and no network. GPU_CHECK_SECONDS: when all must be over.
set -uo pipefail
cd "$(dirname "$0")/.."
logs=${1:-$(mktemp -d)}
mkdir -p "$logs"
steps=" ${*:2} "
if [[ $steps == "  " ]]; then steps=" build tests sanitizers bench "; fi
python=${PYTHON:-python3}
end=${GPU_CHECK_SECONDS:-565}
cores=$(nproc)
export PYTHONUNBUFFERED=1
unset TRITON_INTERPRET
failed=()

wanted() { [[ $steps == *" $1 "* ]]; }

has() { "$python" -c "import $1" 2>/dev/null; }

# run NAME SECONDS COMMAND...: its output goes to NAME.log, the end of it is shown; interrupted, pytest still says what
# it knows
run() {
  local name=$1 seconds=$2 start=$SECONDS status=0
  shift 2
  if ((seconds > end - SECONDS - 15)); then seconds=$((end - SECONDS - 15)); fi
  if ((seconds < 5)); then
    echo "-- $name: no time is left"
    return 1
  fi
  timeout -s INT -k 15 "$seconds" "$@" >"$logs/$name.log" 2>&1 || status=$?
  printf '== %s\n%s\n' "$name" "$(tail -n 30 "$logs/$name.log")"
  echo "-- $name: status $status after $((SECONDS - start)) s"
  return "$status"
}

step() { run "$@" || failed+=("$1"); }

collect() {
  cp benchmarks/GPU.md "$logs/"
  for file in benchmarks/results/nvidia-*.csv; do
    if [[ -e $file ]]; then cp "$file" "$logs/"; fi
  done
}

if wanted build; then
  VLCAL_NATIVE=1 VLCAL_CUDA=1 step build 150 "$python" setup.py -q build_ext --inplace
  if [[ " ${failed[*]} " == *" build "* ]]; then
    # Triton needs none of it
    VLCAL_NATIVE=1 VLCAL_CUDA=0 step build-without-cuda 60 "$python" setup.py -q build_ext --inplace
  fi
fi
step backends 60 "$python" -c '
import sys
from vlcal import _cuda, info
from vlcal.ops import _triton
print(info.text(info.collect()))
sys.exit(_cuda.missing() or _triton.missing() or _triton.interpreted() and "Triton is interpreted")
'

small=
if wanted sanitizers; then
  # what it looks at must run, and Triton has compiled it then
  run small 240 "$python" -m benchmarks.gpu_small cuda triton &
  small=$!
fi

if wanted tests; then
  options=(-q -rs -p no:cacheprovider -p benchmarks.gpu_tests)
  # warnings are errors where releases are pinned; those of others (the first product of a backward pass finds "no
  # current CUDA context") say nothing about a kernel
  options+=(-W default)
  # compilers keep the cores busy, and a kernel that hangs ends its worker
  if has xdist; then options+=(-n "$((cores > 3 ? cores - 2 : 1))" --dist worksteal); fi
  if has pytest_timeout; then options+=(--timeout 100 --timeout-method thread); fi
  step tests 240 "$python" -m pytest "${options[@]}" tests/ops tests/test_cuda_build.py
  # a backend that is here is never the reason of a skip
  if grep -E '^SKIPPED.*(no CUDA device|without CUDA kernels|triton is not installed|extension was not built)' \
    "$logs/tests.log"; then
    echo "-- tests of a GPU backend were skipped"
    failed+=(skips)
  fi
fi

if [[ $small ]]; then
  wait "$small" || failed+=(small)
  if command -v compute-sanitizer >/dev/null; then
    # exact allocations, so that a step beyond the end is seen
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    tools=()
    for tool in memcheck racecheck synccheck; do
      run "$tool" 75 compute-sanitizer --tool "$tool" --error-exitcode 9 \
        "$python" -m benchmarks.gpu_small cuda triton &
      tools+=($!)
    done
    for tool in "${tools[@]}"; do wait "$tool" || failed+=(sanitizer); done
    tail -n 500 "$logs"/{small,memcheck,racecheck,synccheck}.log >"$logs/sanitizers.log"
    rm -f "$logs"/{small,memcheck,racecheck,synccheck}.log
    unset PYTORCH_NO_CUDA_MEMORY_CACHING
  else
    echo "-- compute-sanitizer is not installed"
  fi
fi

if wanted bench; then
  seconds=$((end - SECONDS - 25))
  step bench "$((seconds + 10))" "$python" -m benchmarks.bench_gpu --seconds "$seconds"
  collect
fi

echo "== in short"
if [[ -e $logs/tests.log ]]; then
  grep -E '^(FAILED|ERROR)|(passed|failed).* in ' "$logs/tests.log" | cut -c 1-160 | tail -n 25
fi
if [[ -e $logs/bench.log ]]; then grep ' and .*: ' "$logs/bench.log" | cut -c 1-200; fi
if ((${#failed[@]})); then
  echo "== failed: ${failed[*]}"
  exit 1
fi
echo "== all passed after $SECONDS s"
