"""Lists of URLs as a source: their rows, the part that planning reads, and the shipped manifests of such lists."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.building import plan_shards
from pipeline.building.download import filter_columns
from pipeline.building.plan import write_plan
from pipeline.catalog import load_manifest
from pipeline.catalog.manifests import shipped_manifests
from pipeline.config import from_mapping
from pipeline.database import RetrievalDatabase
from pipeline.errors import ConfigError, ManifestError, SourceError
from pipeline.exchange import export_embeddings
from pipeline.filters import check_filter
from pipeline.retrieval import QueryRequest, run_query
from pipeline.sources import Manifest, Sample, SourceOptions, SourceSpec, open_source, parse_manifest, read_box
from pipeline.sources.manifest import Patches
from pipeline.sources.patches import box_of
from pipeline.sources.web.opener import FetchRules
from pipeline.sources.web.pictures import fetch_urls
from tests.builds import folder_of, picture, quiet_build
from tests.encoders import RANDOM
from tests.pictures import csv_of, jpeg
from tests.server import serve

pytestmark = pytest.mark.process


def listed(path: Path, **options: Any) -> Manifest:
    spec = SourceSpec(
        kind="urls", path=str(path), image="link", shard_rows=options.pop("shard_rows", 10), options=options
    )
    return Manifest("listed", "t", spec, "unknown", "t", "o")


def rows_of(manifest: Manifest, options: SourceOptions | None = None) -> list[Sample]:
    source = open_source(manifest, options)
    return [sample for spec in source.plan() for sample in source.read(spec.spec)]


def csv_list(path: Path, rows: int) -> Path:
    return csv_of(path, [{"link": f"https://example.org/{i}.jpg", "title": f"no. {i},\nin two lines" if i % 3 else "",
                          "score_given": i / 10} for i in range(rows)])  # fmt: skip


def test_a_csv_is_read_in_ranges_that_know_their_place(tmp_path: Path) -> None:
    manifest = listed(csv_list(tmp_path / "list.csv", 25), format="csv", types={"score_given": "float64"})
    source = open_source(replace(manifest, source=replace(manifest.source, caption="title")))
    specs = list(source.plan())
    assert [spec.rows for spec in specs] == [10, 10, 5]
    last = list(source.read(specs[2].spec))  # nothing before it was read
    assert [sample.url for sample in last] == [f"https://example.org/{i}.jpg" for i in range(20, 25)]
    assert [sample.caption for sample in last[:2]] == ["no. 20,\nin two lines", None]
    assert [sample.metadata["score_given"] for sample in last] == [2.0, 2.1, 2.2, 2.3, 2.4]
    assert source.columns() == {"score_given": "float64"}
    assert [spec.rows for spec in open_source(manifest, SourceOptions(limit=13)).plan()] == [10, 3]


def test_a_csv_that_changed_or_is_none_is_an_error(tmp_path: Path) -> None:
    manifest = listed(csv_list(tmp_path / "list.csv", 5), format="csv")
    source = open_source(manifest)
    (spec,) = source.plan()
    csv_list(tmp_path / "list.csv", 6)
    with pytest.raises(SourceError, match="changed since the plan"):
        list(source.read(spec.spec))
    (tmp_path / "list.csv").write_text("<!DOCTYPE html><html>\n")
    with pytest.raises(SourceError, match="expected a CSV file"):
        open_source(manifest).columns()
    csv_of(tmp_path / "list.csv", [{"lnk": "x"}])
    with pytest.raises(SourceError, match="did you mean 'lnk'"):
        open_source(manifest).columns()


def test_planning_a_range_reads_no_more_of_a_csv_than_that(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    line = b"https://example.org/a.jpg,title\n"
    with path.open("wb") as out:
        out.write(b"link,title\n" + line * 20_000)
        out.write(b'"' + b"x" * 200_000)  # a quote that never ends
    manifest = listed(path, format="csv", shard_rows=1000)
    db = RetrievalDatabase("listed", str(tmp_path / "home"))
    write_plan(db, open_source(manifest), SourceOptions(shards=(0, 1)))  # what is imported is not counted
    tracemalloc.start()
    plan = write_plan(db, open_source(manifest), SourceOptions(shards=(3, 5)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [shard.id for shard in plan_shards(db, plan.id)] == [3, 4]
    assert peak < 4 << 20
    last = list(open_source(manifest).plan())[-1]
    assert [(sample.error or "").split(" of ")[0] for sample in open_source(manifest).read(last.spec)] == [
        "bad_row: line 20002"
    ]


def test_planning_a_range_asks_for_few_of_many_files(tmp_path: Path, home: Path) -> None:
    """The shape of LAION's list: planning 0:3 reads only the footers of the first files."""
    dataset = tmp_path / "served/hub/laion/relaion2B-en-research-safe"
    dataset.mkdir(parents=True)
    for number in range(40):
        table = laion([f"https://example.org/{number}/{i}.jpg" for i in range(4)])
        pq.write_table(table, dataset / f"part-{number:05d}-x-c000.snappy.parquet")
    manifest = load_manifest("laion-2b-en")
    assert isinstance(manifest, Manifest)
    with serve(tmp_path / "served") as server:
        options = SourceOptions(base_url=server.url, shards=(0, 3))
        plan = write_plan(RetrievalDatabase("laion-2b-en"), open_source(manifest, options), options)
        asked = {path for _, path, _ in server.requests if path.endswith(".parquet")}
    assert (plan.shards, plan.rows) == (3, 12)
    assert not any("part-00039" in path or "part-00032" in path for path in asked)


def laion(urls: list[str], punsafe: float | None = 0.01) -> pa.Table:
    """Rows with the columns of Re-LAION's files."""
    rows = [{"url": url, "caption": f"picture {i}", "similarity": 0.3, "hash": i, "punsafe": punsafe, "pwatermark": 0.2,
             "key": f"{i:09d}", "status": "success", "error_message": None, "width": 300 + i, "height": 200,
             "original_width": 600, "original_height": 400, "exif": "{}", "md5": "0"} for i, url in enumerate(urls)
            ]  # fmt: skip
    return pa.Table.from_pylist(rows)


def test_laion_drops_what_is_not_known_to_be_safe_before_anything_is_fetched(tmp_path: Path, home: Path) -> None:
    dataset = tmp_path / "served/hub/laion/relaion2B-en-research-safe"
    dataset.mkdir(parents=True)
    parts = [laion(["https://example.org/a.jpg"], score) for score in (0.5, 0.51, None, 0.1)]
    pq.write_table(pa.concat_tables(part.cast(parts[0].schema) for part in parts), dataset / "part-0-x.snappy.parquet")
    manifest = load_manifest("laion-2b-en")
    assert isinstance(manifest, Manifest) and manifest.source.gated and manifest.checked
    with serve(tmp_path / "served", token="secret") as server:
        with pytest.raises(SourceError, match="access must be requested"):
            open_source(manifest, SourceOptions(base_url=server.url, token="other")).columns()
        source = open_source(manifest, SourceOptions(base_url=server.url, token="secret"))
        rows = [sample for spec in source.plan() for sample in source.read(spec.spec)]
        columns = source.columns()
    assert [(row.status, row.error) for row in rows] == [
        ("", None),
        ("filtered", "punsafe: 0.510 is above 0.5"),
        ("filtered", "punsafe: not known"),
        ("", None),
    ]
    assert [bool(row.address) for row in rows] == [True, False, False, True]
    assert (rows[0].item_id, rows[0].url, rows[0].caption) == (*["https://example.org/a.jpg"] * 2, "picture 0")
    check_filter("punsafe < 0.1 AND width >= 256", filter_columns(columns))


def open_images(count: int, host: str) -> list[dict[str, Any]]:
    return [{"ImageID": f"{i:016x}", "Subset": "train", "OriginalURL": f"https://farm.example.org/{i}_o.jpg",
             "OriginalLandingURL": f"https://photos.example.org/{i}", "License": "https://creativecommons.org/licenses/by/2.0/",
             "AuthorProfileURL": "https://photos.example.org/people/a", "Author": 'Jane "J" Doe', "Title": f"no. {i}",
             "OriginalSize": 1000 + i, "OriginalMD5": "0jBpbNION09+r02xkTIBcA==", "Thumbnail300KURL": "",
             "Rotation": "0.0" if i % 2 else ""} for i in range(count)]  # fmt: skip


def test_open_images_as_random_crops_from_csv_to_npz(tmp_path: Path, home: Path) -> None:
    """The shipped manifest against a local bucket: each picture is fetched once and gives two crops, with its licence
    and source."""
    served = tmp_path / "served"
    for split, count in (
        ("train/train-images-boxable", 6),
        ("validation/validation-images", 1),
        ("test/test-images", 1),
    ):
        path = served / f"openimages/2018_04/{split}-with-rotation.csv"
        path.parent.mkdir(parents=True)
        csv_of(
            path, open_images(count, "") if count > 1 else [{**open_images(1, "")[0], "Subset": split.split("/")[0]}]
        )
    for i in range(6):
        (served / "train").mkdir(exist_ok=True)
        (served / f"train/{i:016x}.jpg").write_bytes(picture(i, 300 + 20 * i, "JPEG"))
    with serve(served, host="127.0.0.2") as server:
        text = shipped_manifests()["openimages_patches"].read_text().replace('"vit-l-14"', f"'{RANDOM}'")
        text = text.replace("https://open-images-dataset.s3.amazonaws.com", server.url)
        (tmp_path / "oi.toml").write_text(text.replace("shard_rows = 5000", "shard_rows = 100"))
        source = SourceOptions(base_url=server.url, allow_private=("127.0.0.2",))
        built = quiet_build(tmp_path / "oi.toml", source=source)
        asked = [path for _, path, _ in server.requests if path.endswith(".jpg")]
    assert (built.input, built.ok, built.failed, built.duplicates) == (16, 12, 4, 0)
    assert built.reasons == {"http_404": 4}
    assert sorted(set(asked)) == sorted(asked), "a picture was fetched for each of its crops"
    db = RetrievalDatabase("openimages_patches")
    version = db.version()
    found = run_query(QueryRequest("openimages_patches", key=0, k=12)).rows.to_pylist()
    for row in found:
        assert (row["licence"], row["url"]) == (
            "https://creativecommons.org/licenses/by/2.0/",
            f"https://photos.example.org/{int(row['item_id'], 16)}",
        )
        x0, y0, x1, y1 = read_box(row["patch_coords"])
        assert (x1 - x0, y1 - y0) == (256, 256) and x0 >= 0 and x1 <= row["width"] and y1 <= row["height"]
    assert len({(row["image_key"], row["patch_coords"]) for row in found}) == len(found)
    (file,) = export_embeddings(db, version, "npz", tmp_path / "out")
    with np.load(file) as arrays:
        assert (arrays["embedding"].shape, arrays["patch_coords"].shape, arrays["img_id"].shape) == (
            (12, 16),
            (12, 4),
            (12,),
        )
        assert (arrays["patch_coords"][:, 2] - arrays["patch_coords"][:, 0] == 256).all()
        assert [int(name, 16) for name in arrays["img_id"]] == [i // 2 for i in range(12)]


def test_crops_of_a_folder_are_rows_that_name_their_picture(tmp_path: Path, home: Path) -> None:
    folder = folder_of(tmp_path / "pictures", 4)
    (folder / "broken.png").write_bytes(picture(9)[:200])
    Image.new("RGB", (90, 40), "red").save(tmp_path / "pictures/wide.jpg")
    (tmp_path / "m.toml").write_text(
        f'name = "crops"\ntitle = "t"\nlicence = "CC0-1.0"\nterms = "t"\nopt_out = "o"\nencoder = "{RANDOM}"\n'
        f'patches = {{ per_image = 3, size = 24, seed = 7 }}\n[source]\nkind = "folder"\npath = "{folder}"\nshard_rows = 4\n'
    )
    built = quiet_build(tmp_path / "m.toml", images="keep")
    assert (built.input, built.ok, built.failed) == (18, 15, 3)
    db = RetrievalDatabase("crops")
    rows = [row for entry in db.version().shards for row in db.read_table(entry.artifact.path).to_pylist()]
    by_image: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_image.setdefault(row["image_key"], []).append(row)
    assert {len(group) for group in by_image.values()} == {3}
    assert all(
        key == group[0]["key"] and len({row["item_id"] for row in group}) == 1 for key, group in by_image.items()
    )
    wide = next(group for group in by_image.values() if group[0]["item_id"] == "wide.jpg")
    assert [read_box(row["patch_coords"]) for row in wide] == [
        box_of(Patches(3, 24, 7), "wide.jpg", patch, 90, 40) for patch in range(3)
    ]
    good = [row for row in rows if row["status"] == "ok" and row["item_id"] != "wide.jpg"]
    assert len({tuple(row["vector"]) for row in good}) == len(good), "every crop has a vector of its own"
    assert run_query(QueryRequest("crops", key=0, k=15, no_duplicates=True)).rows.num_rows == 14
    again = quiet_build("crops", refresh=True)
    assert again.version == built.version


def test_crops_stay_inside_and_reach_everywhere() -> None:
    boxes = [box_of(Patches(1, 10, 0), f"picture {i}", 0, 40, 10) for i in range(400)]
    assert {box[1:2] + box[3:] for box in boxes} == {(0, 10)}
    assert {box[0] for box in boxes} == set(range(31))
    assert box_of(Patches(1, 256), "small", 0, 100, 60)[3] == 60
    with pytest.raises(ManifestError, match="per_image times shard_rows"):
        text = {"name": "x", "title": "t", "licence": "l", "terms": "t", "opt_out": "o", "patches": {"per_image": 20}}
        parse_manifest({**text, "source": {"kind": "folder", "shard_rows": 1000}}, "x.toml")


def test_what_a_manifest_may_say_of_fetching(tmp_path: Path) -> None:
    path = csv_list(tmp_path / "list.csv", 1)
    with pytest.raises(ConfigError, match="did you mean 'max_bytes'"):
        open_source(listed(path, format="csv", fetch={"max_byte": 1}))
    with pytest.raises(ConfigError, match="allow_private"):  # whoever wrote a manifest does not open our network
        from_mapping(FetchRules, {"allow_private": True}, "x")
    with pytest.raises(SourceError, match="no column 'Subset'"):
        open_source(listed(path, format="csv", template="https://example.org/{Subset}.jpg")).columns()
    with pytest.raises(SourceError, match="parquet or csv"):
        open_source(listed(path, format="json"))


def test_a_template_makes_the_address_and_a_gap_in_it_is_a_failed_row(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "list.csv", [{"id": "a", "split": "train"}, {"id": "b", "split": ""}])
    rows = rows_of(listed(path, format="csv", template="https://example.org/{split}/{id}.jpg"))
    assert [row.address for row in rows] == ["https://example.org/train/a.jpg", ""]
    assert rows[1].error == "no_url: the row has no address"
    assert rows[0].url == rows[0].item_id == "https://example.org/train/a.jpg"


@pytest.mark.long
def test_a_shard_out_of_time_still_gives_every_url_a_reason(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "served/a.jpg").write_bytes(jpeg(1))
    with serve(tmp_path / "served", host="127.0.0.2") as server:
        urls = [f"{server.url}/{i}.jpg" for i in range(20)]
        (tmp_path / "scratch").mkdir()
        found = fetch_urls(urls, FetchRules(), ["127.0.0.2"], 4, 0.0, tmp_path / "scratch")
        assert all(str(found[i][1]).startswith("deadline: the shard's time was up") for i in range(20))
        found.close()
        (tmp_path / "again").mkdir()
        with pytest.raises(SourceError, match="ended with code 1"):
            fetch_urls(urls, FetchRules(), ["no network"], 4, 9.0, tmp_path / "again")
