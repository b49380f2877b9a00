"""The two preprocessing methods equal those of open_clip and CompVis."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.encoders import Preprocess, import_open_clip
from pipeline.encoders.modelconfig import PreprocessConfig
from pipeline.encoders.preprocess import preprocess_of_model
from pipeline.errors import EncoderError
from pipeline.images import DRAFT_SIDE, decode

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def pictures(shared: Path, count: int = 6) -> list[Image.Image]:
    paths = sorted((shared / "data" / "paintings").glob("*.jpg"))[:count]
    return [decode(path.read_bytes()).image for path in paths]


def odd_sizes() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (97, 641, 3), dtype=np.uint8)  # 6.6 times as long as it is wide
    image = Image.fromarray(noise)
    return [image, image.rotate(90, expand=True), image.crop((0, 0, 50, 31)), image.crop((0, 0, 97, 97))]


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_openclip_equals_open_clips_own_transform(shared: Path, mode: str, interpolation: str) -> None:
    transforms = import_open_clip().transform
    config = transforms.PreprocessCfg(size=224, resize_mode=mode, interpolation=interpolation)
    reference = transforms.image_transform_v2(config, is_train=False)
    ours = Preprocess("openclip", 224, MEAN, STD, interpolation, mode)
    for image in [*pictures(shared), *odd_sizes()]:
        expected = reference(image).numpy().transpose(1, 2, 0) * STD + MEAN
        steps = np.abs(ours(image) - expected * 255)
        assert steps.max() < 2.01
        assert (steps > 0.5).mean() < 0.01


def test_very_long_pictures_are_cropped_as_open_clip_does_without_their_whole_length_in_memory(shared: Path) -> None:
    ours = Preprocess("openclip", 224, MEAN, STD)
    image = pictures(shared, 1)[0].resize((40, 400))
    whole = np.asarray(image.resize((224, 2240), Image.Resampling.BICUBIC))[1008:1232].astype(int)
    assert np.abs(ours(image) - whole).max() <= 3  # Pillow may take the two directions in another order
    assert ours(Image.new("RGB", (1, 1_000_000), (9, 8, 7))).tolist() == [[[9, 8, 7]] * 224] * 224


def test_compvis_equals_torchs_bicubic_with_aligned_corners_and_no_antialias(shared: Path) -> None:
    ours = Preprocess("compvis", 224, MEAN, STD)
    for image in [*pictures(shared), *odd_sizes()]:
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1.0
        x = torch.nn.functional.interpolate(x, size=(224, 224), mode="bicubic", align_corners=True, antialias=False)
        expected = ((x + 1.0) / 2.0)[0].permute(1, 2, 0).numpy()
        assert np.abs(ours(image) - expected).max() < 1e-4


def test_a_reduced_jpeg_is_prepared_almost_as_the_whole_one(shared: Path) -> None:
    import io

    ours = Preprocess("openclip", 224, MEAN, STD)
    for image in pictures(shared, 3):
        large = image.resize((image.width * 4, image.height * 4), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        large.save(buffer, "JPEG", quality=92)
        reduced = decode(buffer.getvalue(), DRAFT_SIDE)
        assert reduced.reduced
        whole = ours(decode(buffer.getvalue()).image).astype(int)
        assert np.abs(ours(reduced.image).astype(int) - whole).mean() < 1.5


def test_a_preprocessing_that_is_not_supported_is_an_error() -> None:
    config = PreprocessConfig(mean=MEAN, std=STD)
    with pytest.raises(EncoderError, match="not one of openclip, compvis"):
        preprocess_of_model("clip", 224, config)
    with pytest.raises(EncoderError, match="longest"):
        preprocess_of_model("openclip", 224, replace(config, resize_mode="longest"))
    assert preprocess_of_model("openclip", (336, 336), config).size == 336
