"""Imports: what a process loads of large libraries, and that a whole library can still be had beside our copy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent

HEAVY = ("accelerate", "peft", "scipy.stats", "timm", "torch._dynamo", "transformers")

CODE = f"""
import sys
from pipeline.encoders import load_encoder
from rdm import RDM
encoder = load_encoder("mini", "cpu")
model = RDM.from_pretrained({str(REPO / "pipeline/assets/models/rdm-mini")!r})
encoder.encode_texts(["a boat"])
print(*[name for name in {HEAVY!r} if name in sys.modules])
print(*[name for name in ("diffusers", "open_clip") if name in sys.modules])
print(model.unet.device, model.unet.dtype)

import torch._dynamo
import diffusers
whole = diffusers.UNet2DConditionModel.__module__
print(hasattr(torch._dynamo, "optimize"), diffusers.utils.is_transformers_available(), whole)
"""


@pytest.mark.process
def test_encoder_and_model_load_nothing_that_they_do_not_use_and_leave_whole_libraries_to_others() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], cwd=REPO, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-4:] == [
        "",
        "",
        "cpu torch.float32",
        "True True diffusers.models.unets.unet_2d_condition",
    ]
