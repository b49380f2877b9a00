"""Model configs of foreign encoders: open_clip's own pass, fields that are not allowed are named, no code is run."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from pipeline.encoders import import_open_clip, load_encoder, model_config, resolve_encoder
from pipeline.encoders.modelconfig import check_model_config, read_model_config
from pipeline.errors import EncoderError
from tests.encoders import CONFIG, save_weights

TINY = json.loads(CONFIG.read_text())


def test_every_config_of_open_clip_is_allowed() -> None:
    folder = Path(import_open_clip().__file__).parent / "model_configs"
    paths = sorted(folder.glob("*.json"))
    assert len(paths) > 100
    for path in paths:
        table = json.loads(path.read_text())
        found = read_model_config(path.stem, path)
        assert found.embed_dim == table["embed_dim"]
        assert (found.vision, found.text) == (table["vision_cfg"], table["text_cfg"])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"text_cfg": {"tokenizer_kwargs": {"trust_remote_code": True}}},
            "text_cfg.tokenizer_kwargs.trust_remote_code",
        ),
        ({"text_cfg": {"tokenizer_kwargs": {"use_fast": False}}}, "text_cfg.tokenizer_kwargs.use_fast"),
        ({"text_cfg": {"tokenizer_kwargs": [1]}}, "text_cfg.tokenizer_kwargs"),
        ({"text_cfg": {"hf_model_name": "/tmp/evil"}}, "text_cfg.hf_model_name"),
        ({"text_cfg": {"hf_model_name": "../evil"}}, "text_cfg.hf_model_name"),
        ({"text_cfg": {"norm_kwargs": {"device": "cuda"}}}, "text_cfg.norm_kwargs"),
        ({"text_cfg": {"context_length": 10**9}}, "text_cfg.context_length"),
        ({"text_cfg": {"context_length": "77"}}, "text_cfg.context_length"),
        ({"text_cfg": {"pool_type": "a\n"}}, "text_cfg.pool_type"),
        ({"vision_cfg": {"timm_model_name": "hf-hub:evil/model"}}, "vision_cfg.timm_model_name"),
        ({"vision_cfg": {"timm_model_name": "local-dir:/tmp/evil"}}, "vision_cfg.timm_model_name"),
        ({"vision_cfg": {"image_size": [32, 32, 32]}}, "vision_cfg.image_size"),
        ({"vision_cfg": {"mlp_ratio": float("nan")}}, "vision_cfg.mlp_ratio"),
        ({"vision_cfg": {"layers": True}}, "vision_cfg.layers"),
        ({"vision_cfg": {"layers": 200, "width": 16_384}}, "weights"),
        ({"vision_cfg": 7}, "vision_cfg"),
        ({"embed_dim": "__import__('os')"}, "embed_dim"),
        ({"output_dict": True}, "'output_dict'"),
        ({"__class__": "x"}, "'__class__'"),
    ],
)
def test_a_field_that_is_not_allowed_is_named(change: dict[str, object], named: str) -> None:
    model = {**TINY}
    for key, value in change.items():
        model[key] = {**TINY[key], **value} if isinstance(value, dict) else value
    with pytest.raises(EncoderError) as error:
        check_model_config("local:x", model, {}, "model.json")
    assert named in str(error.value)


@pytest.mark.parametrize(
    "preprocess",
    [
        {"mean": "abc"},
        {"mean": [1, 2]},
        {"std": [0, 1, 1]},
        {"std": [float("inf"), 1, 1]},
        [],
        3,
        {"mean": [[1], 2, 3]},
    ],
)
def test_preprocess_configs_that_make_no_sense_are_errors(preprocess: object) -> None:
    with pytest.raises(EncoderError, match="preprocess_cfg"):
        check_model_config("local:x", TINY, preprocess, "model.json")


def test_nested_and_cut_json_is_an_error(tmp_path: Path) -> None:
    for i, text in enumerate(
        ["[" * 100_000, '{"a":' * 100_000, '{"model_cfg": {"embed_dim": 16', "1" * 10_000, "\x00"]
    ):
        path = tmp_path / f"{i}.json"
        path.write_text(text)
        with pytest.raises(EncoderError, match="open_clip model config"):
            read_model_config("local:x", path)


@pytest.fixture
def encoder_with_code(tmp_path: Path) -> Path:
    """An encoder whose tokenizer is a class in a Python file beside it; running that code writes a file CODE_RAN."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    model = {**TINY, "text_cfg": {**TINY["text_cfg"], "hf_tokenizer_name": "any"}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    about = {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (folder / "evil.py").write_text(
        f"open({str(tmp_path / 'CODE_RAN')!r}, 'w').close()\n"
        "from transformers import PreTrainedTokenizer\nclass EvilTokenizer(PreTrainedTokenizer):\n    pass\n"
    )
    save_weights(folder, name="open_clip_model.safetensors")
    return folder


def test_a_tokenizer_that_is_its_authors_code_is_refused_unrun(encoder_with_code: Path, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="its tokenizer cannot be loaded"):
        load_encoder(f"local:{encoder_with_code}", "cpu")
    config = encoder_with_code / "open_clip_config.json"
    table = json.loads(config.read_text())
    table["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    config.write_text(json.dumps(table))
    with pytest.raises(EncoderError, match="trust_remote_code"):
        load_encoder(f"local:{encoder_with_code}", "cpu")
    assert not (tmp_path / "CODE_RAN").exists()


def test_merges_beside_the_config_are_used_and_bounded(tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    save_weights(folder, name="open_clip_model.safetensors")
    model = {**TINY, "text_cfg": {**TINY["text_cfg"], "tokenizer_kwargs": {"bpe_path": "/etc/merges.txt.gz"}}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    merges = folder / "merges.txt.gz"  # only the name counts
    with pytest.raises(EncoderError, match=r"merges\.txt\.gz cannot be read"):
        load_encoder(f"local:{folder}", "cpu")
    merges.write_bytes(gzip.compress(b"#version: 0.2\n" + b"a b\n" * 10))
    assert load_encoder(f"local:{folder}", "cpu").encode_texts(["ab"]).shape == (1, 16)
    merges.write_bytes(gzip.compress(bytes(40 << 20)))
    with pytest.raises(EncoderError, match="unpack to more than"):
        load_encoder(f"local:{folder}", "cpu")


def test_the_config_of_a_name_is_read_without_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text(json.dumps(TINY))
    assert model_config(resolve_encoder(f"local:{path}:/nowhere.safetensors")).embed_dim == 16
