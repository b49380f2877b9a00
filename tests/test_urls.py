"""Building from a list of URLs: every URL is accounted for, nothing private is fetched, and failed URLs can be retried."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.database import RetrievalDatabase, gone_keys
from pipeline.errors import ConfigError, DatabaseError
from pipeline.retrieval import QueryRequest, run_query
from pipeline.sources import SourceOptions
from tests.builds import folder_of, picture, quiet_build
from tests.server import Server, serve
from tests.urls import FILTERED, HOST, UrlList, manifest_of, url_list

pytestmark = pytest.mark.process

ALLOWED = SourceOptions(allow_private=(f"{HOST}/32",))
PERMISSIONS = ("/robots.txt", "/.well-known/tdmrep.json")


@pytest.fixture
def server(tmp_path: Path, home: Path) -> Iterator[Server]:
    with serve(tmp_path / "served", host=HOST) as running:
        yield running


def drawings(shared: Path, count: int) -> list[bytes]:
    """Real pictures of several styles."""
    files = sorted((shared / "data" / "styles").glob("*.parquet"))
    each = -(-count // len(files))
    return [data for file in files for data in pq.read_table(file, columns=["png"])["png"].to_pylist()[:each]][:count]


def living(name: str = "listed") -> dict[int, dict[str, Any]]:
    """The rows of the current version by key, without those that are gone."""
    db = RetrievalDatabase(name)
    version = db.version()
    gone = set(gone_keys(db, version.gone))
    rows = [row for shard in version.shards for row in db.read_table(shard.artifact.path).to_pylist()]
    return {row["key"]: row for row in rows if row["key"] not in gone}


def reasons(rows: dict[int, dict[str, Any]]) -> Counter[str]:
    return Counter((row["error"] or "").split(":", 1)[0] for row in rows.values())


def build_then_retry(server: Server, tmp_path: Path, pictures: list[bytes], shard_rows: int) -> UrlList:
    """Build, check every count, repair the server, retry, and check every count again."""
    made = url_list(server, tmp_path / "list.parquet", pictures)
    manifest = manifest_of(tmp_path / "listed.toml", tmp_path / "list.parquet", shard_rows=shard_rows)
    built = quiet_build(manifest, source=ALLOWED, where="width >= 256", images="drop")
    assert (built.input, built.ok) == (len(pictures), made.first[""])
    assert built.filtered == sum(made.first[reason] for reason in FILTERED)
    assert built.failed == len(made.failed())
    assert built.reasons == {reason: count for reason, count in sorted(made.first.items()) if reason}
    before = living()
    assert reasons(before) == made.first
    for row in before.values():
        i = int(row["caption"].split()[-1])
        assert row["url"] == made.urls[i]
        assert row["licence"] == f"licence {i % 3}"
        if row["status"] == "ok" and made.kinds[i] != "twice":
            assert row["sha256"] == hashlib.sha256(pictures[i]).hexdigest()
    asked = {path for _, path, _ in server.requests}
    for i, kind in enumerate(made.kinds):
        if kind in ("unsafe", "small", "disallowed"):
            assert not any(path.endswith(f"/{i}.png") for path in asked), f"{kind} was fetched"

    server.repair()
    server.requests.clear()
    again = quiet_build("listed", source=ALLOWED, retry=True)
    assert again.changes == {"retried": len(made.failed())}
    assert (again.input, again.ok) == (len(pictures), made.then[""])
    assert again.reasons == {reason: count for reason, count in sorted(made.then.items()) if reason}
    after = living()
    assert reasons(after) == made.then
    assert {key: row for key, row in before.items() if row["status"] != "failed"}.items() <= after.items()
    failed = made.failed()
    asked = {path for _, path, _ in server.requests if path not in PERMISSIONS}
    assert asked == {f"/{i}.png" for i in failed if (made.urls[i] or "").startswith(server.url)}
    assert run_query(QueryRequest("listed", key=min(key for key, row in after.items() if row["status"] == "ok"))).rows
    return made


def test_every_url_ends_somewhere_and_what_failed_can_be_tried_again(
    server: Server, tmp_path: Path, shared: Path
) -> None:
    made = build_then_retry(server, tmp_path, drawings(shared, 300), 1000)
    assert len(made.failed()) > 60 and made.first[""] > 150


@pytest.mark.long
def test_two_thousand_urls_in_several_shards(server: Server, tmp_path: Path, shared: Path) -> None:
    build_then_retry(server, tmp_path, drawings(shared, 2000), 500)


def test_trying_again_and_again_keeps_counting_and_never_reuses_a_key(server: Server, tmp_path: Path) -> None:
    server.folder.mkdir(parents=True)
    links = [None, f"{server.url}/a.png", "", f"{server.url}/b.png", None]
    for name in ("a", "b"):
        (server.folder / f"{name}.png").write_bytes(picture(ord(name)))
    pq.write_table(pa.table({"link": links, "text": list("vwxyz"), "punsafe": [0.0] * 5}), tmp_path / "list.parquet")
    manifest = manifest_of(tmp_path / "listed.toml", tmp_path / "list.parquet", shard_rows=3)
    with pytest.raises(DatabaseError, match="build it with"):
        quiet_build(manifest, retry=True)
    seen: set[int] = set()
    versions = [quiet_build(manifest, source=ALLOWED).version]
    for _ in range(2):
        rows = living()
        assert sorted((row["caption"], row["status"]) for row in rows.values()) == [
            ("v", "failed"), ("w", "ok"), ("x", "failed"), ("y", "ok"), ("z", "failed")]  # fmt: skip
        failed = {key for key, row in rows.items() if row["status"] == "failed"}
        assert not failed & seen
        seen |= failed
        again = quiet_build("listed", retry=True)
        assert (again.input, again.ok, again.failed, again.changes) == (5, 2, 3, {"retried": 3})
        versions.append(again.version)
    assert len(set(versions)) == 3
    table = pa.table({"link": [*links, None], "text": list("Vwxyz!"), "punsafe": [0.0] * 6})
    pq.write_table(table, tmp_path / "list.parquet")
    fresh = quiet_build("listed", source=ALLOWED, refresh=True)  # asks for no picture that the list has as before
    assert fresh.changes == {"added": 1, "changed": 1, "removed": 0}
    assert (fresh.input, fresh.ok, fresh.failed) == (6, 2, 4)
    assert sorted(str(row["caption"]) for row in living().values()) == sorted("Vwxyz!")
    assert [path for _, path, _ in server.requests if path not in PERMISSIONS] in (
        ["/a.png", "/b.png"],
        ["/b.png", "/a.png"],
    )


def test_only_lists_of_urls_are_tried_again(tmp_path: Path, home: Path) -> None:
    quiet_build(folder_of(tmp_path / "pictures", 3))
    with pytest.raises(ConfigError, match="--refresh"):
        quiet_build("pictures", retry=True)
