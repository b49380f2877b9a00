"""Letters on contact sheets: those that Pillow's own font lacks come from a font of the machine, or are named once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from pipeline.images import lettering
from pipeline.images.lettering import Lettering, lettering_note, unlettered


def drawn(text: str, size: int = 14) -> bytes:
    sheet = Image.new("RGB", (200, 24), "white")
    Lettering(size).draw(ImageDraw.Draw(sheet), (2, 2), text, "black")
    return sheet.tobytes()


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(lettering, "font_files", lambda: ())
    lettering._file_with.cache_clear()
    yield
    lettering._file_with.cache_clear()


def test_english_is_drawn_in_pillows_own_font() -> None:
    sheet = Image.new("RGB", (200, 24), "white")
    ImageDraw.Draw(sheet).text((2, 2), "a harbour, 7", "black", Lettering(14).font)
    assert drawn("a harbour, 7") == sheet.tobytes()
    assert Lettering(14).length("a harbour") == Lettering(14).font.getlength("a harbour")


@pytest.mark.usefixtures("no_fonts")
def test_letters_without_a_font_are_named_once() -> None:
    assert unlettered(["caf\u00e9 \u6d77", "\u6d77, a cat"]) == "\u00e9\u6d77"
    note = lettering_note("contact.png", ["\u6d77 and \u6d77"])
    assert "contact.png shows boxes for 1 letter(s)" in note and note.count("\u6d77") == 1 and "Noto" in note
    assert lettering_note("contact.png", ["a sea", "so\ufe0f \u200d"]) == ""


def test_a_letter_is_taken_from_a_font_of_this_machine() -> None:
    if not any(path.name == "DejaVuSans.ttf" for path in lettering.font_files()):
        pytest.skip("no DejaVu Sans here")
    assert unlettered(["\u00e9cole \u0416\u0438\u0437\u043d\u044c \u03b1"]) == ""
    letters = Lettering(14)
    assert letters.length("\u0416") != letters.font.getlength("\u0416") and drawn("\u0416") != drawn("\u0418")


def test_a_file_that_is_no_font_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fonts").mkdir()
    (tmp_path / "fonts/broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr(lettering, "_folders", lambda: [tmp_path])
    lettering.font_files.cache_clear()
    lettering._file_with.cache_clear()
    try:
        assert [path.name for path in lettering.font_files()] == ["broken.ttf"]
        assert unlettered(["\u6d77"]) == "\u6d77"
    finally:
        lettering.font_files.cache_clear()
        lettering._file_with.cache_clear()
