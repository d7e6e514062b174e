#!/usr/bin/env bash
# Everything that is shown on a GPU, in one run: every operation and the whole step against the CPU's definitions, the recorded
# cases in f32, f16 and bf16, the kernels, a training step and captioning beside PyTorch. Adds a section to benches/RESULTS.md.
#
#     benches/gpu.sh PEERS CASES [PYTHON]
#
# PEERS is the folder with torch_stage1.py, CASES one with recorded cases, PYTHON an interpreter that has torch (default python3).
# QFORMER and TESTS name the binary and the test binaries (ops, gpu) where they were built elsewhere; without them cargo builds both:
#     cargo build --release --features cuda,host-kernels
#     cargo test --release --features cuda,host-kernels --no-run --test ops --test gpu
# BATCH (128), STEPS (20), OUT (a folder for the raw lines). DEVICE=host CONFIG=tiny BATCH=2 STEPS=1 is a rehearsal without a GPU. Goes on after a failure and says at the end what failed.
set -uo pipefail
cd "$(dirname "$0")/.."
peers=${1:?"usage: benches/gpu.sh PEERS CASES [PYTHON]"}
cases=${2:?"usage: benches/gpu.sh PEERS CASES [PYTHON]"}
python=${3:-python3}
batch=${BATCH:-128}
steps=${STEPS:-20}
device=${DEVICE:-cuda}
config=${CONFIG:-full}
peer_config=$config # the peer knows full, base and heads
[ "$config" != tiny ] || peer_config=heads
out=${OUT:-$(mktemp -d)}
mkdir -p "$out"
failed=()
note() { printf '\n== %s (%ss)\n' "$1" "$SECONDS"; }
try() { # NAME COMMAND...: its output goes to the screen and to $out/NAME.log
    local name=$1
    shift
    "$@" 2>&1 | tee "$out/$name.log" | tail -n 15
    [ "${PIPESTATUS[0]}" -eq 0 ] || failed+=("$name")
}

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

note "the GPU"
[ "$device" = cuda ] || echo "no GPU: $device" >"$out/gpu.txt"
[ "$device" != cuda ] || nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader | tee "$out/gpu.txt"

note "operations and the whole step against the CPU"
for test in $TESTS; do
    QFORMER_TEST_DEVICE=$device try "test-$(basename "$test")" "$test"
done

note "recorded cases"
for dtype in f32 f16 bf16; do
    try "parity-$dtype" "$QFORMER" parity --device "$device" --dtype $dtype --quiet "$cases"/*.safetensors
done

note "kernels"
try kernels "$QFORMER" bench kernels --device "$device" --config "$config" --batch "$batch" --steps 10 --json
try kernels-torch "$python" "$peers/torch_stage1.py" kernels --batch "$batch"

note "a training step, in turns"
for round in 1 2; do
    for dtype in bf16 f16; do
        try "step-$dtype-$round" "$QFORMER" bench step --config "$config" --batch "$batch" --steps "$steps" --device "$device" --dtype $dtype --json
    done
    for mode in lavis best; do
        try "step-torch-$mode-$round" "$python" "$peers/torch_stage1.py" bench --mode $mode --config "$peer_config" --batch "$batch" --steps "$steps"
    done
done

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
