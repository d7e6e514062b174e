#!/usr/bin/env python3
"""Instructions in the largest loop of kernels on sm_90a, as nvdisasm prints their machine code, compared with
tests/kernels/machine_code.txt: `kernel loop N all M`, the loop being what lies between a backward branch and its target.

    python3 .ci/machine_code.py FOLDER_OF_CUBINS [--update]

NVDISASM names the program (package nvidia-cuda-nvdisasm 13.2). After a change that means to move a number, --update writes the table.
"""
import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
STORED = os.path.join(HERE, "..", "tests", "kernels", "machine_code.txt")
KERNELS = {
    "attention_bwd": ["attention_bwd_kv_bf16_d64", "attention_bwd_q_bf16_d64"],
    "attention_fwd": ["attention_fwd_bf16_d64"],
    "gelu": ["gelu_bwd_sum_bf16"],
    "layer_norm": ["layer_norm_bwd_bf16", "layer_norm_bwd_whole_bf16", "layer_norm_fwd_bf16"],
    "linear_exact": ["linear_exact_bf16", "linear_exact_norm_bf16"],
}


def functions(text):
    """The lines of each kernel: labels and instructions in their order."""
    found, own = {}, None
    for line in text.splitlines():
        if section := re.match(r"\.text\.(\S+):", line):
            own = found.setdefault(section[1], [])
        elif own is not None and (label := re.match(r"(\.L_x_\d+):", line)):
            own.append(("label", label[1]))
        elif own is not None and (code := re.match(r"\s+/\*[0-9a-f]+\*/\s+(.*?);", line)):
            own.append(("code", code[1]))
    return found


def counted(lines):
    """Instructions of the largest loop, and of all."""
    number, places, loops = 0, {}, [0]
    for kind, text in lines:
        if kind == "label":
            places[text] = number
            continue
        number += 1
        branch = re.search(r"\bBRA\b.*?(\.L_x_\d+)", text)
        if branch and branch[1] in places:
            loops.append(number - places[branch[1]])
    return max(loops), number


def main():
    folder, update = sys.argv[1], "--update" in sys.argv
    table = []
    for file, kernels in KERNELS.items():
        cubin = os.path.join(folder, f"{file}.sm_90a.cubin")
        program = os.environ.get("NVDISASM", "nvdisasm")
        text = subprocess.run([program, "-c", cubin], check=True, capture_output=True, text=True).stdout
        code = functions(text)
        for kernel in kernels:
            loop, all_of_them = counted(code[kernel])
            table.append(f"{kernel} loop {loop} all {all_of_them}")
    table = "\n".join(sorted(table)) + "\n"
    if update:
        with open(STORED, "w") as f:
            f.write(table)
    with open(STORED) as f:
        stored = f.read()
    changed = sorted(set(table.splitlines()) ^ set(stored.splitlines()))
    if changed:
        sys.exit("not as stored in tests/kernels/machine_code.txt:\n" + "\n".join(changed))
    print(f"{len(table.splitlines())} kernels have the machine code that is stored")


main()
