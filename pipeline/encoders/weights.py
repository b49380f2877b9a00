"""Encoder weights: find them, check that they can be reached, and read them without running code.

Reads: local files, and the Hub through huggingface_hub (HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN are
honoured). Writes: huggingface_hub's cache. Takes safetensors, and torch files that load with weights_only=True; a TorchScript
archive is code and is refused.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import EncoderError

if TYPE_CHECKING:
    import torch

HUB_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")

_TIMEOUT_S = 10.0


def candidates(filename: str) -> tuple[str, ...]:
    """File names to try for the weights in a Hub repository: safetensors before pickled files."""
    if not filename:
        return HUB_WEIGHTS
    path = Path(filename)
    return (filename,) if path.suffix == ".safetensors" else (str(path.with_suffix(".safetensors")), filename)


def check_hub(name: str, repo: str, filenames: tuple[str, ...], revision: str = "") -> str:
    """The first of `filenames` that the repository (or the cache) has. Requests only headers. Raises EncoderError."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    for filename in filenames:
        if isinstance(try_to_load_from_cache(repo, filename, revision=revision or None), str):
            return filename
    if constants.HF_HUB_OFFLINE:
        raise unreachable(name, repo, filenames, "HF_HUB_OFFLINE is set and they are not in the cache")
    for filename in filenames:
        try:
            get_hf_file_metadata(hf_hub_url(repo, filename, revision=revision or None), timeout=_TIMEOUT_S)
            return filename
        except GatedRepoError as error:
            raise unreachable(
                name, repo, filenames, "the repository is gated: accept its terms and set HF_TOKEN"
            ) from error
        except RevisionNotFoundError as error:
            raise unreachable(name, repo, filenames, f"the repository has no revision {revision!r}") from error
        except RepositoryNotFoundError as error:
            raise unreachable(name, repo, filenames, "no such repository (or it is private: set HF_TOKEN)") from error
        except EntryNotFoundError:
            continue
        except Exception as error:  # any error of the transport: name resolution, refused, TLS, proxy, status
            raise unreachable(name, repo, filenames, f"{type(error).__name__}: {error}"[:300]) from error
    raise unreachable(name, repo, filenames, "the repository has none of these files")


def fetch(name: str, repo: str, filename: str, revision: str = "") -> Path:
    """The file on this disk, downloaded into huggingface_hub's cache if necessary. Raises EncoderError."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, filename, revision=revision or None))
    except Exception as error:
        raise unreachable(name, repo, (filename,), f"{type(error).__name__}: {error}"[:300]) from error


def unreachable(name: str, repo: str, filenames: tuple[str, ...], why: str) -> EncoderError:
    from huggingface_hub import constants

    return EncoderError(
        f"encoder {name!r}: its weights cannot be reached: {why}. Looked for {' or '.join(filenames)} of {repo} in "
        f"{constants.HF_HUB_CACHE} and at {constants.ENDPOINT}. Connect this machine, or fill its cache elsewhere with "
        f"`hf download {repo} {filenames[0]}` and copy it, or use weights on this disk with "
        "--encoder local:MODEL.json:WEIGHTS.safetensors. Nothing else is used in their place. To try rdmpipe without a "
        "network, add --encoder mini-2: a small encoder that ships with it."
    )


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint on the CPU, under open_clip's names. Raises EncoderError; runs nothing from the file."""
    import torch

    from rdm.pickles import require_bounded

    if path.suffix not in SUFFIXES:
        raise EncoderError(f"{path}: weights are expected as {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: object = load_file(str(path))
        else:
            require_bounded(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise EncoderError(f"no weights at {path}") from error
    except Exception as error:
        raise EncoderError(
            f"{path}: cannot be read as plain tensors ({type(error).__name__}: {str(error)[:200]}). A file that needs code "
            "to be run (a TorchScript archive, pickled objects) is refused: save its state_dict with "
            "safetensors.torch.save_file"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    found = state.items() if isinstance(state, dict) else ()
    tensors = {str(key): value for key, value in found if isinstance(value, torch.Tensor)}
    if not tensors:
        raise EncoderError(f"{path}: holds no tensors; expected an open_clip state dict")
    if all(key.startswith("module.") for key in tensors):  # saved from DistributedDataParallel
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def sha256_of_state(state: dict[str, torch.Tensor]) -> str:
    """sha256 over a state dict: for each tensor in the order of its name, name, dtype, shape and bytes."""
    import torch

    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
