"""Text from outside (captions, names, errors) made safe to print on a terminal and to open in a spreadsheet.

Reads and writes nothing. A caption can hold escape sequences that clear the screen, write to the clipboard or reorder the
text around them. `printable` shows such characters as escapes, also when the output is piped, because a pipe often ends at a
terminal.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Iterator
from typing import TextIO, cast

# C0 and C1 controls; soft hyphen and other invisible format characters; line and paragraph separators; bidirectional controls;
# lone surrogates, which no encoding can print; the tag characters. Tab and newline are handled by `keep`.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)

# Spreadsheets run a cell that begins with one of these as a formula; some of them first skip tabs and carriage returns.
_FORMULA = re.compile(r"[\t\r\n ]*[=+\-@\uff0b\uff0d\uff1d\uff20]")

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


def printable(text: str, keep: str = "\n\t") -> str:
    """`text` with control, bidirectional and invisible format characters as escapes such as \\x1b and \\u202e.

    `keep`: characters that stay as they are. Pass an empty string for a cell of a table, which is one line.
    """
    return _UNSAFE.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def _escape(character: str) -> str:
    code = ord(character)
    short = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}.get(character)
    return short or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")


def printable_json(text: str) -> str:
    """A JSON document with the same characters as JSON escapes: a parser reads the same values."""
    return _UNSAFE.sub(lambda found: json.dumps(found[0])[1:-1] if found[0] not in "\n\t" else found[0], text)


class _Escaping(io.TextIOBase):
    """A text stream that escapes what is written to it and otherwise behaves like the stream behind it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(printable(text))
        return len(text)

    def flush(self) -> None:
        if not self.stream.closed:  # the finalizer flushes too, and Python 3.13 reports what it raises
            self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def writable(self) -> bool:
        return True

    @property
    def buffer(self) -> object:
        return self.stream.buffer

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding


@contextlib.contextmanager
def escaped_output() -> Iterator[None]:
    """Escape everything that is printed to standard output and standard error during the block, warnings and logs included.

    Code that draws on the terminal, such as a progress bar, writes to `raw(stream)` and escapes the texts in its drawing
    itself.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("TextIO", _Escaping(raw(stream))) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def raw(stream: TextIO) -> TextIO:
    """The stream behind an escaping one, else the stream itself."""
    behind: object = stream
    return behind.stream if isinstance(behind, _Escaping) else stream


def spreadsheet_cell(text: str) -> str:
    """`text` for a cell of CSV or TSV: a text that a spreadsheet would run as a formula gets a leading apostrophe.

    Numbers stay as they are. A spreadsheet shows a text with a leading apostrophe as text.
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text.strip()) else text
