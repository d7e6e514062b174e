#!/usr/bin/env bash
# Everything that is shown on a GPU, in one run of at most 8 minutes: each part has a limit of its own, the most important come first, and
# what is there is written after every part, so that a run that is cut off leaves what it found. Adds a section to benches/RESULTS.md.
#
#     benches/gpu.sh CASES [PEERS] [PYTHON]
#
# CASES is a folder of recorded cases, PEERS one with torch_stage1.py (without it there is no baseline), PYTHON an interpreter that has
# torch (default python3). QFORMER and TESTS name the binary and the test binaries (ops, gpu) where they were built elsewhere;
# without them cargo builds both first, which is not counted:
#     cargo build --release --features cuda,host-kernels
#     cargo test --release --features cuda,host-kernels --no-run --test ops --test gpu
# BATCH (128), STEPS (20), OUT (a folder for the raw lines), SECONDS_IN_ALL (480), DATA (a folder with images/ and captions.json: training and
# captions from files), FIRST (a script that measures what matmuls and power do; it gets the binary). DEVICE=host CONFIG=tiny BATCH=2 STEPS=1
# is a rehearsal without a GPU. Goes on after a failure and says at the end what failed and what was left out for time.
set -uo pipefail
cd "$(dirname "$0")/.."
cases=${1:?"usage: benches/gpu.sh CASES [PEERS] [PYTHON]"}
peers=${2:-}
python=${3:-python3}
batch=${BATCH:-128}
steps=${STEPS:-20}
device=${DEVICE:-cuda}
config=${CONFIG:-full}
limit=${SECONDS_IN_ALL:-480}
peer_config=$config # the peer knows full, base and heads
[ "$config" != tiny ] || peer_config=heads
out=${OUT:-$(mktemp -d)}
mkdir -p "$out"
failed=() left_out=()

if [ -z "${QFORMER:-}" ]; then
    cargo build --release --features cuda,host-kernels || exit 1
    QFORMER=target/release/qformer
fi
if [ -z "${TESTS:-}" ]; then
    TESTS=$(cargo test --release --features cuda,host-kernels --no-run --test ops --test gpu --message-format=json |
        "$python" -c 'import json,sys
for line in sys.stdin:
    r = json.loads(line)
    if r.get("profile", {}).get("test") and r.get("executable"): print(r["executable"])') || exit 1
fi
lt=$("$python" -c 'import glob, os, sysconfig
found = sorted(glob.glob(sysconfig.get_path("purelib") + "/nvidia/**/libcublasLt.so.13", recursive=True))
print(os.path.dirname(found[0]) if found else "")')
[ -z "$lt" ] || export LD_LIBRARY_PATH="$lt${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"

cp benches/RESULTS.md "$out/before.md"
begun=$SECONDS
left() { echo $((limit - SECONDS + begun)); }
results() { # what is there so far, behind what was there before
    "$python" benches/gpu_table.py "$out" "$batch" >"$out/table.md" && cat "$out/before.md" "$out/table.md" >benches/RESULTS.md
}
try() { # NAME SECONDS COMMAND...: its output goes to $out/NAME.log, the end of it to the screen
    local name=$1 most=$2 rest
    shift 2
    rest=$(left)
    if [ "$rest" -lt 5 ]; then
        left_out+=("$name")
        return
    fi
    [ "$most" -lt "$rest" ] || most=$rest
    printf '\n== %s (%ss left)\n' "$name" "$rest"
    timeout "$most" "$@" 2>&1 | tee "$out/$name.log" | tail -n 8
    [ "${PIPESTATUS[0]}" -eq 0 ] || failed+=("$name")
    results
}
bench() { # NAME SECONDS ARGUMENTS...
    local name=$1 most=$2
    shift 2
    try "$name" "$most" "$QFORMER" bench "$@" --config "$config" --device "$device" --json
}
one() { # BINARY TEST: in a process of its own, as a fault of one kernel ends a process's use of the GPU
    local log=$out/test-$(basename "$1")-${2//::/.}.log
    if QFORMER_TEST_DEVICE=$device timeout 60 "$1" --exact "$2" --test-threads 1 >"$log" 2>&1; then
        local skipped # what a test says of itself: all of it, or some of its cases
        skipped=$(grep -m1 -oE '(SKIPPED|NOT TESTED).*' "$log")
        case $skipped in
        SKIPPED*) echo "skipped $2: $skipped" ;;
        *) echo "ok $2${skipped:+ ($skipped)}" ;;
        esac
        rm "$log"
    else
        echo "FAILED $2: $(grep -m1 -A3 panicked "$log" | tr '\n' ' ')"
    fi
}
export -f one
export out device
all_tests() {
    for test in $TESTS; do
        "$test" --list 2>/dev/null | sed -n "s|: test\$||p" | sed "s|^|$test |"
    done | xargs -P "$(nproc)" -L 1 bash -c 'one "$0" "$1"' >"$out/tests.txt"
    grep -c ^ok "$out/tests.txt" | sed 's/$/ tests passed/'
    ! grep ^FAILED "$out/tests.txt"
}
export -f all_tests
export TESTS

if [ "$device" = cuda ]; then
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader >"$out/gpu.txt"
    nvidia-smi --query-gpu=timestamp,power.draw.instant,clocks.sm,clocks_event_reasons.sw_power_cap,temperature.gpu --format=csv,noheader -lms 100 \
        >"$out/power.csv" &
    power=$!
    trap 'kill "$power" 2>/dev/null' EXIT
else
    echo "no GPU: $device" >"$out/gpu.txt"
fi

try tests 100 bash -c all_tests
for dtype in f32 f16 bf16; do
    try "parity-$dtype" 30 "$QFORMER" parity --device "$device" --dtype $dtype --quiet "$cases"/*.safetensors
done
for dtype in bf16 bf16-vit f16; do
    bench "step-$dtype-1" 30 step --batch "$batch" --steps "$steps" --dtype $dtype
done
bench step-bf16-vit-tanh-1 30 step --batch "$batch" --steps "$steps" --dtype bf16-vit --vit-gelu tanh
bench step-bf16-cached-1 30 step --batch "$batch" --steps "$steps" --dtype bf16 --cached
if [ -n "${DATA:-}" ]; then
    from=(--captions "$DATA/captions.json" --images "$DATA/images" --batch "$batch" --steps "$steps")
    bench train-files 40 train "${from[@]}"
    bench train-cache 60 train "${from[@]}" --cache "$out/tokens"
    bench train-cache-on-gpu 40 train "${from[@]}" --cache "$out/tokens" --cache-on-gpu
    bench caption-files 40 caption --pictures "$DATA/images" --batch 64
fi
for n in 1 8 64 512; do
    [ "$device" = cuda ] || [ "$n" -lt 64 ] || continue
    bench "caption-$n" 20 caption --batch "$n" --steps 5
done
try profile 30 "$QFORMER" bench step --config "$config" --batch "$batch" --steps 2 --device "$device" --dtype bf16 --profile
bench kernels 40 kernels --batch "$batch" --steps 10
if [ -n "$peers" ]; then
    for mode in best lavis; do
        try "step-torch-$mode-1" 60 "$python" benches/peer_gpu.py "$peers" bench --mode $mode --config "$peer_config" --batch "$batch" --steps "$steps"
    done
    try caption-torch 40 "$python" "$peers/torch_stage1.py" caption
    try kernels-torch 40 "$python" "$peers/torch_stage1.py" kernels --batch "$batch"
fi
if [ -n "${FIRST:-}" ]; then
    OUT="$out/first" try first 360 bash "$FIRST" "$QFORMER"
fi

cat "$out/table.md"
[ ${#left_out[@]} -eq 0 ] || echo "left out, as the time was over: ${left_out[*]}"
if [ ${#failed[@]} -gt 0 ]; then
    echo "FAILED: ${failed[*]} (logs in $out)"
    exit 1
fi
echo "all passed (logs in $out)"
