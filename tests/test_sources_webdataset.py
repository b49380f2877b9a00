"""Webdataset tars, local and from a server, valid and broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import SourceError
from pipeline.sources import Manifest, Sample, SourceOptions, SourceSpec, open_source
from pipeline.sources.webdataset import expand
from tests.pictures import jpeg, png, tar_of
from tests.server import serve


def manifest(**source: Any) -> Manifest:
    return Manifest("pictures", "t", SourceSpec(kind="webdataset", **source), "unknown", "t", "o")


def samples(made: Manifest, options: SourceOptions | None = None) -> list[Sample]:
    source = open_source(made, options)
    return [sample for spec in source.plan() for sample in source.read(spec.spec)]


def shard(folder: Path, number: int, count: int) -> Path:
    """A tar in img2dataset's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    members: list[Any] = []
    for i in range(count):
        key = f"{number:05d}{i:04d}"
        about = {"key": key, "url": f"http://x/{key}", "width": 16, "aesthetic": i / 2, "status": "success"}
        members += [
            (f"{key}.jpg", jpeg(number * 1000 + i)),
            (f"{key}.json", json.dumps(about).encode()),
            (f"{key}.txt", f"picture {i}\n".encode()),
        ]
    return tar_of(folder / f"{number:05d}.tar", members)


def test_keys_give_pictures_captions_and_metadata(tmp_path: Path, home: Path) -> None:
    shard(tmp_path / "in", 0, 3)
    shard(tmp_path / "in", 1, 2)
    made = manifest(path=str(tmp_path / "in"), shard_rows=2)
    assert [spec.rows for spec in open_source(made).plan()] == [2, 1, 2]
    found = samples(made)
    assert [s.item_id for s in found] == [
        f"{n:05d}/{n:05d}{i:04d}" for n, i in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    ]
    last = found[4]
    assert (last.data, last.caption, last.url) == (jpeg(1001), "picture 1", "http://x/000010001")
    assert last.metadata == {
        "source_key": "000010001",
        "source_width": 16,
        "aesthetic": 0.5,
        "source_status": "success",
    }


def test_tars_at_addresses_are_fetched_and_read_alike(tmp_path: Path, home: Path) -> None:
    for number in range(3):
        shard(tmp_path / "served", number, 2)
    with serve(tmp_path / "served") as server:
        made = manifest(files=("https://data.example.org/{00000..00002}.tar",))
        found = samples(made, SourceOptions(base_url=server.url))
        assert [s.data for s in found] == [jpeg(n * 1000 + i) for n in range(3) for i in range(2)]
        assert len([r for r in server.requests if r[0] == "GET"]) <= 6
    with serve(tmp_path / "served") as server, pytest.raises(SourceError, match="HTTP 404"):
        samples(manifest(files=(f"{server.url}/00009.tar",)))


def test_incomplete_keys_are_failed_rows_with_the_reason(tmp_path: Path, home: Path) -> None:
    archive = tar_of(
        tmp_path / "a.tar",
        [
            ("one.png", png(1)),
            ("two.json", b'{"x": 1}'),
            ("three.jpg", jpeg(3)),
            ("three.json", b"{broken"),
            ("four.cls", b"7"),
            ("._one.png", b"junk"),
            ("../five.jpg", jpeg(5)),
        ],
    )
    found = {sample.item_id: (sample.error or "ok").split(":")[0] for sample in samples(manifest(path=str(archive)))}
    assert found == {
        "a/one": "ok",
        "a/two": "missing_file",
        "a/three": "bad_metadata",
        "a/four": "missing_file",
        "a/../five": "unsafe_name",
    }


def test_the_limit_stops_at_exactly_so_many_rows(tmp_path: Path, home: Path) -> None:
    shard(tmp_path / "in", 0, 5)
    shard(tmp_path / "in", 1, 5)
    assert len(samples(manifest(path=str(tmp_path / "in"), shard_rows=3), SourceOptions(limit=7))) == 7


def test_a_truncated_tar_is_an_error(tmp_path: Path, home: Path) -> None:
    path = shard(tmp_path / "in", 0, 5)
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(SourceError, match=r"00000\.tar"):
        samples(manifest(path=str(path)))


def test_ranges_in_addresses_keep_their_zeros() -> None:
    assert expand("s/{008..010}.tar") == ["s/008.tar", "s/009.tar", "s/010.tar"]
    assert expand("{0..1}/{0..1}") == ["0/0", "0/1", "1/0", "1/1"]
