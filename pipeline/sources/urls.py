"""Lists of picture URLs with captions and other columns: Parquet on the Hub or here, CSV here or at an address.

[source] keys: repo and revision, or path, or files as addresses of CSV files; files (globs); image (the column with the URL),
item_id (default: the URL), caption, licence, source_url (default: the URL), columns, shard_rows. options: see UrlOptions.

`read` reads the list; `fetch` fetches the pictures of a shard (web/pictures.py), each distinct address once. An address ends
with its bytes, as `filtered` (the site opts out: opt_out, robots, tdm) or as failed with a reason. The Internet changes, so a
second run may end differently. Planning a range of shards reads the list up to the end of that range.
"""

from __future__ import annotations

import contextlib
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.config import from_mapping
from pipeline.errors import SourceError, nearest
from pipeline.installation import require
from pipeline.schema import FILTERED
from pipeline.sources.base import Row, Sample, ShardSpec, SourceOptions, Spec
from pipeline.sources.columns import Columns, choose_columns
from pipeline.sources.csv_files import CsvFiles, ListedRow
from pipeline.sources.manifest import Manifest
from pipeline.sources.parquet import ParquetFiles
from pipeline.sources.web.opener import FetchRules
from pipeline.sources.web.pictures import fetch_urls

WISHES = frozenset({"opt_out", "robots", "tdm"})  # reasons for which a picture is filtered instead of failed

_LIST_ROWS = 8192  # rows of a list read at a time


@dataclass(frozen=True)
class UrlOptions:
    format: str = "parquet"  # or csv
    template: str = ""  # the address made from other columns, such as https://host/{Subset}/{ImageID}.jpg
    types: Mapping[str, str] = field(default_factory=dict)  # of a CSV's columns that are not text
    cache: bool = True  # fetch whole Parquet files from the Hub; false: read them by range and keep nothing
    drop_above: Mapping[str, float] = field(
        default_factory=dict
    )  # column -> largest value; rows with a larger or no value are left out
    fetch: FetchRules = field(default_factory=FetchRules)
    threads: int = 32  # addresses at a time; memory is at most 2 x threads x fetch.max_bytes
    shard_s: float = 3000.0  # time limit for a shard; addresses that are not fetched by then fail


class UrlSource:
    rereadable = True
    revision_is_whole = True

    def __init__(self, manifest: Manifest, options: SourceOptions) -> None:
        require("urls", f"{manifest.name}: fetching pictures by their addresses")
        self.where = f"{manifest.name} [source]"
        self.own = own = from_mapping(UrlOptions, manifest.source.options, f"{self.where} options")
        self.allow_private = options.allow_private
        self.limit, self.expected_rows = options.limit, manifest.expected_rows
        self.parts = [name for _, name, _, _ in string.Formatter().parse(own.template) if name is not None]
        spec = manifest.source
        self.spec = spec if spec.source_url or own.template else replace(spec, source_url=spec.image)
        self.csv = CsvFiles(manifest, options, own.types) if own.format == "csv" else None
        self.parquet = ParquetFiles(manifest, options, own.cache, _LIST_ROWS) if own.format == "parquet" else None
        if self.csv is None and self.parquet is None:
            raise SourceError(f"{self.where} options format: {own.format!r}; expected parquet or csv")

    # ---- the Source protocol

    def columns(self) -> dict[str, str]:
        return self._choose(*self._files.kinds(self._choose)).stored()

    def plan(self) -> Iterator[ShardSpec]:
        return self._files.plan()

    def estimate(self) -> tuple[int, int]:
        """Rows that the manifest expects, and 0 bytes: the size of the pictures is not known in advance."""
        return self.limit or self.expected_rows, 0

    def revision(self) -> str:
        return self._files.revision

    def left_out(self) -> dict[str, int]:
        return self._files.left_out()

    def read(self, spec: Spec) -> Iterator[Sample]:
        for columns, listed in self._rows(spec):
            name, row = listed.name, listed.values
            if listed.error:
                yield replace(columns.sample(row, name), item_id=name, url=None, error=listed.error)
                continue
            address = self._address(row)
            sample = columns.sample(row, address or name)
            sample = replace(sample, url=sample.url or address or None)
            left_out = self._left_out(row)
            if left_out:
                yield replace(sample, status=FILTERED, error=left_out)
            elif not address:
                yield replace(sample, error="no_url: the row has no address")
            else:
                yield replace(sample, address=address)

    def fetch(self, samples: Sequence[Sample], scratch: Path) -> Iterator[Sample]:
        addresses = list(dict.fromkeys(sample.address for sample in samples if sample.address))
        if not addresses:
            yield from samples
            return
        own = self.own
        places = {address: number for number, address in enumerate(addresses)}
        found = fetch_urls(addresses, own.fetch, self.allow_private, own.threads, own.shard_s, scratch)
        with contextlib.closing(found):
            for sample in samples:
                if not sample.address:
                    yield sample
                    continue
                data, error = found[places[sample.address]]
                status = FILTERED if error and error.split(":", 1)[0] in WISHES else ""
                yield replace(sample, data=data, error=error, status=status, address="")

    # ---- the list

    @property
    def _files(self) -> ParquetFiles | CsvFiles:
        files = self.parquet or self.csv
        assert files is not None
        return files

    def _rows(self, spec: Spec) -> Iterator[tuple[Columns, ListedRow]]:
        if self.parquet is not None:
            more = [*self.parts, *self.own.drop_above, *([] if self.own.template else [self.spec.image])]
            for columns, name, row in self.parquet.rows(spec, self._choose, *more):
                yield columns, ListedRow(name, row)
            return
        assert self.csv is not None
        columns = self._choose(self.csv.kinds_of(spec["file"], spec["identity"]), spec["file"])
        for listed in self.csv.rows(spec):
            yield columns, listed

    def _choose(self, available: Mapping[str, str | None], name: str) -> Columns:
        needed = dict.fromkeys(self.own.drop_above, "drop_above") | dict.fromkeys(self.parts, "template")
        if not self.own.template:
            needed[self.spec.image] = "image"
        for column, why in needed.items():
            if column not in available:
                raise SourceError(
                    f"{name}: no column {column!r}{nearest(column, available)}, which the manifest names under {why!r}; "
                    f"columns: {', '.join(available)}"
                )
        return choose_columns(self.spec, available, name)

    def _address(self, row: Mapping[str, object]) -> str:
        if not self.own.template:
            return str(row.get(self.spec.image) or "").strip()
        if any(row.get(part) is None for part in self.parts):
            return ""
        return self.own.template.format_map({part: row[part] for part in self.parts})

    def _left_out(self, row: Row) -> str:
        """The reason why a row is dropped by a score, or nothing. A row without a score is dropped too."""
        for column, most in self.own.drop_above.items():
            try:
                value = float(row[column])
            except (TypeError, ValueError):
                return f"{column}: not known"
            if not value <= most:
                return f"{column}: {value:.3f} is above {most:g}"
        return ""
