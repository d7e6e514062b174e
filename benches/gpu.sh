#!/usr/bin/env bash
# Everything that is shown on a GPU, in one run: every kernel, every operation and the whole step against the CPU's definitions, the
# recorded cases in f32, f16 and bf16, the times of the kernels, a training step and captioning beside PyTorch. Adds a section to
# benches/RESULTS.md.
#
#     benches/gpu.sh PEERS CASES [PYTHON]
#
# PEERS is the folder with torch_stage1.py, CASES one with recorded cases, PYTHON an interpreter that has torch (default python3).
# QFORMER and TESTS name the binary and the test binaries (ops, gpu, kernels) where they were built elsewhere; without them cargo
# builds both:
#     cargo build --release --features cuda,host-kernels
#     cargo test --release --features cuda,host-kernels --no-run --test ops --test gpu --test kernels
# BATCH (128), STEPS (20), ROUNDS (2), OUT (a folder for the raw lines). DEVICE=host CONFIG=tiny BATCH=2 STEPS=1 is a rehearsal without
# a GPU. Goes on after a failure and says at the end what failed. cuBLASLt may be the one that came with torch.
set -uo pipefail
cd "$(dirname "$0")/.."
peers=${1:?"usage: benches/gpu.sh PEERS CASES [PYTHON]"}
cases=${2:?"usage: benches/gpu.sh PEERS CASES [PYTHON]"}
python=${3:-python3}
batch=${BATCH:-128}
steps=${STEPS:-20}
rounds=${ROUNDS:-2}
device=${DEVICE:-cuda}
config=${CONFIG:-full}
peer_config=$config # the peer knows full, base and heads
[ "$config" != tiny ] || peer_config=heads
out=${OUT:-$(mktemp -d)}
mkdir -p "$out"
failed=()
note() { printf '\n== %s (%ss)\n' "$1" "$SECONDS"; }
try() { # NAME COMMAND...: its output goes to $out/NAME.log, the end of it to the screen
    local name=$1
    shift
    timeout "${LIMIT:-300}" "$@" 2>&1 | tee "$out/$name.log" | tail -n 15
    [ "${PIPESTATUS[0]}" -eq 0 ] || failed+=("$name")
}
one() { # BINARY TEST: in a process of its own, as a fault of one kernel ends a process's use of the GPU
    local log=$out/test-$(basename "$1")-${2//::/.}.log
    if QFORMER_TEST_DEVICE=$device timeout 120 "$1" --exact "$2" --test-threads 1 >"$log" 2>&1; then
        local left_out # what a test says of itself: all of it, or some of its cases
        left_out=$(grep -m1 -oE '(SKIPPED|NOT TESTED).*' "$log")
        case $left_out in
        SKIPPED*) echo "skipped $2: $left_out" ;;
        *) echo "ok $2${left_out:+ ($left_out)}" ;;
        esac
        rm "$log"
    else
        echo "FAILED $2: $(grep -m1 -A3 panicked "$log" | tr '\n' ' ')"
    fi
}
export -f one
export out device
lt=$("$python" -c 'import glob, os, sysconfig
found = sorted(glob.glob(sysconfig.get_path("purelib") + "/nvidia/**/libcublasLt.so.13", recursive=True))
print(os.path.dirname(found[0]) if found else "")')
[ -z "$lt" ] || export LD_LIBRARY_PATH="$lt${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"

if [ -z "${QFORMER:-}" ]; then
    cargo build --release --features cuda,host-kernels || exit 1
    QFORMER=target/release/qformer
fi
if [ -z "${TESTS:-}" ]; then
    TESTS=$(cargo test --release --features cuda,host-kernels --no-run --test ops --test gpu --test kernels --message-format=json |
        "$python" -c 'import json,sys
for line in sys.stdin:
    r = json.loads(line)
    if r.get("profile", {}).get("test") and r.get("executable"): print(r["executable"])') || exit 1
fi

note "the GPU"
[ "$device" = cuda ] || echo "no GPU: $device" >"$out/gpu.txt"
[ "$device" != cuda ] || nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader | tee "$out/gpu.txt"

note "kernels, operations and the whole step against the CPU"
for test in $TESTS; do
    "$test" --list 2>/dev/null | sed -n "s|: test\$||p" | sed "s|^|$test |"
done | xargs -P "$(nproc)" -L 1 bash -c 'one "$0" "$1"' >"$out/tests.txt"
grep -c ^ok "$out/tests.txt" | sed 's/$/ tests passed/'
grep -c ^skipped "$out/tests.txt" | sed 's/$/ skipped: they are about the emulator/'
grep 'NOT TESTED' "$out/tests.txt"
if grep ^FAILED "$out/tests.txt"; then failed+=(tests); fi

note "recorded cases"
for dtype in f32 f16 bf16; do
    try "parity-$dtype" "$QFORMER" parity --device "$device" --dtype $dtype --quiet "$cases"/*.safetensors
done

note "kernels"
try kernels "$QFORMER" bench kernels --device "$device" --config "$config" --batch "$batch" --steps 10 --json
try kernels-torch "$python" "$peers/torch_stage1.py" kernels --batch "$batch"

note "a training step, in turns"
for round in $(seq "$rounds"); do
    for dtype in bf16 bf16-vit f16; do
        try "step-$dtype-$round" "$QFORMER" bench step --config "$config" --batch "$batch" --steps "$steps" --device "$device" --dtype $dtype --json
    done
    try "step-bf16-vit-tanh-$round" "$QFORMER" bench step --config "$config" --batch "$batch" --steps "$steps" --device "$device" --dtype bf16-vit --vit-gelu tanh --json
    try "step-bf16-cached-$round" "$QFORMER" bench step --config "$config" --batch "$batch" --steps "$steps" --device "$device" --dtype bf16 --cached --json
    for mode in lavis best; do
        try "step-torch-$mode-$round" "$python" benches/peer_gpu.py "$peers" bench --mode $mode --config "$peer_config" --batch "$batch" --steps "$steps"
    done
    try "step-torch-best-cached-$round" "$python" benches/peer_gpu.py "$peers" bench --mode best --cached --config "$peer_config" --batch "$batch" --steps "$steps"
done

note "a step kernel by kernel"
try profile "$QFORMER" bench step --config "$config" --batch "$batch" --steps 3 --device "$device" --dtype bf16 --profile

note "captioning"
try caption "$QFORMER" bench caption --config "$config" --batch 1 --device "$device" --steps 10 --json
try caption-torch "$python" "$peers/torch_stage1.py" caption

"$python" benches/gpu_table.py "$out" "$batch" | tee "$out/table.md" >>benches/RESULTS.md
cat "$out/table.md"
if [ ${#failed[@]} -gt 0 ]; then
    echo "FAILED: ${failed[*]} (logs in $out)"
    exit 1
fi
echo "all passed (logs in $out)"
