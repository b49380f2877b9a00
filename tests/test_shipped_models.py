"""The models in the package: plain open_clip loads them, they are small, and they are trained."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

ASSETS = Path(__file__).resolve().parent.parent / "pipeline" / "assets"
ENCODER = ASSETS / "encoders" / "mini"


def test_they_take_less_than_forty_megabytes_and_are_what_was_trained() -> None:
    files = [path for path in ENCODER.rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) < 40_000_000
    lines = (ENCODER / "SHA256SUMS").read_text().splitlines()
    assert lines
    for digest, name in (line.split("  ") for line in lines):
        assert hashlib.sha256((ENCODER / name).read_bytes()).hexdigest() == digest, name
    assert "**Limits.**" in (ENCODER / "README.md").read_text()


def test_plain_open_clip_loads_the_encoder_and_it_knows_red_from_blue() -> None:
    from PIL import Image

    from pipeline.encoder_specs import import_open_clip

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
    from pipeline.train_data import DataConfig, read_pictures
    from pipeline.train_encoder import evaluate_encoder, load_encoder

    pictures = read_pictures(DataConfig(parquet=(str(shared / "data/styles/twemoji.parquet"),)))
    network, tokenizer = load_encoder(ENCODER)
    figures = evaluate_encoder(network, tokenizer, pictures, set(range(len(pictures))), torch.device("cpu"), most=400)
    assert figures["recall10_trained"] > 0.7  # chance: 10 of 1,683
