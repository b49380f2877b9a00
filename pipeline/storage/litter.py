"""Names of files that are no data: what operating systems leave in folders, and our own probe of a store. Reads and writes
nothing."""

from __future__ import annotations

PROBE = ".conditional-writes"  # an object that shows whether a store honours conditional writes

# AppleDouble files (._x) hold macOS metadata that other file systems cannot store.
_BEGINNING = "._"

_NAMES = frozenset(
    (".ds_store", ".localized", ".appledouble", ".fseventsd", ".spotlight-v100", ".trashes", ".directory", "__macosx",
     "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin")
)  # fmt: skip


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name was left behind by an operating system: ._x, .DS_Store, Thumbs.db, ..."""
    return name.startswith(_BEGINNING) or name.lower() in _NAMES
