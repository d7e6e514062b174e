#!/usr/bin/env bash
# qformer beside PyTorch on this machine's processor: training steps and captioning, in turns, and a table of the medians.
#
#     benches/cpu.sh PEERS [PYTHON] [ROUNDS]
#
# PEERS is the folder with torch_stage1.py, PYTHON an interpreter that has torch (default python3), ROUNDS how often each side runs (default 3).
# THREADS=N (default: all cores). On a machine that does other work, THREADS=1 and the processor times are what to compare.
set -euo pipefail
cd "$(dirname "$0")/.."
peers=${1:?"usage: benches/cpu.sh PEERS [PYTHON] [ROUNDS]"}
python=${2:-python3}
rounds=${3:-3}
threads=${THREADS:-$(nproc)}
cargo build --release --quiet
qformer=${QFORMER:-target/release/qformer}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export OMP_NUM_THREADS=$threads
for ((round = 0; round < rounds; round++)); do
    for run in "step --config base --batch 8 --steps 3" "step --config base --batch 8 --steps 3 --cached" "step --config heads --batch 16 --steps 20" "caption --config base --batch 1 --steps 5"; do
        # shellcheck disable=SC2086
        { "$qformer" bench $run --threads "$threads" --json | sed 's/^{/{"side":"qformer",/'
          "$python" benches/peer_cpu.py "$peers" $run --threads "$threads" | sed 's/^{/{"side":"torch",/'; } | tee -a "$log" >&2
    done
done
"$python" - "$log" <<'TABLE'
import json, statistics, sys
runs = {}
for line in open(sys.argv[1]):
    r = json.loads(line)
    runs.setdefault((r["what"] + ", cached" * r["cached"], r["config"], r["batch"]), {}).setdefault(r["side"], []).append(r)
middle = lambda rs, key: statistics.median(r[key] for r in rs)
print("| run | qformer s | PyTorch s | ratio | processor s | | ratio | peak GB | | GFLOP/s | of a plain matmul |")
print("|---|---|---|---|---|---|---|---|---|---|---|")
for (what, config, batch), sides in runs.items():
    q, t = sides["qformer"], sides["torch"]
    a, b, c, d = (middle(x, k) for k in ("seconds", "processor_seconds") for x in (q, t))
    m, n = (max(r["peak_bytes"] for r in x) / 1e9 for x in (q, t))
    print(f"| {what} {config}, batch {batch} | {a:.3f} | {b:.3f} | **{b / a:.2f}** | {c:.3f} | {d:.3f} | {d / c:.2f} | {m:.2f} | {n:.2f} "
          f"| {middle(q, 'gflop_per_s'):.0f} | {100 * middle(q, 'share_of_limit'):.0f} % |")
TABLE
