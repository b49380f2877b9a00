"""A purge removes rows permanently, verifies that, and keeps them out; if it is killed at any point, it finishes when it
is run again."""

from __future__ import annotations

import hashlib
import io
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.catalog import resolve_database
from pipeline.database import RetrievalDatabase, picture_files
from pipeline.errors import ConfigError, DatabaseError
from pipeline.exchange import export_embeddings, import_embeddings
from pipeline.maintenance import PurgeRequest, purge
from pipeline.retrieval import open_search
from tests.builds import command, contents, folder_of, last_json, manifest_of, picture, quiet_build
from tests.encoders import RANDOM


def _keys(name: str = "mine") -> dict[str, int]:
    selection = resolve_database(name)
    with open_search(selection.database, selection.version) as searcher:
        rows = searcher.metadata(np.asarray(searcher.keys), ["key", "item_id"]).to_pylist()
    return {row["item_id"]: row["key"] for row in rows}


def _sha256(number: int) -> str:
    return hashlib.sha256(picture(number)).hexdigest()


def _list(path: Path, *lines: str) -> Path:
    path.write_text("# to be removed\n\n" + "\n".join(lines) + "\n")
    return path


def _vector_bytes(database: RetrievalDatabase, key: int) -> bytes:
    with open_search(database, database.version()) as searcher:
        return np.asarray(searcher.index.vectors[searcher.ordinals([key])]).astype(np.float16).tobytes()


def _decoded(path: str, data: bytes) -> bytes:
    """The content of a Parquet file, uncompressed: its rows as text, and its vectors' bytes."""
    if not path.endswith(".parquet"):
        return b""
    table = pq.read_table(io.BytesIO(data))
    vectors = b""
    if "vector" in table.column_names:
        vectors = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False).tobytes()
        table = table.drop_columns(["vector"])
    return vectors + str(table.to_pylist()).encode()


@pytest.mark.parametrize("images", ["thumbnail", "keep"])
def test_a_purged_picture_is_nowhere_and_stays_out(tmp_path: Path, home: Path, images: str) -> None:
    folder = folder_of(tmp_path / "pictures", 30)
    (folder / "copy.png").write_bytes(picture(7))
    target = manifest_of(tmp_path / "mine.toml", folder)
    first = quiet_build(target, images=images)
    database = RetrievalDatabase("mine")
    before = _keys()
    marks = [_vector_bytes(database, before["0007.png"]), _sha256(7).encode(), picture(7)]
    request = PurgeRequest("mine", hash_list=_list(tmp_path / "hashes", _sha256(7)))
    held = contents(home)
    for mark in marks[: 3 if images == "keep" else 2]:  # the check can see all that it says is gone
        assert any(mark in data or mark in _decoded(path, data) for path, data in held.items())
    done = purge(request)
    assert (done.rows, done.in_current, done.shards, done.found, done.searched) == (2, 2, 2, 0, 2)
    assert done.versions_removed == (first.version,)

    def check() -> None:
        assert set(_keys()) == set(before) - {"0007.png", "copy.png"}
        assert picture_files(database, [before["0007.png"], before["copy.png"], before["0008.png"]]).keys() == {
            before["0008.png"]
        }
        for path, data in contents(home).items():
            assert not any(mark in plain for mark in marks for plain in (data, _decoded(path, data))), path
        assert database.version().counts["reasons"] == {"purged": 2}

    check()
    with pytest.raises(DatabaseError, match="was purged"):
        resolve_database(f"mine@{first.version}")
    again = quiet_build(target, images=images)
    assert (again.version, again.input, again.ok, again.filtered) == (done.version, 31, 29, 2)
    assert again.shards["embed"]["ran"] == 0
    assert quiet_build(target, refresh=True).changes == {"added": 0, "changed": 0, "removed": 0}
    (folder / "0000.png").write_bytes(picture(7))  # it comes under another name
    (folder / "0030.png").write_bytes(picture(30))
    assert quiet_build(target, refresh=True).filtered == 3
    assert set(_keys()) == set(before) - {"0000.png", "0007.png", "copy.png"} | {"0030.png"}
    for shard in database.version().shards:
        database.storage.remove(database.embedding_receipt(database.version().encoder, shard.id))
    quiet_build(target)  # everything once more from the source
    assert set(_keys()) == set(before) - {"0000.png", "0007.png", "copy.png"} | {"0030.png"}
    names: list[str] = []
    for exported in export_embeddings(database, database.version(), "npz", tmp_path / "out"):
        with np.load(exported) as arrays:
            names += arrays["img_id"].tolist()
    assert sorted(names) == sorted(_keys())


@pytest.mark.process
def test_a_filter_through_a_view_purges_the_base_and_says_so(tmp_path: Path, home: Path) -> None:
    quiet_build(folder_of(tmp_path / "pictures", 10), name="mine")
    (home / "manifests").mkdir()
    (home / "manifests" / "mine-odd.toml").write_text('name = "mine-odd"\nbase = "mine"\nwhere = "style = \'odd\'"\n')
    before = contents(home)
    request = PurgeRequest("mine-odd", where="item_id < '0004.png'", dry_run=True)
    dry = purge(request)
    assert (dry.rows, contents(home)) == (2, before)
    done = last_json(command("purge", "mine-odd", "--where", "item_id < '0004.png'", "--json", home=home))
    assert (done["rows"], done["found"], done["notes"]) == (2, 0, list(dry.notes))
    assert "view" in done["notes"][0]
    assert set(_keys()) == {f"{i:04d}.png" for i in range(10)} - {"0001.png", "0003.png"}


def test_imported_embeddings_are_purged_by_filter(tmp_path: Path, home: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(6, 16)).astype(np.float32)
    np.savez(tmp_path / "a.npz", embedding=vectors, img_id=np.arange(6))
    import_embeddings("mine", tmp_path / "a.npz", RANDOM)
    done = purge(PurgeRequest("mine", where="img_id = 2"))
    assert (done.rows, done.searched, done.found) == (1, 1, 0)
    assert not any(vectors[2].tobytes() in data for data in contents(home).values())
    (file,) = export_embeddings(RetrievalDatabase("mine"), RetrievalDatabase("mine").version(), "npz", tmp_path / "out")
    with np.load(file) as found:
        assert found["embedding"].tobytes() == np.delete(vectors, 2, axis=0).tobytes()


def test_what_cannot_be_purged_is_refused_before_anything_changes(tmp_path: Path, home: Path) -> None:
    quiet_build(folder_of(tmp_path / "pictures", 4), name="mine")
    before = contents(home)
    for request, message in [
        (PurgeRequest("mine"), "exactly one"),
        (PurgeRequest("mine@abc", where="true"), "all versions"),
        (PurgeRequest("mine", hash_list=_list(tmp_path / "bad", "12ab")), "line 3"),
    ]:
        with pytest.raises(ConfigError, match=message):
            purge(request)
    with pytest.raises(DatabaseError, match="remove its folder"):
        purge(PurgeRequest("mine", where="true"))
    assert contents(home) == before


KILLS = {  # the file that exists when the kill comes
    "begun": "purge.json",
    "a shard": "embeddings/*/*-p*.parquet",
    "indexed": "index/*/*/entry.json",
    "removing": "versions/*.purged",
}


def _killed(tmp_path: Path, home: Path, point: str) -> None:
    target = manifest_of(tmp_path / "mine.toml", folder_of(tmp_path / "pictures", 60))
    hashes = _list(tmp_path / "hashes", *(_sha256(number) for number in range(0, 60, 7)))
    for place in (tmp_path / "undisturbed", home):
        quiet_build(target, home=str(place), threads=1)
    purge(PurgeRequest("mine", hash_list=hashes, home=str(tmp_path / "undisturbed")))
    root = home / "databases" / "mine"
    there = set(root.glob(KILLS[point]))
    process = command("purge", "mine", "--hash-list", hashes, home=home, wait=False)
    deadline = time.monotonic() + 120
    while set(root.glob(KILLS[point])) <= there and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.communicate()
    if (root / "purge.json").exists():
        with pytest.raises(DatabaseError, match="finishes it"):
            quiet_build(target)
        assert purge(PurgeRequest("mine")).found == 0
    assert contents(home) == contents(tmp_path / "undisturbed")


@pytest.mark.process
@pytest.mark.parametrize("point", ["a shard"])
def test_a_killed_purge_finishes_when_run_again(tmp_path: Path, home: Path, point: str) -> None:
    _killed(tmp_path, home, point)


@pytest.mark.long
@pytest.mark.parametrize("point", ["begun", "indexed", "removing"])
def test_a_killed_purge_finishes_when_run_again_at_other_points(tmp_path: Path, home: Path, point: str) -> None:
    _killed(tmp_path, home, point)
