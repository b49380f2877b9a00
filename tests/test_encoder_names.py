"""Short names of encoders stand for weights that open_clip knows, and their widths are those that the models take."""

from __future__ import annotations

import pytest

from pipeline.encoders import describe_encoders, import_open_clip, model_config, resolve_encoder, same_encoder
from pipeline.encoders.specs import SHORT_NAMES

WIDTHS = {"vit-l-14": 768, "vit-b-32": 512, "vit-h-14": 1024, "vit-bigg-14": 1280, "siglip2-base": 768,
          "siglip2-so400m": 1152, "pe-core-b-16": 1024, "pe-core-l-14": 1024, "mobileclip2-s2": 512,
          "mobileclip2-b": 512}  # fmt: skip


@pytest.mark.parametrize("name", SHORT_NAMES)
def test_a_short_name_is_an_architecture_and_weights_of_open_clip(name: str) -> None:
    spec = resolve_encoder(name)
    assert spec.tag in import_open_clip().list_pretrained_tags_by_model(spec.arch)
    assert same_encoder(name, f"open_clip:{spec.arch}/{spec.tag}")
    assert model_config(spec).embed_dim == WIDTHS[name]
    assert name in {row["name"] for row in describe_encoders()}
