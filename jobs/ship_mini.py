"""Copy a finished run's models into the package: pipeline/assets/encoders/mini and pipeline/assets/models/rdm-mini.

    python jobs/ship_mini.py runs/mini [assets folder]

Copies weights and configs and writes a SHA256SUMS for each; the cards (README.md) are written by hand. Refuses more than 40 MB
in total.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from pipeline.storage import sha256_file

MOST = 40_000_000  # bytes


def ship(run: Path, assets: Path) -> int:
    """Copy both models. Returns their total bytes."""
    total = 0
    for part, name in (("encoder", "encoders/mini"), ("rdm", "models/rdm-mini")):
        source, target = run / part / "model", assets / name
        files = sorted(path for path in source.rglob("*") if path.is_file())
        total += sum(path.stat().st_size for path in files)
        if total > MOST:
            raise SystemExit(f"{total:,} bytes of models: the package takes {MOST:,} at most")
        for file in files:
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
        sums = [f"{sha256_file(file)}  {file.relative_to(source)}" for file in files]
        (target / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    return total


if __name__ == "__main__":
    default = Path(__file__).resolve().parent.parent / "pipeline" / "assets"
    print(f"{ship(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else default):,} bytes")
