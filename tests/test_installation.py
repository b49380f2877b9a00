"""The installation: missing optional packages are named with the command that adds them."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pipeline
from pipeline.errors import ConfigError
from pipeline.installation import EXTRAS, require

REPO = Path(__file__).parent.parent
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.mark.parametrize("extra", EXTRAS)
def test_what_is_missing_is_an_error_that_names_the_pip_command(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert extra in PROJECT["optional-dependencies"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"^drawing needs .*pip install 'rdmpipe\[{extra}\]'$"):
        require(extra, "drawing")


def test_all_takes_every_extra_that_lowers_no_other_package() -> None:
    extras = PROJECT["optional-dependencies"]
    wanted = set(extras) - {"all", "autofaiss", "dev", "docs", "mlflow", "wandb"}  # the last two only where a run asks
    assert extras["all"] == [f"rdmpipe[{','.join(sorted(wanted))}]"]


def test_every_package_of_the_core_is_imported_somewhere() -> None:
    modules = {
        "faiss-cpu": "faiss",
        "lazy-loader": "lazy_loader",
        "open_clip_torch": "open_clip",
        "pillow": "PIL",
        "pyyaml": "yaml",
    }
    text = "\n".join(
        path.read_text("utf-8") for folder in ("pipeline", "rdm") for path in (REPO / folder).rglob("*.py")
    )
    imported = {name.split(".")[0] for name in re.findall(r"^ *(?:from|import) ([\w.]+)", text, re.M)}
    named = {re.split(r"[\[<>=;, ]", dependency)[0] for dependency in PROJECT["dependencies"]}
    data = {"tzdata"}  # time zones for systems without their own: zoneinfo reads it
    assert {modules.get(name, name) for name in named - data} <= imported


ABSENT = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {names} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""  # these modules are not found, as where they are not installed


def run_without(names: set[str], program: str) -> str:
    """The output of a program in a process in which these modules cannot be imported."""
    text = ABSENT.replace("{names}", repr(sorted(names))) + program
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False, cwd=REPO)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


NO_LINUX = """
import os
def refuse(event, arguments):
    if event == "open" and str(arguments[0]).startswith("/proc/"):
        raise FileNotFoundError(arguments[0])
sys.addaudithook(refuse)
del os.sched_getaffinity
"""


@pytest.mark.process
def test_a_folder_is_built_and_searched_without_any_optional_package_or_what_only_linux_has(tmp_path: Path) -> None:
    optional = {name for names in EXTRAS.values() for name in names} | {
        "autofaiss",
        "pandas",
        "accelerate",
        "webdataset",
    }
    program = f"""
from pathlib import Path
import numpy as np
from PIL import Image
import rdmpipe
from pipeline.index.worker import peak_bytes
assert 20 << 20 < peak_bytes() < 20 << 30
folder = Path({str(tmp_path)!r}) / "pictures"
folder.mkdir()
for number in range(6):
    Image.fromarray(np.full((32, 32, 3), 40 * number, np.uint8)).save(folder / f"{{number}}.png")
rdmpipe.build(folder, encoder="mini", home={str(tmp_path / "home")!r}, progress=False)
with rdmpipe.open("pictures", home={str(tmp_path / "home")!r}) as opened:
    print("found", opened.search("grey", k=3, where="key % 2 >= 0").table.num_rows)
run = rdmpipe.generate(["a castle"], db="pictures", model="rdm-mini", steps=1, home={str(tmp_path / "home")!r}, progress=False)
print("made", run.table.num_rows)
"""
    told = run_without(optional, NO_LINUX + program)
    assert "found 3" in told and "made 1" in told


@pytest.mark.process
def test_the_model_needs_torch_diffusers_and_safetensors_alone(tmp_path: Path) -> None:
    others = {
        "pipeline",
        "duckdb",
        "faiss",
        "pyarrow",
        "open_clip",
        "timm",
        "torchvision",
        "transformers",
        "peft",
        "accelerate",
    }
    program = f"""
import torch
from rdm import RDM
from tests.rdm_reference import tiny_model
tiny_model().save_pretrained({str(tmp_path)!r})
model = RDM.from_pretrained({str(tmp_path)!r})
latents = model.sample(torch.randn(1, 2, model.config.context_dim), steps=2, height=32, width=32)
print(tuple(model.decode(latents).shape))
"""
    assert run_without(others, program).strip() == "(1, 3, 32, 32)"


def test_windows_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ImportError, match="Use WSL 2"):
        importlib.reload(pipeline)
    assert "Operating System :: POSIX :: Linux" in PROJECT["classifiers"]
    assert not any("Windows" in classifier for classifier in PROJECT["classifiers"])
