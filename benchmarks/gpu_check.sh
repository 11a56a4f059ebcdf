#!/usr/bin/env bash
# Proves and measures the kernels on a machine with one NVIDIA GPU, in under ten minutes.
#
#   benchmarks/gpu_check.sh [--out DIR] [--python PROGRAM] [--commit ID] [--seconds N] [--skip-build]
#
# Needs torch 2.11 or newer, its nvcc, pytest and pytest-benchmark; no network. Builds in place, runs
# the GPU tests, compute-sanitizer where it is, whole samplings (full-size U-Nets where diffusers
# is) and the benchmarks of the kernels. A part that fails or runs out of time does not end it. DIR
# (default: $OUT, else bench/gpu) gets a log of every part and gpu_check.json, rewritten after every
# part: device, versions, tests, sanitizers, every time with its bytes and ratios, whether each aim
# is met, and what failed. Exit code 1 if anything did, 2 for bad options.
#
#   --python    else $PYTHON, else .venv/bin/python where it is, else python3
#   --commit    what the report names as the commit; else git is asked
#   --seconds   of the whole check, 570 unless told
#   --skip-build    the libraries as they are
set -u
caller=$PWD
cd "$(dirname "$0")/.."
out=${OUT:-$PWD/bench/gpu} python=${PYTHON:-python3} seconds=570 build=yes commit=()
# What `make` installed, where it did.
[ -n "${PYTHON:-}" ] || [ ! -x .venv/bin/python ] || python=.venv/bin/python

while [ $# -gt 0 ]; do
  case $1 in
    --out | --python | --commit | --seconds)
      [ $# -gt 1 ] || { echo "gpu_check.sh: $1 needs a value" >&2 && exit 2; } ;;&
    -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' benchmarks/gpu_check.sh && exit 0 ;;
    --out) out=$2 && shift 2 ;;
    --python) python=$2 && shift 2 ;;
    --commit) commit=(--commit "$2") && shift 2 ;;
    --seconds) seconds=$2 && shift 2 ;;
    --skip-build) build=no && shift ;;
    *) echo "gpu_check.sh: $1 is no option of it" >&2 && exit 2 ;;
  esac
done

case $seconds in
  '' | *[!0-9]*) echo "gpu_check.sh: --seconds needs a whole number, got $seconds" >&2 && exit 2 ;;
esac
[[ $out = /* ]] || out=$caller/$out
command -v "$python" > /dev/null || { echo "gpu_check.sh: there is no $python" >&2 && exit 2; }
mkdir -p "$out" || exit 1
device=$(mktemp) || exit 1
export PYTHONPATH=. PYTHONUNBUFFERED=1
parts=() running=

trap 'rm -f "$device"' EXIT
# An interrupted check ends its part and leaves what it has.
trap '[ -z "$running" ] || kill "$running"; parts+=("interrupted:130:$SECONDS"); report; exit 1' \
  INT TERM

# Writes gpu_check.json from what is there.
report() { "$python" -m benchmarks.check.report --out "$out" --device "$device" "$@" "${parts[@]}"; }

# seconds_for MOST KEPT: what a part gets: MOST, or what is left but for the KEPT of later parts.
seconds_for() {
  local left=$((seconds - SECONDS - $2))
  echo $((left < $1 ? left : $1))
}

# part NAME LIMIT LOG COMMAND...
part() {
  local name=$1 limit=$2 log=$3 began=$SECONDS status
  shift 3
  echo "== $name, at most $limit s: $*" >> "$log"
  if [ "$limit" -gt 0 ]; then
    echo "$name (at most $limit s)"
    # In the background, so that an interruption is noticed at once.
    timeout --kill-after=5 "$limit" "$@" >> "$log" 2>&1 &
    running=$!
    wait $running
    status=$?
    running=
  else
    status=124
  fi
  parts+=("$name:$status:$((SECONDS - began))")
  report --quiet
  return $status
}

skip() {
  parts+=("$1:skipped:$2")
  echo "$1 skipped: $2"
}

here() { timeout 120 "$python" -m benchmarks.check.device "${commit[@]}" "$@"; }

here > "$device"
status=$?
parts+=("device:$status:$SECONDS")
if [ $status -ne 0 ]; then
  # Nothing else can be proven without a GPU; what was proven before stays.
  if [ -e "$out/gpu_check.json" ]; then
    echo "gpu_check.sh: $python finds no GPU here; $out keeps its earlier results" >&2
    exit 1
  fi
  report || [ -e "$out/gpu_check.json" ] || echo "gpu_check.sh: $python does not run" >&2
  exit 1
fi
rm -f "$out"/{gpu_check,bench,loop}.json "$out"/{build,tests,sanitize,bench,loop}.log \
  "$out/tests.xml"

if [ $build = yes ]; then
  # For this GPU alone, where setup.py lets it: a fraction of the time.
  TORCH_CUDA_ARCH_LIST=$(sed -n 's/.*"capability": "\(.*\)".*/\1/p' "$device") \
    part build "$(seconds_for 250 320)" "$out/build.log" "$python" setup.py build_ext --inplace
else
  skip build "as asked"
fi
here --served > "$device"
parts+=("library:$?:0")

# The files that hold tests for a GPU; others need packages that may be missing. conftest.py needs
# hypothesis, and only skips what cannot run here.
files=$(grep -rl --include='test_*.py' 'pytest\.mark\.gpu' tests)
alone=$("$python" -c 'import hypothesis' 2> /dev/null || echo --noconftest)
# shellcheck disable=SC2086  # several files, and no option at all
part tests "$(seconds_for 220 270)" "$out/tests.log" "$python" -m pytest -m gpu -vv --durations=10 \
  -o faulthandler_timeout=100 --continue-on-collection-errors -p no:cacheprovider $alone \
  --junitxml="$out/tests.xml" ${files:-tests}

sanitizer=$(command -v compute-sanitizer ||
  ls -d /usr/local/cuda*/bin/compute-sanitizer 2> /dev/null | tail -n 1)
kept=245
for tool in memcheck racecheck initcheck; do
  kept=$((kept - 15))
  if [ -z "$sanitizer" ]; then
    skip $tool "compute-sanitizer is not here"
    continue
  fi
  # Without torch's allocator every tensor has bounds of its own.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    part $tool "$(seconds_for 60 $kept)" "$out/sanitize.log" "$sanitizer" --tool $tool \
    --error-exitcode 9 "$python" -m benchmarks.check.sanitize
done

# Before the kernels' benchmarks, which come by what is asked of them and end where time does.
limit=$(seconds_for 160 100)
part loop "$limit" "$out/loop.log" "$python" -m benchmarks.executors.loop \
  --out "$out/loop.json" --seconds $((limit - 15))

limit=$(seconds_for 400 10)
part benchmarks "$limit" "$out/bench.log" "$python" -m benchmarks.ops.gpu.bench \
  --out "$out/bench.json" --seconds $((limit - 15))

report
status=$?
# The log and gpu_check.json say what is in it.
rm -f "$out/tests.xml"
exit $status
