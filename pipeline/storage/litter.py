"""Files that operating systems leave in folders and that are no data. Reads and writes nothing."""

from __future__ import annotations

# AppleDouble files (._x) hold macOS metadata that other file systems cannot store.
_BEGINNING = "._"

_NAMES = frozenset(
    (".ds_store", ".localized", ".appledouble", ".fseventsd", ".spotlight-v100", ".trashes", ".directory", "__macosx",
     "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin")
)  # fmt: skip


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name was left behind by an operating system: ._x, .DS_Store, Thumbs.db, ..."""
    return name.startswith(_BEGINNING) or name.lower() in _NAMES
