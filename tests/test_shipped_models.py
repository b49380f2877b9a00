"""The models in the package: open_clip loads the encoder without rdmpipe; they are small and trained."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.process

ASSETS = Path(__file__).resolve().parent.parent / "pipeline" / "assets"
ENCODER, MODEL = ASSETS / "encoders" / "mini-2", ASSETS / "models" / "rdm-mini-2"
PAIRS = [(ASSETS / "encoders" / f"mini{number}", ASSETS / "models" / f"rdm-mini{number}") for number in ("", "-2")]


@pytest.mark.parametrize("pair", PAIRS, ids=["mini", "mini-2"])
def test_the_models_take_less_than_forty_megabytes_and_match_their_checksums(pair: tuple[Path, Path]) -> None:
    files = [path for folder in pair for path in folder.rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) < 40_000_000
    for folder in pair:
        lines = (folder / "SHA256SUMS").read_text().splitlines()
        assert lines
        for digest, name in (line.split("  ") for line in lines):
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
        assert "**Limits.**" in (folder / "README.md").read_text()


def test_each_encoder_has_its_model() -> None:
    from pipeline.generation.models import default_model

    assert [default_model(name) for name in ("mini", "mini-2")] == ["rdm-mini", "rdm-mini-2"]


def test_plain_open_clip_loads_the_encoder_and_it_distinguishes_red_from_blue() -> None:
    from PIL import Image

    from pipeline.encoders import import_open_clip

    open_clip = import_open_clip()
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{ENCODER}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{ENCODER}")
    model.eval()
    disc = Image.new("RGB", (64, 64), "white")
    pictures = []
    for colour in ("#dd2e44", "#226699"):
        from PIL import ImageDraw

        own = disc.copy()
        ImageDraw.Draw(own).ellipse((6, 6, 58, 58), fill=colour)
        pictures.append(preprocess(own))
    with torch.no_grad():
        images = torch.nn.functional.normalize(model.encode_image(torch.stack(pictures)), dim=-1)
        texts = torch.nn.functional.normalize(model.encode_text(tokenizer(["red circle", "blue circle"])), dim=-1)
    likeness = texts @ images.T
    assert likeness[0, 0] > likeness[0, 1]
    assert likeness[1, 1] > likeness[1, 0]


def test_captions_find_their_pictures_in_real_styles_far_above_chance(shared: Path) -> None:
    from pipeline.training.data import DataConfig, read_pictures
    from pipeline.training.encoder import evaluate_encoder
    from pipeline.training.trained import load_encoder

    pictures = read_pictures(DataConfig(parquet=(str(shared / "data/styles/twemoji.parquet"),)))
    network, tokenizer = load_encoder(ENCODER)
    figures = evaluate_encoder(network, tokenizer, pictures, set(range(len(pictures))), torch.device("cpu"), most=400)
    assert figures["recall10_trained"] > 0.7  # chance: 10 of 1,683


def test_the_first_stage_restores_a_real_drawing(shared: Path) -> None:
    from pipeline.training.autoencoder import evaluate_autoencoder
    from pipeline.training.data import DataConfig, read_pictures
    from rdm import RDM

    pictures = read_pictures(DataConfig(parquet=(str(shared / "data/styles/openmoji.parquet"),)))
    first_stage = RDM.from_pretrained(MODEL).first_stage
    psnr, _ = evaluate_autoencoder(first_stage, pictures.pixels[::50], torch.device("cpu"))
    assert psnr > 18  # a style that it never saw
