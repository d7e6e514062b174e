"""Every package that is built in must have a licence from this list, and come from a registry."""
import json, re, subprocess, sys

ALLOWED = {
    "Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MPL-2.0", "NAIST-2003", "Unicode-3.0", "Zlib", "0BSD",
    "BSL-1.0", "Unlicense", "Apache-2.0 WITH LLVM-exception", "MIT-0", "IJG",
}


def allowed(expression):
    """One of the alternatives of `A OR B` has only allowed parts; `A/B` is an old way to write OR."""
    choices = re.split(r"\s+OR\s+|/", expression.replace("(", "").replace(")", ""))
    return any(all(part.strip() in ALLOWED for part in re.split(r"\s+AND\s+", choice)) for choice in choices)


packages = json.loads(subprocess.check_output(["cargo", "metadata", "--format-version", "1", "--all-features"]))["packages"]
bad = [f"{p['name']} {p['version']}: {p['license']}" for p in packages if not allowed(p["license"] or "none")]
bad += [f"{p['name']} {p['version']}: from {p['source']}" for p in packages if p["source"] and not p["source"].startswith("registry+")]
print(f"licences of {len(packages)} packages", *bad, sep="\n  ")
sys.exit(bool(bad))
