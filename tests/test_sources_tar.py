"""ArtBench-10's exact format from a local server, and hostile archives."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.catalog import load_manifest
from pipeline.errors import ConfigError, SourceError
from pipeline.sources import Manifest, Sample, SourceOptions, SourceSpec, open_source
from tests.pictures import APPLE_DOUBLE, csv_of, jpeg, link, md5, tar_of
from tests.server import Server, serve

ROOT = "artbench-10-imagefolder-split"
STYLES = ("baroque", "ukiyo_e")


@pytest.fixture
def server(tmp_path: Path, home: Path) -> Iterator[Server]:
    (tmp_path / "served" / "files").mkdir(parents=True)
    with serve(tmp_path / "served") as running:
        yield running


def manifest(url: str, **source: Any) -> Manifest:
    spec = SourceSpec(kind="tar", url=url, **source)
    return Manifest("pictures", "t", spec, "unknown", "t", "o")


def artbench(server: Server) -> Manifest:
    """The shipped manifest over an archive with the real one's layout: styles, splits, AppleDouble junk, and its CSV."""
    members: list[tuple[str | tarfile.TarInfo, bytes]] = []
    rows = []
    for split, count in (("train", 5), ("test", 2)):
        for style in STYLES:
            for i in range(count):
                seed = len(rows)
                name = f"artist-{seed}_work-{i}-1900.jpg"
                members.append((f"{ROOT}/{split}/{style}/._{name}", APPLE_DOUBLE))
                members.append((f"{ROOT}/{split}/{style}/{name}", jpeg(seed)))
                rows.append(
                    {
                        "name": name,
                        "artist": f"artist-{seed}",
                        "url": f"https://uploads.example.org/{name}",
                        "is_public_domain": seed % 2 == 0,
                        "length": 1000 + seed,
                        "width": 800.0,
                        "label": style,
                        "split": split,
                        "cifar_index": seed,
                    }
                )
    members += [("__MACOSX/x.jpg", APPLE_DOUBLE), (f"{ROOT}/.DS_Store", b"x"), (f"{ROOT}/README.txt", b"hello")]
    archive = tar_of(server.folder / "files" / "artbench-10-imagefolder-split.tar", members)
    table = csv_of(server.folder / "files" / "ArtBench-10.csv", rows)
    shipped = load_manifest("artbench")
    assert isinstance(shipped, Manifest)
    return replace(shipped, source=replace(shipped.source, md5=md5(archive), csv_md5=md5(table), shard_rows=4))


def samples(manifest: Manifest, options: SourceOptions | None = None) -> list[Sample]:
    source = open_source(manifest, options)
    found = []
    for spec in source.plan():
        part = list(source.read(spec.spec))
        assert len(part) == spec.rows
        found += part
    return found


def test_artbench_rows_join_pictures_with_their_csv_lines(server: Server) -> None:
    found = samples(artbench(server), SourceOptions(base_url=server.url))
    assert len(found) == 14 and all(sample.error is None for sample in found)
    sixth = found[5]
    assert sixth.item_id == f"{ROOT}/train/ukiyo_e/artist-5_work-0-1900.jpg"
    assert sixth.data == jpeg(5)
    assert sixth.url == "https://uploads.example.org/artist-5_work-0-1900.jpg"
    assert sixth.metadata == {
        "artist": "artist-5",
        "is_public_domain": False,
        "length": 1005,
        "source_width": 800.0,
        "cifar_index": 5,
        "split": "train",
        "style": "ukiyo_e",
    }


def test_junk_members_are_no_rows(server: Server) -> None:
    found = samples(artbench(server), SourceOptions(base_url=server.url))
    assert not [sample.item_id for sample in found if "._" in sample.item_id or "__MACOSX" in sample.item_id]


def test_the_archive_is_fetched_once_for_all_readers(server: Server) -> None:
    made = artbench(server)
    options = SourceOptions(base_url=server.url)
    samples(made, options)
    again = open_source(made, options)
    for spec in again.plan():
        list(open_source(made, options).read(spec.spec))
    assert len(server.asked("GET", "/files/artbench-10-imagefolder-split.tar")) == 1


@pytest.mark.parametrize("part", ["md5", "csv_md5"])
def test_a_wrong_checksum_stops_the_build_before_any_row(server: Server, part: str) -> None:
    made = artbench(server)
    made = replace(made, source=replace(made.source, **{part: "0" * 32}))  # type: ignore[arg-type]
    with pytest.raises(SourceError, match="wrong checksum: expected md5 0000"):
        samples(made, SourceOptions(base_url=server.url))


def test_the_estimate_before_anything_is_fetched_is_the_announced_size(server: Server) -> None:
    source = open_source(artbench(server), SourceOptions(base_url=server.url))
    size = (server.folder / "files" / "artbench-10-imagefolder-split.tar").stat().st_size
    assert source.estimate() == (60000, size)
    assert not server.asked("GET", "/files/artbench-10-imagefolder-split.tar")


def test_the_limit_stops_at_exactly_so_many_rows(server: Server) -> None:
    found = samples(artbench(server), SourceOptions(base_url=server.url, limit=6))
    assert [sample.data for sample in found] == [jpeg(i) for i in range(6)]


# ---- archives on this machine


def local(path: Path, **source: Any) -> Manifest:
    return Manifest("pictures", "t", SourceSpec(kind="tar", path=str(path), **source), "unknown", "t", "o")


def test_members_that_would_escape_are_failed_rows_and_nothing_is_written(tmp_path: Path, home: Path) -> None:
    device = link("dev.jpg", "", tarfile.CHRTYPE)
    archive = tar_of(
        tmp_path / "evil.tar",
        [
            ("/etc/absolute.jpg", jpeg(1)),
            ("../../climb.jpg", jpeg(2)),
            ("ok/./good.jpg", jpeg(3)),
            (link("link.jpg", "/etc/passwd"), b""),
            (link("hard.jpg", "ok/good.jpg", tarfile.LNKTYPE), b""),
            (device, b""),
        ],
    )
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    found = samples(local(archive))
    assert [(sample.item_id, (sample.error or "ok").split(":")[0]) for sample in found] == [
        ("/etc/absolute.jpg", "unsafe_name"),
        ("../../climb.jpg", "unsafe_name"),
        ("ok/good.jpg", "ok"),
        ("link.jpg", "not_a_file"),
        ("hard.jpg", "not_a_file"),
        ("dev.jpg", "not_a_file"),
    ]
    assert found[2].data == jpeg(3)
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before


def test_a_picture_inside_a_hidden_or_system_folder_is_junk(tmp_path: Path, home: Path) -> None:
    archive = tar_of(tmp_path / "a.tar", [(".git/x.jpg", jpeg(1)), ("__MACOSX/a/._x.jpg", b"x"), ("./x.jpg", jpeg(2))])
    assert [sample.item_id for sample in samples(local(archive))] == ["x.jpg"]


def test_names_of_all_alphabets_and_broken_ones_are_kept_readable(tmp_path: Path, home: Path) -> None:
    broken = tarfile.TarInfo(b"caf\xe9.jpg".decode("utf-8", "surrogateescape"))
    archive = tar_of(tmp_path / "a.tar", [("富嶽三十六景/神奈川沖浪裏.jpg", jpeg(1)), (broken, jpeg(2))])
    assert [sample.item_id for sample in samples(local(archive))] == ["富嶽三十六景/神奈川沖浪裏.jpg", "caf\\xe9.jpg"]


def test_of_two_members_with_one_name_the_last_counts_as_in_unpacking(tmp_path: Path, home: Path) -> None:
    archive = tar_of(tmp_path / "a.tar", [("x.jpg", jpeg(1)), ("y.jpg", jpeg(2)), ("x.jpg", jpeg(3))])
    found = samples(local(archive))
    assert [(sample.item_id, sample.data) for sample in found] == [("y.jpg", jpeg(2)), ("x.jpg", jpeg(3))]


@pytest.mark.parametrize("options", [{"path": "{style}/{name}"}, {}])
def test_equal_file_names_in_two_folders_are_two_rows_with_their_own_lines(
    tmp_path: Path, home: Path, options: dict[str, str]
) -> None:
    archive = tar_of(tmp_path / "a.tar", [("a/x.jpg", jpeg(1)), ("b/x.jpg", jpeg(2))])
    table = csv_of(
        tmp_path / "a.csv",
        [{"name": "x.jpg", "style": "b", "title": "second"}, {"name": "x.jpg", "style": "a", "title": "first"}],
    )
    found = samples(local(archive, csv=str(table), options=options))
    assert [(sample.item_id, sample.metadata["title"]) for sample in found] == [
        ("a/x.jpg", "first"),
        ("b/x.jpg", "second"),
    ]


def test_csv_lines_without_a_picture_are_failed_rows_and_pictures_without_a_line_have_no_metadata(
    tmp_path: Path, home: Path
) -> None:
    archive = tar_of(tmp_path / "a.tar", [("x.jpg", jpeg(1)), ("stray.jpg", jpeg(2))])
    table = csv_of(tmp_path / "a.csv", [{"name": "gone.jpg", "year": 1900}, {"name": "x.jpg", "year": 1901}])
    found = samples(local(archive, csv=str(table), shard_rows=2))
    assert [(s.item_id, s.metadata["year"], s.error) for s in found] == [
        ("x.jpg", 1901, None),
        ("stray.jpg", None, None),
        ("gone.jpg", 1900, "missing_file: gone.jpg is not in the archive"),
    ]


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_archives_are_read_like_plain_ones(tmp_path: Path, home: Path, mode: str) -> None:
    members: list[tuple[str | tarfile.TarInfo, bytes]] = [(f"{i}.jpg", jpeg(i)) for i in range(5)]
    found = samples(local(tar_of(tmp_path / "a.tar.any", members, mode), shard_rows=2))
    assert [sample.data for sample in found] == [jpeg(i) for i in range(5)]


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.97])
def test_a_truncated_archive_is_an_error_and_never_fewer_rows(tmp_path: Path, home: Path, keep: float) -> None:
    whole = tar_of(tmp_path / "a.tar", [(f"{i}.jpg", jpeg(i)) for i in range(20)]).read_bytes()
    used = 20 * (512 + 1024)
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole[: int(used * keep)])
    with pytest.raises(SourceError, match=r"cut\.tar: .*Fetch|cut\.tar: .*fetch"):
        samples(local(cut))


def test_a_damaged_header_in_the_middle_is_an_error_and_never_fewer_rows(tmp_path: Path, home: Path) -> None:
    archive = tar_of(tmp_path / "a.tar", [(f"{i}.jpg", jpeg(i)) for i in range(4)])
    with tarfile.open(archive) as opened:
        offset = opened.getmembers()[2].offset
    data = bytearray(archive.read_bytes())
    data[offset : offset + 100] = b"\xff" * 100
    archive.write_bytes(data)
    with pytest.raises(SourceError, match="damaged or cut short"):
        samples(local(archive))


def test_a_truncated_gz_archive_is_an_error(tmp_path: Path, home: Path) -> None:
    whole = tar_of(tmp_path / "a.tar.gz", [(f"{i}.jpg", jpeg(i)) for i in range(20)], "w:gz").read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(whole[:-200])
    with pytest.raises(SourceError, match="damaged or cut short"):
        samples(local(tmp_path / "a.tar.gz"))


def test_a_decompression_bomb_is_refused(tmp_path: Path, home: Path) -> None:
    bomb = tmp_path / "bomb.tar.gz"
    bomb.write_bytes(200 * gzip.compress(bytes(1 << 20)))
    with pytest.raises(SourceError, match="unpack to more than"):
        samples(local(bomb))
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_a_page_in_place_of_an_archive_is_called_that(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"<!DOCTYPE html><html>" + b"x" * 2000)
    with pytest.raises(SourceError, match="an HTML page"):
        samples(local(path))


def test_an_archive_that_changed_after_planning_is_noticed(tmp_path: Path, home: Path) -> None:
    archive = tar_of(tmp_path / "a.tar", [("x.jpg", jpeg(1))])
    spec = next(iter(open_source(local(archive)).plan()))
    tar_of(archive, [("x.jpg", jpeg(2)), ("y.jpg", jpeg(3))])
    with pytest.raises(SourceError, match="changed since the plan"):
        list(open_source(local(archive)).read(spec.spec))


def test_a_local_archive_is_checked_against_its_checksum(tmp_path: Path, home: Path) -> None:
    archive = tar_of(tmp_path / "a.tar", [("x.jpg", jpeg(1))])
    assert len(samples(local(archive, md5=md5(archive)))) == 1
    with pytest.raises(SourceError, match="wrong checksum"):
        samples(local(archive, md5="1" * 32))


def test_a_missing_column_is_answered_with_the_nearest(tmp_path: Path, home: Path) -> None:
    archive = tar_of(tmp_path / "a.tar", [("x.jpg", jpeg(1))])
    table = csv_of(tmp_path / "a.csv", [{"name": "x.jpg", "artist": "a"}])
    with pytest.raises(SourceError, match=r"no column 'artst' \(did you mean 'artist'\?\)"):
        open_source(local(archive, csv=str(table), columns=("artst",))).columns()
    with pytest.raises(SourceError, match="no column with the files' names"):
        open_source(local(archive, csv=str(table), options={"csv_name": "nme"})).columns()


def test_an_unknown_option_is_an_error(tmp_path: Path, home: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key 'pth'"):
        open_source(local(tmp_path / "a.tar", options={"pth": "x"}))


def test_thousands_of_members_are_planned_and_read_in_order(tmp_path: Path, home: Path) -> None:
    archive = tar_of(
        tmp_path / "a.tar", [(f"{i % 7}/{i:05d}.jpg", b"\xff\xd8\xff" + str(i).encode()) for i in range(3_500)]
    )
    found = samples(local(archive, shard_rows=1000))
    assert len(found) == 3_500
    assert found[3_499].data == b"\xff\xd8\xff3499"
