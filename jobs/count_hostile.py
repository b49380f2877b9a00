"""Count the hostile inputs of the seeded tests, by class of attack, and how many of them pass.

    python jobs/count_hostile.py [--long] [--only NAME,NAME] [--json]

Runs the tests of each class with pytest. A test counts as one input, or as many as it states (tests/attempts.py). An input that
does not pass fails its test, and then all inputs of the test count as failed. `--long` adds the long tier. Needs a
checkout; writes only to a temporary folder. The exit code is 1 if an input failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

CLASSES = {
    "encoder and model configs": ("test_encoder_configs", "test_encoder_names"),
    "checkpoints, npz, nested JSON": ("test_hostile_models",),
    "filters": ("test_filters", "test_filter_limits", "test_simple_filters"),
    "archives": ("test_hostile_tars",),
    "pictures and addresses": ("test_hostile_pictures",),
    "terminal and spreadsheets": ("test_terminal",),
    "job files, schedules, secrets": ("test_hostile_jobs",),
    "leases": ("test_leases",),
    "names": ("test_names", "test_hostile_names"),
    "damaged homes": ("test_damage",),
    "purges and what was derived": ("test_purge", "test_purge_derived", "test_purge_kinds"),
    "webhooks": ("test_hostile_webhooks",),
    "pages in a browser": ("test_hostile_pages", "test_run_report"),
    "TLS": ("test_hostile_tls",),
    "read-only, linked, full and shared homes": ("test_hostile_homes", "test_disk_full"),
    "kills": ("test_hostile_kills",),
    "two builds on one store": ("test_hostile_store",),
    "sockets of a Ray cluster": ("test_ray_sockets",),
    "variants of all of these": ("test_hostile_siblings",),
    "parsers, seeded slice": ("test_fuzz",),
}


@dataclass(frozen=True)
class Counted:
    """The counts of one class of inputs."""

    name: str
    tried: int
    held: int
    skipped: int  # tests that this machine cannot run
    seconds: float


def count(name: str, files: tuple[str, ...], long: bool) -> Counted:
    """Run the tests of one class."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report, notes = Path(folder) / "report.xml", Path(folder) / "attempts"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            f"--junitxml={report}",
            *(f"tests/{file}.py" for file in files),
        ]
        subprocess.run(
            [*command, *([] if long else ["-m", "not long"])], cwd=ROOT, stdout=sys.stderr,
            env={**os.environ, "RDMPIPE_COUNT_ATTEMPTS": str(notes)},
        )  # fmt: skip
        said: Counter[str] = Counter()
        for line in notes.read_text(encoding="utf-8").splitlines() if notes.exists() else ():
            number, _, test = line.partition(" ")
            said[test] += int(number)
        tried = held = skipped = 0
        for case in xml.etree.ElementTree.parse(report).getroot().iter("testcase"):
            outcome = {child.tag for child in case}
            test = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
            inputs = max(1, said[test])
            skipped += "skipped" in outcome
            tried += 0 if "skipped" in outcome else inputs
            held += 0 if outcome & {"skipped", "failure", "error"} else inputs
    return Counted(name, tried, held, skipped, round(time.monotonic() - began, 1))


def main() -> int:
    wanted = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    wanted.add_argument("--long", action="store_true")
    wanted.add_argument("--only", default="", help="words in the names of classes, separated by commas")
    wanted.add_argument("--json", action="store_true")
    args = wanted.parse_args()
    words = [word.strip() for word in args.only.split(",") if word.strip()]
    found = []
    for name, files in CLASSES.items():
        if not words or any(word in name for word in words):
            found.append(count(name, files, args.long))
            one = found[-1]
            if not args.json:
                print(f"| {name} | {one.tried:,} | {one.held:,} | {one.skipped} | {one.seconds:.0f} s |", flush=True)
    total = Counted("all", sum(o.tried for o in found), sum(o.held for o in found), sum(o.skipped for o in found),
                    round(sum(o.seconds for o in found), 1))  # fmt: skip
    if args.json:
        print(json.dumps([asdict(one) for one in [*found, total]]))
    else:
        print(f"| all | {total.tried:,} | {total.held:,} | {total.skipped} | {total.seconds:.0f} s |")
    return 0 if total.tried == total.held else 1


if __name__ == "__main__":
    sys.exit(main())
