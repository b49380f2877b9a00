"""Folders of pictures with and without metadata.csv, and with other files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.catalog.manifests import manifest_for_path
from pipeline.errors import SourceError
from pipeline.sources import Sample, SourceOptions, SourceSpec, open_source, sniff
from pipeline.sources.names import is_junk, safe_path
from tests.pictures import HTML, csv_of, jpeg, png


def samples(folder: Path, options: SourceOptions | None = None) -> list[Sample]:
    source = open_source(manifest_for_path(folder), options)
    return [sample for spec in source.plan() for sample in source.read(spec.spec)]


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_real_paintings_come_with_their_csv_lines(shared: Path) -> None:
    found = {sample.item_id: sample for sample in samples(shared / "data" / "paintings")}
    assert len(found) == 30
    spring = found["board2.jpg"]
    assert spring.metadata == {
        "artist": "Giuseppe Arcimboldo",
        "title": "Spring",
        "date": "1573",
        "style": "renaissance",
        "source_width": 347,
        "source_height": 421,
    }
    assert spring.data == (shared / "data" / "paintings" / "board2.jpg").read_bytes()


def test_pictures_of_all_subfolders_are_rows_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.png", "a.jpg", "Z.JPG", "notes.txt", ".hidden/x.jpg", "._a.jpg", "__MACOSX/a.jpg"):
        write(tmp_path, name, png(1))
    write(tmp_path, "富嶽/波 裏.jpg", jpeg(1))
    assert [sample.item_id for sample in samples(tmp_path)] == [
        "Z.JPG",
        "a.jpg",
        "b/10.png",
        "b/2.png",
        "富嶽/波 裏.jpg",
    ]


def test_listed_files_that_are_missing_are_failed_rows_with_their_metadata(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", jpeg(1))
    csv_of(
        tmp_path / "metadata.csv", [{"file_name": "gone.jpg", "title": "Lost"}, {"file_name": "./a.jpg", "title": "A"}]
    )
    found = samples(tmp_path)
    assert [(s.item_id, s.metadata["title"], s.error) for s in found] == [
        ("a.jpg", "A", None),
        ("gone.jpg", "Lost", "missing_file: gone.jpg"),
    ]


def test_nothing_outside_the_folder_is_ever_read(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    secret = write(tmp_path, "secret.jpg", jpeg(9))
    write(folder, "real.jpg", jpeg(1))
    write(tmp_path / "elsewhere", "x.jpg", jpeg(8))
    (folder / "out.jpg").symlink_to(secret)
    (folder / "inside.jpg").symlink_to(folder / "real.jpg")
    (folder / "dir").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    (folder / "broken.jpg").symlink_to(folder / "nowhere.jpg")
    csv_of(folder / "metadata.csv", [{"file_name": "../secret.jpg"}, {"file_name": str(secret)}])
    found = {sample.item_id: sample for sample in samples(folder)}
    errors = {name: (sample.error or "ok").split(":")[0] for name, sample in found.items()}
    assert errors == {
        "../secret.jpg": "unsafe_name",
        str(secret): "unsafe_name",
        "broken.jpg": "missing_file",
        "inside.jpg": "ok",
        "out.jpg": "unsafe_name",
        "real.jpg": "ok",
    }
    assert jpeg(9) not in [sample.data for sample in found.values()]


def test_what_is_no_regular_file_is_a_failed_row_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    write(tmp_path, "a.jpg", jpeg(1))
    (tmp_path / "folder.jpg").mkdir()
    found = samples(tmp_path)
    assert [(s.item_id, (s.error or "ok").split(":")[0]) for s in found] == [
        ("a.jpg", "ok"),
        ("pipe.jpg", "not_a_file"),
    ]


def test_a_huge_file_is_a_failed_row_and_is_not_read(tmp_path: Path) -> None:
    with write(tmp_path, "huge.jpg", b"").open("wb") as out:
        out.truncate(300 << 20)
    assert [(s.error or "").split(":")[0] for s in samples(tmp_path)] == ["too_large"]


def test_a_name_that_is_not_utf8_is_read_and_written_readably(tmp_path: Path) -> None:
    write(tmp_path, os.fsdecode(b"caf\xe9.jpg"), jpeg(3))
    (found,) = samples(tmp_path)
    assert (found.item_id, found.data) == ("caf\\xe9.jpg", jpeg(3))


def test_the_limit_and_shards_cover_the_sorted_list(tmp_path: Path) -> None:
    for i in range(2500):
        write(tmp_path, f"{i:04d}.jpg", b"\xff\xd8\xff" + str(i).encode())
    specs = list(open_source(manifest_for_path(tmp_path), SourceOptions(limit=2100)).plan())
    assert [spec.rows for spec in specs] == [1000, 1000, 100]
    assert samples(tmp_path, SourceOptions(limit=3))[2].item_id == "0002.jpg"


def test_a_changed_picture_or_line_changes_its_shards_fingerprint_and_a_move_does_not(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    write(folder, "x.jpg", jpeg(1))
    csv_of(folder / "metadata.csv", [{"file_name": "x.jpg", "title": "old"}])

    def fingerprint(where: Path) -> str:
        return next(iter(open_source(manifest_for_path(where)).plan())).fingerprint

    first = fingerprint(folder)
    assert fingerprint(folder.rename(tmp_path / "b")) == first
    csv_of(tmp_path / "b" / "metadata.csv", [{"file_name": "x.jpg", "title": "new"}])
    second = fingerprint(tmp_path / "b")
    write(tmp_path / "b", "x.jpg", jpeg(2) + b"x")
    assert len({first, second, fingerprint(tmp_path / "b")}) == 3


def test_a_folder_without_pictures_or_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no pictures in"):
        samples(tmp_path)
    with pytest.raises(SourceError, match="no folder at"):
        samples(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "data, extension, reason",
    [
        (jpeg(1), "jpg", None),
        (png(1), "png", None),
        (b"RIFF\0\0\0\0WEBPVP8 ", "webp", None),
        (b"GIF89a....", "gif", None),
        (b"", "", "empty"),
        (HTML, "", "not_an_image"),
        (b"\xef\xbb\xbf \n<html>", "", "not_an_image"),
        (b"<svg xmlns='x'/>", "", "not_an_image"),
        (b"\0" * 100, "", "not_an_image"),
        (b"BM", "", "not_an_image"),
    ],
)
def test_first_bytes_say_what_a_file_is(data: bytes, extension: str, reason: str | None) -> None:
    found, error = sniff(data)
    assert found == extension and (error.split(":")[0] if error else None) == reason


def test_junk_and_unsafe_names_are_known() -> None:
    assert [is_junk(name) for name in ("a/._b.jpg", "./a.jpg", "a/../b.jpg", "Thumbs.db", "a.b/c.jpg")] == [
        True,
        False,
        False,
        True,
        False,
    ]
    names = ("a/./b//c.jpg", "/a.jpg", "a/../b.jpg", "..", "", "a\0.jpg")
    assert [safe_path(name) for name in names] == ["a/b/c.jpg", None, None, None, None, None]


def test_a_folder_manifest_takes_no_options(tmp_path: Path) -> None:
    from dataclasses import replace

    write(tmp_path, "a.jpg", jpeg(1))
    made = manifest_for_path(tmp_path)
    with pytest.raises(Exception, match="unknown key 'depth'"):
        open_source(replace(made, source=SourceSpec(kind="folder", path=str(tmp_path), options={"depth": 1})))


def test_a_link_in_a_circle_is_a_failed_row_and_not_the_end(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", jpeg(1))
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    (tmp_path / "below").symlink_to(".")
    found = {sample.item_id: sample.error for sample in samples(tmp_path)}
    assert list(found) == ["a.jpg", "circle.jpg"]
    assert found["a.jpg"] is None
    assert (found["circle.jpg"] or "").startswith("unreadable")
