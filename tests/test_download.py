"""The download stage: its files, its bad rows, and the same bytes for the same input."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import tarfile
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.building import plan_shards
from pipeline.building.download import DownloadConfig, download_stage, filter_columns, read_images
from pipeline.building.plan import BuildPlan, read_plan, write_plan
from pipeline.catalog import load_manifest
from pipeline.catalog.manifests import manifest_for_path
from pipeline.database import RetrievalDatabase
from pipeline.errors import DatabaseError, FilterError, SourceError
from pipeline.execution import Receipt, Shard, Stage
from pipeline.execution.stage import run_shard_once
from pipeline.filters import check_filter, filter_mask
from pipeline.sources import Manifest, Sample, SourceOptions, SourceSpec, open_source
from pipeline.sources.base import ShardSpec
from tests.pictures import HTML, csv_of, jpeg, png, wikiart_files
from tests.server import serve


def prepare(
    home: Path, manifest: Manifest, options: SourceOptions | None = None, where: str = "", row_filter: Any = None
) -> tuple[RetrievalDatabase, BuildPlan, Stage]:
    db = RetrievalDatabase(manifest.name, str(home))
    options = options or SourceOptions()
    plan = write_plan(db, open_source(manifest, options), options)
    config = DownloadConfig(manifest, plan.columns, options, where)
    return db, plan, download_stage(db, config, row_filter)


def run(stage: Stage, db: RetrievalDatabase, plan: BuildPlan) -> list[Receipt]:
    context = stage.setup()
    return [run_shard_once(stage, lambda: context, shard).receipt for shard in plan_shards(db, plan.id)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Good and bad files with a metadata.csv."""
    path = tmp_path / "mixed-bag"
    path.mkdir()
    files = {"a.jpg": jpeg(1), "b.png": png(2), "c.jpg": HTML, "d.jpg": b"", "e.jpg": b"\0" * 64, "f.jpg": png(6)}
    for name, data in files.items():
        (path / name).write_bytes(data)
    rows = [
        {"file_name": name, "year": 1900 + i, "caption": f"picture {i}"} for i, name in enumerate([*files, "g.jpg"])
    ]
    csv_of(path / "metadata.csv", rows)
    return path


def test_each_sample_is_a_row_and_bad_ones_say_why(home: Path, folder: Path) -> None:
    db, plan, stage = prepare(home, manifest_for_path(folder))
    (receipt,) = run(stage, db, plan)
    assert (receipt.ok, receipt.filtered, receipt.failed) == (3, 0, 4)
    assert receipt.reasons == {"empty": 1, "missing_file": 1, "not_an_image": 2}
    rows = db.read_table(db.image_table(0)).to_pylist()
    assert [(row["key"], row["item_id"], row["status"]) for row in rows] == [
        (0, "a.jpg", "ok"),
        (1, "b.png", "ok"),
        (2, "c.jpg", "failed"),
        (3, "d.jpg", "failed"),
        (4, "e.jpg", "failed"),
        (5, "f.jpg", "ok"),
        (6, "g.jpg", "failed"),
    ]
    assert rows[2]["error"] == "not_an_image: an HTML page"
    assert rows[6]["year"] == 1906, "a missing picture keeps its metadata"
    assert rows[0]["sha256"] == hashlib.sha256(jpeg(1)).hexdigest() and rows[3]["sha256"] is None
    assert {row["licence"] for row in rows} == {"unknown"} and {row["source"] for row in rows} == {"mixed_bag"}


def test_the_tar_is_in_img2datasets_layout_with_the_suffix_the_bytes_tell(home: Path, folder: Path) -> None:
    db, plan, stage = prepare(home, manifest_for_path(folder))
    run(stage, db, plan)
    with tarfile.open(fileobj=io.BytesIO(db.storage.read_bytes(db.image_tar(0)))) as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == [
            "000000000000.jpg",
            "000000000000.json",
            "000000000000.txt",
            "000000000001.json",
            "000000000001.png",
            "000000000001.txt",
            "000000000005.json",
            "000000000005.png",
            "000000000005.txt",
        ]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
        texts = {name: archive.extractfile(name).read() for name in ("000000000005.json", "000000000005.txt")}  # type: ignore[union-attr]
    about = json.loads(texts["000000000005.json"])
    assert (about["key"], about["year"], about["item_id"]) == ("000000000005", 1905, "f.jpg")
    assert texts["000000000005.txt"] == b"picture 5"


def test_another_run_elsewhere_gives_the_same_bytes(home: Path, folder: Path, tmp_path: Path) -> None:
    receipts = []
    for where in ("one", "two"):
        db, plan, stage = prepare(tmp_path / where, manifest_for_path(folder))
        receipts.append((plan, run(stage, db, plan)))
    assert receipts[0] == receipts[1]


def test_pictures_are_read_back_with_their_rows(home: Path, folder: Path) -> None:
    db, plan, stage = prepare(home, manifest_for_path(folder))
    run(stage, db, plan)
    found = list(read_images(db, 0))
    assert [data for _, data in found] == [jpeg(1), png(2), None, None, None, png(6), None]
    assert [row["item_id"] for row, _ in found] == [
        f"{letter}.{'png' if letter == 'b' else 'jpg'}" for letter in "abcdefg"
    ]


def test_a_done_shard_is_skipped_and_one_whose_pictures_are_gone_is_not(home: Path, folder: Path) -> None:
    db, plan, stage = prepare(home, manifest_for_path(folder))
    (first,) = run(stage, db, plan)
    (shard,) = plan_shards(db, plan.id)
    assert stage.receipt(shard) == first
    db.storage.remove(db.image_tar(0))
    assert stage.receipt(shard) is None
    with pytest.raises(DatabaseError, match="rdmpipe download"):
        list(read_images(db, 0))
    assert run(stage, db, plan) == [first]
    assert db.storage.exists(db.image_tar(0))


def test_damaged_pictures_are_an_error_with_the_fix(home: Path, folder: Path) -> None:
    db, plan, stage = prepare(home, manifest_for_path(folder))
    run(stage, db, plan)
    data = db.storage.read_bytes(db.image_tar(0))
    db.storage.write_bytes(db.image_tar(0), data[:700])
    with pytest.raises(DatabaseError, match=r"000000\.tar"):
        list(read_images(db, 0))


def test_the_stage_can_be_sent_to_another_process(home: Path, folder: Path) -> None:
    db, plan, stage = prepare(home, manifest_for_path(folder))
    (receipt,) = run(pickle.loads(pickle.dumps(stage)), db, plan)
    assert receipt.ok == 3


def test_rows_outside_the_filter_are_filtered_and_counted(home: Path, folder: Path) -> None:
    db, plan, stage = prepare(home, manifest_for_path(folder), where="year >= 1903", row_filter=filter_mask)
    (receipt,) = run(stage, db, plan)
    assert (receipt.ok, receipt.filtered, receipt.failed) == (1, 3, 3)
    assert receipt.reasons == {"empty": 1, "missing_file": 1, "not_an_image": 1, "where": 3}
    assert [data for _, data in read_images(db, 0)].count(None) == 6


def test_a_filter_on_what_is_not_known_yet_is_an_error_before_work(folder: Path) -> None:
    columns = filter_columns({"year": "int64"})
    check_filter("year >= 1903 AND item_id LIKE '%.jpg' AND source = 'x'", columns)
    with pytest.raises(FilterError, match="phash"):
        check_filter("phash = 'x'", columns)


def test_a_filter_changes_what_done_means_and_an_address_does_not(home: Path, folder: Path) -> None:
    plain = DownloadConfig(manifest_for_path(folder), {"year": "int64"})
    moved = replace(plain.manifest, source=replace(plain.manifest.source, path="/elsewhere"), encoder="vit-b-32")
    same = replace(plain, manifest=moved, options=SourceOptions(base_url="http://127.0.0.1", token="secret"))
    assert same.fingerprint() == plain.fingerprint()
    assert replace(plain, where="year > 0").fingerprint() != plain.fingerprint()
    captioned = replace(plain.manifest, source=replace(plain.manifest.source, caption="year"))
    assert replace(plain, manifest=captioned).fingerprint() != plain.fingerprint()


def test_keys_continue_across_shards(home: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [jpeg(i) for i in range(25)]}), tmp_path / "a.parquet")
    spec = SourceSpec(kind="parquet", path=str(tmp_path / "a.parquet"), shard_rows=10)
    db, plan, stage = prepare(home, Manifest("numbers", "t", spec, "CC0-1.0", "t", "o"))
    run(stage, db, plan)
    keys = [db.read_table(db.image_table(shard)).column("key").to_pylist() for shard in range(3)]
    assert [key for part in keys for key in part] == [
        *range(8),
        *range(10_000, 10_008),
        *range(20_000, 20_009),
    ]


def test_a_source_that_shrank_since_the_plan_is_an_error(home: Path, folder: Path) -> None:
    _, _, stage = prepare(home, manifest_for_path(folder))
    with pytest.raises(SourceError, match="planned 9 rows, found 1"):
        stage.run(stage.setup(), Shard(0, 9, "x", {"files": ["a.jpg"]}))


def test_wikiart_goes_from_the_hub_to_rows(home: Path, tmp_path: Path) -> None:
    pictures = [jpeg(i) for i in range(30)]
    told = wikiart_files(tmp_path / "served" / "hub" / "huggan" / "wikiart", pictures, files=2)
    manifest = load_manifest("wikiart")
    assert isinstance(manifest, Manifest)
    with serve(tmp_path / "served") as server:
        db, plan, stage = prepare(home, manifest, SourceOptions(base_url=server.url))
        receipts = run(stage, db, plan)
    assert [receipt.ok for receipt in receipts] == [15, 15]
    rows = [row for shard in range(2) for row, _ in read_images(db, shard)]
    assert [{name: row[name] for name in ("artist", "genre", "style")} for row in rows] == told
    assert sorted(row["sha256"] for row in rows) == sorted(hashlib.sha256(data).hexdigest() for data in pictures)


def test_pictures_survive_the_way_unchanged(home: Path, shared: Path) -> None:
    db, plan, stage = prepare(home, manifest_for_path(shared / "data" / "paintings"))
    (receipt,) = run(stage, db, plan)
    assert receipt.ok == 30
    for row, data in read_images(db, 0):
        assert data == (shared / "data" / "paintings" / row["item_id"]).read_bytes()
        assert Image.open(io.BytesIO(data)).size == (row["source_width"], row["source_height"])


# ---- plans


class Endless:
    """A source with as many shards as asked for."""

    rereadable = True
    revision_is_whole = True

    def __init__(self, shards: int) -> None:
        self.shards = shards

    def columns(self) -> dict[str, str]:
        return {"style": "string"}

    def plan(self) -> Any:
        for i in range(self.shards):
            yield ShardSpec(10, f"{i:016x}", {"start": i, "name": "\udcff"})

    def read(self, spec: Any) -> Any:
        return iter(Sample(str(i), b"") for i in range(10))

    def estimate(self) -> tuple[int, int]:
        return self.shards * 10, 0

    def revision(self) -> str:
        return "r1"

    def left_out(self) -> dict[str, int]:
        return {}


def test_a_plan_is_read_back_as_it_was_written(home: Path) -> None:
    db = RetrievalDatabase("x", str(home))
    plan = write_plan(db, Endless(2500), SourceOptions())
    assert read_plan(db, plan.id) == plan
    shards = list(plan_shards(db, plan.id))
    assert (plan.shards, plan.rows, len(shards)) == (2500, 25_000, 2500)
    assert shards[2499] == Shard(2499, 10, f"{2499:016x}", {"start": 2499, "name": "\udcff"})


def test_the_same_input_makes_the_same_plan_and_other_input_another(home: Path) -> None:
    db = RetrievalDatabase("x", str(home))
    ids = [write_plan(db, Endless(count), SourceOptions()).id for count in (3, 3, 4)]
    assert ids[0] == ids[1] != ids[2]


def test_a_range_of_shards_keeps_their_numbers(home: Path) -> None:
    db = RetrievalDatabase("x", str(home))
    plan = write_plan(db, Endless(100), SourceOptions(shards=(20, 23)))
    assert [shard.id for shard in plan_shards(db, plan.id)] == [20, 21, 22]
    with pytest.raises(SourceError, match=r"no rows .*200, 300"):
        write_plan(db, Endless(100), SourceOptions(shards=(200, 300)))


def test_a_plan_that_is_not_there_is_an_error(home: Path) -> None:
    with pytest.raises(DatabaseError, match="no plan 'abc'"):
        read_plan(RetrievalDatabase("x", str(home)), "abc")


@pytest.mark.long
def test_a_plan_of_two_hundred_thousand_shards_streams(home: Path) -> None:
    db = RetrievalDatabase("x", str(home))
    tracemalloc.start()
    plan = write_plan(db, Endless(200_000), SourceOptions())
    assert sum(1 for _ in plan_shards(db, plan.id)) == 200_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20, "200,000 shards as Python objects would take more than 100 MB"
