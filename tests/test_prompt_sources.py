"""Input of `generate`: an existing file is read or refused, and its name is never drawn as a prompt."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import PromptError
from pipeline.generation import prompt_files
from pipeline.generation.prompts import read_prompts

MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"


def workbook(path: Path, sheet: str, shared: str = "") -> str:
    """A small .xlsx with one sheet, as spreadsheet programs write it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "xl/worksheets/sheet1.xml", f'<worksheet xmlns="{MAIN}"><sheetData>{sheet}</sheetData></worksheet>'
        )
        if shared:
            archive.writestr("xl/sharedStrings.xml", f'<sst xmlns="{MAIN}">{shared}</sst>')
    return str(path)


def prompts(source: str) -> list[str]:
    return [row.prompt for row in read_prompts(source).rows]


def test_json_lists_of_texts_and_of_objects_are_read(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    for value in (
        ["a boat", "a tower"],
        [{"prompt": "a boat"}, {"prompt": "a tower"}],
        {"prompts": ["a boat", "a tower"]},
    ):
        path.write_text(json.dumps(value))
        assert prompts(str(path)) == ["a boat", "a tower"]
    path.write_text('["a boat", 7]')
    assert [bad.problem for bad in read_prompts(str(path)).bad] == ["expected a text or an object, found 7"]
    path.write_text("{broken")
    with pytest.raises(PromptError, match="not JSON"):
        read_prompts(str(path))


def test_a_workbook_is_read(tmp_path: Path) -> None:
    sheet = (
        '<row r="1"><c r="A1" t="s"><v>0</v></c><c r="C1" t="inlineStr"><is><t>k</t></is></c></row>'
        '<row r="3"><c r="A3" t="s"><v>1</v></c><c r="C3"><v>4.0</v></c></row>'
        '<row r="4"><c r="A4" t="s"><v>2</v></c></row>'
    )
    shared = "<si><t>prompt</t></si><si><t>a </t><r><t>boat</t></r></si><si><t>a tower</t></si>"
    found = read_prompts(workbook(tmp_path / "prompts.xlsx", sheet, shared))
    assert [(row.line, row.prompt, row.k) for row in found.rows] == [(3, "a boat", 4), (4, "a tower", None)]


def test_the_first_tab_that_is_shown_is_read_without_errors_and_pronunciations(tmp_path: Path) -> None:
    path = tmp_path / "prompts.xlsx"
    row = '<row><c t="inlineStr"><is><t>prompt</t></is></c></row>'
    sheets = {1: f'{row}<row><c t="inlineStr"><is><t>an older list</t></is></c></row>',
              2: f'{row}<row><c t="inlineStr"><is><t>hidden</t></is></c></row>',
              3: f'{row}<row><c t="s"><v>0</v></c></row><row><c t="e"><v>#N/A</v></c></row>'}  # fmt: skip
    links = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006/relationships"
    tabs = '<sheet name="b" state="hidden" r:id="r2"/><sheet name="c" r:id="r3"/><sheet name="a" r:id="r1"/>'
    with zipfile.ZipFile(path, "w") as archive:
        for number, rows in sheets.items():
            written = f'<worksheet xmlns="{MAIN}"><sheetData>{rows}</sheetData></worksheet>'
            archive.writestr(f"xl/worksheets/sheet{number}.xml", written)
        archive.writestr(
            "xl/workbook.xml", f'<workbook xmlns="{MAIN}" xmlns:r="{links}"><sheets>{tabs}</sheets></workbook>'
        )
        found = "".join(f'<Relationship Id="r{n}" Target="worksheets/sheet{n}.xml"/>' for n in sheets)
        archive.writestr("xl/_rels/workbook.xml.rels", f'<Relationships xmlns="{package}">{found}</Relationships>')
        text = "<si><t>東京</t><rPh sb='0' eb='2'><t>トウキョウ</t></rPh></si>"
        archive.writestr("xl/sharedStrings.xml", f'<sst xmlns="{MAIN}">{text}</sst>')
    assert prompts(str(path)) == ["東京"]


def test_a_hostile_workbook_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.xlsx"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("xl/worksheets/sheet1.xml", '<!DOCTYPE a [<!ENTITY b "c">]><a/>')
    with pytest.raises(PromptError, match="entities"):
        read_prompts(str(path))
    path.write_bytes(b"PK no archive")
    with pytest.raises(PromptError, match=r"not a readable \.xlsx"):
        read_prompts(str(path))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a boat\na tower\n", ["a boat", "a tower"]),
        ("prompt,k\na boat,4\n", ["a boat"]),
        ('{"prompt": "a boat"}\n{"prompt": "a tower"}\n', ["a boat", "a tower"]),
        ('["a boat"]', ["a boat"]),
    ],
)
def test_a_dash_is_standard_input(text: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    prompt_files._standard_input.cache_clear()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
    assert prompts("-") == expected == prompts("-")
    prompt_files._standard_input.cache_clear()


def test_piped_workbooks_and_tables_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sheet = (
        '<row><c t="inlineStr"><is><t>prompt</t></is></c></row><row><c t="inlineStr"><is><t>a boat</t></is></c></row>'
    )
    pq.write_table(pa.table({"prompt": ["a boat"]}), tmp_path / "p.parquet")
    for path in (workbook(tmp_path / "p.xlsx", sheet), str(tmp_path / "p.parquet")):
        prompt_files._standard_input.cache_clear()
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(Path(path).read_bytes())))
        assert prompts("-") == ["a boat"]
    prompt_files._standard_input.cache_clear()


def test_a_file_that_is_no_list_is_an_error_and_a_text_is_a_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my prompts").write_text("a boat\n")
    (tmp_path / "prompts").mkdir()
    for source in (
        "my prompts",
        "list.xls",
        "notes.docx",
        "prompts",
        "prompts/",
        "./elsewhere",
        "../a",
        "~/list",
        "/a",
    ):
        with pytest.raises(PromptError, match="no prompt list"):
            read_prompts(source)
    with pytest.raises(PromptError, match="cannot be read"):
        read_prompts("prompts.json")
    for text in ("a boat", "a painting by J.M.W. Turner", "the file castle.png, painted", "oil/acrylic", "/ a slash"):
        assert prompts(text) == [text]
