"""Encoders by name: loading, equality with open_clip, refusals before work, and mismatches with a database."""

from __future__ import annotations

import http.server
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.encoders import (
    Encoder,
    check_encoder,
    import_open_clip,
    load_encoder,
    load_recorded,
    require_match,
    resolve_encoder,
    unit_rows,
)
from pipeline.encoders.specs import _simple_tokenizer, list_encoders
from pipeline.errors import ConfigError, EncoderError
from tests.encoders import CONFIG, RANDOM, local_encoder, save_weights

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tiny() -> Encoder:
    torch.set_num_threads(1)
    return load_encoder(RANDOM, "cpu")


def pixels(count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (unit_rows(a)[0] * unit_rows(b)[0]).sum(axis=1)


def test_both_towers_give_vectors_of_the_models_dimension(tiny: Encoder) -> None:
    made = tiny.encode_images(pixels(5))
    assert (made.shape, made.dtype) == ((5, 16), np.float32)
    texts = tiny.encode_texts(["a harbour at dawn", "a cat", ""])
    assert (texts.shape, texts.dtype) == ((3, 16), np.float32)
    assert np.allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-6)
    assert tiny.encode_texts([]).shape == (0, 16)
    assert (tiny.image_size, tiny.has_text, tiny.dim) == (32, True, 16)


def test_vectors_equal_open_clips_own(tiny: Encoder, tmp_path: Path) -> None:
    open_clip = import_open_clip()
    folder = tmp_path / "model"
    weights = save_weights(folder, seed=3, name="open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": json.loads(CONFIG.read_text())}))
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    ours = load_encoder(f"local:{folder}", "cpu")
    image = Image.fromarray(pixels(1, 90)[0])
    with torch.no_grad():
        expected = model.eval().encode_image(transform(image)[None]).numpy()
        expected_text = model.encode_text(tokenizer(["a red boat"]), normalize=True).numpy()
    assert cosines(ours.encode_images(ours.prepare(image)[None]), expected).min() > 0.9999
    exact = np.rint(
        np.array(transform(image)) * np.array(ours.preprocess.std)[:, None, None] * 255
        + (np.array(ours.preprocess.mean)[:, None, None] * 255)
    ).astype(np.uint8)
    assert np.allclose(ours.encode_images(exact.transpose(1, 2, 0)[None]), expected, atol=1e-5)
    assert np.allclose(ours.encode_texts(["a red boat"]), expected_text, atol=1e-6)
    assert ours.record.weights == load_encoder(f"local:{CONFIG}:{weights}", "cpu").record.weights
    assert ours.record.trained


TOWERS = {
    "CLIP": ({}, True),
    "TextTransformer": ({"custom_text": True}, True),
    "TextTransformer that reads at its eos token": (
        {"custom_text": True, "text_cfg": {"pool_type": "eos", "eos_id": 49407}},
        True,
    ),
    "not causal": ({"custom_text": True, "text_cfg": {"no_causal_mask": True}}, False),
    "not causal, pooled at the end": (
        {"custom_text": True, "text_cfg": {"no_causal_mask": True, "pool_type": "last"}},
        False,
    ),
    "with an appended token": ({"custom_text": True, "text_cfg": {"embed_cls": True}}, False),
}


@pytest.mark.parametrize("tower", TOWERS)
def test_queries_equal_texts_and_causal_towers_compute_only_their_tokens(
    tower: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, short = TOWERS[tower]
    config = json.loads(CONFIG.read_text())
    text = {**config["text_cfg"], **changes.get("text_cfg", {})}
    (tmp_path / "tower.json").write_text(json.dumps({**config, **changes, "text_cfg": text}))
    encoder = load_encoder(f"random:{tmp_path / 'tower.json'}?seed=2", "cpu")
    seen: list[int] = []
    layer = encoder.model.get_submodule("text.ln_final" if "custom_text" in changes else "ln_final")
    layer.register_forward_hook(lambda module, given, made: seen.append(given[0].shape[1] if given[0].ndim == 3 else 0))
    for texts in (["a harbour at dawn", "a", ""], ["a harbour at dawn with two boats and " * 9]):
        full, quick = encoder.encode_texts(texts), encoder.encode_queries(texts)
        assert full.shape == quick.shape and np.abs(full - quick).max() < 1e-5
        positions = min(77, 2 + len(texts[0].split()))
        if tower != "with an appended token":
            assert seen == [77, positions if short else 77]
        seen.clear()
    assert encoder.encode_queries([]).shape == (0, 16)


@pytest.mark.process
def test_vit_b_32_with_random_weights_equals_open_clips_model(shared: Path) -> None:
    open_clip = import_open_clip()
    torch.set_num_threads(1)
    ours = load_encoder("random:ViT-B-32?seed=0", "cpu")
    reference, _, transform = open_clip.create_model_and_transforms("ViT-B-32")
    reference.load_state_dict(ours.model.state_dict())
    paths = sorted((shared / "data" / "paintings").glob("*.jpg"))[:3]
    images = [Image.open(path).convert("RGB") for path in paths]
    with torch.no_grad():
        expected = reference.eval().encode_image(torch.stack([transform(image) for image in images])).numpy()
    found = ours.encode_images(np.stack([ours.prepare(image) for image in images]))
    assert found.shape == (3, 512)
    assert cosines(found, expected).min() > 0.9999  # pixels differ by a step of 255 here and there
    assert ours.notes == ("the encoder has random weights: its results carry no meaning",)


def test_random_weights_follow_their_seed_and_say_that_they_mean_nothing(tiny: Encoder) -> None:
    again, other = (
        load_encoder(RANDOM, "cpu"),
        load_encoder(RANDOM.replace("seed=0", "seed=7"), "cpu"),
    )
    assert again.record == tiny.record
    assert other.record.weights != tiny.record.weights
    assert not tiny.record.trained
    assert "no meaning" in tiny.notes[0]
    state = torch.random.get_rng_state()
    load_encoder(RANDOM, "cpu")
    assert torch.equal(state, torch.random.get_rng_state())


def test_openai_names_are_built_with_quickgelu() -> None:
    from pipeline.encoders import model_config
    from pipeline.encoders.specs import build_network

    config = model_config(resolve_encoder("open_clip:ViT-B-32/openai"))
    assert config.options["quick_gelu"] is True
    assert config.preprocess.mean[0] == pytest.approx(0.48145466)
    assert model_config(resolve_encoder("vit-b-32")) == config
    assert "quick_gelu" not in model_config(resolve_encoder("open_clip:ViT-B-32/laion2b_s34b_b79k")).options
    names = {type(module).__name__ for module in build_network("vit-b-32", config, "fp32").modules()}
    assert "QuickGELU" in names
    assert resolve_encoder("vit-l-14").arch == "ViT-L-14"


def test_torch_checkpoints_of_plain_tensors_load_like_safetensors(tmp_path: Path) -> None:
    first = load_encoder(f"local:{CONFIG}:{save_weights(tmp_path)}", "cpu")
    second = load_encoder(f"local:{CONFIG}:{save_weights(tmp_path, name='weights.pt')}", "cpu")
    assert first.record.weights == second.record.weights


class _Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (os.environ["TRAP"],)


@pytest.mark.filterwarnings("ignore")  # torch's, of the ways that this test saves
def test_nothing_in_a_weights_file_is_ever_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    torch.save({"visual.proj": _Trap()}, tmp_path / "trap.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": _Trap()}))
    scripted = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    torch.jit.save(scripted, str(tmp_path / "jit.pt"))
    for name in ("trap.pt", "plain.pt", "jit.pt"):
        with pytest.raises(EncoderError, match="refused"):
            load_encoder(f"local:{CONFIG}:{tmp_path / name}", "cpu")
    assert not (tmp_path / "sprung").exists()


def test_weights_that_do_not_fit_the_config_are_an_error(tmp_path: Path) -> None:
    config = json.loads(CONFIG.read_text())
    config["embed_dim"] = 24
    (tmp_path / "other.json").write_text(json.dumps(config))
    weights = save_weights(tmp_path)
    with pytest.raises(EncoderError, match="does not fit its model config"):
        load_encoder(f"local:{tmp_path / 'other.json'}:{weights}", "cpu")
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(EncoderError, match="cannot be read as plain tensors"):
        load_encoder(f"local:{CONFIG}:{tmp_path / 'cut.safetensors'}", "cpu")


def test_an_encoder_without_a_text_tower_embeds_pictures_and_says_so(tmp_path: Path) -> None:
    config = json.loads(CONFIG.read_text())
    del config["text_cfg"]
    (tmp_path / "images.json").write_text(json.dumps(config))
    weights = save_weights(tmp_path, config=tmp_path / "images.json")
    encoder = load_encoder(f"local:{tmp_path / 'images.json'}:{weights}", "cpu")
    assert not encoder.has_text
    assert not encoder.record.has_text
    assert encoder.encode_images(pixels(2)).shape == (2, 16)
    with pytest.raises(EncoderError, match="no text tower"):
        encoder.encode_texts(["a cat"])


def test_texts_beyond_the_context_are_cut_with_a_warning(tiny: Encoder, caplog: pytest.LogCaptureFixture) -> None:
    long = "a painting of a virus monster playing guitar " * 20
    assert tiny.overlong(["short", long, "x" * 70, "word " * 75]) == [1]
    tiny.encode_texts(["short", long])
    assert "1 of 2 texts are longer than the encoder's 77 tokens" in caplog.text


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_lower_precisions_stay_close_and_are_other_records(tiny: Encoder, precision: str) -> None:
    lower = load_encoder(RANDOM, "cpu", precision)
    assert lower.record.weights == tiny.record.weights
    assert lower.record.id != tiny.record.id
    assert cosines(lower.encode_images(pixels(4)), tiny.encode_images(pixels(4))).min() > 0.999
    assert (lower.encode_texts(["a cat"]) * tiny.encode_texts(["a cat"])).sum() > 0.999
    require_match(tiny.record, lower)


def test_compvis_preprocessing_is_another_encoder_to_a_database(tiny: Encoder) -> None:
    other = load_encoder(RANDOM, "cpu", preprocess="compvis")
    assert other.prepare(Image.fromarray(pixels(1, 50)[0])).dtype == np.float32
    assert other.record.id != tiny.record.id
    with pytest.raises(
        EncoderError, match=r"preprocessing openclip in the database, compvis now.*--preprocess openclip"
    ):
        require_match(tiny.record, other)


def test_a_mismatch_names_both_encoders_and_the_fix(tiny: Encoder, tmp_path: Path) -> None:
    name = local_encoder(tmp_path)
    trained = load_encoder(name, "cpu")
    with pytest.raises(EncoderError, match=r"did not make this database's vectors.*weights .* Use --encoder random:"):
        require_match(tiny.record, trained)
    assert load_recorded(trained.record, "cpu").record == trained.record
    save_weights(tmp_path, seed=9)  # other weights under the same name
    with pytest.raises(EncoderError, match="weights"):
        load_recorded(trained.record, "cpu")
    with pytest.raises(EncoderError, match="dimensions 99 in the database, 16 now"):
        require_match(replace(trained.record, dim=99), trained)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit-l14", "did you mean 'vit-l-14'"),
        ("clip", "random:ARCH"),
        ("open_clip:ViT-L-14", "open_clip:ARCH/TAG"),
        ("open_clip:ViT-L-14/opneai", "did you mean 'openai'"),
        ("open_clip:ViT-L-15/openai", "did you mean 'ViT-L-1"),
        ("random:ViT-B-33", "did you mean 'ViT-B-32'"),
        ("random:ViT-B-32?seed=x", "seed=NUMBER"),
        ("local:/nowhere", "no readable open_clip model config at /nowhere"),
        (f"local:{CONFIG}:/nowhere/w.safetensors", "no weights at /nowhere/w.safetensors"),
        (f"local:{CONFIG}:{CONFIG}", "weights are expected as .safetensors"),
        ("random:/nowhere/model.json", "no readable open_clip model config"),
    ],
)
def test_unknown_names_are_errors_before_work(name: str, expected: str) -> None:
    with pytest.raises(EncoderError) as error:
        check_encoder(name)
        load_encoder(name, "cpu")
    assert expected in str(error.value)


def test_a_config_that_open_clip_cannot_build_is_an_error(tmp_path: Path) -> None:
    for i, text in enumerate(['{"embed_dim": 8, "vision_cfg": {"layerz": 3}}', '{"a": 1}', "no json", "[1]"]):
        path = tmp_path / f"{i}.json"
        path.write_text(text)
        with pytest.raises(EncoderError, match=f"{i}.json"):
            load_encoder(f"random:{path}", "cpu")


def test_unknown_devices_and_precisions_are_errors() -> None:
    with pytest.raises(EncoderError, match="fp32, fp16, bf16"):
        load_encoder(RANDOM, "cpu", "fp64")
    with pytest.raises(ConfigError, match="not one that torch knows"):
        load_encoder(RANDOM, "gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no GPU"):
            load_encoder(RANDOM, "cuda")


def test_plain_names_are_listed() -> None:
    assert {"vit-l-14", "vit-b-32"} <= set(list_encoders())


# ---- the Hub


def in_new_process(code: str, **env: str) -> tuple[str, float]:
    """The output of `code` in a fresh interpreter, in which huggingface_hub reads the environment again, and its seconds."""
    wrapped = f"import time\nfrom pipeline.encoders import *\nstart = time.monotonic()\ntry:\n    {code}\n" + (
        "except Exception as error:\n    print(type(error).__name__, error)\nprint(time.monotonic() - start)"
    )
    done = subprocess.run(
        [sys.executable, "-c", wrapped],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    *lines, seconds = done.stdout.strip().splitlines()
    return "\n".join(lines), float(seconds)


@pytest.mark.process
def test_offline_without_a_cache_is_an_error_before_work(tmp_path: Path) -> None:
    said, _ = in_new_process("check_encoder('vit-l-14')", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert said.startswith("EncoderError encoder 'vit-l-14': its weights cannot be reached: HF_HUB_OFFLINE is set")
    assert str(tmp_path) in said
    assert "hf download timm/vit_large_patch14_clip_224.openai" in said


@pytest.mark.process
def test_an_endpoint_that_does_not_answer_is_a_quick_error(tmp_path: Path) -> None:
    said, seconds = in_new_process(
        "check_encoder('open_clip:ViT-B-32/laion2b_s34b_b79k')",
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_HOME=str(tmp_path),
        HF_HUB_OFFLINE="0",
    )
    assert said.startswith("EncoderError")
    assert "http://127.0.0.1:9" in said
    assert seconds < 30


class _Hub(http.server.BaseHTTPRequestHandler):
    """The part of the Hub that a download needs: /<owner>/<repo>/resolve/<revision>/<file> from a folder."""

    root: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        parts = self.path.strip("/").split("/")
        path = self.root / parts[0] / parts[1] / "/".join(parts[4:])
        if "/resolve/" in self.path:
            self.asked.append(f"{self.command} {self.path}")
        if not path.is_file():
            known = (self.root / parts[0] / parts[1]).is_dir()
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.send_header("X-Repo-Commit", "c" * 40)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = path.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{len(data)}"')
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_GET = do_HEAD

    def log_message(self, *args: object) -> None:
        return


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """A local Hub: its address, its folder of repositories, and the requests that it received."""
    root, asked = tmp_path / "hub", list[str]()
    root.mkdir()
    handler = type("Handler", (_Hub,), {"root": root, "asked": asked})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", root, asked
    server.shutdown()
    server.server_close()


@pytest.mark.process
def test_a_hub_repository_is_checked_by_its_headers_then_loaded_then_cached(
    hub: tuple[str, Path, list[str]], tmp_path: Path
) -> None:
    address, root, asked = hub
    folder = root / "someone" / "tiny-clip"
    save_weights(folder, name="open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": json.loads(CONFIG.read_text())}))
    env = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    said, _ = in_new_process("check_encoder('hf-hub:someone/tiny-clip')", **env)
    assert said == ""
    assert asked
    assert all(line.startswith("HEAD") for line in asked)
    loading = "print(load_encoder('hf-hub:someone/tiny-clip', 'cpu').record.weights)"
    first, _ = in_new_process(loading, **env)
    weights = folder / "open_clip_model.safetensors"
    assert first == load_encoder(f"local:{CONFIG}:{weights}", "cpu").record.weights
    again, _ = in_new_process("check_encoder('hf-hub:someone/tiny-clip'); " + loading, **{**env, "HF_HUB_OFFLINE": "1"})
    assert again == first


@pytest.mark.process
def test_a_missing_repository_or_file_is_an_error_that_says_where_it_looked(
    hub: tuple[str, Path, list[str]], tmp_path: Path
) -> None:
    address, root, _ = hub
    (root / "someone" / "empty").mkdir(parents=True)
    env = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    said, _ = in_new_process("check_encoder('hf-hub:someone/empty')", **env)
    assert "the repository has none of these files" in said
    assert address in said
    said, seconds = in_new_process("load_encoder('hf-hub:no/where', 'cpu')", **env)
    assert said.startswith("EncoderError")
    assert "no such repository" in said
    assert seconds < 30


@pytest.mark.process
def test_torchvision_imports_beside_this_torch_in_a_fresh_process() -> None:
    code = "from pipeline.machine import prepare_torchvision as p; p(); p(); import torchvision, open_clip"
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{done.stderr} after {time.monotonic() - start:.0f} s"


@pytest.mark.parametrize("settings", [{}, {"clean": "canonicalize"}])
def test_a_tokenizer_with_another_length_gives_the_tokens_of_a_new_one(settings: dict[str, str]) -> None:
    module = import_open_clip().tokenizer
    texts = ["A Castle, by the sea!", "drawn " * 20]
    made = _simple_tokenizer(module, 9, settings)
    assert torch.equal(made(texts), module.SimpleTokenizer(context_length=9, **settings)(texts))
    assert module.tokenize(texts).shape == (2, 77), "the module's own tokenizer keeps its length"
