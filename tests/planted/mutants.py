#!/usr/bin/env python3
"""Mutation run of the kernels: every operator and every 0 and 1 of them is changed, one at a time, and the kernel tests must notice.

    python3 tests/planted/mutants.py [--sample N] [--seed S] [--jobs 2]

Not part of CI. The mutants stand in the tree that run.py makes in target/planted, all compiled in once, each behind its number in
QFORMER_PLANTED. A mutant is one of + - * / < > <= >= == != && || changed to its opposite, or a 0 or 1 to the other, in an assignment, a
declaration or a returned value of kernels/*.cu and *.cuh (dev.cuh and host/ are left out: they are what tells GPU from host). What does
not compile is dropped before. Of each mutant the tests of its kernel are run; one that none of them notices is printed. The last line is
the score. Equal mutants (a bound of a loop that may be larger, an order that does not matter) are not told from missed ones.
"""
import argparse
import concurrent.futures
import json
import os
import random
import re
import subprocess
import time

import run

FIRST = 1000
OTHER = {"+": "-", "-": "+", "*": "/", "/": "*", "<": "<=", ">": ">=", "<=": "<", ">=": ">", "==": "!=", "!=": "==", "&&": "||", "||": "&&"}
NUMBER = {"0.f": "1.f", "1.f": "0.f", "0": "1", "1": "2"}
LINE = re.compile(r"^(\s*)((?:const )?(?:float|int|size_t|bool|uint64_t|uint32_t|auto) \w+ = |[\w\[\]().>-]+ (?:[-+*/]?=) |return )([^;{}=]*);(\s*//.*)?$")
TOKEN = re.compile(r"(?<= )(?:\+|-|\*|/|<=|>=|<|>|==|!=|&&|\|\|)(?= )|(?<![\w.\[])(?:0\.f|1\.f|0|1)(?![\w.])")
TESTS = {"adamw": "train::", "attention": "attention::", "attention_bwd": "attention::", "attention_f32": "attention::", "attention_fwd": "attention::",
         "attention_whole": "attention::", "cross_entropy": "losses::", "max_similarity": "losses::", "sample_negatives": "losses::", "layer_norm": "layer_norm::",
         "column_sum": "sums_of_columns", "attend_rows": "decode::", "top_k": "decode::", "linear_exact": "decode::"}
LEFT_OUT = {"kernels/dev.cuh", "kernels/rms_norm.cu"}


def flat(text):
    """Whether no comma stands outside all brackets: one declarator, one expression."""
    depth = 0
    for c in text:
        depth += (c in "([") - (c in ")]")
        if c == "," and depth == 0:
            return False
    return depth == 0 and "?" not in text and '"' not in text


def mutants_of(name, lines):
    for at, line in enumerate(lines):
        found = LINE.match(line)
        if not found or "planted(" in line or "constexpr" in line or not flat(found[3]):
            continue
        for token in TOKEN.finditer(found[3]):
            new = (OTHER | NUMBER)[token[0]]
            yield dict(file=name, line=at, what=f"{token[0]} to {new}", after=found[3][:token.start()] + new + found[3][token.end():])


def put_in(lines, mutants):
    lines = list(lines)
    for at in {m["line"] for m in mutants}:
        indent, left, value, comment = LINE.match(lines[at]).groups()
        switched = "".join(f"planted({m['n']}) ? ({m['after']}) : " for m in mutants if m["line"] == at)
        lines[at] = f"{indent}{left}({switched}({value}));{comment or ''}"
    return lines


def that_compile(name, lines, mutants):
    """Without those on lines that g++ refuses."""
    path = os.path.join(run.TREE, name)
    while True:
        text = "\n".join(put_in(lines, mutants))
        with open(path, "w") as f:
            f.write(text)
        flags = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Wno-psabi", "-Wno-unknown-pragmas", "-Werror", "-x", "c++", "-fmax-errors=0", "-Wno-unused-function", "-DQFORMER_HOST_CHECK", "-I", "kernels", "-"]
        said = subprocess.run(["g++", *flags], cwd=run.TREE, input=f'#include "{path}"\n', capture_output=True, text=True).stderr
        bad = {int(n) - 1 for n in re.findall(re.escape(path) + r":(\d+):\d+: error", said)}
        left = [m for m in mutants if m["line"] not in bad]
        if len(left) == len(mutants):
            if "error" in said:
                raise SystemExit(f"mutants.py: {name} does not compile:\n{said[:2000]}")
            return left
        mutants = left


def plant(mistakes):
    run.plant(mistakes)
    kernels = sorted(n for n in os.listdir(os.path.join(run.TREE, "kernels")) if n.endswith((".cu", ".cuh")))
    sources, found, n = {}, [], FIRST
    for name in (os.path.join("kernels", k) for k in kernels):
        if name in LEFT_OUT:
            continue
        sources[name] = open(os.path.join(run.TREE, name)).read().split("\n")
        of = list(mutants_of(name, sources[name]))
        for m in of:
            n += 1
            m["n"] = n
        found += that_compile(name, sources[name], of)
    return found


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--sample", type=int, help="run so many of them, drawn at random, instead of all")
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--jobs", type=int, default=2)
    args = ap.parse_args()
    start = time.time()
    mutants = plant(json.load(open(os.path.join(run.HERE, "mistakes.json"))))
    programs = run.build()
    print(f"{len(mutants)} mutants built in {time.time() - start:.0f} s", flush=True)
    chosen = random.Random(args.seed).sample(mutants, min(args.sample, len(mutants))) if args.sample else mutants

    def noticed(m):
        stem = os.path.splitext(os.path.basename(m["file"]))[0]
        return m, run.run([programs["kernels"], "-q", *([TESTS[stem]] if stem in TESTS else ["::"])], m["n"])
    score = 0
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for m, yes in pool.map(noticed, chosen):
            score += bool(yes)
            if not yes:
                print(f"{m['n']} not noticed: {m['file']}:{m['line'] + 1}: {m['what']}: {m['after']}", flush=True)
    print(f"{score} of {len(chosen)} mutants noticed, {100 * score / max(1, len(chosen)):.1f} %, in {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
