"""A published database grows, changes its filter, and lists its failed files; a build starts from any kind of file."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.building import BuildRequest, settle
from pipeline.catalog import failed_rows, resolve_database, resolve_target
from pipeline.database import RetrievalDatabase
from pipeline.errors import ConfigError, DatabaseError, SourceError
from pipeline.exchange import import_embeddings
from pipeline.maintenance import PurgeRequest, copy_failed, purge
from pipeline.maintenance.purging import _read_list
from pipeline.retrieval import open_search
from pipeline.scheduling.traces import read_traces
from pipeline.sources import SourceOptions
from tests.builds import command, folder_of, last_json, manifest_of, picture, quiet_build
from tests.encoders import RANDOM
from tests.pictures import jpeg, tar_of

pytestmark = pytest.mark.process


def rows_of(name: str, *columns: str) -> list[dict[str, Any]]:
    """Some columns of every indexed row."""
    selection = resolve_database(name)
    with open_search(selection.database, selection.version) as searcher:
        found: list[dict[str, Any]] = searcher.metadata(np.asarray(searcher.keys), list(columns)).to_pylist()
    return found


def styles(name: str = "mine") -> dict[str, str]:
    """item -> style of every indexed row."""
    return {row["item_id"]: row["style"] for row in rows_of(name, "item_id", "style")}


def settings(home: Path, name: str = "mine") -> dict[str, object]:
    found: dict[str, object] = json.loads((home / "databases" / name / "manifest.json").read_text())["settings"]
    return found


def test_a_published_database_grows_to_a_larger_part_and_to_all(tmp_path: Path, home: Path) -> None:
    target = manifest_of(tmp_path / "mine.toml", folder_of(tmp_path / "in", 40), shard_rows=10)
    first = quiet_build(target, source=SourceOptions(limit=6))
    assert (first.ok, settings(home)["limit"]) == (6, 6)
    keys = {row["item_id"]: row["key"] for row in rows_of("mine", "item_id", "key")}
    second = quiet_build(target, source=SourceOptions(limit=25))
    assert (second.ok, second.changes, settings(home)["limit"]) == (25, {"added": 19, "changed": 0, "removed": 0}, 25)
    assert quiet_build(target).ok == 25  # what is not asked for stays
    third = quiet_build(target, whole=True)
    assert (third.input, third.ok, settings(home).get("limit")) == (40, 40, None)
    now = {row["item_id"]: row["key"] for row in rows_of("mine", "item_id", "key")}
    assert keys.items() <= now.items() and len(now) == 40
    with pytest.raises(DatabaseError, match="smaller part"):
        quiet_build(target, source=SourceOptions(limit=7))
    assert RetrievalDatabase("mine").version(first.version).counts["ok"] == 6


def test_shards_grow_too(tmp_path: Path, home: Path) -> None:
    target = manifest_of(tmp_path / "mine.toml", folder_of(tmp_path / "in", 40), shard_rows=10)
    assert quiet_build(target, source=SourceOptions(shards=(0, 1))).ok == 10
    grown = quiet_build(target, source=SourceOptions(shards=(0, 3)))
    assert (grown.ok, grown.shards["embed"]["ran"], settings(home)["shards"]) == (30, 2, [0, 3])
    with pytest.raises(DatabaseError, match="smaller part"):
        quiet_build(target, source=SourceOptions(shards=(1, 3)))


def test_a_new_filter_is_a_new_version_and_holds_for_what_comes_later(tmp_path: Path, home: Path) -> None:
    folder = folder_of(tmp_path / "in", 20)
    target = manifest_of(tmp_path / "mine.toml", folder)
    first = quiet_build(target, where="style = 'even'")
    assert (first.ok, first.filtered) == (10, 10)
    second = quiet_build(target, where="style = 'odd' or item_id < '0004.png'")
    assert (second.input, second.ok, second.filtered) == (20, 12, 8)
    assert second.changes == {"refiltered": 18}
    assert set(styles()) == {f"{i:04d}.png" for i in range(20) if i % 2 or i < 4}
    assert settings(home)["filter"] == "style = 'odd' or item_id < '0004.png'"
    assert quiet_build(target).version == second.version
    assert quiet_build(target, where="style = 'odd' or item_id < '0004.png'").version == second.version
    folder_of(tmp_path / "more", 4, first=20)
    for path in (tmp_path / "more").glob("*.png"):
        path.rename(folder / path.name)
    lines = (tmp_path / "more" / "metadata.csv").read_text().splitlines()[1:]
    (folder / "metadata.csv").write_text((folder / "metadata.csv").read_text() + "\n".join(lines) + "\n")
    third = quiet_build(target, refresh=True)
    assert (third.changes["added"], third.ok, third.filtered) == (4, 14, 10)
    back = quiet_build(target, where="style = 'even'")
    assert set(styles().values()) == {"even"} and (back.input, back.ok) == (24, 12)
    with pytest.raises(DatabaseError, match="version of its own"):
        quiet_build(target, where="style = 'odd'", refresh=True)


def test_a_refresh_says_which_column_holds_more_than_its_type_can(tmp_path: Path, home: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(picture(number))
    (folder / "metadata.csv").write_text("file_name,year,size\n0.png,1900,1.5\n1.png,1901,2.5\n2.png,1902,3.5\n")
    assert quiet_build(folder, name="mine").warnings[1:] == ()
    (folder / "metadata.csv").write_text("file_name,year,size\n0.png,1900,1\n1.png,about 1901,2\n2.png,1902,3\n")
    again = quiet_build("mine", refresh=True)
    assert [warning.split(":")[0] for warning in again.warnings[:-1]] == [
        "column 'year' is int64 in the database and string in the source now"
    ]
    assert sorted((row["item_id"], row["year"]) for row in rows_of("mine", "item_id", "year")) == [
        ("0.png", 1900), ("1.png", None), ("2.png", 1902)
    ]  # fmt: skip


def test_the_command_that_continues_names_the_part_and_the_filter(tmp_path: Path, home: Path) -> None:
    folder = folder_of(tmp_path / "in", 30)
    target = manifest_of(tmp_path / "mine.toml", folder)
    part = SourceOptions(limit=12)
    quiet_build(target, source=part, where="style = 'even'", stages=("download",))
    expected = r"rdmpipe build-index mine --limit 12 --where 'style = '\"'\"'even'\"'\"''"
    with pytest.raises(DatabaseError) as told:
        RetrievalDatabase("mine").version()
    assert expected.replace('\\"', '"') in str(told.value)
    _, request = settle(BuildRequest("mine"))
    assert (request.source.limit, request.where) == (12, "style = 'even'")
    done = quiet_build("mine")
    assert (done.input, done.ok) == (12, 6)


def test_failures_are_listed_and_their_files_copied(tmp_path: Path, home: Path) -> None:
    folder = folder_of(tmp_path / "in", 5)
    (folder / "cut.png").write_bytes(picture(7)[:200])
    (folder / "page.jpg").write_bytes(b"<!DOCTYPE html><html>")
    (folder / "notes.txt").write_text("x")
    built = quiet_build(folder, name="mine")
    assert (built.input, built.failed, built.left_out) == (7, 2, {".txt": 1})
    rows = list(failed_rows(RetrievalDatabase("mine")))
    assert [(row.item, row.reason) for row in rows] == [("cut.png", "truncated"), ("page.jpg", "not_an_image")]
    assert copy_failed(RetrievalDatabase("mine"), rows, tmp_path / "bad") == 2
    copied = sorted(path.name.split("-", 1)[1] for path in (tmp_path / "bad").iterdir() if path.suffix != ".csv")
    assert copied == ["cut.png", "page.jpg"]
    left = read_traces(str(home), {"name": "mine", "failed": 2}, ())
    assert [(row.item, row.reason) for row in left.rows] == [("cut.png", "truncated"), ("page.jpg", "not_an_image")]
    assert (left.failed, left.listing) == (2, "rdmpipe failures mine")
    shown = last_json(command("failures", "mine", "--json", "--csv", tmp_path / "failed.csv", home=home))
    assert [row["item"] for row in shown] == ["cut.png", "page.jpg"]
    with (tmp_path / "failed.csv").open(newline="") as handle:
        assert [row["reason"] for row in csv.DictReader(handle)] == ["truncated", "not_an_image"]


# ---- any kind of file


def test_a_build_starts_from_a_file_as_from_a_folder_of_them(tmp_path: Path, home: Path) -> None:
    folder = folder_of(tmp_path / "in", 3)
    archive = tar_of(tmp_path / "plain.tar", [("a.png", picture(1)), ("b.png", picture(2))])
    samples = tar_of(tmp_path / "samples.tar", [("a.png", picture(1)), ("a.txt", b"one")])
    table = tmp_path / "in.PARQUET"
    pq.write_table(pa.table({"picture": [picture(1), picture(2)], "year": [1900, 1901]}), table)
    (tmp_path / "list.csv").write_text("URL;title\nhttp://127.0.0.1/a.jpg;A\n")
    packed = tar_of(tmp_path / "PLAIN.TAR.GZ", [("a", picture(1))], "w:gz")
    kinds = {folder / "0001.png": "folder", folder / "metadata.csv": "folder", folder: "folder", archive: "tar", packed: "tar",
             samples: "webdataset", table: "parquet", tmp_path / "list.csv": "urls"}  # fmt: skip
    for path, kind in kinds.items():
        assert resolve_target(str(path)).source.kind == kind, path
    for number, (path, rows) in enumerate(((folder / "0001.png", 1), (archive, 2), (samples, 1), (table, 2))):
        assert quiet_build(path, name=f"mine{number}").ok == rows
    assert resolve_target(str(tmp_path / "list.csv")).source.image == "URL"
    (tmp_path / "sets").mkdir()
    table.rename(tmp_path / "sets" / "1.parquet")
    assert resolve_target(str(tmp_path / "sets")).source.kind == "parquet"
    for name, text, told in (
        ("urls.txt", "\ufeffhttp://h/1.jpg\n", "(echo url; cat"),
        ("notes.txt", "hello", "expected a picture"),
        ("a.zip", "PK", "expected a picture"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(SourceError, match=re.escape(told)):
            resolve_target(str(tmp_path / name))
    np.savez(tmp_path / "vectors.npz", embedding=np.ones((2, 4), np.float32))
    with pytest.raises(SourceError, match="rdmpipe import"):
        resolve_target(str(tmp_path / "vectors.npz"))


# ---- purge lists as people save them


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff{url}\r\n".encode(),
        b'"{url}"\n',
        b"url\n{url}\n",
        b"\xef\xbb\xbf# wishes\r\nid,url,reason\r\n1,{url},\"no, thanks\"\r\n",
    ],
    ids=["mark", "quotes", "header", "table"],
)  # fmt: skip
def test_a_purge_list_is_read_however_it_was_saved(tmp_path: Path, home: Path, text: bytes) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    lines = ["file_name,url"]
    for i in range(4):
        (folder / f"{i}.png").write_bytes(picture(i))
        lines.append(f'{i}.png,"http://h/{i},{i}.png"')
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    quiet_build(folder, name="mine")
    url = "http://h/2,2.png" if b"," not in text else '"http://h/2,2.png"'
    wishes = tmp_path / "wishes"
    wishes.write_bytes(text.replace(b"{url}", url.encode()))
    done = purge(PurgeRequest("mine", url_list=wishes, dry_run=True))
    assert (done.rows, done.unmatched) == (1, ())


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        (b"id;sha256\r\n1;" + b"AB" * 32 + b"\r\n", ["ab" * 32]),
        (b"file\thash\na, b.png\t" + b"ab" * 32 + b"\n", ["ab" * 32]),
        (b"sha256:" + b"ab" * 32 + b"\n" + b"cd" * 32 + b"  picture.png\n", ["ab" * 32, "cd" * 32]),
        (("sha256\r" + "ab" * 32).encode("utf-16"), ["ab" * 32]),
    ],
    ids=["semicolons", "tabs", "prefix and sha256sum", "UTF-16"],
)
def test_a_list_of_sums_is_read_however_it_was_saved(tmp_path: Path, text: bytes, entries: list[str]) -> None:
    (tmp_path / "sums").write_bytes(text)
    assert _read_list(tmp_path / "sums", hashes=True) == entries


@pytest.mark.parametrize(
    "first", ["www.museum.org/picture/1.jpg", "htp//museum.org/image.jpg", "picture.jpg", "url: 1"]
)
def test_a_first_line_that_is_neither_an_address_nor_a_header_is_an_error(tmp_path: Path, first: str) -> None:
    (tmp_path / "wishes").write_text(f"{first}\nhttp://h/2.jpg\n")
    with pytest.raises(ConfigError, match="line 1"):
        _read_list(tmp_path / "wishes", hashes=False)


def test_an_entry_of_a_purge_list_that_matches_nothing_is_named_and_changes_the_exit_code(
    tmp_path: Path, home: Path
) -> None:
    quiet_build(folder_of(tmp_path / "in", 4), name="mine")
    (tmp_path / "sums").write_text("sha256\n" + "ab" * 32 + "\n")
    ended = command("purge", "mine", "--hash-list", tmp_path / "sums", "--dry-run", home=home)
    assert ended.returncode == 3
    assert "ab" * 32 in ended.communicate()[0]


# ---- embeddings from elsewhere


def clip_folder(path: Path, parts: dict[int, dict[str, object]]) -> Path:
    for number, columns in parts.items():
        for folder in ("img_emb", "metadata"):
            (path / folder).mkdir(parents=True, exist_ok=True)
        vectors = np.random.default_rng(number).normal(size=(2, 16)).astype(np.float32)
        np.save(path / "img_emb" / f"img_emb_{number}.npy", vectors)
        pq.write_table(pa.table(columns), path / "metadata" / f"metadata_{number}.parquet")
    return path


def test_parts_of_different_numbers_are_not_joined(tmp_path: Path, home: Path) -> None:
    folder = clip_folder(tmp_path / "in", {number: {"n": [number, number]} for number in (1, 2, 3)})
    (folder / "img_emb" / "img_emb_3.npy").unlink()
    (folder / "metadata" / "metadata_2.parquet").unlink()
    (folder / "img_emb" / "._img_emb_1.npy").write_bytes(b"junk")
    with pytest.raises(SourceError, match=r"img_emb_2\.npy would be joined with metadata_3\.parquet"):
        import_embeddings("mine", folder, RANDOM)


def test_a_column_that_is_null_in_one_part_has_the_type_of_the_next(tmp_path: Path, home: Path) -> None:
    parts: dict[int, dict[str, object]] = {
        1: {"year": pa.nulls(2)},
        2: {"year": [1900, 1901]},
        3: {"year": [1.5, None]},
    }
    version = import_embeddings("mine", clip_folder(tmp_path / "in", parts), RANDOM)
    assert dict(version.columns) == {"year": "float64"}
    assert sorted(row["year"] or 0 for row in rows_of("mine", "year")) == [0, 0, 0, 1.5, 1900, 1901]
    with pytest.raises(SourceError, match=r"column 'year' holds string in img_emb_2.*int64"):
        import_embeddings(
            "other", clip_folder(tmp_path / "bad", {1: {"year": [1, 2]}, 2: {"year": ["a", "b"]}}), RANDOM
        )


def test_ids_in_bytes_and_unsigned_numbers_are_kept(tmp_path: Path, home: Path) -> None:
    ids = np.array([b"a1", "ä2".encode()])
    np.savez(
        tmp_path / "a.npz",
        embedding=np.eye(2, 16, dtype=np.float32),
        img_id=ids,
        big=np.array([1, 2**63 + 1], np.uint64),
    )
    version = import_embeddings("mine", tmp_path / "a.npz", RANDOM)
    assert dict(version.columns) == {"img_id": "string", "big": "string"}
    assert {(row["img_id"], row["big"]) for row in rows_of("mine", "img_id", "big")} == {
        ("a1", "1"),
        ("ä2", str(2**63 + 1)),
    }


def test_crops_of_an_oriented_tiff_are_made_as_of_a_jpeg(tmp_path: Path, home: Path) -> None:
    from PIL import Image

    folder = tmp_path / "in"
    folder.mkdir()
    for form in ("TIFF", "JPEG"):
        image = Image.open(io.BytesIO(jpeg(1, 64))).resize((96, 64))
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(folder / f"a.{form.lower()}", form, exif=exif)
    target = Path(manifest_of(tmp_path / "mine.toml", folder))
    target.write_text(target.read_text() + "[patches]\nper_image = 4\nsize = 32\n")
    built = quiet_build(str(target))
    assert (built.input, built.ok) == (8, 8)


def test_output_that_the_terminal_cannot_write_is_no_traceback(tmp_path: Path, home: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "波.png").write_bytes(picture(1))
    (folder / "富.png").write_bytes(b"no picture")
    quiet_build(folder, name="mine")
    ended = command("failures", "mine", home=home, PYTHONIOENCODING="latin-1")
    out, err = ended.communicate()
    assert ended.returncode == 0, err
    assert "\\u5bcc.png" in out
