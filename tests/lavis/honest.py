#!/usr/bin/env python3
"""No honest case fails: draws models of all sizes, records LAVIS's stage 1 of each, and compares it in f32, f16 and bf16.

    python tests/lavis/honest.py --count 40 --seed 0 [--qformer target/release/qformer] [--device host] [--keep FOLDER]

(Packages: as record.py says.) Head sizes are 1 to 128, queries 2 to 48 (with one, LAVIS's own squeeze() drops an axis), up to 39 + 12
layers, batches of 2 to 9. Without --keep the cases are deleted. Prints a line per case and precision, and exits 1 if one differs. Each
case is compared twice in 16 bits: held to LAVIS's errors under autocast, and to the derived bound. A long run: minutes a case on the host.
"""
import argparse
import os
import random
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))


def sizes(r):
    """Deep models are narrow, wide ones shallow: each is small enough to run everywhere."""
    deep = r.random() < 0.25
    head = lambda most: r.choice([1, 2, 3, 5, 8, 11, 16, 24, 33, 40, 64, 72, 88, 96, 100, 127, 128]) if most >= 128 else r.randint(1, most)
    d, vit_d = (head(12), head(12)) if deep else (head(128), head(128))
    heads, vit_heads = (r.randint(-(-8 // x), max(-(-8 // x), min(6, 160 // x))) for x in (d, vit_d))  # a norm of fewer than 8 numbers is all rounding
    layers = 12 if deep else r.randint(1, 4)
    patch = r.choice([4, 7, 14])
    return dict(image_size=patch * r.randint(1, 4), patch_size=patch, vit_width=vit_d * vit_heads, vit_depth=39 if deep else r.randint(1, 4), vit_heads=vit_heads,
                vit_mlp=r.randint(3, 120), hidden=d * heads, layers=layers, heads=heads, ffn=r.randint(3, 120), num_query=r.randint(2, 48),
                cross_freq=r.randint(1, min(layers, 4)), vocab=r.randint(20, 200), max_txt_len=r.randint(4, 24), embed_dim=r.randint(2, 64), max_pos=r.randint(24, 48))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--count", type=int, default=40)
    ap.add_argument("--first", type=int, default=0, help="begin with this one of them")
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--qformer", default="target/debug/qformer")
    ap.add_argument("--device", default="host")
    ap.add_argument("--keep", help="a folder for the cases")
    args = ap.parse_args()
    failed = compared = 0
    with tempfile.TemporaryDirectory() as temporary:
        out = args.keep or temporary
        for i in range(args.first, args.count):
            r = random.Random(args.seed * 1000 + i)
            c, batch, dropout = sizes(r), r.randint(2, 9), r.choice([0, 0, 0.1, 0.3])
            command = [sys.executable, os.path.join(HERE, "record.py"), "stage1", "--set", *[f"{k}={v}" for k, v in c.items()], "--batch", str(batch), "--seed", str(i),
                       "--name", f"honest-{i}", "--out", out, "--dropout", str(dropout), "--draws", "2"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{i:3d} not recorded: {done.stderr.strip().splitlines()[-1]}  ({' '.join(command)})", flush=True)
                failed += 1
                continue
            case = os.path.join(out, f"stage1-honest-{i}.safetensors")
            beside = os.path.splitext(case)[0] + ".autocast.json"
            runs = [("f32", True), ("f16", True), ("bf16", True), ("f16", False), ("bf16", False)]
            for dtype, recorded in runs:
                if not recorded and os.path.exists(beside):
                    os.rename(beside, beside + ".aside")
                done = subprocess.run([args.qformer, "parity", "--quiet", "--device", args.device, "--dtype", dtype, case], capture_output=True, text=True)
                compared, failed = compared + 1, failed + (done.returncode != 0)
                last = (done.stdout.strip() or done.stderr.strip()).split("\n")[-1].split("safetensors: ")[-1]
                print(f"{i:3d} {dtype:4s} batch {batch} dropout {dropout} hidden {c['hidden']}/{c['heads']} queries {c['num_query']} depth {c['vit_depth']}+{c['layers']}: {last}", flush=True)
            if os.path.exists(beside + ".aside"):
                os.rename(beside + ".aside", beside)
            if not args.keep:
                os.remove(case)
    print(f"{compared} comparisons, {failed} differ")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
