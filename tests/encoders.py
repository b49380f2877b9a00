"""A small open_clip encoder for tests: a few hundred thousand weights, both towers, 32-pixel input, 16 dimensions."""

from __future__ import annotations

from pathlib import Path

CONFIG = Path(__file__).parent / "data" / "tiny_clip.json"
RANDOM = f"random:{CONFIG}?seed=0"


def save_weights(folder: Path, seed: int = 1, config: Path = CONFIG, name: str = "weights.safetensors") -> Path:
    """Weights of the small encoder as a file; different seeds are different encoders."""
    import torch
    from safetensors.torch import save_file

    from pipeline.encoders import load_encoder

    folder.mkdir(parents=True, exist_ok=True)
    state = load_encoder(f"random:{config}?seed={seed}", "cpu").model.state_dict()
    path = folder / name
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    return path


def local_encoder(folder: Path, seed: int = 1) -> str:
    """The name of a local encoder with its weights in `folder`; rdmpipe treats it as a trained one."""
    return f"local:{CONFIG}:{save_weights(folder, seed)}"
