"""Copy a trained model into the package, with a SHA256SUMS; its card (README.md) is written by hand.

    python jobs/ship_mini.py ENCODER_FOLDER encoders/mini-2
    python jobs/ship_mini.py MODEL_FOLDER models/rdm-mini-2

Refuses more than 40 MB, and a place that has other weights: databases and runs name their models, so published weights never
change. New weights get a new name.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from pipeline.storage import sha256_file

MOST = 40_000_000  # bytes
ASSETS = Path(__file__).resolve().parent.parent / "pipeline" / "assets"


def ship(source: Path, target: Path) -> int:
    """Copy a model's folder. Returns its bytes."""
    files = sorted(path for path in source.rglob("*") if path.is_file() and path.suffix in (".json", ".safetensors"))
    total = sum(path.stat().st_size for path in files)
    if total > MOST:
        raise SystemExit(f"{source} has {total:,} bytes: the package takes {MOST:,} at most")
    sums = [f"{sha256_file(file)}  {file.relative_to(source)}" for file in files]
    listed = target / "SHA256SUMS"
    if listed.exists() and listed.read_text().splitlines() != sums:
        raise SystemExit(f"{target} has other weights: choose a new name, because databases and runs name the old ones")
    for file in files:
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    listed.write_text("\n".join(sums) + "\n")
    return total


if __name__ == "__main__":
    print(f"{ship(Path(sys.argv[1]), ASSETS / sys.argv[2]):,} bytes")
