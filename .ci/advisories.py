"""Known troubles of the packages in Cargo.lock: advisories of RustSec, yanked versions, and packages that nobody keeps any more.

    python3 .ci/advisories.py [--database FOLDER]

Advisories need RustSec's database, which is fetched with git (or given, a clone of https://github.com/rustsec/advisory-db). Where it
cannot be fetched, that is said in a line that begins with SKIPPED, and the rest is done all the same: yanked versions and the dates of
releases come from the registry's index, which cargo has already read for every package. A vulnerability or a yanked version that is built in
ends with code 1. Packages that are unmaintained, or without a release for three years, are listed.
"""
import argparse
import datetime
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib

DATABASE = "https://github.com/rustsec/advisory-db"
OLD = 3 * 365
# Unmaintained according to RustSec, so that they are listed without its database, too.
UNMAINTAINED = {"bincode": "RUSTSEC-2025-0141", "paste": "RUSTSEC-2024-0436", "number_prefix": "RUSTSEC-2025-0119",
                "instant": "RUSTSEC-2024-0384", "proc-macro-error": "RUSTSEC-2024-0370", "derivative": "RUSTSEC-2024-0388",
                "serde_yaml": "RUSTSEC-2025-0068", "fxhash": "RUSTSEC-2025-0057"}


def version(text):
    """(numbers, is a release, pre-release): orders as semver does, as far as releases are concerned."""
    core, _, pre = text.split("+")[0].partition("-")
    numbers = [int(n) for n in core.split(".")]
    return tuple(numbers + [0] * (3 - len(numbers))), pre == "", pre


def matches(requirement, found):
    """Whether a version is within one of RustSec's requirements: comparisons, separated by commas, all of which hold."""
    for part in requirement.split(","):
        operator, bound = re.fullmatch(r"\s*(>=|<=|>|<|=|\^|~)?\s*([0-9][^\s]*)\s*", part).groups()
        low, exact = version(bound), bound.split("-")[0].count(".") + 1
        holds = {">=": found >= low, "<=": found <= low, ">": found > low, "<": found < low, "=": found == low}
        if operator in ("^", "~", None):
            numbers = low[0]
            fixed = exact - 1 if operator == "~" and exact > 1 else next((i for i, n in enumerate(numbers) if n), exact - 1)
            holds[operator] = found >= low and found[0][:fixed + 1] == numbers[:fixed + 1]
        if not holds[operator]:
            return False
    return True


def locked():
    with open("Cargo.lock", "rb") as f:
        packages = tomllib.load(f)["package"]
    return [(p["name"], p["version"]) for p in packages if "source" in p]


def advisories(folder, packages):
    """(name, version, id, title, kind) of what the database says of these packages."""
    for name, number in packages:
        for path in sorted((folder / "crates" / name).glob("*.md")):
            text = path.read_text(encoding="utf-8")
            front = tomllib.loads(re.search(r"```toml\n(.*?)```", text, re.S)[1])
            advisory, versions = front["advisory"], front.get("versions", {})
            safe = versions.get("patched", []) + versions.get("unaffected", [])
            if "withdrawn" in advisory or any(matches(r, version(number)) for r in safe):
                continue
            title = re.search(r"^# (.*)$", text, re.M)
            yield name, number, advisory["id"], title[1] if title else "", advisory.get("informational", "vulnerability")


def fetched(folder):
    """The database's folder, or None."""
    command = ["git", "clone", "--quiet", "--depth", "1", DATABASE, str(folder)]
    environment = dict(os.environ, GIT_TERMINAL_PROMPT="0")
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        problem = done.stderr.strip().splitlines()[-1:] if done.returncode else None
    except (OSError, subprocess.TimeoutExpired) as e:
        problem = [str(e)]
    if problem is None:
        return folder
    print(f"SKIPPED: advisories. {DATABASE} cannot be fetched ({' '.join(problem)}); give a clone with --database")


def releases(name):
    """What cargo's copy of the registry's index says of a package: {version: (yanked, date)}."""
    lower = name.lower()
    part = {1: "1", 2: "2", 3: f"3/{lower[:1]}"}.get(len(lower), f"{lower[:2]}/{lower[2:4]}")
    home = pathlib.Path(os.environ.get("CARGO_HOME", pathlib.Path.home() / ".cargo"))
    for path in home.glob(f"registry/index/*/.cache/{part}/{lower}"):
        found = {}
        for line in path.read_bytes().split(b"\0"):
            if line.startswith(b"{"):
                entry = json.loads(line)
                found[entry["vers"]] = (entry.get("yanked", False), entry.get("pubtime"))
        if found:
            return found


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--database", type=pathlib.Path)
    database = options.parse_args().database
    packages, bad, listed = locked(), [], []
    with tempfile.TemporaryDirectory() as folder:
        database = database or fetched(pathlib.Path(folder) / "advisory-db")
        for name, number, identity, title, kind in advisories(database, packages) if database else ():
            (bad if kind == "vulnerability" else listed).append(f"{name} {number}: {identity}, {kind}: {title}")
    said = {line.split(":")[0] for line in listed}
    listed += [f"{n} {v}: {UNMAINTAINED[n]}, unmaintained" for n, v in packages if n in UNMAINTAINED and f"{n} {v}" not in said]
    unknown, today = [], datetime.datetime.now(datetime.timezone.utc)
    for name, number in packages:
        known = releases(name)
        if known is None or number not in known:
            unknown.append(name)
            continue
        if known[number][0]:
            bad.append(f"{name} {number}: yanked")
        dates = [datetime.datetime.fromisoformat(d.replace("Z", "+00:00")) for yanked, d in known.values() if d and not yanked]
        if dates and (today - max(dates)).days > OLD:
            listed.append(f"{name} {number}: last release {max(dates):%Y-%m-%d}")
    if unknown:
        print(f"SKIPPED: cargo has no index of {len(unknown)} packages here ({', '.join(unknown[:5])}, ...): run cargo fetch")
    print(f"{len(packages)} packages; advisories {'looked up' if database else 'not looked up'}", *sorted(listed), sep="\n  ")
    print("\n".join(["refused:", *(f"  {b}" for b in sorted(bad))]) if bad else "none yanked, none with an open vulnerability known here")
    sys.exit(bool(bad))


def check():
    """The order of versions and the requirements, on examples of semver's own rules."""
    for requirement, inside, outside in [
        (">= 1.2.3", ["1.2.3", "1.2.4", "2.0.0"], ["1.2.2", "0.9.0", "1.2.3-beta.1"]),
        ("< 0.5", ["0.4.9", "0.5.0-alpha"], ["0.5.0", "1.0.0"]),
        (">= 0.3.1, < 0.4.0", ["0.3.1", "0.3.9"], ["0.3.0", "0.4.0"]),
        ("^1.2.3", ["1.2.3", "1.9.0"], ["1.2.2", "2.0.0"]),
        ("^0.2.3", ["0.2.3", "0.2.9"], ["0.3.0", "0.2.2"]),
        ("^0.0.3", ["0.0.3"], ["0.0.4"]),
        ("~1.2", ["1.2.0", "1.2.7"], ["1.3.0"]),
        ("= 1.0.0", ["1.0.0"], ["1.0.1"]),
    ]:
        for number in inside:
            assert matches(requirement, version(number)), (requirement, number)
        for number in outside:
            assert not matches(requirement, version(number)), (requirement, number)


check()
main()
