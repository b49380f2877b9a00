"""Foreign tar archives: valid ones are read as tarfile reads them, hostile ones are SourceErrors or failed rows."""

from __future__ import annotations

import gzip
import io
import lzma
import random
import tarfile
from pathlib import Path

import pytest

from pipeline.errors import SourceError
from pipeline.sources import SourceOptions
from pipeline.sources.archive import open_archive
from pipeline.storage import TarMember, read_member, tar_members
from tests.attempts import tried

DATA = bytes(range(256)) * 3


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RDMPIPE_CACHE", str(tmp_path / "cache"))


def block(
    name: bytes, size: int = 0, kind: bytes = b"0", field: bytes | None = None, magic: bytes = b"ustar\x0000"
) -> bytes:
    """One header with a right checksum. field: the size field as it is."""
    head = bytearray(512)
    head[: len(name)] = name
    head[100:108], head[108:116], head[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    head[124:136] = field if field is not None else b"%011o\0" % size
    head[136:148], head[156:157], head[257:265] = b"00000000000\0", kind, magic
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def good(name: bytes = b"ok.png") -> bytes:
    return block(name, len(DATA)) + padded(DATA)


def pax(body: bytes, kind: bytes = b"x") -> bytes:
    return block(b"pax", len(body), kind) + padded(body)


def record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    while len(b"%d" % length) + len(key) + len(value) + 3 != length:
        length += 1
    return b"%d %s=%s\n" % (length, key, value)


END = bytes(1024)

HEAD = b"ustar  \0"

DAMAGED = {
    "negative size": good()
    + block(b"evil.png", field=b"\xff" + (-1024).to_bytes(11, "big", signed=True))
    + good()
    + END,
    "size of minus one block": block(b"evil.png", field=b"\xff" * 10 + b"\xfe\x00") + good() + END,
    "size of 2^62": block(b"evil.png", field=b"\x80" + (1 << 62).to_bytes(11, "big")) + good() + END,
    "size of 2^80": block(b"evil.png", field=b"\x80" + (1 << 80).to_bytes(11, "big")) + good() + END,
    "size that is no number": block(b"evil.png", field=b"1_0\0        ") + good() + END,
    "behind the end": block(b"evil.png", 10 << 20) + padded(DATA) + END,
    "checksum": good() + bytes([good()[0] ^ 1]) + good()[1:] + END,
    "pax backtracking": pax(b"9" * 500_000 + b" ") + good(b"evil.png") + END,
    "pax of length 0": pax(b"0 a=b\n") + good(b"evil.png") + END,
    "pax longer than it is": pax(b"99 a=b\n") + good(b"evil.png") + END,
    "pax without =": pax(b"6 abc\n") + good(b"evil.png") + END,
    "pax of 2 MB": pax(b"6 a=b\n" * 350_000) + good(b"evil.png") + END,
    "pax size negative": pax(record(b"size", b"-512")) + good(b"evil.png") + END,
    "pax size of 30 digits": pax(record(b"size", b"9" * 30)) + good(b"evil.png") + END,
    "pax size of 19 digits": pax(record(b"size", b"9" * 19)) + good(b"evil.png") + END,
    "pax size no number": pax(record(b"size", b"abc")) + good(b"evil.png") + END,
    "pax name of 100 kB": pax(record(b"path", b"a" * 100_000)) + good(b"evil.png") + END,
    "long name of 3 GB": block(b"././@LongLink", 3 << 30, b"L", magic=HEAD) + good(b"evil.png") + END,
    "3000 long names": (block(b"././@LongLink", 512, b"L", magic=HEAD) + b"a" * 512) * 3000 + good(b"evil.png") + END,
    "3000 pax headers": pax(b"6 a=b\n") * 3000 + good(b"evil.png") + END,
    "global pax that is cut": block(b"pax", 5 << 20, b"g") + END,
    "no end mark": good(),
    "cut in a header": good() + good()[:200],
    "empty": b"",
    "page": b"<!doctype html>not here",
    "zip": b"PK\x03\x04" + bytes(1000),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_archive_is_a_source_error_that_names_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / "evil.tar"
    path.write_bytes(DAMAGED[name])
    with pytest.raises(SourceError, match=r"evil\.tar: "):
        open_archive(path=str(path), options=SourceOptions()).members()


def test_the_error_names_the_member(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for name in ("negative size", "size of 2^62", "behind the end", "pax size no number"):
        path.write_bytes(DAMAGED[name])
        with pytest.raises(SourceError, match=r"a\.tar: .*'evil\.png'"):
            open_archive(path=str(path), options=SourceOptions()).members()


def test_links_devices_and_sparse_files_are_rows_with_an_error(tmp_path: Path) -> None:
    sparse = pax(record(b"GNU.sparse.map", b"0," * 9999 + b"1") + record(b"GNU.sparse.name", b"../../x.png"))
    old = bytearray(block(b"old.png", len(DATA), b"S", magic=HEAD))
    path = tmp_path / "odd.tar"
    kinds = [block(b"odd%d.png" % i, kind=kind) for i, kind in enumerate((b"1", b"2", b"3", b"4", b"6", b"D"))]
    path.write_bytes(b"".join(kinds) + bytes(old) + padded(DATA) + sparse + good(b"s.png") + good() + END)
    archive = open_archive(path=str(path), options=SourceOptions())
    rows = archive.members().to_pylist()
    assert [row["error"].partition(":")[0] for row in rows[:-1]] == ["not_a_file"] * 7 + ["unsafe_name"]
    assert (rows[-1]["name"], rows[-1]["error"]) == ("ok.png", None)
    assert list(archive.read(rows)) == [None] * 8 + [DATA]


def test_sound_archives_are_listed_as_tarfile_lists_them(tmp_path: Path) -> None:
    chance = random.Random(7)
    letters = "aé日 .-_/x"
    for trial in range(60):
        path = tmp_path / f"{trial}.tar"
        form = chance.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
        with tarfile.open(path, "w", format=form, pax_headers={"comment": "x"} if trial % 2 else None) as out:
            for i in range(chance.randrange(0, 12)):
                stem = "".join(chance.choice(letters) for _ in range(chance.randrange(1, 90)))
                folder = "d" * chance.randrange(1, 60) + "/" if chance.random() < 0.4 else ""
                info = tarfile.TarInfo(f"{folder}{stem}{i}")
                kinds = (tarfile.REGTYPE,) * 5 + (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)
                info.type = chance.choice(kinds)
                info.linkname = (
                    "y" * chance.randrange(0, 150) if info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
                )
                data = chance.randbytes(chance.randrange(0, 2000)) if info.isreg() else b""
                info.size = len(data)
                try:
                    out.addfile(info, io.BytesIO(data))
                except ValueError:  # a name that ustar cannot hold
                    continue
        with tarfile.open(path) as known, path.open("rb") as handle:
            found = list(tar_members(handle, path.name, SourceError))
            assert [(m.name, m.offset, m.size) for m in found] == [(m.name, m.offset_data, m.size) for m in known]
            for member, one in zip(found, known.getmembers(), strict=True):
                assert member.kind == ("file" if one.isreg() else "folder" if one.isdir() else "other")
                if member.kind == "file":
                    data = known.extractfile(one)
                    assert data is not None
                    assert read_member(handle, member, path.name, SourceError) == data.read()


def test_old_gnu_sparse_maps_are_stepped_over(tmp_path: Path) -> None:
    head = bytearray(block(b"sp.png", len(DATA), b"S", magic=HEAD))
    head[482] = 1
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    more, last = bytearray(512), bytes(512)
    more[504] = 1
    path = tmp_path / "sparse.tar"
    path.write_bytes(bytes(head) + bytes(more) * 3 + last + padded(DATA) + good() + END)
    with path.open("rb") as handle:
        found = list(tar_members(handle, "sparse.tar", SourceError))
    assert [(member.name, member.kind) for member in found] == [("sp.png", "sparse"), ("ok.png", "file")]


@pytest.mark.parametrize("kind", ["flip", "cut", "insert", "repeat"])
def test_bytes_changed_by_chance_are_a_source_error_or_a_listing(kind: str, tmp_path: Path) -> None:
    chance = random.Random(f"tar {kind}")
    sound = (
        good()
        + pax(record(b"path", b"long/" * 40 + b"x.png"))
        + good()
        + block(b"d/", kind=b"5")
        + good(b"z.png")
        + END
    )
    for _ in range(400):
        data = bytearray(sound)
        for _ in range(chance.randrange(1, 6)):
            at = chance.randrange(len(data))
            if kind == "flip":
                data[at] ^= 1 << chance.randrange(8)
            elif kind == "cut":
                del data[at : at + chance.randrange(1, 700)]
            elif kind == "insert":
                data[at:at] = chance.randbytes(chance.randrange(1, 700))
            else:
                data[at:at] = data[at : at + chance.randrange(1, 1500)]
        try:
            found = list(tar_members(io.BytesIO(bytes(data)), "x.tar", SourceError))
        except SourceError as error:
            assert str(error).startswith("x.tar: ")
        else:
            assert all(isinstance(member, TarMember) and member.offset + member.size <= len(data) for member in found)
    tried(400)


def test_compressed_archives_that_are_damaged_or_ask_for_memory_are_source_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = good() + END
    packed = gzip.compress(whole)
    monkeypatch.setattr("pipeline.sources.archive._XZ_MEMORY", 1 << 20)  # so that the file needs no gigabyte to make
    for name, data in {
        "cut.tar.gz": packed[:-20],
        "flip.tar.gz": packed[:15] + bytes([packed[15] ^ 255]) + packed[16:],
        "junk.tar.gz": b"\x1f\x8b" + bytes(100),
        "junk.tar.xz": b"\xfd7zXZ\0" + b"junk" * 99,
        "cut.tar.xz": lzma.compress(whole)[:-8],
        "memory.tar.xz": lzma.compress(whole, preset=6),
        "junk.tar.bz2": b"BZh9" + b"\xff" * 500,
        "bomb.tar.gz": gzip.compress(bytes(90 << 20), 9),
    }.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(SourceError, match=name):
            open_archive(path=str(path), options=SourceOptions())


def test_compressed_archives_of_several_streams_are_read_whole(tmp_path: Path) -> None:
    halves = good(b"a.png"), good(b"b.png") + END
    for name, compress in (("a.tar.gz", gzip.compress), ("a.tar.xz", lzma.compress)):
        path = tmp_path / name
        path.write_bytes(b"".join(map(compress, halves)))
        archive = open_archive(path=str(path), options=SourceOptions())
        assert archive.members()["name"].to_pylist() == ["a.png", "b.png"]
