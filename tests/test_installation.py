"""What is installed and what is not: optional packages are named with the command that adds them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

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
    wanted = set(extras) - {"all", "autofaiss", "dev", "docs"}
    assert extras["all"] == [f"rdmpipe[{','.join(sorted(wanted))}]"]


@pytest.mark.process
def test_a_folder_is_built_and_searched_without_any_optional_package(tmp_path: Path) -> None:
    """Imports of optional packages fail in this process, as they do where only the core is installed."""
    program = f"""
import importlib.abc, sys
from pathlib import Path
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in {sorted({name for names in EXTRAS.values() for name in names} | {"autofaiss", "pandas"})!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import numpy as np
from PIL import Image
import rdmpipe
folder = Path({str(tmp_path)!r}) / "pictures"
folder.mkdir()
for number in range(6):
    Image.fromarray(np.full((32, 32, 3), 40 * number, np.uint8)).save(folder / f"{{number}}.png")
rdmpipe.build(folder, encoder="mini", home={str(tmp_path / "home")!r}, progress=False)
with rdmpipe.open("pictures", home={str(tmp_path / "home")!r}) as opened:
    print("found", opened.search("grey", k=3).table.num_rows)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "found 3" in done.stdout, done.stderr[-2000:]
