"""contact.png: near a screen's proportions, bounded, a fair sample of a long list; and the page of the gallery, in parts."""

from __future__ import annotations

import io
import itertools
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from pipeline.generation.contact import BOUNDS, MOST, lay_out, sample, write_contact_sheet
from pipeline.generation.gallery import page
from pipeline.storage import Storage


def requested(prompts: int, databases: int, copies: int = 1) -> list[list[dict[str, object]]]:
    return [
        [
            {"row": 2 + p, "prompt": f"a castle by the sea, number {p}", "db": f"style-{d}", "copy": c, "seed": c,
             "file": "images/a.png", "status": "ok" if p else "failed"}
            for d in range(databases)
            for c in range(copies)
        ]
        for p in range(prompts)
    ]  # fmt: skip


@pytest.mark.parametrize("prompts", [1, 8, 13, 40, 400])
@pytest.mark.parametrize("databases", [1, 3, 10, 40])
def test_a_sheet_is_near_a_screen_in_its_proportions_and_bounded_in_pixels(prompts: int, databases: int) -> None:
    blocks = sample(requested(prompts, databases))
    layout = lay_out(len(blocks), max(map(len, blocks)))
    width, height = layout.size
    assert width <= BOUNDS[0] and height <= BOUNDS[1]
    assert 1 <= width / height <= 2.6
    assert sum(map(len, blocks)) <= MOST
    assert layout.columns * layout.block[0] <= width


def test_every_number_of_prompts_and_pictures_that_is_shown_fits() -> None:
    for blocks in range(1, MOST + 1):
        for pictures in {1, 2, 3, 7, MOST // blocks}:
            if blocks * pictures <= MOST:
                width, height = lay_out(blocks, pictures).size
                assert width <= BOUNDS[0] and height <= BOUNDS[1], (blocks, pictures)


def test_a_sample_is_even_over_the_prompts_and_has_every_database() -> None:
    blocks = sample(requested(400, 3, copies=8))
    shown = [block[0]["row"] for block in blocks]
    gaps = {after - before for before, after in pairwise(shown)}
    assert max(gaps) - min(gaps) <= 1 and shown[0] == 2 and shown[-1] > 360
    assert all({row["db"] for row in block} == {"style-0", "style-1", "style-2"} for block in blocks)
    assert len(sample(requested(7, 3))) == 7, "a short list is shown whole"


def test_a_sheet_shows_the_pictures_and_names_what_it_leaves_out(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 32), (200, 30, 30)).save(tmp_path / "images" / "a.png")
    storage = Storage(str(tmp_path))
    rows = [row for block in requested(40, 3) for row in block]
    write_contact_sheet(storage, pa.Table.from_pylist(rows), "forty prompts " * 40)
    with Image.open(io.BytesIO(storage.read_bytes("contact.png"))) as opened:
        sheet = opened.convert("RGB")
    assert sheet.width <= BOUNDS[0] and sheet.height <= BOUNDS[1]
    layout = lay_out(40, 3)
    area = layout.side * layout.side // 2
    red = sum(count for count, colour in sheet.getcolors(1 << 24) or [] if colour == (200, 30, 30))
    assert red == area * 39 * 3, "all pictures but the failed prompt's three"


def test_an_empty_run_and_a_prompt_without_text_have_a_sheet_too(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    rows = [{**requested(2, 1)[0][0], "prompt": "", "status": "pending"}]
    table = pa.Table.from_pylist(rows)
    write_contact_sheet(storage, table, "")
    write_contact_sheet(storage, table.slice(0, 0), "nothing")
    assert storage.exists("contact.png")


def test_the_page_is_written_while_its_data_is_read() -> None:
    """A gallery of any length needs little memory: endless data gives an endless page."""
    parts = page("a <b>run</b>", (f'["</script>",{number}],' for number in itertools.count()))
    text = "".join(itertools.islice(parts, 200))
    assert "<h1>a &lt;b&gt;run&lt;/b&gt;</h1>" in text
    assert '["\\u003c/script\\u003e",0],["\\u003c/script\\u003e",1],' in text and text.count("</script>") == 0
