"""Foreign text on a terminal and in a spreadsheet: nothing in it is run."""

from __future__ import annotations

import io
import json
import logging
import random
import sys
import warnings

import pytest
from typer.testing import CliRunner

from pipeline.cli.options import print_json, print_table, reported_errors
from pipeline.errors import SourceError
from pipeline.execution import Progress
from pipeline.terminal import escaped_output, printable, printable_json, spreadsheet_cell

CLEAR, CLIPBOARD, RED = "\x1b[2J\x1b[H", "\x1b]52;c;aGk=\x07", "\x1b[31m"
BACKWARDS = "\u202egnp.exe"
HOSTILE = f"{CLEAR}{CLIPBOARD}{RED}{BACKWARDS}\x9b1A\u2066\x00\r\x7f"


def is_safe(text: str) -> bool:
    return all(character in "\n\t" or character.isprintable() for character in text)


UNSAFE = [
    *map(chr, range(0x20)),
    *map(chr, range(0x7F, 0xA0)),
    *"\u061c\u200e\u200f\u202a\u202e\u2066\u2069\u2028\ufeff\ud800",
]


@pytest.mark.parametrize("character", UNSAFE)
def test_every_control_and_bidi_character_is_shown_as_an_escape(character: str) -> None:
    shown = printable(f"a{character}b", keep="")
    assert shown.startswith("a\\") and shown.endswith("b") and is_safe(shown)


def test_ordinary_text_of_any_script_stays_as_it_is() -> None:
    for text in ("Kunst — 北斎 «Волна»", "العربية", "हिन्दी", "👩‍🎨 🏳️‍🌈", "a\tb\nc", "e\u0301"):
        assert printable(text) == text


@pytest.mark.parametrize("seed", range(20))
def test_random_text_is_safe_and_its_json_reads_back_the_same(seed: int) -> None:
    chance = random.Random(seed)
    ranges = [(0, 0x100), (0x2000, 0x2100), (0, 0x3000)]
    text = "".join(chr(chance.randrange(*chance.choice(ranges))) for _ in range(500))
    assert not any((ord(c) < 0x20 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 for c in printable(text))
    assert json.loads(printable_json(json.dumps(text, ensure_ascii=False))) == text


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("+1+1", "'+1+1"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        (" =1", "' =1"),
        ("＝1", "'＝1"),
        ("-12.5", "-12.5"),
        ("+3e8", "+3e8"),
        ("a = b", "a = b"),
        ("", ""),
    ],
)
def test_a_formula_gets_an_apostrophe_and_a_number_does_not(cell: str, expected: str) -> None:
    assert spreadsheet_cell(cell) == expected


def test_tables_json_errors_warnings_and_logs_of_a_command_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    ran = []
    with pytest.raises(BaseException) as ended, reported_errors():
        print_table(("caption",), [(HOSTILE,), ("=1+1",)])
        print_json({"caption": HOSTILE})
        sys.stderr.write(warnings.formatwarning(HOSTILE, UserWarning, "file.py", 1))
        logging.getLogger("rdmpipe-test").warning(HOSTILE)
        Progress(stream=sys.stderr).say(HOSTILE)
        ran.append(True)
        raise SourceError(f"no such picture: {HOSTILE}")
    assert ran and getattr(ended.value, "exit_code", None) == 1
    out, err = capsys.readouterr()
    assert is_safe(out) and is_safe(err)
    assert "\\x1b[2J" in out and "'=1+1" in out and "no such picture: \\x1b[2J" in err and "\\u202egnp.exe" in err
    assert json.loads(out.splitlines()[-1]) == {"caption": HOSTILE}


def test_a_table_on_a_terminal_keeps_its_own_colours_and_loses_those_of_its_cells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    with escaped_output():
        print_table(("caption",), [(HOSTILE,)])
    drawn = terminal.getvalue()
    assert "\\x1b[2J" in drawn and CLEAR not in drawn and CLIPBOARD not in drawn and "\u202e" not in drawn


def test_cells_are_printed_as_they_are_where_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("caption",), [("=1+1",)], plain_cells=True)
    assert capsys.readouterr().out.splitlines()[1] == "=1+1"
    from pipeline.cli.app import app

    assert (
        "--plain-cells" in CliRunner().invoke(app, ["search", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).stdout
    )


def test_output_that_is_closed_before_its_escaping_stream_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a test or a notebook removes its stream; Python 3.13 reports errors in finalizers."""
    below = io.StringIO()
    monkeypatch.setattr(sys, "stdout", below)
    with escaped_output():
        escaping = sys.stdout
    below.close()
    escaping.flush()
    escaping.close()
