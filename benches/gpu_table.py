"""Makes a section of RESULTS.md from the logs that benches/gpu.sh has left so far: python3 benches/gpu_table.py FOLDER BATCH"""
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
print(f"\n## {gpu}, {datetime.date.today()}\n\n`benches/gpu.sh CASES PEERS`, batch {batch}.\n")
path = os.path.join(folder, "tests.txt")
tests = open(path, errors="replace").read().splitlines() if os.path.exists(path) else []
count = {word: sum(l.startswith(word + " ") for l in tests) for word in ("ok", "skipped")}
print(f"- tests: {count['ok']} passed, {count['skipped']} of the emulator skipped", *[l for l in tests if l.startswith("FAILED")], sep="; ")
for log in sorted(glob.glob(os.path.join(folder, "parity-*.log"))):
    text = open(log, errors="replace").read().splitlines()
    result = [f"{sum(': ok' in l for l in text)} cases ok"] + [l for l in text if "DIFFERS" in l]
    print(f"- {os.path.basename(log)[:-4]}: {'; '.join(result)}")

print("\n| training step | ms | pictures/s | launches + matmuls | waits | peak GB |\n|---|---|---|---|---|---|")
for dtype in ("bf16", "bf16-vit", "bf16-vit-tanh", "f16", "bf16-cached"):
    runs = lines(f"step-{dtype}-[0-9]*.log")
    if runs:
        s = statistics.median(r["seconds"] for r in runs)
        g = runs[0].get("gpu", {})
        print(f"| qformer {dtype} | {1e3 * s:.1f} | {runs[0]['batch'] / s:.0f} | {g.get('launches', '?')} + {g.get('products', '?')} "
              f"| {g.get('waits', '?')} | {max(r['peak_bytes'] for r in runs) / 1e9:.1f} |")
for mode in ("lavis", "best"):
    for r in lines(f"step-torch-{mode}-*.log"):
        kept = ", cached" if r.get("cached") else ""
        print(f"| PyTorch {mode}{kept} | {1e3 * r['step_s']:.1f} | {r['samples_per_s']:.0f} | | | {r.get('peak_gb', r.get('peak_bytes', ''))} |")

print("\n| kernel | us | GB/s | TFLOP/s | of copy or matmul |\n|---|---|---|---|---|")
for r in lines("kernels.log"):
    print(f"| {r['kernel']} | {r['microseconds']:.1f} | {r['gb_per_s']:.0f} | {r['tflop_per_s']:.1f} | {100 * r['share_of_limit']:.0f} % |")
print("\nPyTorch's kernels:\n")
for r in lines("kernels-torch.log"):
    what = r.pop("what", "")
    print(f"- {what}: " + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in r.items()))
print("\nTraining and captions of files; captions of noise:\n")
for name in ("train-files", "train-cache", "train-cache-on-gpu", "caption-files", "caption-1", "caption-8", "caption-64", "caption-512", "caption-torch"):
    for r in lines(f"{name}.log"):
        waiting = f", waiting {r['waiting']:.3f} s" if "waiting" in r else ""
        seconds = f"{r['seconds']:.4f} s" if "seconds" in r else json.dumps(r)
        rate = f", {r['samples_per_s']:.1f} pictures/s" if "samples_per_s" in r else ""
        print(f"- {name}: {seconds}{rate}{waiting}")
if os.path.exists(os.path.join(folder, "power.csv")):
    watts, clocks = [], []
    for line in open(os.path.join(folder, "power.csv"), errors="replace"):
        fields = [f.strip() for f in line.split(",")]
        try:
            watts.append(float(fields[1].split()[0]))
            clocks.append(float(fields[2].split()[0]))
        except (IndexError, ValueError):
            continue
    if watts:
        print(f"\nPower: at most {max(watts):.0f} W; SM clock {min(clocks):.0f} to {max(clocks):.0f} MHz.")
