#!/usr/bin/env python3
"""Plants the mistakes of mistakes.json, one at a time, and writes down which test catches which: table.md.

    python3 tests/planted/run.py [--only N ..]

A copy of the sources is made in target/planted in which every mistake stands beside what is right, behind a switch; it is compiled
once, with the GPU's kernels on the host, and the switch is the variable QFORMER_PLANTED. The product's own sources know nothing of it. Of each
mistake the quick tests of its room are run, and `qformer parity` on the recorded cases of tests/lavis: on the CPU, and by the kernels in f32,
f16 and bf16. Exit code 1 if a mistake is caught by no quick test. Needs what `cargo test --features host-check` needs.
"""
import argparse
import json
import os
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
TREE = os.path.join(ROOT, "target", "planted")
SUITES = ["ops", "kernels", "model", "lavis", "text"]
PARITY = {"cpu": ["--device", "cpu", "--dtype", "f32"], **{d: ["--device", "host", "--dtype", d] for d in ("f32", "f16", "bf16")}}
RUST = """
/// Whether mistake `n` is planted in this run.
pub fn planted(n: u32) -> bool {
    static NUMBER: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    *NUMBER.get_or_init(|| std::env::var("QFORMER_PLANTED").ok().and_then(|n| n.parse().ok()).unwrap_or(0)) == n
}
"""
CPP = """#include <stdlib.h>
__attribute__((noinline, no_sanitize("thread"))) static bool planted(int n) {
    static const int number = getenv("QFORMER_PLANTED") ? atoi(getenv("QFORMER_PLANTED")) : 0;
    return number == n;
}
"""


def switched(group, rust):
    """What stands in place of `before`: every mistake at this place, and what is right if none of them is planted."""
    before, call = group[0]["before"], "crate::planted" if rust else "planted"
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
    command = ["cargo", "test", "--no-run", "--features", "host-check", "--message-format", "json", "--lib", *[a for s in SUITES for a in ("--test", s)]]
    environment = dict(os.environ, CARGO_TARGET_DIR=os.path.join(ROOT, "target"))
    done = subprocess.run(command, cwd=TREE, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit("run.py: the planted sources do not compile")
    found = {}
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message.get("target"):
            found["lib" if "lib" in message["target"]["kind"] else message["target"]["name"]] = message["executable"]
    if "qformer" not in found:
        found["qformer"] = os.path.join(ROOT, "target", "debug", "qformer")
    return found


def run(command, number):
    """Whether it fails; None where it ran no test."""
    environment = dict(os.environ, QFORMER_PLANTED=str(number), RUST_BACKTRACE="0")
    try:
        done = subprocess.run(command, cwd=TREE, env=environment, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return True
    return None if "running 0 tests" in done.stdout else done.returncode != 0


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--only", nargs="+", type=int, help="numbers of mistakes, instead of all: nothing is written then")
    args = ap.parse_args()
    mistakes = json.load(open(os.path.join(HERE, "mistakes.json")))
    start = time.time()
    plant(mistakes)
    programs = build()
    cases = sorted(os.path.join("tests", "lavis", f) for f in os.listdir(os.path.join(ROOT, "tests", "lavis")) if f.endswith(".safetensors"))
    parity = {name: [programs["qformer"], "parity", "--quiet", *where, *cases] for name, where in PARITY.items()}
    quick = lambda test: [programs[test.split(":", 1)[0]], "-q", test.split(":", 1)[1]]
    print(f"built in {time.time() - start:.0f} s", flush=True)
    chosen = [m for m in mistakes if not args.only or m["n"] in args.only]
    for test in sorted({t for m in chosen for t in m["tests"]}):
        if run(quick(test), 0) is not False:
            sys.exit(f"run.py: {test}: expected tests that pass with nothing planted")
    for name, command in parity.items():
        if run(command, 0):
            sys.exit(f"run.py: parity in {name}: expected agreement with nothing planted")
    lines, missed = [], []
    for m in chosen:
        tests = [t for t in m["tests"] if run(quick(t), m["n"])]
        found = [name for name, command in parity.items() if run(command, m["n"])]
        if not tests:
            missed.append(m["n"])
        yes = lambda name: "caught" if name in found else "-"
        lines.append(f"| {m['n']} | {m['what']} | {', '.join(tests).replace(':', ' ') or '**none**'} | " + " | ".join(map(yes, PARITY)) + " |")
        print(f"{time.time() - start:5.0f} s  {lines[-1]}", flush=True)
    if not args.only:
        head = ["# Planted mistakes, and what catches them", "", "Written by `python3 tests/planted/run.py`. Parity: `qformer parity` on the cases of tests/lavis; a mistake that only the CPU's loops have",
                "cannot show in the kernels' columns, nor the other way round. Quick tests: `cargo test --features host-check --test NAME FILTER`.", "",
                f"{len(mistakes)} mistakes, {len(missed)} of them caught by no quick test.", "",
                "| n | mistake | quick tests | parity, CPU | kernels f32 | f16 | bf16 |", "|---|---|---|---|---|---|---|"]
        with open(os.path.join(HERE, "table.md"), "w") as f:
            f.write("\n".join(head + lines) + "\n")
    sys.exit(f"run.py: caught by no quick test: {missed}" if missed else 0)


if __name__ == "__main__":
    main()
