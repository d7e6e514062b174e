"""Makes a section of RESULTS.md from the logs that benches/gpu.sh leaves: python3 benches/gpu_table.py FOLDER BATCH"""
import datetime
import glob
import json
import os
import statistics
import sys

folder, batch = sys.argv[1], sys.argv[2]


def lines(pattern):
    found = []
    for path in sorted(glob.glob(os.path.join(folder, pattern))):
        for line in open(path, errors="replace"):
            if line.startswith("{"):
                try:
                    found.append(json.loads(line))
                except ValueError:
                    pass
    return found


def last(name):
    path = os.path.join(folder, name)
    text = open(path, errors="replace").read().strip().splitlines() if os.path.exists(path) else []
    return text[-1] if text else "nothing"


gpu = last("gpu.txt")
print(f"\n## {gpu}, {datetime.date.today()}\n\n`benches/gpu.sh PEERS CASES`, batch {batch}.\n")
tests = open(os.path.join(folder, "tests.txt"), errors="replace").read().splitlines()
count = {word: sum(l.startswith(word + " ") for l in tests) for word in ("ok", "skipped")}
print(f"- tests: {count['ok']} passed, {count['skipped']} of the emulator skipped", *[l for l in tests if l.startswith("FAILED")], sep="; ")
for log in sorted(glob.glob(os.path.join(folder, "parity-*.log"))):
    text = open(log, errors="replace").read().splitlines()
    result = [f"{sum(': ok' in l for l in text)} cases ok"] + [l for l in text if "DIFFERS" in l]
    print(f"- {os.path.basename(log)[:-4]}: {'; '.join(result)}")

print("\n| training step | ms | pictures/s | launches + products | peak GB |\n|---|---|---|---|---|")
for dtype in ("bf16", "bf16-vit", "bf16-vit-tanh", "f16", "bf16-cached"):
    runs = lines(f"step-{dtype}-[0-9]*.log")
    if runs:
        s = statistics.median(r["seconds"] for r in runs)
        g = runs[0].get("gpu", {})
        print(f"| qformer {dtype} | {1e3 * s:.1f} | {runs[0]['batch'] / s:.0f} | {g.get('launches', '?')} + {g.get('products', '?')} "
              f"| {max(r['peak_bytes'] for r in runs) / 1e9:.1f} |")
for mode in ("lavis", "best"):
    for r in lines(f"step-torch-{mode}-*.log"):
        kept = ", cached" if r.get("cached") else ""
        print(f"| PyTorch {mode}{kept} | {1e3 * r['step_s']:.1f} | {r['samples_per_s']:.0f} | | {r.get('peak_gb', r.get('peak_bytes', ''))} |")

print("\n| kernel | us | GB/s | TFLOP/s | of copy or product |\n|---|---|---|---|---|")
for r in lines("kernels.log"):
    print(f"| {r['kernel']} | {r['microseconds']:.1f} | {r['gb_per_s']:.0f} | {r['tflop_per_s']:.1f} | {100 * r['share_of_limit']:.0f} % |")
print("\nPyTorch's kernels:\n")
for r in lines("kernels-torch.log"):
    what = r.pop("what", "")
    print(f"- {what}: " + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in r.items()))
print("\nCaptioning one picture:\n")
for r in lines("caption*.log"):
    print(f"    {json.dumps(r)}")
