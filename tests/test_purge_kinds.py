"""Purges of databases from a list of URLs, with failed rows, and with a compressed index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.database import RetrievalDatabase
from pipeline.index import IndexConfig
from pipeline.maintenance import PurgeRequest, purge
from pipeline.retrieval import open_search
from pipeline.sources import SourceOptions
from tests.builds import folder_of, manifest_of, picture, quiet_build
from tests.server import Fault, serve
from tests.urls import HOST
from tests.urls import manifest_of as list_manifest

pytestmark = pytest.mark.process

ALLOWED = SourceOptions(allow_private=(f"{HOST}/32",))


def _captions(name: str) -> set[str]:
    db = RetrievalDatabase(name)
    with open_search(db, db.version()) as searcher:
        return {row["caption"] for row in searcher.metadata(np.asarray(searcher.keys), ["caption"]).to_pylist()}


def test_purged_urls_are_never_fetched_again_those_that_failed_or_are_new_included(tmp_path: Path, home: Path) -> None:
    with serve(tmp_path / "served", host=HOST) as server:
        server.folder.mkdir()
        names = list("abcdefg")
        for number, name in enumerate(names):
            (server.folder / f"{name}.png").write_bytes(picture(number))
        urls = {name: f"{server.url}/{name}.png" for name in names}

        def publish(listed: str) -> None:
            columns = {"link": [urls[name] for name in listed], "text": list(listed), "punsafe": [0.0] * len(listed)}
            pq.write_table(pa.table(columns), tmp_path / "list.parquet")

        publish("abcdef")
        for name in "ab":
            server.fail(f"/{name}.png", Fault("status", 404), times=-1)
        manifest = list_manifest(tmp_path / "listed.toml", tmp_path / "list.parquet", shard_rows=4)
        first = quiet_build(manifest, source=ALLOWED)
        assert (first.ok, first.failed) == (4, 2)
        (tmp_path / "urls").write_text("\n".join(urls[name] for name in "acg"))  # failed, stored, not seen yet
        done = purge(PurgeRequest("listed", url_list=tmp_path / "urls"))
        assert (done.rows, done.in_current, done.found) == (2, 1, 0)
        assert _captions("listed") == set("def")

        server.repair()
        server.requests.clear()
        again = quiet_build("listed", source=ALLOWED, retry=True)
        assert (again.ok, again.filtered, again.changes) == (4, 2, {"retried": 1})
        assert _captions("listed") == set("bdef")
        publish("gabcdef")
        last = quiet_build("listed", source=ALLOWED, refresh=True)
        assert (last.input, last.ok, last.filtered, last.reasons) == (7, 4, 3, {"purged": 3})
        assert _captions("listed") == set("bdef")
        assert not {"/a.png", "/c.png", "/g.png"} & {path for _, path, _ in server.requests}
        db = RetrievalDatabase("listed")
        rows = [row for shard in db.version().shards for row in db.read_table(shard.artifact.path).to_pylist()]
        purged = [row for row in rows if row["item_id"] in {urls[name] for name in "acg"}]
        assert len(purged) >= 3
        assert all(row[name] is None for row in purged for name in ("url", "caption", "sha256", "licence"))


@pytest.mark.parametrize("key", ["IVF4,SQ8", "HNSW16"])
def test_a_purge_builds_a_compressed_index_anew_of_the_same_kind(tmp_path: Path, home: Path, key: str) -> None:
    target = manifest_of(tmp_path / "mine.toml", folder_of(tmp_path / "pictures", 200), shard_rows=100)
    config = IndexConfig(key=key, queries=20)
    quiet_build(target, index=config)
    db = RetrievalDatabase("mine")
    assert db.version().index.key == key
    done = purge(PurgeRequest("mine", where="caption LIKE '%7'"))
    assert (done.rows, done.searched, done.found) == (20, 20, 0)
    assert (db.version().index.key, db.version().index.rows) == (key, 180)
    again = quiet_build(target, index=config)
    assert (again.version, again.ok) == (done.version, 180), "the same command finds nothing to do"
