"""A shard of pictures becomes rows with unit vectors: the same bytes every time, bad pictures as failed rows with a reason."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from pipeline.building import EmbedConfig
from pipeline.building.download import DownloadConfig, download_stage
from pipeline.building.embed import TURNS, EmbeddedRows, Timing, _Batches, embed_shard, embed_stage
from pipeline.catalog.manifests import manifest_for_path
from pipeline.database import RetrievalDatabase
from pipeline.encoders import Encoder, EncoderRecord, load_encoder
from pipeline.errors import DatabaseError, EncoderError
from pipeline.execution import Backend, Shard, Stage, run_stages
from pipeline.execution.stage import run_shard_once
from pipeline.images import decode, perceptual_hash
from pipeline.schema import embedding_schema
from pipeline.sources import Manifest, open_source
from tests.encoders import CONFIG, RANDOM, local_encoder
from tests.forked import Forked

CONFIGURED = EmbedConfig(RANDOM, device="cpu", batch=8, torch_threads=1, decode_threads=2)


@pytest.fixture(scope="module")
def tiny() -> Encoder:
    torch.set_num_threads(1)
    return load_encoder(RANDOM, "cpu")


def collection(folder: Path, count: int = 21, bad: bool = True) -> Path:
    """Pictures of noise in several formats and sizes, and some files that are not pictures."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        size = (int(rng.integers(20, 90)), int(rng.integers(20, 90)), 3)
        image = Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8))
        image.save(folder / f"{i:02d}.{('jpg', 'png', 'webp')[i % 3]}")
    if bad:
        whole = (folder / "00.jpg").read_bytes()
        (folder / "05-cut.jpg").write_bytes(whole[: len(whole) // 2])
        (folder / "07-page.jpg").write_bytes(b"<!DOCTYPE html><html>Not found</html>")
        (folder / "08-empty.png").write_bytes(b"")
    return folder


def downloaded(home: Path, folder: Path, shard_rows: int = 1000) -> tuple[RetrievalDatabase, Stage, list[Shard]]:
    """A database with its pictures downloaded: the database, the download stage, the shards."""
    manifest = manifest_for_path(folder)
    manifest = replace(manifest, source=replace(manifest.source, shard_rows=shard_rows))
    assert isinstance(manifest, Manifest)
    db = RetrievalDatabase(manifest.name, str(home))
    source = open_source(manifest)
    shards = [Shard(i, spec.rows, spec.fingerprint, spec.spec) for i, spec in enumerate(source.plan())]
    stage = download_stage(db, DownloadConfig(manifest, source.columns()))
    for shard in shards:
        run_shard_once(stage, stage.setup, shard)
    return db, stage, shards


def files_of(db: RetrievalDatabase) -> dict[str, str]:
    root = Path(db.storage.url)
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_every_row_is_kept_and_the_ok_ones_carry_unit_vectors(home: Path, tmp_path: Path, tiny: Encoder) -> None:
    db, _, shards = downloaded(home, collection(tmp_path / "pictures"))
    receipt = embed_shard(db, CONFIGURED, tiny, shards[0])
    assert (receipt.rows, receipt.ok, receipt.failed) == (24, 21, 3)
    assert receipt.reasons == {"empty": 1, "not_an_image": 1, "truncated": 1}
    table = db.read_table(db.embedding_table(tiny.record, 0))
    assert table.schema.equals(embedding_schema({}, 16))
    assert table["key"].to_pylist() == list(range(24))
    for row in table.to_pylist():
        if row["status"] != "ok":
            assert row["norm"] is row["phash"] is row["width"] is None
            assert not any(row["vector"])
            continue
        data = (tmp_path / "pictures" / row["item_id"]).read_bytes()
        picture = decode(data)
        vector = tiny.encode_images(tiny.prepare(picture.image)[None])[0]
        assert np.abs(np.array(row["vector"], np.float32) - vector / np.linalg.norm(vector)).max() < 1e-3
        assert np.linalg.norm(np.array(row["vector"], np.float64)) == pytest.approx(1, abs=1e-3)
        assert row["norm"] == pytest.approx(np.linalg.norm(vector), rel=1e-4)
        assert (row["width"], row["height"]) == (picture.width, picture.height)
        assert row["phash"] == perceptual_hash(picture.pixels)
        assert row["sha256"] == hashlib.sha256(data).hexdigest()


@pytest.mark.process
def test_vit_b_32_embeds_real_paintings(home: Path, tmp_path: Path, shared: Path) -> None:
    folder = tmp_path / "few"
    folder.mkdir()
    for path in sorted((shared / "data" / "paintings").glob("*.jpg"))[:5]:
        (folder / path.name).write_bytes(path.read_bytes())
    db, _, shards = downloaded(home, folder)
    encoder = load_encoder("random:ViT-B-32?seed=0", "cpu")
    receipt = embed_shard(db, replace(CONFIGURED, encoder=encoder.record.name), encoder, shards[0])
    assert (receipt.ok, receipt.rows) == (5, 5)
    table = db.read_table(db.embedding_table(encoder.record, 0))
    assert len({tuple(vector) for vector in table["vector"].to_pylist()}) == 5
    assert len(table["vector"][0]) == 512


@pytest.mark.process
@pytest.mark.parametrize("policy", ["keep", "thumbnail"])
def test_another_process_writes_the_same_bytes(tmp_path: Path, tiny: Encoder, policy: str) -> None:
    folder = collection(tmp_path / "pictures")
    config = replace(CONFIGURED, images=policy)  # type: ignore[arg-type]
    db, _, shards = downloaded(tmp_path / "one", folder)
    stage = embed_stage(db, config, tiny.record)
    run_shard_once(stage, lambda: tiny, shards[0])
    downloaded(tmp_path / "two", folder)
    code = (
        "import sys\nfrom pathlib import Path\nfrom tests.test_embed import *\n"
        f"db, _, shards = downloaded(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        f"config = replace(CONFIGURED, images={policy!r})\n"
        "stage = embed_stage(db, config, load_encoder(RANDOM, 'cpu').record)\n"
        "run_shard_once(stage, stage.setup, shards[0])\n"
    )
    done = Forked((str(tmp_path / "two"), str(folder)), code=code)
    _, said = done.communicate(200)
    assert done.returncode == 0, said
    other = RetrievalDatabase(db.name, str(tmp_path / "two"))
    assert files_of(db) == files_of(other)
    assert any(name.startswith("embeddings/") and name.endswith(".parquet") for name in files_of(db))


def test_a_vector_does_not_depend_on_the_pictures_beside_it(tmp_path: Path, tiny: Encoder) -> None:
    folder = collection(tmp_path / "pictures", bad=False)
    all_at_once, _, (whole,) = downloaded(tmp_path / "one", folder)
    in_shards, _, shards = downloaded(tmp_path / "many", folder, shard_rows=4)
    embed_shard(all_at_once, CONFIGURED, tiny, whole)
    for shard in shards:
        embed_shard(in_shards, CONFIGURED, tiny, shard)
    together = all_at_once.read_table(all_at_once.embedding_table(tiny.record, 0))
    apart = pa.concat_tables(
        [in_shards.read_table(in_shards.embedding_table(tiny.record, shard.id)) for shard in shards]
    )
    assert together["item_id"].equals(apart["item_id"])
    assert len(shards) == 6
    difference = np.array(together["vector"].to_pylist()) - np.array(apart["vector"].to_pylist())
    assert np.abs(difference).max() <= 2**-11  # one step of float16 below 1


def test_pictures_are_removed_only_once_the_receipt_is_there(home: Path, tmp_path: Path, tiny: Encoder) -> None:
    db, download, (shard,) = downloaded(home, collection(tmp_path / "pictures"))
    stage = embed_stage(db, replace(CONFIGURED, images="drop"), tiny.record)
    receipt = stage.run(tiny, shard)  # killed before its receipt
    assert db.storage.exists(db.image_tar(0))
    db.storage.write_text(stage.receipt_path(shard), receipt.to_json())  # killed after it
    assert db.storage.exists(db.image_tar(0))
    before = files_of(db)
    outcome = run_stages((download, stage), [shard], Backend())
    assert not db.storage.exists(db.image_tar(0))
    assert db.storage.exists(db.image_table(0))
    assert (outcome.ran, outcome.skipped) == ({}, {"download": 1, "embed": 1})
    del before[db.image_tar(0)]
    assert files_of(db) == before
    run_stages((download, stage), [shard], Backend())
    assert files_of(db) == before


def test_another_encoder_downloads_dropped_pictures_again(home: Path, tmp_path: Path, tiny: Encoder) -> None:
    db, download, (shard,) = downloaded(home, collection(tmp_path / "pictures"))
    run_stages((download, embed_stage(db, replace(CONFIGURED, images="drop"), tiny.record)), [shard], Backend())
    name = local_encoder(tmp_path / "weights")
    second = load_encoder(name, "cpu")
    stage = embed_stage(db, replace(CONFIGURED, encoder=name, images="drop"), second.record)
    outcome = run_stages((download, stage), [shard], Backend())
    assert outcome.failures == []
    assert outcome.ran == {"download": 1, "embed": 1}
    assert {path.split("/")[1] for path in files_of(db) if path.startswith("embeddings/")} == {
        tiny.record.id,
        second.record.id,
    }


def test_thumbnails_of_all_decoded_pictures_are_kept_in_order(home: Path, tmp_path: Path, tiny: Encoder) -> None:
    db, _, (shard,) = downloaded(home, collection(tmp_path / "pictures"))
    receipt = embed_shard(db, replace(CONFIGURED, images="thumbnail"), tiny, shard)
    ok = [
        row["key"]
        for row in db.read_table(db.embedding_table(tiny.record, 0)).select(["key", "status"]).to_pylist()
        if row["status"] == "ok"
    ]
    with db.storage.open(db.thumbnail_tar(0)) as handle, tarfile.open(fileobj=handle) as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == [f"{key:012d}.jpg" for key in ok]
        assert {(member.mtime, member.uid, member.uname) for member in members} == {(0, 0, "")}
        first = archive.extractfile(members[0])
        assert first is not None
        with Image.open(io.BytesIO(first.read())) as image:
            assert image.format == "JPEG"
    assert [artifact.path for artifact in receipt.artifacts] == [
        db.thumbnail_tar(0),
        db.embedding_table(tiny.record, 0),
    ]


def test_thumbnails_and_hashes_are_the_same_whatever_the_encoder(tmp_path: Path, shared: Path) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    with Image.open(next(iter(sorted((shared / "data" / "paintings").glob("*.jpg"))))) as image:
        image.resize((2400, 1800)).save(folder / "large.jpg")
    made = {}
    for kind in ("openclip", "compvis"):
        db, _, (shard,) = downloaded(tmp_path / kind, folder)
        encoder = load_encoder(RANDOM, "cpu", preprocess=kind)
        embed_shard(db, replace(CONFIGURED, preprocess=kind, images="thumbnail"), encoder, shard)
        table = db.read_table(db.embedding_table(encoder.record, 0))
        made[kind] = (
            db.storage.read_bytes(db.thumbnail_tar(0)),
            table["phash"].to_pylist(),
            table["width"].to_pylist(),
        )
        vector = encoder.encode_images(encoder.prepare(decode((folder / "large.jpg").read_bytes()).image)[None])[0]
        found = np.array(table["vector"][0].as_py())
        # compvis takes single pixels of the whole picture, so it has to see all of them.
        assert np.abs(found - vector / np.linalg.norm(vector)).max() < (1e-3 if kind == "compvis" else 2e-2)
    assert made["openclip"] == made["compvis"]
    assert made["openclip"][2] == [2400]


def test_a_vector_that_is_not_finite_is_a_failed_row(home: Path, tmp_path: Path) -> None:
    encoder = load_encoder(RANDOM, "cpu")
    with torch.no_grad():
        encoder.model.visual.proj.mul_(float("inf"))  # type: ignore[union-attr, operator]
    db, _, (shard,) = downloaded(home, collection(tmp_path / "pictures", count=3, bad=False))
    receipt = embed_shard(db, CONFIGURED, encoder, shard)
    assert receipt.reasons == {"not_finite": 3}
    table = db.read_table(db.embedding_table(encoder.record, 0))
    assert table["norm"].null_count == 3
    assert table["status"].to_pylist() == ["failed"] * 3


def test_a_shard_without_a_single_good_picture_is_still_a_shard(home: Path, tmp_path: Path, tiny: Encoder) -> None:
    folder = collection(tmp_path / "pictures", count=1)
    (folder / "00.jpg").unlink()
    db, _, (shard,) = downloaded(home, folder)
    receipt = embed_shard(db, replace(CONFIGURED, images="thumbnail"), tiny, shard)
    assert (receipt.ok, receipt.failed) == (0, 3)
    assert db.read_table(db.embedding_table(tiny.record, 0)).num_rows == 3


def test_a_shard_whose_pictures_are_gone_says_what_to_do(home: Path, tmp_path: Path, tiny: Encoder) -> None:
    db, _, (shard,) = downloaded(home, collection(tmp_path / "pictures"))
    db.storage.remove(db.image_tar(0))
    with pytest.raises(DatabaseError, match="run `rdmpipe download`"):
        embed_shard(db, CONFIGURED, tiny, shard)
    assert not db.storage.exists("embeddings")


def test_a_worker_that_finds_another_encoder_refuses(home: Path, tmp_path: Path, tiny: Encoder) -> None:
    db = RetrievalDatabase("other", str(home))
    expected = EncoderRecord(RANDOM, 16, "0" * 64, "openclip")
    with pytest.raises(EncoderError, match="weights 000000000000 in the database"):
        embed_stage(db, CONFIGURED, expected).setup()


def test_only_what_changes_the_vectors_makes_another_stage(tiny: Encoder) -> None:
    base = CONFIGURED.fingerprint(tiny.record)
    for same in (
        replace(CONFIGURED, batch=3),
        replace(CONFIGURED, torch_threads=2),
        replace(CONFIGURED, device="cuda"),
    ):
        assert same.fingerprint(tiny.record) == base
    assert replace(CONFIGURED, images="drop").fingerprint(tiny.record) != base
    assert CONFIGURED.fingerprint(replace(tiny.record, weights="x")) != base
    assert str(CONFIG) in CONFIGURED.encoder


def test_times_are_reported_outside_the_receipt(home: Path, tmp_path: Path, tiny: Encoder) -> None:
    told: list[Timing] = []
    db, _, (shard,) = downloaded(home, collection(tmp_path / "pictures"))
    first = embed_shard(db, CONFIGURED, tiny, shard, told.append)
    assert (told[0].shard, told[0].pictures) == (0, 21)
    assert 0 < told[0].forward <= told[0].total
    assert embed_shard(db, CONFIGURED, tiny, shard) == first


@pytest.mark.cluster
def test_ray_workers_write_the_same_bytes(tmp_path: Path, tiny: Encoder, ray_here: None) -> None:
    folder = collection(tmp_path / "pictures")
    made = {}
    for kind in ("inline", "ray"):
        db, download, shards = downloaded(tmp_path / kind, folder, shard_rows=9)
        stage = embed_stage(db, replace(CONFIGURED, images="thumbnail"), tiny.record, workers=1)
        outcome = run_stages((download, stage), shards, Backend(kind))  # type: ignore[arg-type]
        assert outcome.failures == []
        made[kind] = {name: digest for name, digest in files_of(db).items() if "/" in name}
    assert made["ray"] == made["inline"]
    assert len([name for name in made["ray"] if name.startswith("thumbnails/")]) == 3


@pytest.mark.parametrize(("waiting", "takes_turns"), [(0.4, True), (0.6, False)])
def test_decoding_goes_on_beside_a_model_that_waits_long_for_pictures(waiting: float, takes_turns: bool) -> None:
    decoding: list[bool] = []

    class Model:
        def submit(self, pixels: np.ndarray) -> torch.Tensor:
            decoding.append(batches.may_decode.is_set())
            return torch.ones(len(pixels), 4)

    timing = Timing(waiting=waiting, forward=1.0)
    rows = TURNS + 2
    found = EmbeddedRows(rows, 4, ["ok"] * rows, [None] * rows)
    batches = _Batches(cast(Encoder, Model()), found, 1, True, timing)
    for row in range(rows):
        batches.add(row, np.zeros((2, 2, 3), np.uint8))
    batches.finish()
    assert decoding == [False] * TURNS + [not takes_turns] * 2
    assert found.norms.tolist() == [2.0] * rows, "the vectors do not depend on it"
