"""Checksums of models' files, cached by path, size and time, because weights are gigabytes.

Reads: files. Writes: one small JSON file for each checksum, in the cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.config import cache_dir, canonical_json
from pipeline.storage import is_litter, sha256_file

WEIGHTS = ("*.safetensors", "*.bin")


def weights_of(folder: Path, parts: Sequence[str], patterns: Sequence[str] = WEIGHTS) -> list[list[str]]:
    """[path in the folder, sha256] of the weights files of the existing parts, in order of their paths."""
    files = sorted(
        file
        for part in parts
        if (folder / part).is_dir()
        for pattern in patterns
        for file in (folder / part).glob(pattern)
        if not is_litter(file.name)
    )
    return [[file.relative_to(folder).as_posix(), checksum(file)] for file in files]


def checksum(file: Path) -> str:
    """sha256 of a file."""
    stat = file.stat()
    mark = [str(file.resolve()), stat.st_size, stat.st_mtime_ns]
    note = cache_dir() / "checksums" / f"{hashlib.sha256(canonical_json(mark).encode()).hexdigest()}.json"
    if note.is_file():
        return str(json.loads(note.read_text(encoding="utf-8")))
    found = sha256_file(file)
    note.parent.mkdir(parents=True, exist_ok=True)
    part = note.with_suffix(f".{found[:8]}.part")
    part.write_text(json.dumps(found), encoding="utf-8")
    part.replace(note)
    return found
