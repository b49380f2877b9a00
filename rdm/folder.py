"""A model as a folder in diffusers' layout: unet/, a first stage, scheduler/, and rdm.json with our own fields.

The first stage is in vae/, vqvae/ or folded/.

Reads: folders that `save_folder` wrote, and plain diffusers copies without rdm.json, such as the Hub's of the
768-pixel model (its clip/, tokenizer/ and feature_extractor/ are not read). `save_folder` writes each file whole or not at
all. Weights are memory-mapped safetensors; `.bin` files are read without running pickled code.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

from rdm.checkpoint import LoadReport, fill
from rdm.config import CONFIG_FILE, RDMConfig, model_names, read_config
from rdm.errors import CheckpointError, ConfigError, some
from rdm.networks import diffusers
from rdm.pickles import load_tensors
from rdm.untyped import FirstStage, JsonObject, UNet

_WEIGHTS = "diffusion_pytorch_model"
_PIPELINE_FIELDS = (
    "encoder", "context_norm", "max_neighbours", "default_k", "default_size", "default_guidance",
)  # fmt: skip
_PARTS = {"AutoencoderKL": "vae", "VQModel": "vqvae", "Folded": "folded"}
_HUB_FILES = ["rdm.json", "scheduler/scheduler_config.json"] + [
    f"{part}/{file}"
    for part in ("unet", *_PARTS.values())  # folded/ has only a config.json
    for file in ("config.json", f"{_WEIGHTS}.safetensors*", f"{_WEIGHTS}-*.safetensors", f"{_WEIGHTS}.bin")
]
# Names of attention weights in autoencoders that diffusers wrote before 0.14.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def find_folder(folder_or_hub_id: str | Path, revision: str | None = None) -> Path:
    """The local folder, or a download of the parts of the Hub's copy that are read here."""
    folder = Path(folder_or_hub_id)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise CheckpointError(
            f"{folder} is a file; a saved model is a folder. RDM.from_compvis (or `rdmpipe convert`) reads original checkpoints"
        )
    name = str(folder_or_hub_id)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(f"no folder at {folder}, and {name!r} is no Hub id (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"there is no folder {name}, and it cannot be fetched from the Hub ({error}); check the name and the network, or "
            "give a local folder"
        ) from error


def _read_json(path: Path) -> JsonObject:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: {path.parent} is no saved model, or not all of it") from None
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; an object was expected")
    return content


def _first_stage_folder(folder: Path) -> Path:
    found = [folder / name for name in _PARTS.values() if (folder / name).is_dir()]
    if not found:
        raise CheckpointError(f"{folder} has neither vae/ nor vqvae/ nor folded/: it is no saved RDM, or not all of it")
    if len(found) > 1:
        names = " and ".join(f"{part.name}/" for part in found)
        raise CheckpointError(f"{folder} has both {names}: remove the one that is not this model's first stage")
    return found[0]


def read_folder_config(folder: Path) -> RDMConfig:
    """The model's description. Without rdm.json: that of a published model with the same sizes, else one from the parts."""
    unet = _arguments(_read_json(folder / "unet" / "config.json"))
    first_stage_folder = _first_stage_folder(folder)
    first_stage = _arguments(raw := _read_json(first_stage_folder / "config.json"))
    default = next(kind for kind, part in _PARTS.items() if part == first_stage_folder.name)
    first_stage["_class_name"] = raw.get("_class_name", default)
    parts = {"unet": unet, "first_stage": first_stage}
    if (folder / CONFIG_FILE).is_file():
        return read_config({**_read_json(folder / CONFIG_FILE), **parts})
    if first_stage["_class_name"] == "Folded":
        raise CheckpointError(
            f"{folder / CONFIG_FILE} is missing: a model with a folded first stage needs it. Save it again"
        )
    for name in model_names():
        published = read_config(name)
        if _sizes(published.unet) == _sizes(unet) and _sizes(published.first_stage) == _sizes(first_stage):
            # Early copies hold default values for some fields (number of heads, scaling factor), which load but give wrong
            # pictures. The published description is used instead.
            return published
    schedule = _read_json(folder / "scheduler" / "scheduler_config.json")
    if schedule.get("beta_schedule") != "scaled_linear":
        raise ConfigError(
            f"{folder}: beta_schedule is {schedule.get('beta_schedule')!r}; a latent diffusion model's 'scaled_linear' "
            "was expected"
        )
    if "scaling_factor" not in raw:
        raise ConfigError(
            f"{first_stage_folder}/config.json lacks scaling_factor: add the one the model was trained with"
        )
    factor = 2 ** (len(first_stage["block_out_channels"]) - 1)
    return read_config({
        "name": folder.resolve().name, **parts, "scale_factor": raw["scaling_factor"],
        "beta_start": schedule["beta_start"], "beta_end": schedule["beta_end"],
        "train_steps": schedule.get("num_train_timesteps", 1000),
        "default_size": int(unet.get("sample_size") or 32) * factor,
        "prediction_type": schedule.get("prediction_type", "epsilon"),
    })  # fmt: skip


def _arguments(content: JsonObject) -> JsonObject:
    return {key: value for key, value in content.items() if not key.startswith("_")}


def _sizes(part: Mapping[str, object]) -> list[object]:
    keys = ("block_out_channels", "in_channels", "out_channels", "latent_channels", "cross_attention_dim",
            "down_block_types", "up_block_types", "layers_per_block")  # fmt: skip
    return [list(value) if isinstance(value := part.get(key), tuple) else value for key in keys]


def load_folder(
    folder: Path, config: RDMConfig, unet: nn.Module, first_stage: nn.Module, *, dtype: torch.dtype | None
) -> LoadReport:
    """Put the folder's weights into networks built on the meta device; see rdm.checkpoint.load_compvis for `dtype`."""
    count = 0
    for part, network in ((folder / "unet", unet), (_first_stage_folder(folder), first_stage)):
        if not network.state_dict():  # a folded first stage has no weights
            continue
        state = _read_weights(part)
        if part.name != "unet":
            state = {_modern(name): value for name, value in state.items()}
        expected = network.state_dict()
        for problem, names in (
            ("lacks", expected.keys() - state.keys()),
            ("has unknown", state.keys() - expected.keys()),
        ):
            if names:
                raise CheckpointError(f"{part} {problem} {len(names)} of {len(expected)} weights: {some(names)}")
        for name, value in state.items():
            shape = expected[name].shape
            if value.numel() != shape.numel() or [n for n in value.shape if n > 1] != [n for n in shape if n > 1]:
                raise CheckpointError(f"{part}: {name} has shape {tuple(value.shape)}, not {tuple(shape)}")
        count += len(state)
        fill(network, {name: value.reshape(expected[name].shape) for name, value in state.items()}, dtype)
    return LoadReport(str(folder), "saved", count, {})


def _modern(name: str) -> str:
    parts = name.split(".")
    if "attentions" in parts and parts[-2] in _OLD_ATTENTION:
        parts[-2] = _OLD_ATTENTION[parts[-2]]
    return ".".join(parts)


def _read_weights(part: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    index = part / f"{_WEIGHTS}.safetensors.index.json"
    single = part / f"{_WEIGHTS}.safetensors"
    if index.is_file() and not single.is_file():
        files = [part / Path(name).name for name in sorted(set(_read_json(index)["weight_map"].values()))]
    elif single.is_file():
        files = [single]
    elif (old := part / f"{_WEIGHTS}.bin").is_file():
        content = load_tensors(old)
        if strange := [name for name, value in content.items() if not isinstance(value, Tensor)]:
            raise CheckpointError(f"{old} holds things that are no tensors: {some(strange)}")
        return content
    else:
        raise CheckpointError(f"{part} has no weights: {single.name} (or .bin) was expected")
    state: dict[str, Tensor] = {}
    for file in files:
        try:
            state |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}; fetch or convert it again") from error
    return state


def save_folder(folder: Path, config: RDMConfig, unet: UNet, first_stage: FirstStage) -> None:
    """Write the model. Existing files of the same names are replaced one by one; mapped ones stay readable.

    Raises CheckpointError if `folder` is a file.
    """
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; a model is a folder: name another, or remove the file")
    library = diffusers()
    scheduler = library.DDIMScheduler(
        num_train_timesteps=config.train_steps, beta_start=config.beta_start, beta_end=config.beta_end,
        beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1,
        prediction_type=config.prediction_type,
    )  # fmt: skip
    ours = config.to_dict()
    del ours["unet"], ours["first_stage"]  # they are in the parts' own config.json
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as temporary:
        fresh = Path(temporary)
        for network in (unet, first_stage):
            network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        unet.save_pretrained(fresh / "unet", max_shard_size="50GB")
        first_stage.save_pretrained(fresh / _PARTS[type(first_stage).__name__], max_shard_size="50GB")
        scheduler.save_pretrained(fresh / "scheduler")
        for written in fresh.glob("*/config.json"):  # without the path of the weights on the machine that saved them
            content = json.loads(written.read_text())
            content.pop("_name_or_path", None)
            written.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
        (fresh / CONFIG_FILE).write_text(json.dumps(ours, indent=2) + "\n")
        mode = (fresh / CONFIG_FILE).stat().st_mode  # safetensors makes files that only their owner can read
        for source in sorted(path for path in fresh.rglob("*") if path.is_file()):
            target = folder / source.relative_to(fresh)
            target.parent.mkdir(parents=True, exist_ok=True)
            source.chmod(mode)
            source.replace(target)
    write_pipeline(folder, config)
    for other in set(_PARTS.values()) - {_PARTS[type(first_stage).__name__]}:  # of a model that was saved here before
        shutil.rmtree(folder / other, ignore_errors=True)


def write_pipeline(folder: Path, config: RDMConfig) -> None:
    """Write model_index.json and pipeline.py, so that diffusers' DiffusionPipeline.from_pretrained can open the folder."""
    kind = str(config.first_stage["_class_name"])
    parts: dict[str, list[str | None]] = {part: [None, None] for part in ("vae", "vqvae")}
    if kind != "Folded":
        parts[_PARTS[kind]] = ["diffusers", kind]
    index = {
        "_class_name": ["pipeline", "RDMPipeline"],
        "_diffusers_version": diffusers().__version__,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        **parts,
        "scale_factor": config.scale_factor,
        "fold": int(config.first_stage["factor"]) if kind == "Folded" else 0,
        **{name: getattr(config, name) for name in _PIPELINE_FIELDS},
    }
    if config.guidance_range is not None:
        index["guidance_range"] = list(config.guidance_range)
    program = (Path(str(resources.files("rdm"))) / "assets" / "pipeline.py").read_text(encoding="utf-8")
    (folder / "pipeline.py").write_text(program, encoding="utf-8")
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
