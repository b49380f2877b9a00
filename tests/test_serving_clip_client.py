"""clip-retrieval's own client against `rdmpipe browse`: fetched from the package registry, not installed, not changed.

Its package pins versions that this project cannot use (PyArrow below 16, Flask, ...), and importing the package imports its
backend. The client is one module that only needs `requests`; it is loaded from the downloaded wheel.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from tests.builds import folder_of, picture, quiet_build
from tests.serving import running

pytestmark = pytest.mark.long

WHEEL = "clip-retrieval==2.45.0"


@pytest.fixture(scope="module")
def clip_client(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    folder = tmp_path_factory.mktemp("clip-retrieval")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--only-binary",
        ":all:",
        "-d",
        str(folder),
        WHEEL,
    ]
    if subprocess.run(command, capture_output=True, timeout=300).returncode:
        pytest.skip(f"{WHEEL} cannot be fetched here")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        path = Path(wheel.extract("clip_retrieval/clip_client.py", folder))
    spec = importlib.util.spec_from_file_location("clip_client", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_client_searches_by_text_picture_and_vector(clip_client: ModuleType, tmp_path: Path) -> None:
    home = tmp_path / "home"
    quiet_build(folder_of(tmp_path / "pictures", 12), name="mine", home=str(home), images="thumbnail")
    query = tmp_path / "query.png"
    query.write_bytes(picture(5))
    with running(home) as address:
        client = clip_client.ClipClient(
            url=f"{address}knn-service",
            indice_name="mine",
            num_images=4,
            modality=clip_client.Modality.IMAGE,
            deduplicate=False,
        )
        by_text = client.query(text="a harbour at dawn")
        assert len(by_text) == 4
        assert {"id", "similarity", "url", "caption", "image"} <= set(by_text[0])
        assert [row["similarity"] for row in by_text] == sorted((row["similarity"] for row in by_text), reverse=True)
        assert Image.open(io.BytesIO(base64.b64decode(by_text[0]["image"]))).size == (48, 48)
        by_picture = client.query(image=str(query))
        assert by_picture[0]["id"] == 5 and by_picture[0]["caption"] == "picture number 5"
        by_vector = client.query(embedding_input=[1.0] + [0.0] * 15)
        assert len(by_vector) == 4
