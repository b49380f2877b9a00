"""Local Parquet files with pictures: bytes or structs, labels, hostile files; and the resulting columns."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import SourceError
from pipeline.sources import Manifest, Sample, SourceSpec, choose_columns, open_source
from pipeline.sources.columns import kinds_of_values, plain
from pipeline.sources.parquet import cut
from tests.pictures import jpeg, wikiart_files


def local(path: Path, **source: Any) -> Manifest:
    return Manifest("pictures", "t", SourceSpec(kind="parquet", path=str(path), **source), "unknown", "t", "o")


def samples(manifest: Manifest) -> list[Sample]:
    source = open_source(manifest)
    found = []
    for spec in source.plan():
        part = list(source.read(spec.spec))
        assert len(part) == spec.rows
        found += part
    return found


def test_seven_drawing_styles_are_read_with_ids_captions_and_licences(shared: Path, home: Path) -> None:
    made = local(shared / "data" / "styles", image="png", item_id="id", caption="caption", licence="license")
    source = open_source(made)
    specs = list(source.plan())
    assert len({spec.spec["file"] for spec in specs}) == 7
    assert sum(spec.rows for spec in specs) == source.estimate()[0] == 11_647
    assert max(spec.rows for spec in specs) <= 1000
    assert source.columns() == dict.fromkeys(
        ("style", "category", "subgroup", "tags", "hexcode", "base_hexcode"), "string"
    )
    file = pq.read_table(shared / "data" / "styles" / "unifont.parquet").to_pylist()
    found = [s for spec in specs if spec.spec["file"] == "unifont.parquet" for s in source.read(spec.spec)]
    assert [s.item_id for s in found] == [row["id"] for row in file]
    assert [s.data for s in found] == [row["png"] for row in file]
    assert {s.licence for s in found} == {row["license"] for row in file}
    assert [s.caption for s in found] == [row["caption"] for row in file]


@pytest.mark.parametrize(
    "groups, most, ranges",
    [
        ([1131], 1200, [(0, 1131)]),
        ([1131], 1000, [(0, 565), (565, 1131)]),
        ([1000, 131], 1000, [(0, 1000), (1000, 1131)]),
        ([100] * 12, 1000, [(0, 1000), (1000, 1200)]),
        ([5, 2500, 5], 1000, [(0, 5), (5, 838), (838, 1671), (1671, 2505), (2505, 2510)]),
        ([], 10, []),
        ([0, 3, 0], 10, [(0, 3)]),
        ([1] * 5, 2, [(0, 2), (2, 4), (4, 5)]),
    ],
)
def test_shards_are_whole_row_groups_where_they_fit(
    groups: list[int], most: int, ranges: list[tuple[int, int]]
) -> None:
    assert cut(groups, most) == ranges


def test_ranges_inside_a_row_group_give_each_row_once(tmp_path: Path, home: Path) -> None:
    told = wikiart_files(tmp_path, [jpeg(i) for i in range(50)], files=1, group_rows=50)
    found = samples(local(tmp_path, shard_rows=7))
    assert [dict(s.metadata) for s in found] == told
    assert [s.data for s in found] == [jpeg(i) for i in range(50)]
    assert len({s.item_id for s in found}) == 50


def test_ten_thousand_rows_in_small_groups_are_read_in_order(tmp_path: Path, home: Path) -> None:
    table = pa.table({"image": [b"\xff\xd8\xff%d" % i for i in range(12_000)], "number": list(range(12_000))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    found = samples(local(tmp_path))
    assert [s.metadata["number"] for s in found] == list(range(12_000))
    assert found[11_999].data == b"\xff\xd8\xff11999"


READ_ALL = """
import sys
import pyarrow as pa
from pipeline.sources import Manifest, SourceSpec, open_source
source = open_source(Manifest("x", "t", SourceSpec(kind="parquet", path=sys.argv[1]), "CC0-1.0", "t", "o"))
rows = sum(1 for spec in source.plan() for sample in source.read(spec.spec))
print(rows, pa.default_memory_pool().max_memory())
"""


@pytest.mark.process
def test_memory_does_not_grow_with_the_row_group(tmp_path: Path, home: Path) -> None:
    table = pa.table({"image": pa.array([os.urandom(200_000) for _ in range(500)], pa.binary())})
    pq.write_table(table, tmp_path / "a.parquet", write_batch_size=5)
    command = [sys.executable, "-c", READ_ALL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    rows, peak = map(int, done.stdout.split())
    assert rows == 500
    assert peak < 40 << 20, "the file is 100 MB in one row group; a batch of 32 rows is 6.4 MB"


def test_rows_without_bytes_are_failed_rows_and_labels_without_names_are_empty(tmp_path: Path, home: Path) -> None:
    wikiart_files(tmp_path, [jpeg(0), jpeg(1), jpeg(2)], files=1)
    path = next(tmp_path.rglob("*.parquet"))
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0]["image"] = None
    rows[1]["image"] = {"bytes": None, "path": "elsewhere.jpg"}
    rows[2]["style"] = -1
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    first, second, third = samples(local(tmp_path))
    assert (first.error, second.error) == ("empty: no bytes in the row", "missing_file: elsewhere.jpg")
    assert third.metadata["style"] is None and third.data == jpeg(2)


def test_a_missing_image_column_is_answered_with_the_nearest(tmp_path: Path, home: Path) -> None:
    pq.write_table(pa.table({"images": [jpeg(1)], "x": [1]}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"no image column 'image' \(did you mean 'images'\?\); columns: images, x"):
        open_source(local(tmp_path)).columns()


def test_an_image_column_with_addresses_is_refused(tmp_path: Path, home: Path) -> None:
    pq.write_table(pa.table({"image": ["http://x/a.jpg"]}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="holds string; expected bytes or a struct"):
        open_source(local(tmp_path)).columns()


@pytest.mark.parametrize("damage", ["cut", "empty", "html"])
def test_a_broken_file_is_named_before_work(tmp_path: Path, home: Path, damage: str) -> None:
    wikiart_files(tmp_path, [jpeg(i) for i in range(9)], files=3)
    path = tmp_path / "data" / "train-00001-of-00003.parquet"
    path.write_bytes({"cut": path.read_bytes()[:-30], "empty": b"", "html": b"<!DOCTYPE html><html></html>"}[damage])
    with pytest.raises(SourceError, match=r"train-00001-of-00003\.parquet: not a readable Parquet file"):
        list(open_source(local(tmp_path)).plan())


def test_damage_inside_a_file_loses_the_shard_with_an_error_and_no_other(tmp_path: Path, home: Path) -> None:
    wikiart_files(tmp_path, [jpeg(i, 200) for i in range(40)], files=2)
    path = tmp_path / "data" / "train-00000-of-00002.parquet"
    data = bytearray(path.read_bytes())
    data[4:200] = b"\xff" * 196
    path.write_bytes(data)
    source = open_source(local(tmp_path))
    first, second = source.plan()
    with pytest.raises(SourceError, match="damaged near row 0"):
        list(source.read(first.spec))
    assert len(list(source.read(second.spec))) == 20


def test_a_file_that_changed_after_planning_is_noticed(tmp_path: Path, home: Path) -> None:
    wikiart_files(tmp_path, [jpeg(i) for i in range(4)], files=1)
    spec = next(iter(open_source(local(tmp_path)).plan()))
    wikiart_files(tmp_path, [jpeg(i) for i in range(5)], files=1)
    with pytest.raises(SourceError, match="changed since the plan"):
        list(open_source(local(tmp_path)).read(spec.spec))


def test_fingerprints_do_not_depend_on_where_the_files_lie(tmp_path: Path, home: Path) -> None:
    wikiart_files(tmp_path / "a", [jpeg(i) for i in range(4)], files=2)
    (tmp_path / "a").rename(tmp_path / "moved")
    moved = [spec.fingerprint for spec in open_source(local(tmp_path / "moved")).plan()]
    (tmp_path / "moved").rename(tmp_path / "again")
    assert [spec.fingerprint for spec in open_source(local(tmp_path / "again")).plan()] == moved


# ---- columns


def test_reserved_names_are_stored_under_another() -> None:
    spec = SourceSpec(kind="folder", caption="text")
    available = {"Width": "int64", "key": "string", "text": "string", "caption": "string", "style": "string"}
    assert choose_columns(spec, available, "x").stored() == {
        "source_Width": "int64",
        "source_key": "string",
        "source_caption": "string",
        "style": "string",
    }


def test_names_that_sql_cannot_tell_apart_get_numbers() -> None:
    assert list(choose_columns(SourceSpec(kind="folder"), {"Style": "string", "style": "string"}, "x").stored()) == [
        "Style",
        "style_2",
    ]


def test_nested_columns_are_left_out_and_refused_where_they_are_asked_for() -> None:
    available = {"tags": None, "year": "int64"}
    assert choose_columns(SourceSpec(kind="folder"), available, "x").stored() == {"year": "int64"}
    with pytest.raises(SourceError, match="'tags' holds nested values"):
        choose_columns(SourceSpec(kind="folder", columns=("tags",)), available, "x")


def test_values_that_do_not_fit_their_column_are_empty() -> None:
    assert [plain(value, "int64") for value in (3, 3.0, 3.5, "x", 2**70, float("nan"))] == [
        3,
        3,
        None,
        None,
        None,
        None,
    ]
    assert plain("a\udcffb", "string") == "a?b"


def test_json_rows_of_mixed_types_are_text() -> None:
    rows: list[dict[str, Any]] = [{"a": 1, "b": 1, "c": None, "d": [1]}, {"a": 2.5, "b": "x", "c": True, "d": 3}]
    assert kinds_of_values(rows) == {"a": "float64", "b": "string", "c": "bool", "d": None}
