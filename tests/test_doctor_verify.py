"""`rdmpipe doctor --verify`: downloads are compared with the sums and counts that are known of them."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.catalog import load_manifest
from pipeline.doctor import published, verify
from pipeline.sources import Manifest, cached_place
from tests.builds import folder_of, quiet_build
from tests.generations import save_model


def hub_file(cache: Path, repo: str, name: str, data: bytes, git: bool = False) -> Path:
    """A file in a cache of the Hub's client, which names its content by checksum. Returns the content's path."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    sha1 = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    blob = folder / "blobs" / (sha1 if git else hashlib.sha256(data).hexdigest())
    link = folder / "snapshots" / ("0" * 40) / name
    for path in (blob, link):
        path.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(data)
    link.symlink_to(blob)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs/main").write_text("0" * 40)
    return blob


def header(weights: int) -> bytes:
    """The header of a safetensors file with this many weights."""
    text = json.dumps({"w": {"dtype": "F32", "shape": [weights], "data_offsets": [0, 4 * weights]}}).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_nothing_downloaded_is_no_problem_and_says_what_downloads_it(hub: Path, home: Path) -> None:
    found = list(verify(str(home)))
    assert {one.state for one in found} == {"note"}
    assert {one.fix for one in found} >= {
        "rdmpipe build-index wikiart", "rdmpipe build-index artbench", "hf download fusing/rdm",
        "hf download timm/vit_large_patch14_clip_224.openai open_clip_model.safetensors",
    }  # fmt: skip


def test_weights_of_the_published_model_are_compared_by_sum_and_number(hub: Path, home: Path) -> None:
    for part, weights in published.RDM_PARTS.items():
        hub_file(hub, "fusing/rdm", f"{part}/config.json", part.encode(), git=True)
        blob = hub_file(hub, "fusing/rdm", f"{part}/diffusion_pytorch_model.safetensors", header(weights))
    model = published._model(str(home))
    assert model.state == "ok" and "4 file(s)" in model.found and "unet: 1,335,480,400 weights" in model.found
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-1] + b"]")
    damaged = published._model(str(home))
    assert damaged.state == "problem" and f"expected sha256 {blob.name}" in damaged.found
    assert damaged.fix == f"rm {blob} && hf download fusing/rdm"
    blob.unlink()
    (hub / "models--fusing--rdm/snapshots" / ("0" * 40) / "vae/diffusion_pytorch_model.safetensors").unlink()
    hub_file(hub, "fusing/rdm", "vae/diffusion_pytorch_model.safetensors", header(7))
    other = published._model(str(home))
    assert other.state == "problem" and "7 weights; the published model has 69,610,963" in other.found


def test_clip_with_another_number_of_weights_is_named(hub: Path, home: Path) -> None:
    hub_file(hub, "timm/vit_base_patch32_clip_224.openai", "open_clip_model.safetensors", header(12))
    found = published._encoder("vit-b-32", published.ENCODERS["vit-b-32"])
    assert found.state == "problem" and "12 weights; the published model has 151,277,313" in found.found


def test_a_cache_without_links_is_not_said_to_have_been_compared(hub: Path) -> None:
    assert published.hub_sums(hub) == {}
    absent = published._compared("model", {}, "the Hub", "hf download x")
    assert absent.state == "note" and absent.found.startswith("not compared")


def test_the_files_of_artbench_have_the_sums_of_the_manifest(hub: Path, home: Path) -> None:
    manifest = load_manifest("artbench", str(home))
    assert isinstance(manifest, Manifest)
    place = cached_place(manifest.source.csv)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"name,artist\n")
    found = published._files("artbench", manifest)
    assert found.state == "problem" and f"expected md5 {manifest.source.csv_md5}" in found.found
    assert found.fix == f"rm {place} && rdmpipe build-index artbench"


def test_a_data_sets_rows_are_compared_with_its_manifest(hub: Path, home: Path, tmp_path: Path) -> None:
    quiet_build(folder_of(tmp_path / "pictures", 5), name="wikiart", home=str(home))
    manifest = load_manifest("wikiart", str(home))
    assert isinstance(manifest, Manifest)

    def state(rows: int) -> tuple[str, str]:
        one = published._database("wikiart", replace(manifest, expected_rows=rows), str(home))
        return one.state, one.fix

    assert state(5) == ("ok", "")
    assert state(6) == ("note", "rdmpipe build-index wikiart --limit 0")
    assert state(4)[0] == "problem"


def test_a_model_that_is_here_draws_one_picture(hub: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(home / "models" / published.RDM)
    monkeypatch.setattr(published, "SIDE", 32)
    found = published._drawing(str(home))
    assert f"generations/doctor-{published.RDM}" in found.found and "32 x 32 pixels" in found.found
