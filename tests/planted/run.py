#!/usr/bin/env python3
"""Plants the mistakes of mistakes.json, one at a time, and writes down which test catches which: table.md.

    python3 tests/planted/run.py [--only N ..] [--cases NAME ..] [--jobs 2]

A copy of the sources is made in target/planted in which every mistake stands beside what is right, behind a switch; it is compiled
once, with the GPU's kernels on the host (without the checker, which costs several times as much), and the switch is the variable QFORMER_PLANTED. The product's own sources know nothing of it. Of each
mistake the quick tests of its room are run, and `qformer parity` on the recorded cases of tests/lavis: on the CPU, and by the kernels in f32,
f16 and bf16, quickest case first, until one differs. Cases that take longer than SLOW seconds are left out. What was found is kept in
target/planted/found.json; --only adds to it, and the table is written when it holds every mistake. Exit code 1 if a mistake of those run is
caught by no quick test. Needs what `cargo test --features host-check` needs.
"""
import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
TREE = os.path.join(ROOT, "target", "planted")
FOUND = os.path.join(TREE, "found.json")
SLOW = 60.0
HANGS = 1200.0
SUITES = ["ops", "model", "lavis", "text"]
PARITY = {"cpu": ["--device", "cpu", "--dtype", "f32"], **{d: ["--device", "host", "--dtype", d] for d in ("f32", "f16", "bf16")}}
RUST = """
/// Whether mistake `n` is planted in this run.
pub fn planted(n: u32) -> bool {
    static NUMBER: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    *NUMBER.get_or_init(|| std::env::var("QFORMER_PLANTED").ok().and_then(|n| n.parse().ok()).unwrap_or(0)) == n
}
"""
CPP = """#include <stdlib.h>
[[maybe_unused]] __attribute__((noinline, no_sanitize("thread"))) static bool planted(int n) {
    static const int number = getenv("QFORMER_PLANTED") ? atoi(getenv("QFORMER_PLANTED")) : 0;
    return number == n;
}
"""


def switched(group, rust):
    """What stands in place of `before`: every mistake at this place, and what is right if none of them is planted."""
    before, call = group[0]["before"], "crate::planted" if rust else "planted"
    if group[0].get("whole"):  # the switch stands within what is put in
        return group[0]["after"].replace("%N%", str(group[0]["n"]))
    if "let" in group[0]:
        name = group[0]["let"]
        return before + "".join(f" let {name} = if {call}({m['n']}) {{ {m['after']} }} else {{ {name} }};" for m in group)
    if group[0].get("statement"):
        test = "if {0}({1}) {{ {2} }}" if rust else "if ({0}({1})) {{ {2} }}"
        return " else ".join(test.format(call, m["n"], m["after"]) for m in group) + f" else {{ {before} }}"
    if rust:
        return "(" + " else ".join(f"if {call}({m['n']}) {{ {m['after']} }}" for m in group) + f" else {{ {before} }})"
    return "(" + " : ".join(f"{call}({m['n']}) ? ({m['after']})" for m in group) + f" : ({before}))"


def plant(mistakes):
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    places = {}
    for m in mistakes:
        places.setdefault(m["file"], {}).setdefault(m["before"], []).append(m)
    for name in filter(None, files):
        to = os.path.join(TREE, name)
        os.makedirs(os.path.dirname(to), exist_ok=True)
        with open(os.path.join(ROOT, name), "rb") as f:
            content = f.read()
        for before, group in places.get(name, {}).items():
            if content.count(before.encode()) != 1:
                sys.exit(f"run.py: {name}: expected the place of mistake {group[0]['n']} once, found it {content.count(before.encode())} times")
            content = content.replace(before.encode(), switched(group, name.endswith(".rs")).encode())
        if name == "src/lib.rs":
            content += RUST.encode()
        if name == "kernels/dev.cuh":
            content = content.replace(b"#pragma once\n", b"#pragma once\n" + CPP.encode(), 1)
        if not os.path.exists(to) or open(to, "rb").read() != content:
            with open(to, "wb") as f:
                f.write(content)


def build():
    """The test programs by name, and the command."""
    command = ["cargo", "test", "--no-run", "--features", "host-kernels", "--message-format", "json", "--lib", *[a for s in SUITES for a in ("--test", s)]]
    environment = dict(os.environ, CARGO_TARGET_DIR=os.path.join(TREE, "target"), CXXFLAGS="-w")
    done = subprocess.run(command, cwd=TREE, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        for line in done.stdout.splitlines():
            message = json.loads(line).get("message")
            if isinstance(message, dict) and message.get("level") == "error":
                print(message["rendered"], file=sys.stderr)
        sys.exit("run.py: the planted sources do not compile")
    found = {}
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message.get("target"):
            found["lib" if "lib" in message["target"]["kind"] else message["target"]["name"]] = message["executable"]
    return found


def run(command, number):
    """Whether it fails; None where it ran no test. A mistake that hangs counts as a failure."""
    environment = dict(os.environ, QFORMER_PLANTED=str(number), RUST_BACKTRACE="0")
    try:
        done = subprocess.run(command, cwd=TREE, env=environment, capture_output=True, text=True, timeout=HANGS)
    except subprocess.TimeoutExpired:
        return True
    return None if "running 0 tests" in done.stdout else done.returncode != 0


def recorded(only):
    """The cases of tests/lavis, or those of these names."""
    names = [f for f in os.listdir(os.path.join(ROOT, "tests", "lavis")) if f.endswith(".safetensors")]
    return sorted(os.path.join("tests", "lavis", f) for f in names if not only or f[:-12] in only)


def baseline(programs, tests, cases, jobs):
    """Nothing planted: every test passes. The commands of parity by device and dtype, quickest first."""
    quick = {test: [programs[test.split(":", 1)[0]], "-q", test.split(":", 1)[1]] for test in tests}
    parity = [(name, case, [programs["qformer"], "parity", "--quiet", *where, case]) for name, where in PARITY.items() for case in cases]

    def timed(command):
        start = time.time()
        return run(command, 0), time.time() - start
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        wrong = []
        for test, (failed, _) in zip(quick, pool.map(timed, quick.values())):
            if failed is not False:
                wrong.append(f"{test}: expected tests that pass, got {'none' if failed is None else 'a failure'}")
        found = {name: [] for name in PARITY}
        for (name, case, command), (failed, took) in zip(parity, pool.map(timed, [p[2] for p in parity])):
            if failed:
                wrong.append(f"{case} in {name}: expected agreement")
            if took <= SLOW:
                found[name].append((took, command))
    if wrong:
        sys.exit("run.py: with nothing planted\n  " + "\n  ".join(wrong))
    return quick, {name: [c for _, c in sorted(of)] for name, of in found.items()}


def columns(m):
    """Where a mistake can show: what only the CPU's loops have is not in the kernels, nor the other way round."""
    if m["file"].startswith("kernels/"):
        single = m["what"].endswith((", f32", ", f32 kernel"))
        return ["f16", "bf16"] if m["what"].endswith(", 16 bits") else ["f32"] if single else ["f32", "f16", "bf16"]
    return ["cpu"] if m["what"].endswith(", CPU") else list(PARITY)


def table(mistakes, found):
    rows = []
    for m in mistakes:
        f, can = found[str(m["n"])], columns(m)
        marks = ["caught" if p in f["parity"] else "-" if p in can else " " for p in PARITY]
        rows.append(f"| {m['n']} | {m['what']} | {', '.join(f['tests']).replace(':', ' ') or '**none**'} | " + " | ".join(marks) + " |")
    quick = sum(bool(found[str(m["n"])]["tests"]) for m in mistakes)
    parity = sum(bool(found[str(m["n"])]["parity"]) for m in mistakes)
    head = ["# Planted mistakes, and what catches them", "", "Written by `python3 tests/planted/run.py`. Parity: `qformer parity` on the cases of tests/lavis, on the CPU and by the kernels on",
            "the host; empty where a mistake cannot show (the CPU's loops, the kernels). Quick tests: `cargo test --features host-check --test NAME FILTER`.", "",
            f"{len(mistakes)} mistakes: {quick} caught by a quick test, {parity} by parity.", "",
            "| n | mistake | quick tests | parity, CPU | kernels f32 | f16 | bf16 |", "|---|---|---|---|---|---|---|"]
    with open(os.path.join(HERE, "table.md"), "w") as f:
        f.write("\n".join(head + rows) + "\n")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--only", nargs="+", type=int, help="numbers of mistakes, instead of all")
    ap.add_argument("--rest", action="store_true", help="what an interrupted run left")
    ap.add_argument("--quick", action="store_true", help="the quick tests alone; what parity found is kept from before")
    ap.add_argument("--cases", nargs="+", help="cases of tests/lavis, instead of all: stage1-small train-adamw ..")
    ap.add_argument("--jobs", type=int, default=2, help="mistakes at a time (default: 2)")
    args = ap.parse_args()
    mistakes = json.load(open(os.path.join(HERE, "mistakes.json")))
    start = time.time()
    plant(mistakes)
    programs = build()
    print(f"built in {time.time() - start:.0f} s", flush=True)
    found = json.load(open(FOUND)) if (args.only or args.quick or args.rest) and os.path.exists(FOUND) else {}
    chosen = [m for m in mistakes if (not args.only or m["n"] in args.only) and not (args.rest and str(m["n"]) in found)]
    cases = [] if args.quick else recorded(args.cases)
    quick, parity = baseline(programs, sorted({t for m in chosen for t in m["tests"]}), cases, args.jobs)
    print(f"{time.time() - start:5.0f} s  with nothing planted everything passes", flush=True)

    def one(m):
        tests = [t for t in m["tests"] if run(quick[t], m["n"])]
        if args.quick:
            return m, dict(tests=tests, parity=found.get(str(m["n"]), {}).get("parity", []))
        seen, caught = [], None  # the case that caught it elsewhere comes first
        for name in columns(m):
            cases = sorted(parity[name], key=lambda c: c[-1] != caught)
            hit = next((c[-1] for c in cases if run(c, m["n"])), None)
            if hit:
                seen, caught = [*seen, name], hit
        return m, dict(tests=tests, parity=seen)
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for m, f in pool.map(one, chosen):
            found[str(m["n"])] = f
            print(f"{time.time() - start:5.0f} s  {m['n']:3d} {m['what']}: {', '.join(f['tests']) or 'NO QUICK TEST'}; parity: {', '.join(f['parity']) or 'none'}", flush=True)
            with open(FOUND, "w") as out:
                json.dump(found, out)
    if all(str(m["n"]) in found for m in mistakes):
        table(mistakes, found)
    missed = [m["n"] for m in chosen if not found[str(m["n"])]["tests"]]
    sys.exit(f"run.py: caught by no quick test: {missed}" if missed else 0)


if __name__ == "__main__":
    main()
