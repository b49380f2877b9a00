"""The results of a search as a file: Parquet, CSV, or a page with the pictures inside it.

Reads the stored thumbnails for a page. Writes the file that is asked for.
"""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.installation import asset
from pipeline.pages import maker_of, title_of
from pipeline.terminal import spreadsheet_cell

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.database import RetrievalDatabase

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

FORMS = (".parquet", ".csv", ".html")


def write_results(path: Path, rows: pa.Table, database: RetrievalDatabase, title: str) -> None:
    """Write results (columns `key`, `score` and metadata) in the form that the file's name ends in. Raises OSError."""
    suffix = path.suffix.lower()
    if suffix == ".csv":
        path.write_text(_csv(rows), encoding="utf-8")
    elif suffix == ".html":
        path.write_text(_page(rows, database, title), encoding="utf-8")
    else:
        import pyarrow.parquet as pq

        pq.write_table(rows, path)


def _csv(rows: pa.Table) -> str:
    """Comma-separated, a header first. A cell that a spreadsheet would run as a formula begins with an apostrophe."""
    import csv
    import io

    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(rows.column_names)
    for row in rows.to_pylist():
        writer.writerow([spreadsheet_cell(value) if isinstance(value, str) else value for value in row.values()])
    return out.getvalue()


def _page(rows: pa.Table, database: RetrievalDatabase, title: str) -> str:
    """A page that needs no other file and runs no script."""
    from pipeline.database import picture_files

    pictures = picture_files(database, rows["key"].to_pylist())
    cards = []
    for row in rows.to_pylist():
        name = title_of(row) or str(row.get("caption") or row.get("item_id") or "")
        data = pictures.get(row["key"])
        shown = (
            f'<img class="there" alt="{html.escape(name)}" src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">'
            if data is not None
            else '<span class="failed">no picture was kept</span>'
        )
        facts = [html.escape(maker_of(row)), html.escape(str(row.get("licence") or "")), _source(row)]
        cards.append(
            f'<figure class="picture"><span class="frame">{shown}</span><span class="words">{html.escape(name)}</span>'
            f'<span class="label"><span>{" · ".join(filter(None, facts))}</span>'
            f'<span class="seed">{row["score"]:.3f}</span></span></figure>'
        )
    style = asset("design.css").read_text("utf-8") + "figure { margin: 0 } .label a { color: inherit }"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><title>{html.escape(title)}</title>'
        f'<style>{style}</style></head><body><header class="top"><h1>{html.escape(title)}</h1>'
        f'<p class="about">{len(cards):,} results in {html.escape(database.name)}, nearest first</p></header>'
        f'<main><div class="wall">{"".join(cards)}</div></main></body></html>'
    )


def _source(row: dict[str, object]) -> str:
    """Where a picture comes from, as markup: a link where its address is one."""
    address, words = str(row.get("url") or ""), str(row.get("source") or "")
    if not address.startswith(("https://", "http://")):
        return html.escape(words)
    return f'<a href="{html.escape(address)}" rel="noopener noreferrer">{html.escape(words or "source")}</a>'
