"""Databases with their pictures for other tools: a data set in Parquet with a card, and a folder of pictures."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.catalog import resolve_database
from pipeline.errors import ConfigError
from pipeline.exchange import export_pictures
from pipeline.retrieval import open_database
from tests.builds import folder_of, quiet_build
from tests.generations import add_view


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("export")
    pictures = folder_of(folder / "pictures", 7)
    (pictures / "bad.png").write_bytes(b"\x89PNG")
    quiet_build(pictures, name="mine", home=str(folder / "home"), images="thumbnail")
    quiet_build(folder_of(folder / "others", 3), name="bare", home=str(folder / "home"), images="drop")
    add_view(folder / "home", "mine", "odd", "style = 'odd'")
    return str(folder / "home")


def export(name: str, home: str, form: str, out: Path) -> list[Path]:
    chosen = resolve_database(name, home)
    return export_pictures(chosen.database, chosen.version, form, out, chosen.where)


def test_a_data_set_holds_pictures_metadata_and_the_stored_vectors(home: str, tmp_path: Path) -> None:
    *tables, card = export("mine", home, "datasets", tmp_path / "set")
    table = pq.read_table(tables[0])
    assert table.num_rows == 7, "rows that failed are left out"
    assert table["caption"].to_pylist()[4] == "picture number 4"
    shown = table["image"].to_pylist()[4]
    assert shown["path"] == "4.jpg" and Image.open(io.BytesIO(shown["bytes"])).size == (48, 48)
    with open_database("mine", home) as searcher:
        stored, _ = searcher.vectors(table["key"].to_pylist())
    np.testing.assert_array_equal(np.stack(table["embedding"].to_pylist()).astype(np.float32), stored)
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == table.column_names
    assert features["image"] == {"_type": "Image"} and features["embedding"]["length"] == 16
    text = card.read_text("utf-8")
    assert "7 rows" in text and "untrained" in text and "unknown: 7" in text and text.startswith("---\nlicense: ")


def test_a_view_exports_its_rows_and_dropped_pictures_are_null(home: str, tmp_path: Path) -> None:
    tables = export("mine-odd", home, "datasets", tmp_path / "odd")
    assert set(pq.read_table(tables[0])["style"].to_pylist()) == {"odd"}
    bare = pq.read_table(export("bare", home, "datasets", tmp_path / "bare")[0])
    assert bare["image"].null_count == bare.num_rows == 3


def test_a_folder_of_pictures_can_be_built_again(home: str, tmp_path: Path) -> None:
    export("mine", home, "imagefolder", tmp_path / "folder")
    again = quiet_build(tmp_path / "folder", name="again", home=str(tmp_path / "home"))
    assert again.ok == 7
    with open_database("again", str(tmp_path / "home")) as searcher:
        assert searcher.metadata([3])["caption"].to_pylist() == ["picture number 3"]


def test_a_folder_that_is_not_empty_and_an_unknown_form_are_refused(home: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="not an empty folder"):
        export("mine", home, "datasets", tmp_path)
    with pytest.raises(ConfigError, match="datasets or imagefolder or lance or fiftyone"):
        export("mine", home, "zip", tmp_path / "new")


def test_a_lance_table_has_the_pictures_and_finds_neighbours(home: str, tmp_path: Path) -> None:
    lance = pytest.importorskip("lance")
    path, card = export("mine", home, "lance", tmp_path / "lance")
    data = lance.dataset(str(path))
    assert data.count_rows() == 7 and "7 rows" in card.read_text("utf-8")
    with open_database("mine", home) as searcher:
        query = searcher.vectors([3])[0]
        ours = searcher.search(query, 3).keys[0].tolist()
    nearest = {"column": "embedding", "q": query[0], "k": 3, "metric": "dot"}
    found = data.to_table(nearest=nearest, columns=["key", "image", "caption"])
    assert found["key"].to_pylist() == ours and found["caption"].to_pylist()[0] == "picture number 3"
    assert Image.open(io.BytesIO(found["image"].to_pylist()[0])).size == (48, 48)


def test_a_folder_for_fiftyone_is_as_its_importer_reads_it(home: str, tmp_path: Path) -> None:
    about, samples = export("mine-odd", home, "fiftyone", tmp_path / "set")
    metadata = json.loads(about.read_text("utf-8"))
    assert metadata["media_type"] == "image" and "version" not in metadata, (
        "with a version it would be a dump of MongoDB"
    )
    rows = json.loads(samples.read_text("utf-8"))["samples"]
    assert [row["style"] for row in rows] == ["odd"] * 3
    for row in rows:
        assert Image.open(tmp_path / "set" / row["filepath"]).size == (48, 48)
        assert row["tags"] == [] and len(row["embedding"]) == 16 and None not in row.values()


def test_the_library_datasets_loads_the_export_and_searches_it(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    export("mine", home, "datasets", tmp_path / "set")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    loaded = datasets.load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "cache"))
    loaded.add_faiss_index("embedding", metric_type=0)
    assert loaded[3]["image"].size == (48, 48)
    with open_database("mine", home) as searcher:
        query = searcher.vectors([3])[0]
        ours = searcher.search(query, 3).keys[0].tolist()
    assert loaded.get_nearest_examples("embedding", query[0], k=3)[1]["key"] == ours
