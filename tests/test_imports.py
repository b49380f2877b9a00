"""Imports: the parts of large libraries that a process loads, and that a whole library can be imported beside our copy."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rdm.imports import import_apart, import_whole

REPO = Path(__file__).parent.parent

HEAVY = ("accelerate", "peft", "scipy.stats", "timm", "torch._dynamo", "transformers")

CODE = f"""
import sys
from pipeline.encoders import load_encoder
from rdm import RDM
encoder = load_encoder("mini", "cpu")
from pipeline.machine import arrow_without_pandas
arrow_without_pandas()
import pyarrow
pyarrow.array([1.0])
print(*[name for name in ("huggingface_hub.hf_api", "pandas") if name in sys.modules])
model = RDM.from_pretrained({str(REPO / "pipeline/assets/models/rdm-mini")!r}).to("cpu")
encoder.encode_texts(["a boat"])
print(*[name for name in {HEAVY!r} if name in sys.modules])
print(*[name for name in ("diffusers", "open_clip") if name in sys.modules])
print(model.unet.device, model.unet.dtype)

import torch._dynamo
import diffusers
whole = diffusers.DDIMScheduler.__module__  # tests/test_diffusers_pipeline.py loads whole networks beside the copy
print(hasattr(torch._dynamo, "optimize"), diffusers.utils.is_transformers_available(), whole)
"""


@pytest.mark.process
def test_encoder_and_model_load_nothing_that_they_do_not_use_and_leave_whole_libraries_to_others() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], cwd=REPO, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-5:] == [
        "",  # of an encoder: no client of the Hub, and no pandas
        "",
        "",
        "cpu torch.float32",
        "True True diffusers.schedulers.scheduling_ddim",
    ]


def test_a_copy_finds_packages_absent_and_another_thread_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_library").mkdir()
    (tmp_path / "slow_library" / "__init__.py").write_text(
        "import pathlib, time\n"
        f"pathlib.Path({str(tmp_path / 'begun')!r}).touch()\n"
        "time.sleep(0.2)\n"
        "try:\n    import slow_companion\n    found = True\nexcept ImportError:\n    found = False\n"
    )
    (tmp_path / "slow_companion.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    copies = []
    thread = threading.Thread(target=lambda: copies.extend(import_apart(["slow_library"], ["slow_companion"])))
    thread.start()
    while not (tmp_path / "begun").exists():
        time.sleep(0.001)
    import_whole("slow_companion")  # waits for the copy
    thread.join()
    assert copies[0].__name__ == "apart_slow_library" and not copies[0].found
    assert "slow_companion" in sys.modules and "slow_library" not in sys.modules
    for name in ("slow_companion", "apart_slow_library"):
        del sys.modules[name]
