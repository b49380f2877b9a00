"""Write a tar archive whose bytes depend only on its members: no times, no owners, mode 0644.

Reading is pipeline/storage/tars.py.
"""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

# Formats of the archives on disk. They differ in a few header bytes. Both must stay unchanged, because checksums are recorded.
GNU, USTAR = tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT


class TarWriter:
    """An archive while it is written."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive

    def add(self, name: str, data: bytes) -> None:
        """Append one file."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        self._archive.addfile(info, io.BytesIO(data))


@contextlib.contextmanager
def write_tar(path: Path, form: int) -> Iterator[TarWriter]:
    """Create an archive at `path`. `form` is GNU or USTAR."""
    with path.open("wb") as out, tarfile.open(fileobj=out, mode="w", format=form) as archive:
        yield TarWriter(archive)
