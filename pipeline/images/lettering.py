"""Letters on contact sheets: Pillow's own font, and, for a letter that it lacks, a font of this machine.

Pillow's font has the letters of English. Reads: font files in the folders of fontconfig and macOS, when a letter
is missing for the first time. Writes nothing. Letters are set one after another from left to right: scripts whose letters join
or change their order look wrong, and colour fonts (of most emoji) are not used. A letter that no font has is drawn as a box;
`unlettered` names such letters, so that a command can say so once.
"""

from __future__ import annotations

import itertools
import os
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

MOST_FILES = 2_000  # font files that are tried

# Beginnings of the names of fonts that have many letters and plain shapes: these are tried first, in this order.
_PREFERRED = (
    "DejaVuSans.",
    "NotoSans-Regular",
    "NotoSansCJK-Regular",
    "NotoSansJP-Regular",
    "NotoEmoji-Regular",
    "NotoSans",
)

_UNKNOWN = "\U0010ffff"  # no font has it: drawn as the font's box


class Lettering:
    """Text of one size in pixels."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.font = _own(size)

    def length(self, text: str) -> float:
        """Width in pixels."""
        return sum(font.getlength(part) for font, part in self._parts(text))

    def draw(self, draw: ImageDraw, at: tuple[float, float], text: str, fill: str) -> None:
        """Draw one line; `at` is its upper left corner."""
        x, base = at[0], at[1] + self.font.getmetrics()[0]
        for font, part in self._parts(text):
            draw.text((x, base), part, fill, font, anchor="ls")
            x += font.getlength(part)

    def _parts(self, text: str) -> Iterator[tuple[FreeTypeFont, str]]:
        """Runs of letters of one font."""
        if text.isascii():
            yield self.font, text
            return
        shown = "".join(letter for letter in text if not _is_unseen(letter))
        for path, letters in itertools.groupby(shown, _file_with):
            font = self.font if path is None else _opened(path, self.size)
            yield font, "".join(letters)


def unlettered(texts: Iterable[str]) -> str:
    """The different letters of `texts` that no font here has, sorted."""
    letters = {letter for text in texts for letter in text if not _is_unseen(letter)}
    return "".join(sorted(letter for letter in letters if _file_with(letter) is None and not _has(_own(16), letter)))


def lettering_note(what: str, texts: Iterable[str]) -> str:
    """A note if `what` shows boxes; empty if a font has every letter."""
    missing = unlettered(texts)
    if not missing:
        return ""
    named = " ".join(missing[:20]) + (" ..." if len(missing) > 20 else "")
    return (
        f"{what} shows boxes for {len(missing)} letter(s) that no font here has: {named}. Install a font that has them, such "
        "as Noto Sans CJK or Noto Emoji (not the colour one), and write it again; pages (.html) show all letters"
    )


def _is_unseen(letter: str) -> bool:
    """Whether a character only changes how others are drawn: joiners, direction marks, variation selectors."""
    return not letter.isascii() and (unicodedata.category(letter) == "Cf" or 0xFE00 <= ord(letter) <= 0xFE0F)


@cache
def _file_with(letter: str) -> Path | None:
    """The font file for a letter; None: Pillow's own font, which also draws the box of a letter that none has."""
    if letter.isspace() or _has(_own(16), letter):
        return None
    return next((path for path in font_files() if _file_has(path, letter)), None)


def _file_has(path: Path, letter: str) -> bool:
    try:
        return _has(_opened(path, 16), letter)
    except OSError:  # not a font, or a bitmap font of another size
        return False


def _has(font: FreeTypeFont, letter: str) -> bool:
    """Whether the font draws something other than its box for unknown letters. (Pillow does not list a font's letters.)"""
    mask, box = font.getmask(letter), _box(font)
    return (mask.size, bytes(mask)) != box


_boxes: dict[tuple[str, float], tuple[tuple[int, int], bytes]] = {}


def _box(font: FreeTypeFont) -> tuple[tuple[int, int], bytes]:
    name = (str(font.path), font.size)
    if name not in _boxes:
        mask = font.getmask(_UNKNOWN)
        _boxes[name] = (mask.size, bytes(mask))
    return _boxes[name]


@lru_cache(maxsize=64)
def _opened(path: Path, size: int) -> FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.truetype(str(path), size)


@cache
def _own(size: int) -> FreeTypeFont:
    from PIL import ImageFont

    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


@cache
def font_files() -> tuple[Path, ...]:
    """The font files of this machine, in the order in which they are tried."""
    found = itertools.islice((path for folder in _folders() for path in _files(folder)), MOST_FILES)
    return tuple(sorted(found, key=lambda path: (_rank(path.name), len(path.name), path)))


def _rank(name: str) -> int:
    return next((place for place, begin in enumerate(_PREFERRED) if name.startswith(begin)), len(_PREFERRED))


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(place, name) for name in names if name.lower().endswith((".ttf", ".otf", ".ttc")))


def _folders() -> list[Path]:
    """The folders of fonts: the user's, then the machine's."""
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    shared = (os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share").split(":")
    places = [f"{data}/fonts", "~/.fonts", *(f"{place}/fonts" for place in shared if place)]
    places += ["~/Library/Fonts", "/Library/Fonts", "/System/Library/Fonts"]
    return [Path(place).expanduser() for place in places]
