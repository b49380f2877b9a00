"""Files that operating systems leave in every folder, and that belong to nobody's data. Reads and writes nothing."""

from __future__ import annotations

# AppleDouble files (._x) hold what macOS knows of a file and another disk cannot keep.
_BEGINNING = "._"

_NAMES = frozenset(
    (".ds_store", ".localized", ".appledouble", ".fseventsd", ".spotlight-v100", ".trashes", ".directory", "__macosx",
     "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin")
)  # fmt: skip


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name was left behind by an operating system: ._x, .DS_Store, Thumbs.db, ..."""
    return name.startswith(_BEGINNING) or name.lower() in _NAMES
