#!/usr/bin/env bash
# One call on a machine with a GPU, under ten minutes: build, every test of the GPU backends (none may be skipped for
# want of one), compute-sanitizer on small inputs where it is installed, then the benchmark table.
# gpu_check.sh [FOLDER]: logs and results are left in FOLDER, too. Needs what is installed already, and no network.
set -uo pipefail
cd "$(dirname "$0")/.."
logs=${1:-$(mktemp -d)}
mkdir -p "$logs"
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1
unset TRITON_INTERPRET
failed=()

# step NAME SECONDS COMMAND...: its output goes to NAME.log, the end of it is shown
step() {
  local name=$1 seconds=$2 start=$SECONDS status=0
  shift 2
  echo "== $name"
  timeout -k 5 "$seconds" "$@" >"$logs/$name.log" 2>&1 || status=$?
  tail -n 30 "$logs/$name.log"
  echo "-- $name: status $status after $((SECONDS - start)) s"
  if ((status)); then failed+=("$name"); fi
  return "$status"
}

has() { "$python" -c "import $1" 2>/dev/null; }

VLCAL_NATIVE=1 VLCAL_CUDA=1 step build 150 "$python" setup.py -q build_ext --inplace || exit 1
step backends 60 "$python" -c '
import sys
from vlcal import _cuda, info
from vlcal.ops import _triton
print(info.text(info.collect()))
sys.exit(_cuda.missing() or _triton.missing() or _triton.interpreted() and "Triton is interpreted")
' || exit 1

workers=()
if has xdist; then workers=(-n 6); fi
step tests 210 "$python" -m pytest -q -rs -p no:cacheprovider "${workers[@]}" tests/ops tests/test_cuda_build.py
# a backend that is here is never the reason of a skip
if grep -E '^SKIPPED.*(no CUDA device|without CUDA kernels|triton is not installed|extension was not built)' \
  "$logs/tests.log"; then
  echo "-- tests of a GPU backend were skipped"
  failed+=(skips)
fi

if command -v compute-sanitizer >/dev/null; then
  # exact allocations, so that a step beyond the end is seen
  for tool in memcheck racecheck; do
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "$tool" 45 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$python" -m benchmarks.gpu_small cuda
  done
else
  echo "-- compute-sanitizer is not installed"
fi

step bench 170 "$python" -m benchmarks.bench_gpu --seconds 130
cp benchmarks/GPU.md "$logs/"
for file in benchmarks/results/nvidia-*.csv; do
  if [[ -e $file ]]; then cp "$file" "$logs/"; fi
done
if ((${#failed[@]})); then
  echo "== failed: ${failed[*]}"
  exit 1
fi
echo "== all passed"
