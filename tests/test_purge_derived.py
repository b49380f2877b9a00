"""A purge and derived data: prepared shards and other encoders' vectors are removed, other places are named."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.building import BuildRequest, for_second_encoder
from pipeline.catalog import companion_name
from pipeline.database import RetrievalDatabase
from pipeline.errors import DatabaseError
from pipeline.execution import Backend, Receipt
from pipeline.maintenance import PurgeRequest, PurgeSummary, check_database, purge
from pipeline.maintenance.derived import purge_prepared
from pipeline.storage import Artifact, Storage
from tests.builds import contents, folder_of, manifest_of, picture, quiet_build
from tests.encoders import RANDOM

OTHER = RANDOM.replace("seed=0", "seed=1")


def sum_of(number: int) -> str:
    return hashlib.sha256(picture(number)).hexdigest()


def purged(tmp_path: Path, *numbers: int, dry_run: bool = False) -> PurgeSummary:
    (tmp_path / "hashes").write_text("\n".join(map(sum_of, numbers)))
    return purge(PurgeRequest("mine", hash_list=tmp_path / "hashes", dry_run=dry_run))


def prepared(db: RetrievalDatabase, keys: list[list[int]]) -> list[np.ndarray]:
    """Shards as `train prepare` writes them, with these keys. Returns their latents."""
    written = []
    for shard, own in enumerate(keys):
        rows = len(own)
        arrays = {
            "keys": np.array(own, np.int64), "order": np.arange(rows, dtype=np.uint64),
            "latents": np.random.default_rng(shard).normal(size=(rows, 2, 3, 3)).astype(np.float16),
            "texts": np.ones((rows, 4), np.float16) * np.array(own, np.float16)[:, None],
            "neighbours": np.array([[key + 1, key + 2] for key in own], np.int64),
        }  # fmt: skip
        artifacts = []
        for name, values in arrays.items():
            with db.storage.scratch() as scratch:
                np.save(scratch / "part.npy", values)
                artifacts.append(db.storage.publish(scratch / "part.npy", f"prepared/abc/{shard:06d}.{name}.npy"))
        receipt = Receipt("prepare", shard, "abc", "f", rows, 1, 0, {"where": 1}, tuple(artifacts))
        db.storage.write_text(f"prepared/abc/{shard:06d}.json", receipt.to_json())
        written.append(arrays["latents"])
    table = {"rows": sum(map(len, keys)), "shards": list(range(len(keys)))}
    db.storage.write_text("prepared/abc/prepared.json", json.dumps(table))
    return written


def array(db: RetrievalDatabase, shard: int, name: str) -> np.ndarray:
    return np.load(db.storage.full(f"prepared/abc/{shard:06d}.{name}.npy"))


def test_prepared_rows_of_a_purged_picture_go_and_the_others_stay(tmp_path: Path, home: Path) -> None:
    quiet_build(manifest_of(tmp_path / "mine.toml", folder_of(tmp_path / "pictures", 12)))
    db = RetrievalDatabase("mine")
    keys = [row["key"] for entry in db.version().shards for row in db.read_table(entry.artifact, ["key"]).to_pylist()]
    latents = prepared(db, [keys[:5], keys[5:7], keys[7:]])
    done = purged(tmp_path, 2, 5, 6)
    assert (done.rows, done.prepared) == (3, 3)
    assert array(db, 0, "keys").tolist() == [keys[i] for i in (0, 1, 3, 4)]
    assert np.array_equal(array(db, 0, "latents"), latents[0][[0, 1, 3, 4]])
    assert array(db, 0, "texts")[:, 0].tolist() == [keys[i] for i in (0, 1, 3, 4)]
    assert [len(array(db, 1, name)) for name in ("keys", "latents", "texts", "neighbours", "order")] == [0] * 5
    receipt = db.read_receipt("prepared/abc/000000.json")
    assert (receipt.ok, receipt.filtered, receipt.reasons) == (4, 2, {"purged": 1, "where": 1})
    for file in receipt.artifacts:
        data = db.storage.read_bytes(file.path)
        assert (file.bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert json.loads(db.storage.read_bytes("prepared/abc/prepared.json")) == {"rows": 9, "shards": [0, 2]}
    assert not any(latents[1].tobytes() in data or latents[0][2].tobytes() in data for data in contents(home).values())


@pytest.mark.parametrize("writes", range(6))
def test_a_purge_of_prepared_rows_that_was_killed_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    whole, killed = (RetrievalDatabase("mine", str(tmp_path / name)) for name in ("whole", "killed"))
    for db in (whole, killed):
        prepared(db, [[3, 4, 5, 6]])
    purge_prepared(whole, np.array([4, 6]))
    left, publish = [writes], Storage.publish

    def dying(self: Storage, local: Path, relative: str) -> Artifact:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return publish(self, local, relative)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "publish", dying)
        with pytest.raises(KeyboardInterrupt):
            purge_prepared(killed, np.array([4, 6]))
    purge_prepared(killed, np.array([4, 6]))
    names = whole.storage.list("prepared/abc")
    assert [killed.storage.read_bytes(f"prepared/abc/{name}") for name in names] == [
        whole.storage.read_bytes(f"prepared/abc/{name}") for name in names
    ]


def test_vectors_of_another_encoder_go_too(tmp_path: Path, home: Path) -> None:
    quiet_build(manifest_of(tmp_path / "mine.toml", folder_of(tmp_path / "pictures", 10)), images="keep")
    request = for_second_encoder(BuildRequest(target="mine", encoder=OTHER, backend=Backend()))
    quiet_build(request.target, encoder=OTHER)
    name = companion_name("mine", OTHER)
    assert [(one.name, one.rows) for one in purged(tmp_path, 3, dry_run=True).companions] == [(name, 1)]
    done = purged(tmp_path, 3)
    assert (done.rows, [(one.name, one.rows) for one in done.companions], done.left) == (1, [(name, 1)], ())
    for database in ("mine", name):
        db = RetrievalDatabase(database)
        assert (db.version().index.rows, check_database(db).damages) == (9, ())
        for path, data in contents(home, database).items():
            assert picture(3) not in data, path
            if path.endswith(".parquet"):
                assert sum_of(3).encode() not in str(pq.read_table(pa.BufferReader(data)).to_pylist()).encode(), path
    assert quiet_build(request.target, encoder=OTHER, refresh=True).ok == 9


def test_places_that_may_show_a_purged_picture_are_named(tmp_path: Path, home: Path) -> None:
    folder = folder_of(tmp_path / "pictures", 8)
    quiet_build(manifest_of(tmp_path / "mine.toml", folder))
    quiet_build(manifest_of(tmp_path / "copy.toml", folder, name="copy"))
    for run, sums in {"shows": [sum_of(3)], "other": [sum_of(4)]}.items():
        table = {"db_version": ["0" * 12], "neighbour_keys": [[3]], "neighbour_sha256": [sums]}
        (home / "generations" / run).mkdir(parents=True)
        pq.write_table(pa.table(table), home / "generations" / run / "results.parquet")
    for name, protocol in {"judged": '{"databases": {"mine": "1"}}', "elsewhere": '{"databases": {"x": "1"}}'}.items():
        (home / "evaluations" / name).mkdir(parents=True)
        (home / "evaluations" / name / "protocol.json").write_text(protocol)
    done = purged(tmp_path, 3)
    assert [place.split(" ")[:2] for place in done.left] == [
        ["run", "shows"], ["evaluation", "judged"], ["database", "copy"],
    ]  # fmt: skip
    assert "rm -r " + str(home / "generations" / "shows") in done.text()
    assert asdict(done)["left"] == done.left


def test_a_companion_that_would_have_no_row_left_is_named(tmp_path: Path, home: Path) -> None:
    quiet_build(manifest_of(tmp_path / "mine.toml", folder_of(tmp_path / "pictures", 4)), images="keep")
    small = folder_of(tmp_path / "one", 2)
    name = companion_name("mine", OTHER)
    quiet_build(manifest_of(tmp_path / "small.toml", small, name=name), encoder=OTHER)
    done = purged(tmp_path, 0, 1)
    assert done.rows == 2 and [one.left[0].split(";")[0] for one in done.companions] == [
        f"database {name} would have no row left"
    ]
    with pytest.raises(DatabaseError, match="would be purged"):
        purged(tmp_path, 2, 3)
