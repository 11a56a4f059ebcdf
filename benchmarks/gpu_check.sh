#!/usr/bin/env bash
# Proves and measures the kernels on a machine with one NVIDIA GPU, in five minutes.
#
#   benchmarks/gpu_check.sh [--only PARTS] [--out DIR] [--python PROGRAM] [--commit ID]
#                           [--seconds N] [--skip-build]
#
# Needs torch 2.11 or newer, its nvcc, pytest, pytest-benchmark and hypothesis; no network. The
# parts, in their order: build (in place, for this GPU alone), tests (the GPU tests, side by side
# where pytest-xdist is), loop (whole samplings, full-size U-Nets where diffusers is), engine (samples
# per second of refilled slots), benchmarks (of the kernels), memcheck, racecheck, initcheck (where
# compute-sanitizer is). Cases of a part come by what is asked of them, and those that time does not
# reach are named, as are parts that are skipped.
# A part that fails or runs out of time does not end the check. DIR (default: $OUT, else bench/gpu)
# gets a log of every part and gpu_check.json, rewritten after every part: device, versions, tests,
# sanitizers, every time with its bytes and ratios, whether each aim is met, and what failed. Exit
# code 1 if anything did, 2 for bad options.
#
#   --only      parts to run, with commas between them, such as tests,loop; they have their own
#               gpu_check-PARTS.json, and what DIR holds of others stays
#   --python    else $PYTHON, else .venv/bin/python where it is, else python3
#   --commit    what the report names as the commit; else git is asked
#   --seconds   of the whole check, 300 unless told; more reaches more cases
#   --skip-build    the libraries as they are
set -u
caller=$PWD
cd "$(dirname "$0")/.." || exit 1
out=${OUT:-$PWD/bench/gpu} python=${PYTHON:-python3} seconds=300 build=yes only='' commit=()
every=(build tests loop engine benchmarks memcheck racecheck initcheck)
# What `make` installed, where it did.
[ -n "${PYTHON:-}" ] || [ ! -x .venv/bin/python ] || python=.venv/bin/python

while [ $# -gt 0 ]; do
  case $1 in
    --only | --out | --python | --commit | --seconds)
      [ $# -gt 1 ] || { echo "gpu_check.sh: $1 needs a value" >&2 && exit 2; } ;;&
    -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' benchmarks/gpu_check.sh && exit 0 ;;
    --only) only=" $2" && shift 2 ;;
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
seconds=$((10#$seconds))
asked=("${every[@]}") result=gpu_check.json
if [ -n "$only" ]; then
  read -ra asked <<< "${only//,/ }"
  [ ${#asked[@]} -gt 0 ] || { echo "gpu_check.sh: --only names no part" >&2 && exit 2; }
  for name in "${asked[@]}"; do
    [[ " ${every[*]} " = *" $name "* ]] ||
      { echo "gpu_check.sh: --only takes ${every[*]}, got $name" >&2 && exit 2; }
  done
  only=$(IFS=, && echo "${asked[*]}")
  result=gpu_check-${only//,/+}.json
fi
[[ $out = /* ]] || out=$caller/$out
command -v "$python" > /dev/null || { echo "gpu_check.sh: there is no $python" >&2 && exit 2; }
mkdir -p "$out" || exit 1
device=$(mktemp) || exit 1
export PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
parts=() running='' doing='' begun=''

trap 'rm -f "$device" "$out/tests.xml"' EXIT
# An interrupted check ends its part and leaves what it has; one that has nothing, what was there.
trap '[ -z "$running" ] || kill "$running"
  parts+=(${doing:+"$doing:130:$SECONDS"} "interrupted:130:$SECONDS")
  [ -z "$begun" ] || report
  exit 1' INT TERM

# Writes the report from what is there.
report() {
  "$python" -m benchmarks.check.report --out "$out" --name "$result" --device "$device" \
    ${only:+--only "$only"} "$@" "${parts[@]}"
}

asked() { [[ " ${asked[*]} " = *" $1 "* ]]; }

# seconds_for MOST KEPT: what a part gets: MOST, or what is left but for the KEPT of later parts.
seconds_for() {
  local left=$((seconds - SECONDS - $2))
  echo $((left < $1 ? left : $1))
}

# part NAME LIMIT LOG COMMAND...
part() {
  local name=$1 limit=$2 log=$3 began=$SECONDS status
  shift 3
  if [ "$limit" -le 0 ]; then
    skip "$name" "no time was left"
    return 1
  fi
  doing=$name
  echo "== $name, at most $limit s: $*" >> "$log"
  echo "$name (at most $limit s)"
  # In the background, so that an interruption is noticed at once.
  timeout --kill-after=5 "$limit" "$@" >> "$log" 2>&1 &
  running=$!
  wait $running
  status=$?
  running='' doing=''
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
  if [ -e "$out/$result" ]; then
    echo "gpu_check.sh: $python finds no GPU here; $out keeps its earlier results" >&2
    exit 1
  fi
  report || [ -e "$out/$result" ] || echo "gpu_check.sh: $python does not run" >&2
  exit 1
fi
begun=yes
rm -f "$out/$result"
for name in "${asked[@]}"; do
  case $name in
    benchmarks) rm -f "$out"/bench.{json,log} ;;
    *) rm -f "$out/$name".{json,log,xml} ;;
  esac
done

sanitizer=$(command -v compute-sanitizer ||
  ls -d /usr/local/cuda*/bin/compute-sanitizer 2> /dev/null | tail -n 1)

# Shares of a short check, of what is asked for; of a long one the sanitizers have more than what is
# left over.
tests=$((seconds * 3 / 10)) loop=$((seconds * 22 / 100)) benchmarks=$((seconds * 13 / 100))
engine=$((seconds * 7 / 100))
sanitizers=$((seconds / 10 + (seconds > 300 ? (seconds - 300) / 3 : 0)))
asked tests || tests=0
asked loop || loop=0
asked engine || engine=0
asked benchmarks || benchmarks=0
asked memcheck || asked racecheck || asked initcheck || sanitizers=0
[ -n "$sanitizer" ] || sanitizers=0

if asked build; then
  if [ $build = yes ]; then
    # For this GPU alone, where setup.py lets it: a fraction of the time.
    TORCH_CUDA_ARCH_LIST=$(sed -n 's/.*"capability": "\(.*\)".*/\1/p' "$device") \
      part build "$(seconds_for 250 $((tests + loop + engine + benchmarks + sanitizers)))" \
      "$out/build.log" "$python" setup.py build_ext --inplace
  else
    skip build "as asked"
  fi
fi
here --served > "$device"
parts+=("library:$?:0")

has() { "$python" -c "import $1" 2> /dev/null; }

if asked tests && ! has hypothesis; then
  skip tests "hypothesis is not here"
elif asked tests; then
  # The files that hold tests for a GPU; others need packages that may be missing.
  files=$(grep -rlE --include='test_*.py' 'pytest\.mark\.gpu|support\.implementations' tests)
  options=
  # Most of their time is the host's; every process has a context of its own on the GPU.
  cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)
  ! has xdist || options="$options -n $((cores < 12 ? cores : 12))"
  # shellcheck disable=SC2086  # several files, several options or none
  OMP_NUM_THREADS=1 part tests "$(seconds_for 220 $((loop + engine + benchmarks + sanitizers)))" \
    "$out/tests.log" "$python" -m pytest -m gpu -vv --durations=10 -o faulthandler_timeout=100 \
    --continue-on-collection-errors -p no:cacheprovider $options --junitxml="$out/tests.xml" \
    ${files:-tests}
fi

# The programs end by themselves before they are ended: their last cases are the least asked for.
if asked loop; then
  most=$loop
  asked benchmarks || most=$seconds
  limit=$(seconds_for "$most" $((engine + benchmarks + sanitizers)))
  part loop "$limit" "$out/loop.log" "$python" -m benchmarks.executors.loop \
    --out "$out/loop.json" --seconds $((limit > 30 ? limit - 15 : limit / 2))
fi
if asked engine; then
  most=$engine
  asked benchmarks || most=$seconds
  limit=$(seconds_for "$most" $((benchmarks + sanitizers)))
  part engine "$limit" "$out/engine.log" "$python" -m benchmarks.engine.gpu \
    --out "$out/engine.json" --seconds $((limit > 30 ? limit - 15 : limit > 4 ? limit - 4 : limit / 2))
fi
if asked benchmarks; then
  limit=$(seconds_for 400 $sanitizers)
  part benchmarks "$limit" "$out/bench.log" "$python" -m benchmarks.ops.gpu.bench \
    --out "$out/bench.json" --seconds $((limit > 30 ? limit - 15 : limit / 2))
fi

for tool in memcheck racecheck initcheck; do
  asked $tool || continue
  if [ -z "$sanitizer" ]; then
    skip $tool "compute-sanitizer is not here"
    continue
  fi
  # Without torch's allocator every tensor has bounds of its own.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    part $tool "$(seconds_for 60 5)" "$out/$tool.log" "$sanitizer" --tool $tool \
    --error-exitcode 9 "$python" -m benchmarks.check.sanitize
done

# The log and the report say what is in tests.xml.
report
