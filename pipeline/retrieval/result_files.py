"""The results of a search as a file: Parquet, CSV, or a page with the pictures inside it.

Reads the stored thumbnails for a page. Writes the requested file.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.pages import maker_of, render, title_of
from pipeline.terminal import spreadsheet_cell

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.database import RetrievalDatabase

FORMS = (".parquet", ".csv", ".html")


def write_results(path: Path, rows: pa.Table, database: RetrievalDatabase, title: str) -> None:
    """Write results (columns `key`, `score` and metadata) in the format of the file's suffix. Raises OSError."""
    suffix = path.suffix.lower()
    if suffix == ".csv":
        path.write_text(_csv(rows), encoding="utf-8")
    elif suffix == ".html":
        path.write_text(_page(rows, database, title), encoding="utf-8")
    else:
        import pyarrow.parquet as pq

        pq.write_table(rows, path)


def _csv(rows: pa.Table) -> str:
    """Comma-separated values after a header. A cell that a spreadsheet would run as a formula begins with an apostrophe."""
    import csv
    import io

    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(rows.column_names)
    for row in rows.to_pylist():
        writer.writerow([spreadsheet_cell(value) if isinstance(value, str) else value for value in row.values()])
    return out.getvalue()


def _page(rows: pa.Table, database: RetrievalDatabase, title: str) -> str:
    """A page that needs no other file and runs no script (assets/templates/results.html)."""
    from pipeline.database import picture_files

    pictures = picture_files(database, rows["key"].to_pylist())
    cards = [_card(row, pictures.get(row["key"])) for row in rows.to_pylist()]
    return render("results.html", title=title, database=database.name, count=len(cards), cards=cards)


def _card(row: Mapping[str, Any], picture: bytes | None) -> dict[str, object]:
    """What the page shows of a result. Its source is a link where its address is one."""
    address = str(row.get("url") or "")
    return {
        "name": title_of(row) or str(row.get("caption") or row.get("item_id") or ""),
        "data": base64.b64encode(picture).decode() if picture is not None else "",
        "facts": " · ".join(filter(None, [maker_of(row), str(row.get("licence") or "")])),
        "address": address if address.startswith(("https://", "http://")) else "",
        "source": str(row.get("source") or ""),
        "score": row["score"],
    }
