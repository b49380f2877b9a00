"""Files as people have them: each file is a row or is counted, and no value is changed."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import shutil
import struct
import subprocess
import unicodedata
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.catalog.manifests import manifest_for_path
from pipeline.cli.query import _is_picture_file
from pipeline.errors import ConfigError, PictureError, PromptError, SourceError
from pipeline.exchange import left_out
from pipeline.exchange.npz import read_parts
from pipeline.generation.prompts import read_prompts
from pipeline.images import decode, upright_size
from pipeline.sources import Manifest, Sample, Source, SourceOptions, SourceSpec, open_source, sniff
from pipeline.sources.metadata import MetadataTable
from tests.pictures import jpeg, png, tar_of


def folder_source(folder: Path) -> Source:
    return open_source(manifest_for_path(folder))


def source_of(kind: str, options: SourceOptions | None = None, /, **keys: Any) -> Source:
    return open_source(Manifest("pictures", "t", SourceSpec(kind=kind, **keys), "unknown", "t", "o"), options)


def samples(source: Source) -> dict[str, Sample]:
    return {sample.item_id: sample for spec in source.plan() for sample in source.read(spec.spec)}


def outcomes(source: Source) -> dict[str, str]:
    """item id -> ok, or the reason of its failure."""
    return {name: (sample.error or "ok").split(":")[0] for name, sample in samples(source).items()}


def table_of(path: Path, text: str | bytes) -> MetadataTable:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return MetadataTable([(path, "")])


# ---- every file is a row or is counted


def test_a_picture_is_a_row_whatever_its_suffix_and_every_other_file_is_counted(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.JFIF", "c.jpe", "d", "e.jpg_large"):
        (tmp_path / name).write_bytes(jpeg(1))
    for name in ("notes.txt", "painting.xmp", "README"):
        (tmp_path / name).write_bytes(b"text")
    for name in ("._a.jpg", ".DS_Store", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"junk")
    (tmp_path / "drawing.svg").write_bytes(b"<svg/>")
    (tmp_path / "elsewhere").symlink_to(tmp_path.parent)
    source = folder_source(tmp_path)
    assert list(samples(source)) == ["a.jpg", "b.JFIF", "c.jpe", "d", "drawing.svg", "e.jpg_large"]
    assert source.left_out() == {
        ".txt": 1, ".xmp": 1, "no suffix": 1, "system files": 3, "links to folders": 1,
    }  # fmt: skip


def test_patterns_match_whatever_the_case_and_the_accents_and_the_rest_is_counted(tmp_path: Path) -> None:
    folder = tmp_path / unicodedata.normalize("NFD", "café")
    folder.mkdir()
    for name in ("a.jpg", "b.JPG", "c.png", "d.txt", "._a.jpg"):
        (folder / name).write_bytes(jpeg(1))
    source = source_of("folder", path=str(tmp_path), files=(unicodedata.normalize("NFC", "café/*.jpg"),))
    assert [PurePosixPath(name).name for name in samples(source)] == ["a.jpg", "b.JPG"]
    assert source.left_out() == {".png": 1, ".txt": 1, "system files": 1}
    single = source_of("folder", path=str(folder), files=("c.png",))
    assert (list(samples(single)), single.left_out()) == (["c.png"], {})


def test_a_search_by_the_name_of_a_picture_is_one_by_the_picture(tmp_path: Path) -> None:
    (tmp_path / "a boat.JPG").write_bytes(jpeg(1))
    assert _is_picture_file(str(tmp_path / "a boat.JPG"))
    assert not any(map(_is_picture_file, ("a boat", "a boat.", "the file castle.png", "castle.txt")))
    with pytest.raises(ConfigError, match="no such file"):
        _is_picture_file("castle.png")


def test_files_in_a_hidden_folder_do_not_determine_the_kind_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "a.jpg").write_bytes(jpeg(1))
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "b.jpg").write_bytes(jpeg(1))
    parquet_of(tmp_path, "1.parquet", year=[1900])
    source = folder_source(tmp_path)
    assert list(samples(source)) == ["1.parquet#0"] and source.left_out() == {"system files": 2}


@pytest.mark.parametrize("kind", ["tar", "webdataset"])
def test_pictures_without_a_known_suffix_in_archives_are_rows(tmp_path: Path, home: Path, kind: str) -> None:
    path = tar_of(
        tmp_path / "a.tar", [("one", jpeg(1)), ("two.jfif", jpeg(2)), ("._two.jfif", b"x"), ("three.jp2", b"x")]
    )
    source = source_of(kind, path=str(path))
    assert [sample.data for sample in samples(source).values()] == [jpeg(1), jpeg(2), b"x"]
    assert source.left_out() == {"system files": 1}


CASES = ("02_jp2_named.jpg", "03_avif_mif1.avif", "04_bigtiff.tif")


@pytest.mark.parametrize("name", CASES)
def test_what_the_decoder_reads_is_accepted_when_it_is_downloaded(shared: Path, name: str) -> None:
    data = (shared / "cases" / "inputs" / name).read_bytes()
    extension, error = sniff(data)
    assert error is None and extension in ("jp2", "avif", "tif")
    assert decode(data).width == 96


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "MPO", "DIB"])
def test_the_sniffer_agrees_with_pillow_about_what_pillow_writes(form: str) -> None:
    out = io.BytesIO()
    Image.fromarray(np.arange(48 * 48 * 3, dtype=np.uint8).reshape(48, 48, 3)).save(out, form)
    readable = True
    try:
        decode(out.getvalue())
    except PictureError:
        readable = False
    assert (sniff(out.getvalue())[1] is None) == readable
    assert readable or form == "DIB"


def test_heic_and_jpeg_xl_are_read_with_their_plugins() -> None:
    heif = pytest.importorskip("pillow_heif")
    pytest.importorskip("pillow_jxl")
    heif.register_heif_opener()
    for form, extension in (("HEIF", "heic"), ("JXL", "jxl")):
        out = io.BytesIO()
        Image.new("RGB", (32, 24), (200, 10, 10)).save(out, form)
        assert sniff(out.getvalue()) == (extension, None)
        assert decode(out.getvalue()).width == 32


# ---- samples of more than eight bits


def grey_tiff(values: np.ndarray[Any, Any], bits: int, photometric: int = 1, form: int = 1) -> bytes:
    """A TIFF of one strip, written by hand: Pillow writes few of these."""
    height, width = values.shape
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(np.uint32)
        packed = (pairs[:, 0] << 12) | pairs[:, 1]
        data = b"".join(int(number).to_bytes(3, "big") for number in packed)
    else:
        data = values.tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height),
            (279, len(data)), (339, form)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + b"\0" * 4


RAMP = np.tile(np.linspace(0.0, 1.0, 64), (16, 1))


@pytest.mark.parametrize(
    "data",
    [
        grey_tiff(np.rint(RAMP * 4095).astype("<u2"), 12),
        grey_tiff(np.rint(RAMP * 65535).astype("<u2"), 16),
        grey_tiff(np.rint((1 - RAMP) * 65535).astype("<u2"), 16, photometric=0),
        grey_tiff(np.rint(RAMP * 32767).astype("<i2"), 16, form=2),
        grey_tiff(RAMP.astype("<f4"), 32, form=3),
        grey_tiff((RAMP * 255).astype("<f4"), 32, form=3),
        b"P5 64 16 4095\n" + np.rint(RAMP * 4095).astype(">u2").tobytes(),
        cv2.imencode(".png", np.rint(RAMP * 65535).astype(np.uint16))[1].tobytes(),
        cv2.imencode(".pgm", np.rint(RAMP * 65535).astype(np.uint16))[1].tobytes(),
    ],
    ids=["12", "16", "16 white is zero", "signed", "float", "float 255", "pgm 12", "png", "pgm"],
)
def test_deep_grey_is_scaled_by_what_the_file_says(data: bytes) -> None:
    grey = decode(data).pixels[..., 0].astype(float)
    assert np.abs(grey - RAMP * 255).max() <= 1.0


@pytest.mark.parametrize(
    "data",
    [
        grey_tiff((RAMP * 65535).astype("<f4"), 32, form=3),
        grey_tiff((RAMP * 200 - 100).astype("<i2"), 16, form=2),
        grey_tiff((RAMP * 127).astype("i1"), 8, form=2),
        grey_tiff((RAMP * 2**30).astype("<u4"), 32),
        grey_tiff(RAMP.astype("<f8"), 64, form=3),
        grey_tiff(np.rint((1 - RAMP) * 4095).astype("<u2"), 12, photometric=0),  # Pillow does not read it
    ],
    ids=["floats to 65535", "negative", "8 bits signed", "32 bits", "64-bit floats", "12 white is zero"],
)
def test_samples_without_a_known_white_are_failed_rows(data: bytes) -> None:
    with pytest.raises(PictureError, match=r"unsupported_samples|corrupt"):
        decode(data)


@pytest.mark.parametrize("name", ["05_g12.tif", "05_g16_whiteiszero.tif"])
def test_the_scans_that_came_out_black_or_negative_look_like_the_painting(shared: Path, name: str) -> None:
    found = decode((shared / "cases" / "inputs" / name).read_bytes()).pixels[..., 0].astype(float)
    right = decode((shared / "cases" / "inputs" / "02_jp2_named.jpg").read_bytes()).pixels.astype(float).mean(axis=2)
    assert np.corrcoef(found.ravel(), right.ravel())[0, 1] > 0.9
    assert abs(found.mean() - right.mean()) < 20


def test_a_raw_photograph_whose_first_picture_is_a_thumbnail_is_a_failed_row() -> None:
    out = io.BytesIO()
    Image.new("RGB", (16, 12)).save(out, "TIFF", tiffinfo={254: 1})  # as DNG and NEF begin
    with pytest.raises(PictureError, match="unsupported_format"):
        decode(out.getvalue())


@pytest.mark.parametrize(
    ("head", "told"),
    [(b"\0\0\1\0", "ICO"), (b"%!PS-Adobe", "EPS"), (b"\x76\x2f\x31\x01", "OpenEXR"), (b"8BPS", "Photoshop")],
)
def test_pictures_that_are_not_decoded_say_what_they_are(head: bytes, told: str) -> None:
    error = sniff(head + bytes(100))[1] or ""
    assert error.startswith("unsupported_format: ") and told in error


@pytest.mark.parametrize("form", ["TIFF", "JPEG", "PNG", "WEBP", "AVIF", "MPO"])
def test_the_upright_size_of_an_oriented_picture_is_that_of_its_pixels(form: str) -> None:
    for orientation in range(1, 9):
        image = Image.new("RGB", (40, 20))
        exif = image.getexif()
        exif[0x0112] = orientation
        out = io.BytesIO()
        image.save(out, form, exif=exif)
        picture = decode(out.getvalue())
        assert upright_size(out.getvalue()) == (picture.width, picture.height) == picture.image.size


# ---- metadata beside pictures


def test_a_column_is_a_number_only_where_every_text_comes_back(tmp_path: Path) -> None:
    table = table_of(
        tmp_path / "metadata.csv",
        "\ufefffile_name,id,year,price,public,note,accession,large,power,mixed,\n"
        'a.jpg,007,1900,1.5,TRUE,"two\nlines, quoted",1971.10,12345678901234567890,1e10,5,x\n'
        "b.jpg,12,,2,False,,1971.1,12345678901234567891,2e10,5.0,\n"
        "c.jpg,13,1902,,true,3,1972.2,1,3,6,\n",
    )
    assert table.kinds() == {
        "id": "string",
        "year": "int64",
        "price": "float64",
        "public": "bool",
        "note": "string",
        "accession": "string",
        "large": "string",
        "power": "string",
        "mixed": "string",
        "column_10": "string",
    }
    assert [row["note"] for row in table.rows([0, 1, 2])] == ["two\nlines, quoted", None, "3"]
    assert [row["accession"] for row in table.rows([0, 1])] == ["1971.10", "1971.1"]
    assert table.find(["b.jpg"]) == 1


def test_a_number_of_one_file_is_written_as_it_was_where_another_file_makes_the_column_text(tmp_path: Path) -> None:
    for folder, years in (("a", ["1900", "1900.5"]), ("b", ["about 1900", "TRUE"])):
        (tmp_path / folder).mkdir()
        for number in range(2):
            (tmp_path / folder / f"{number}.jpg").write_bytes(jpeg(number))
        lines = [f"{number}.jpg,{year},{number == 0}".upper() for number, year in enumerate(years)]
        (tmp_path / folder / "Metadata.CSV").write_text(
            "file_name,year,public\n" + "\n".join(lines).replace("JPG", "jpg")
        )
    found = samples(folder_source(tmp_path)).values()
    assert [sample.metadata["year"] for sample in found] == ["1900", "1900.5", "ABOUT 1900", "TRUE"]
    assert [sample.metadata["public"] for sample in found] == [True, False, True, False]


def test_a_text_far_down_a_column_is_seen(tmp_path: Path) -> None:
    table = table_of(
        tmp_path / "a.csv", "name,year\n" + "".join(f"{i}.jpg,{i}\n" for i in range(5_000)) + "z.jpg,about 1900\n"
    )
    assert [row["year"] for row in table.rows([5_000, 7])] == ["about 1900", "7"]


@pytest.mark.parametrize("content", [b"", b"a,b\n1\n", b"\xff\xfen\0a\0", b"<html><body>log in</body></html>"])
def test_what_is_no_metadata_csv_is_an_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(SourceError, match=r"CSV|column"):
        table_of(tmp_path / "a.csv", content)


def test_rows_of_the_wrong_length_or_with_an_open_quote_fail_alone(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / f"{name}.jpg").write_bytes(jpeg(1))
    (tmp_path / "metadata.csv").write_text(
        'file_name,title\na.jpg,One, and two\nb.jpg,"12 inch\nc.jpg,Three\nd.jpg,Four\n\nd.jpg,Five\n,Six\n'
    )
    found = samples(folder_source(tmp_path))
    assert {name: (s.metadata["title"], (s.error or "ok").split(":")[0]) for name, s in found.items()} == {
        "a.jpg": (None, "bad_metadata"),
        "b.jpg": (None, "bad_metadata"),
        "c.jpg": ("Three", "ok"),
        "d.jpg": ("Four", "ok"),
        "metadata.csv line 7": ("Five", "duplicate_line"),
        "metadata.csv line 8": ("Six", "no_name"),
    }
    assert "line 2" in (found["a.jpg"].error or "") and "line 3" in (found["b.jpg"].error or "")


@pytest.mark.parametrize(
    "text",
    [
        "file_name;title;year\r\na.jpg;Müller, A.;1900\r\n".encode("cp1252"),
        "file_name\ttitle\tyear\na.jpg\tMüller, A.\t1900\n".encode(),
        '\ufefffile_name,title,year\n"a.jpg","Müller, A.","1900"\n'.encode(),
    ],
    ids=["Excel with semicolons, Latin-1", "tabs", "quoted, with a mark"],
)
def test_csv_as_spreadsheets_write_it_is_read(tmp_path: Path, text: bytes) -> None:
    table = table_of(tmp_path / "metadata.csv", text)
    assert table.rows([table.find(["a.jpg"])]) == [{"file_name": "a.jpg", "title": "Müller, A.", "year": 1900}]


def test_jsonl_beside_pictures_is_read_and_a_bad_line_is_a_row(tmp_path: Path) -> None:
    for folder in ("train", "test"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").write_bytes(jpeg(1))
        lines = [json.dumps({"file_name": "1.jpg", "caption": folder, "id": 2**70, "rank": float("nan")}), "{broken"]
        (tmp_path / folder / "metadata.jsonl").write_text("\n".join(lines))
    found = samples(folder_source(tmp_path))
    assert [found[f"{folder}/1.jpg"].caption for folder in ("train", "test")] == ["train", "test"]
    assert found["train/1.jpg"].metadata == {"id": str(2**70), "rank": None}
    assert outcomes(folder_source(tmp_path))["train/metadata.jsonl line 2"] == "bad_metadata"


def test_names_are_equal_whatever_the_form_of_their_accents(tmp_path: Path) -> None:
    for name, form in (("café.jpg", "NFD"), ("naïve.jpg", "NFC")):
        (tmp_path / unicodedata.normalize(form, name)).write_bytes(jpeg(1))
    lines = [unicodedata.normalize("NFC", "café.jpg,A"), unicodedata.normalize("NFD", "naïve.jpg,B")]
    (tmp_path / "metadata.csv").write_text("file_name,title\n" + "\n".join(lines) + "\n", encoding="utf-8")
    found = samples(folder_source(tmp_path))
    assert [(s.metadata["title"], s.error) for s in found.values()] == [("A", None), ("B", None)]


# ---- lists of addresses


def list_of(path: Path, text: str) -> dict[str, Sample]:
    path.write_text(text, encoding="utf-8")
    return samples(source_of("urls", path=str(path), image="url", options={"format": "csv"}))


def test_a_bad_row_of_a_list_fails_with_its_line_and_takes_no_other_with_it(shared: Path, tmp_path: Path) -> None:
    found = list_of(tmp_path / "list.csv", (shared / "cases" / "inputs" / "url_list.csv").read_text())
    addresses = [sample.address for sample in found.values()]
    assert addresses == ["", "", "", "http://127.0.0.1:8765/4.jpg"]
    errors = [(sample.error or "").split(" of ")[0] for sample in found.values()]
    assert errors == ["bad_row: line 2", "bad_row: line 3", "bad_row: line 4", ""]


def test_a_quote_that_is_closed_in_a_later_row_swallows_no_row(tmp_path: Path) -> None:
    found = list_of(
        tmp_path / "list.csv",
        'url,caption\nhttp://h/1.jpg,"open\nhttp://h/2.jpg,two\nhttp://h/3.jpg,closed"\n'
        'http://h/4.jpg,"several\nlines, and commas"\nhttp://h/5.jpg,"a ""quoted"" word"\nhttp://h/6.jpg\n',
    )
    assert [sample.address[-5:] for sample in found.values()] == ["", "2.jpg", "3.jpg", "4.jpg", "5.jpg", ""]
    captions = [sample.caption for sample in found.values() if sample.address]
    assert captions == ["two", 'closed"', "several\nlines, and commas", 'a "quoted" word']


def test_a_range_of_a_list_knows_its_lines(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("url,caption\n" + "".join(f"http://h/{i}.jpg,c\n" for i in range(7)) + "x\n")
    source = source_of("urls", path=str(tmp_path / "list.csv"), image="url", options={"format": "csv"}, shard_rows=3)
    last = list(source.plan())[-1]
    assert [sample.error for sample in source.read(last.spec)][-1] == (
        "bad_row: line 9 of list.csv: 1 cells, expected 2; a cell with ',' in it needs quotes"
    )


def test_lists_of_one_set_have_the_columns_of_all_files(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("url,title\nhttp://h/1.jpg,One\n")
    (tmp_path / "2.CSV").write_text("artist;url\nKlee;http://h/2.jpg\n")
    (tmp_path / "._1.csv").write_text("junk")
    listed: dict[str, Any] = {"path": str(tmp_path), "image": "url", "options": {"format": "csv"}}
    source = source_of("urls", **listed)
    assert source.columns() == {"title": "string", "artist": "string"}
    assert [dict(sample.metadata) for sample in samples(source).values()] == [{"title": "One"}, {"artist": "Klee"}]
    assert source.left_out() == {"system files": 1}
    (tmp_path / "3.csv").write_text("link\nhttp://h/3.jpg\n")
    with pytest.raises(SourceError, match=r"3\.csv: no column 'url'"):
        source_of("urls", **listed).columns()
    assert source_of("urls", SourceOptions(limit=2), **listed).columns() == {"title": "string", "artist": "string"}
    assert source_of("urls", SourceOptions(limit=1), **listed).columns() == {"title": "string"}


def test_a_line_about_a_picture_that_another_line_describes_is_a_row_of_a_tar_too(tmp_path: Path, home: Path) -> None:
    path = tar_of(tmp_path / "a.tar", [("a.jpg", jpeg(1))])
    (tmp_path / "a.csv").write_text("file_name,title\na.jpg,One\na.jpg,Two\n,Three\nb.jpg,Four\n")
    found = samples(source_of("tar", path=str(path), csv=str(tmp_path / "a.csv")))
    errors = [(sample.metadata["title"], (sample.error or "ok").split(":")[0]) for sample in found.values()]
    assert errors[-2:] == [("Three", "no_name"), ("Four", "missing_file")]
    source = source_of("tar", path=str(path), csv=str(tmp_path / "a.csv"))
    rows = [sample for spec in source.plan() for sample in source.read(spec.spec)]
    assert [(row.metadata["title"], (row.error or "ok").split(":")[0]) for row in rows[:2]] == [
        ("One", "ok"),
        ("Two", "duplicate_line"),
    ]


# ---- Parquet files of one set


def parquet_of(folder: Path, name: str, **columns: Any) -> None:
    folder.mkdir(exist_ok=True)
    rows = len(next(iter(columns.values())))
    table = pa.table({"image": [jpeg(i) for i in range(rows)], **columns})
    pq.write_table(table, folder / name)


def test_files_of_one_set_have_one_schema(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    parquet_of(folder, "1.parquet", year=pa.array([1890, None], pa.int32()), note=pa.nulls(2), title=["a", "b"])
    parquet_of(folder, "2.parquet", year=[1890.5], note=["x"], title=["c"], late=[True])
    parquet_of(folder, "3.PARQUET", year=pa.nulls(1), note=pa.nulls(1), title=pa.nulls(1))
    (folder / "._1.parquet").write_bytes(b"junk")
    (folder / "notes.txt").write_bytes(b"x")
    source = source_of("parquet", path=str(folder))
    assert source.columns() == {"year": "float64", "note": "string", "title": "string", "late": "bool"}
    assert [spec.rows for spec in source.plan()] == [2, 1, 1]
    assert source.left_out() == {".txt": 1, "system files": 1}


def test_types_that_do_not_fit_name_the_file_and_the_column(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    parquet_of(folder, "1.parquet", year=[1890])
    parquet_of(folder, "2.parquet", year=[True])
    with pytest.raises(SourceError, match=r"2\.parquet: column 'year' holds bool, but int64 in 1\.parquet"):
        source_of("parquet", path=str(folder)).columns()
    pq.write_table(pa.table({"picture": [b"x"]}), folder / "3.parquet")
    (folder / "2.parquet").unlink()
    with pytest.raises(SourceError, match=r"3\.parquet: no image column 'image'"):
        source_of("parquet", path=str(folder)).columns()


def test_numbers_that_a_column_type_would_change_are_text(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    parquet_of(
        folder, "1.parquet",
        small=pa.array([1], pa.uint64()), large=pa.array([2**63 + 5], pa.uint64()),
        id=pa.array([Decimal("12345678901234567890")]), price=pa.array([Decimal("12.30")]), caption=["\ufeffA wave"],
    )  # fmt: skip
    source = source_of("parquet", path=str(folder))
    assert source.columns() == {"small": "int64", "large": "string", "id": "string", "price": "float64"}
    (found,) = samples(source).values()
    assert found.metadata == {"small": 1, "large": str(2**63 + 5), "id": "12345678901234567890", "price": 12.3}
    assert found.caption == "A wave"


# ---- webdatasets


def test_dots_in_names_and_masks_before_pictures(shared: Path, home: Path) -> None:
    inputs = shared / "cases" / "inputs"
    found = samples(source_of("webdataset", path=str(inputs / "dots.tar")))
    assert [(name, sample.caption) for name, sample in found.items()] == [
        ("dots/J.M.W.Turner.rain", "rain"),
        ("dots/J.M.W.Turner.snow", "snow"),
        ("dots/van.gogh.1", None),
        ("dots/van.gogh.2", None),
    ]
    source = source_of("webdataset", path=str(inputs / "mask_first.tar"))
    sizes = {name: len(sample.data or b"") for name, sample in samples(source).items()}
    assert sizes == {"mask_first/000": 112447, "mask_first/001": 58236}
    assert source.left_out() == {".depth.png": 1, ".mask.png": 1}


def test_tars_of_one_set_have_one_schema(tmp_path: Path, home: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    rows: list[dict[str, object]] = [{"year": 1890, "note": None}, {"year": 1890.5, "note": "x", "late": True}]
    for number, row in enumerate([*rows, {"year": "about 1900", "only in the third": 1}], 1):
        tar_of(folder / f"{number}.tar", [("a.jpg", jpeg(number)), ("a.json", json.dumps(row).encode())])
    source = source_of("webdataset", path=str(folder))
    assert source.columns() == {"year": "string", "note": "string", "late": "bool", "only in the third": "int64"}
    assert [sample.metadata["year"] for sample in samples(source).values()] == ["1890", "1890.5", "about 1900"]
    two = open_source(
        Manifest("pictures", "t", SourceSpec("webdataset", path=str(folder)), "", "t", "o"), SourceOptions(limit=2)
    )
    assert two.columns() == {"year": "float64", "note": "string", "late": "bool"}
    (spec, *_) = source.plan()
    older = {name: value for name, value in spec.spec.items() if name != "kinds"}  # as plans were before
    assert [dict(sample.metadata) for sample in source.read(older)] == [{"year": 1890, "note": None}]


def test_members_of_one_key_belong_together_whatever_the_form_of_their_accents(tmp_path: Path, home: Path) -> None:
    nfd, nfc = (unicodedata.normalize(form, "Édouard.Manet") for form in ("NFD", "NFC"))
    path = tar_of(tmp_path / "a.tar", [(f"{nfd}.jpg", jpeg(1)), (f"{nfc}.txt", b"one"), ("b.jpg", jpeg(2)),
                                       ("b.txt", b"two"), ("b.TXT", b"three"), ("b.json", b"{}"), ("b.Json", b"")])  # fmt: skip
    source = source_of("webdataset", path=str(path))
    assert {name: (sample.caption, sample.error) for name, sample in samples(source).items()} == {
        f"a/{nfd}": ("one", None),
        "a/b": ("two", None),
    }
    assert source.left_out() == {".Json": 1, ".TXT": 1}


def test_a_caption_that_is_no_number_is_none(tmp_path: Path, home: Path) -> None:
    path = tar_of(tmp_path / "a.tar", [("1.jpg", jpeg(1)), ("1.json", b'{"caption": NaN, "rank": Infinity}'),
                                       ("2.jpg", jpeg(2)), ("2.json", b'{"caption": "two", "rank": 1}')])  # fmt: skip
    found = samples(source_of("webdataset", path=str(path)))
    assert [sample.caption for sample in found.values()] == [None, "two"]


def test_a_second_picture_of_a_key_is_a_failed_row(tmp_path: Path, home: Path) -> None:
    path = tar_of(tmp_path / "a.tar", [("1.jpg", jpeg(1)), ("1.png", png(1)), ("1.txt", "\ufeffcafé".encode()),
                                       ("2.jpg", jpeg(2)), ("2.txt", "café".encode("latin-1"))])  # fmt: skip
    source = source_of("webdataset", path=str(path))
    assert outcomes(source) == {"a/1": "ok", "a/1.png": "second_picture", "a/2": "ok"}
    assert [sample.caption for sample in samples(source).values()] == ["café", None, "café"]


def test_tars_by_any_name_are_read_and_concatenated_ones_whole(tmp_path: Path, home: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    tar_of(folder / "1.TAR", [("a.jpg", jpeg(1))])
    tar_of(folder / "2.tar.gz", [("b.jpg", jpeg(2))], "w:gz")
    parts = [tar_of(tmp_path / f"{i}", [(f"{i}.jpg", jpeg(i))]).read_bytes() for i in (3, 4)]
    (folder / "3.tar").write_bytes(parts[0] + parts[1])
    (folder / "._1.TAR").write_bytes(b"junk")
    (folder / "5.tar.zst").write_bytes(b"x")
    source = source_of("webdataset", path=str(folder))
    assert [sample.data for sample in samples(source).values()] == [jpeg(i) for i in (1, 2, 3, 4)]
    assert source.left_out() == {".zst": 1, "system files": 1}


# ---- every reader, and files made by other programs


# What else writes pictures, if it is installed: the command, and suffixes that it takes for formats.
PROGRAMS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "magick": (
        ["convert", "{input}", "{output}"],
        ("jpg", "png", "tif", "gif", "bmp", "webp", "jp2", "psd", "tga", "pcx"),
    ),
    "gm": (["gm", "convert", "{input}", "{output}"], ("jpg", "png", "tif", "ppm", "bmp")),
    "gdal": (["gdal_translate", "-of", "{form}", "{input}", "{output}"], ("jpeg", "png", "gtiff", "webp")),
    "vips": (["vips", "copy", "{input}", "{output}"], ("jpg", "png", "tif", "webp", "jp2", "v")),
}


def is_imagemagick(program: str) -> bool:
    """Whether `convert` is ImageMagick's; some machines have another program of this name."""
    return b"Copyright" in subprocess.run([program, "-version"], capture_output=True, timeout=60).stdout


def made_by_others(folder: Path) -> dict[str, bytes]:
    """Pictures made by Pillow, OpenCV and the installed command-line programs, and files that are not pictures."""
    generator = np.random.default_rng(5)
    pixels = generator.integers(0, 256, (40, 56, 3), dtype=np.uint8)
    files: dict[str, bytes] = {}
    forms = {"jpg": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "png": "PNG", "gif": "GIF", "bmp": "BMP", "tif": "TIFF",
             "webp": "WEBP", "ppm": "PPM", "jp2": "JPEG2000", "avif": "AVIF", "JPG": "MPO"}  # fmt: skip
    for suffix, form in forms.items():
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, form)
        files[f"pillow {form} é.{suffix}" if suffix != "JPG" else "pillow.MPO.JPG"] = out.getvalue()
    for suffix in (".jpg", ".png", ".tiff", ".pgm", ".webp", ".bmp"):
        fine, data = cv2.imencode(
            suffix, pixels[..., 0].astype(np.uint16) * 257 if suffix in (".png", ".tiff") else pixels
        )
        if fine:
            files[f"opencv{suffix}"] = data.tobytes()
    Image.fromarray(pixels).save(folder / "input.png")
    for name, (command, suffixes) in PROGRAMS.items():
        program = shutil.which(command[0])
        if program is None or (name == "magick" and not is_imagemagick(program)):
            continue
        for suffix in suffixes:
            target = folder / f"{name}.{suffix}"
            words = [
                word.format(input=folder / "input.png", output=target, form=suffix.upper()) for word in command[1:]
            ]
            done = subprocess.run([program, *words], capture_output=True, timeout=60)
            if done.returncode == 0:  # a format that this build of the program does not write
                files[target.name] = target.read_bytes()
    for left in folder.iterdir():
        left.unlink()
    files |= {
        "no suffix": files["opencv.jpg"],
        "logo.svg": b"<svg/>",
        "cut.jpg": files["opencv.jpg"][:100],
        "empty.png": b"",
    }
    files |= {"notes.txt": b"text", ".DS_Store": b"x", "._opencv.jpg": b"x", "Thumbs.db": b"x", "list.pdf": b"%PDF"}
    return files


def rows_and_left_out(source: Source) -> int:
    rows = sum(1 for spec in source.plan() for _ in source.read(spec.spec))
    assert rows == sum(spec.rows for spec in source.plan())
    return rows + sum(source.left_out().values())


@pytest.mark.process
def test_every_file_is_counted_by_every_reader_of_pictures(tmp_path: Path, home: Path) -> None:
    (tmp_path / "making").mkdir()
    files = made_by_others(tmp_path / "making")
    folder = tmp_path / "in"
    for place, (name, data) in enumerate(files.items()):
        path = folder / f"{place % 3}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert rows_and_left_out(folder_source(folder)) == len(files)
    archives: Mapping[str, list[str]] = {
        "tar": ["tar", "-cf"], "gnu.tar.gz": ["tar", "-czf"], "pax.tar": ["tar", "--format=pax", "-cf"],
        "gnu.tar.xz": ["tar", "-cJf"], "bsd.tar": ["bsdtar", "-cf"], "bsd.ustar.tar": ["bsdtar", "--format=ustar", "-cf"],
    }  # fmt: skip
    for ending, program in archives.items():
        if shutil.which(program[0]) is None:
            continue
        path = tmp_path / f"a.{ending}"
        environment = {**os.environ, "COPYFILE_DISABLE": "1"}
        subprocess.run([*program, str(path), "-C", str(folder), "."], check=True, env=environment, timeout=60)
        assert rows_and_left_out(source_of("tar", path=str(path))) == len(files)
    flat = {name.replace(" ", "_").replace(".", "_", name.count(".") - 1): data for name, data in files.items()}
    source = source_of("webdataset", path=str(tar_of(tmp_path / "flat.tar", list(flat.items()))))
    # A key without a picture is a failed row that names its members, so that they count once as a row and once by suffix.
    keyless = sum(1 for reason in outcomes(source).values() if reason == "missing_file")
    texts = sum(name.endswith(".txt") for name in flat)
    assert rows_and_left_out(source) == len(flat) + keyless - texts
    sets = tmp_path / "sets"
    parquet_of(sets, "a.parquet", path=[str(i) for i in range(3)])
    table = pa.table({"image": list(files.values()), "path": list(files)})
    pq.write_table(table, sets / "b.parquet", row_group_size=7, compression="zstd")
    connection = duckdb.connect()
    connection.register("files", table)
    connection.execute(f"COPY files TO '{sets / 'c.parquet'}' (FORMAT parquet)")
    assert rows_and_left_out(source_of("parquet", path=str(sets))) == 2 * len(files) + 3
    readable = {name for name, data in files.items() if sniff(data)[1] is None}
    assert {"opencv.png", "opencv.tiff", "no suffix", "cut.jpg"} <= readable and "logo.svg" not in readable


def spreadsheets(rows: Sequence[Sequence[str]]) -> dict[str, bytes]:
    """A table in the dialects of several programs: Python's csv module, pandas, and Excel in several countries."""
    made: dict[str, bytes] = {}
    dialects: dict[str, dict[str, Any]] = {
        "excel": {"dialect": "excel"}, "tabs": {"dialect": "excel-tab"}, "unix": {"dialect": "unix"},
        "semicolons": {"delimiter": ";"}, "pandas": {"lineterminator": "\n"},
        "all quoted": {"quoting": csv.QUOTE_ALL, "lineterminator": "\n"},
    }  # fmt: skip
    for name, settings in dialects.items():
        out = io.StringIO()
        csv.writer(out, **settings).writerows(rows)
        made[name] = out.getvalue().encode()
    made["excel with a mark"] = b"\xef\xbb\xbf" + made["excel"]
    made["excel in Windows-1252"] = made["semicolons"].decode().encode("cp1252")
    made["blank lines at the end"] = made["excel"] + b"\r\n\r\n"
    return made


TITLES = [
    "Plain",
    "Müller, A.",
    'a "quoted" word',
    "two\nlines, one cell",
    "semi; colon",
    " spaces ",
    "tab\there",
    "1971.10",
    "",
]


def test_every_line_is_counted_by_every_reader_of_tables(tmp_path: Path, home: Path) -> None:
    for name, data in spreadsheets(
        [["file_name", "title"], *([f"{i}.jpg", title] for i, title in enumerate(TITLES))]
    ).items():
        (tmp_path / "metadata.csv").write_bytes(data)
        table = MetadataTable([(tmp_path / "metadata.csv", "")])
        read = [str(row["title"] or "").replace("\r\n", "\n") for row in table.rows(list(range(len(table.names))))]
        assert (read, set(table.errors)) == (TITLES, {""}), name
    urls = [f"https://h/{i},{i}.jpg?a=b;c" for i in range(len(TITLES))]
    for name, data in spreadsheets([["url", "title"], *zip(urls, TITLES, strict=True)]).items():
        (tmp_path / "list.csv").write_bytes(data)
        source = source_of("urls", path=str(tmp_path / "list.csv"), image="url", options={"format": "csv"})
        assert [sample.address for sample in samples(source).values()] == urls, name
    prompts = [["prompt", "seed"], *([title or "a boat", str(i)] for i, title in enumerate(TITLES))]
    for name, data in spreadsheets(prompts).items():
        (tmp_path / "prompts.csv").write_bytes(data)
        if name == "excel in Windows-1252":
            with pytest.raises(PromptError, match="not UTF-8"):
                read_prompts(str(tmp_path / "prompts.csv"))
            continue
        found = read_prompts(str(tmp_path / "prompts.csv"))
        assert ([row.seed for row in found.rows], found.bad) == (list(range(len(TITLES))), ()), name


def test_every_vector_is_counted_in_every_file_of_embeddings(tmp_path: Path, home: Path) -> None:
    vectors = np.random.default_rng(3).normal(size=(5, 16)).astype(np.float32)
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "1.npz", embedding=vectors, img_id=np.arange(5))
    np.savez_compressed(
        tmp_path / "in" / "2.NPZ", embedding=vectors.astype(np.float16).astype(np.float32), img_id=np.arange(5)
    )
    for name in ("._1.npz", ".DS_Store", "readme.txt"):
        (tmp_path / "in" / name).write_bytes(b"x")
    assert sum(len(part.vectors) for part in read_parts(tmp_path / "in")) == 10
    assert left_out(tmp_path / "in") == {".txt": 1, "system files": 2}


def test_compressed_tars_of_every_kind_hold_the_same_rows(tmp_path: Path, home: Path) -> None:
    plain = tar_of(tmp_path / "a.tar", [("a.jpg", jpeg(1)), ("b", jpeg(2))])
    (tmp_path / "b.tgz").write_bytes(gzip.compress(plain.read_bytes()))
    halves = [tar_of(tmp_path / f"{i}.tar", [(name, jpeg(i))]).read_bytes() for i, name in ((1, "a.jpg"), (2, "b"))]
    (tmp_path / "c.tar").write_bytes(b"".join(halves))
    (tmp_path / "d.tar.gz").write_bytes(b"".join(map(gzip.compress, halves)))
    for path in (plain, tmp_path / "b.tgz", tmp_path / "c.tar", tmp_path / "d.tar.gz"):
        assert [s.data for s in samples(source_of("tar", path=str(path))).values()] == [jpeg(1), jpeg(2)]
