"""The public module `rdmpipe`: its imports, its names, its results, and its error for a foreign `pipeline`."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pipeline.errors
import rdmpipe
from tests.builds import picture, quiet_build

REPO = Path(__file__).parent.parent


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False)


# ---- the module


@pytest.mark.process
def test_import_loads_no_large_library(tmp_path: Path) -> None:
    """`import rdmpipe`, its errors and its version load no large library."""
    program = (
        "import rdmpipe, sys; rdmpipe.RdmpipeError, rdmpipe.__version__, dir(rdmpipe); print(' '.join(sys.modules))"
    )
    loaded = set(python("-c", program, cwd=tmp_path).stdout.split())
    assert "rdmpipe" in loaded and "pipeline.errors" in loaded
    assert not loaded & {
        "torch",
        "ray",
        "faiss",
        "duckdb",
        "pyarrow",
        "numpy",
        "PIL",
        "diffusers",
        "typer",
        "rich",
        "jinja2",
    }


def test_every_name_of_all_is_there_and_every_error_is_shown() -> None:
    for name in rdmpipe.__all__:
        assert getattr(rdmpipe, name) is not None
    errors = {
        name for name, value in vars(pipeline.errors).items() if name.endswith("Error") and isinstance(value, type)
    }
    assert errors <= set(rdmpipe.__all__)
    assert rdmpipe.FilterError is pipeline.errors.FilterError
    assert issubclass(rdmpipe.StageFailed, rdmpipe.RdmpipeError)
    with pytest.raises(AttributeError, match="no attribute 'biuld'"):
        getattr(rdmpipe, "biuld")  # noqa: B009 (a type checker refuses the attribute, as it should)


def test_the_types_are_shipped_as_a_stub_package() -> None:
    """A single module cannot have py.typed (PEP 561): the wheel contains the module a second time, as rdmpipe-stubs."""
    assert (REPO / "pipeline/assets/stubs/__init__.pyi").read_text("utf-8") == (REPO / "rdmpipe.py").read_text("utf-8")


@pytest.mark.process
@pytest.mark.parametrize("foreign", ["pipeline.py", "pipeline/__init__.py"])
def test_a_foreign_pipeline_is_named_with_a_fix_that_works(tmp_path: Path, foreign: str) -> None:
    """Python puts a script's folder first: a `pipeline` there hides ours."""
    (tmp_path / foreign).parent.mkdir(exist_ok=True)
    (tmp_path / foreign).write_text("")
    (tmp_path / "mine.py").write_text("import rdmpipe; print(rdmpipe.RdmpipeError.__module__)")
    failed = python("mine.py", cwd=tmp_path)
    assert failed.returncode == 1
    assert f"Python finds {tmp_path / foreign} first" in failed.stderr and "python -P SCRIPT" in failed.stderr
    assert python("-P", "mine.py", cwd=tmp_path).stdout.strip() == "pipeline.errors"


def test_a_notebook_without_ipywidgets_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """rich draws in notebooks through ipywidgets; if it is absent, progress falls back to plain lines."""
    from pipeline.execution import progress

    shell = type("ZMQInteractiveShell", (), {})
    monkeypatch.setitem(__builtins__, "get_ipython", shell)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "IPython", type(sys)("IPython"))
    found = {"ipywidgets": None}
    monkeypatch.setattr(progress.importlib.util, "find_spec", found.get)
    assert not progress.in_notebook()
    found["ipywidgets"] = object()  # type: ignore[assignment]
    assert progress.in_notebook()


# ---- what it does, on drawn pictures and the shipped encoder and model


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a database of sixty drawn pictures, built through the API."""
    home = tmp_path_factory.mktemp("home")
    built = rdmpipe.build("atelier", limit=60, home=home, progress=False)
    assert str(built).startswith("atelier: 60 rows in = 60 ok + 0 filtered + 0 failed")
    assert built.version in str(built) and "60 ok" in built._repr_html_()
    with built.open() as art:
        assert (art.version, len(art)) == (built.version, 60)
    return home


@pytest.mark.process
def test_search_by_text_key_picture_and_vectors(drawn: Path, tmp_path: Path) -> None:
    with rdmpipe.open("atelier", home=drawn) as art:
        by_text = art.search("a harbour at dawn", k=5)
        assert by_text.table.column_names[:2] == ["key", "score"] and len(by_text) == 5
        first = by_text.keys[0]
        assert first not in art.search(first, k=59).keys
        picture = art.picture(first)
        assert picture is not None
        picture.save(tmp_path / "query.png")
        assert art.search(tmp_path / "query.png", k=1).keys == [first]
        vectors = art.vectors(by_text.keys[:2])
        several = art.search(vectors, k=3)
        assert several.table["query"].to_pylist() == [0, 0, 0, 1, 1, 1]
        assert several.keys[::3] == by_text.keys[:2]
        assert "query" not in art.search(vectors[0], k=3).table.column_names
        assert art.search(art.encode(["a harbour at dawn"])[0], k=5).keys == by_text.keys
        assert art.search(np.int64(first), k=2).keys == art.search(first, k=2).keys


def test_search_results_are_filtered_and_shown(drawn: Path) -> None:
    with rdmpipe.open("atelier-mosaic", home=drawn) as art:
        assert len(art) == 6 and "6 pictures" in repr(art)
        found = art.search("a boat", k=19)
        assert set(found.table["style"].to_pylist()) == {"mosaic"} and len(found) == 6
        assert [picture.size for picture in found.pictures if picture] == [(128, 128)] * 6
        assert Image.open(io.BytesIO(found._repr_png_())).size == found.show().size
        assert found.plan.matched == 6
        assert len(art.search("a boat", where="style = 'woodcut'")) == 0
        with pytest.raises(rdmpipe.FilterError, match="did you mean 'style'"):
            art.search("a boat", where="styl = 'woodcut'")
        assert "style" in art.columns


def test_a_query_is_mixed_from_weighted_parts(drawn: Path, tmp_path: Path) -> None:
    with rdmpipe.open("atelier", home=drawn) as art:
        text, row = art.encode(["a boat"])[0], art.vectors([7])[0]
        wanted = text - 0.5 * row
        assert np.allclose(art.mix({"a boat": 1, 7: -0.5}), wanted / np.linalg.norm(wanted), atol=1e-6)
        away = art.search({"a boat": 1, 7: -0.5}, k=59).keys
        assert len(away) == 59 and 7 not in away
        seven = art.picture(7)
        assert seven is not None
        seven.save(tmp_path / "seven.png")
        assert art.search({tmp_path / "seven.png": 2.0, "a boat": 0}, k=1).keys == [7]
        with pytest.raises(rdmpipe.ConfigError, match="cancel each other out"):
            art.mix({"a boat": 0})
        with pytest.raises(rdmpipe.ConfigError, match="no parts"):
            art.search({})


def test_what_the_page_shows_of_a_database_is_there_in_python(drawn: Path) -> None:
    with rdmpipe.open("atelier", home=drawn) as art, rdmpipe.open("atelier-mosaic", home=drawn) as view:
        assert art.facets("style IN ('mosaic', 'cubist')")["style"] == {"cubist": 6, "mosaic": 6}
        assert view.facets()["style"] == {"mosaic": 6} and "style" in art.facets()
        chart = art.map(sample=20)
        assert (len(chart), chart.matched) == (20, 60) and chart.table.column_names[:3] == ["key", "x", "y"]
        assert chart.table.equals(art.map(sample=20).table) and "20 of 60 pictures" in repr(chart)
        assert Image.open(io.BytesIO(chart._repr_png_())).size == chart.show().size
        assert len(art.map("style = 'mosaic'")) == 6
        assert art.failures().num_rows == 0 and art.failures().column_names[0] == "key"


def test_duplicates_and_failures_are_tables(tmp_path: Path) -> None:
    for name, seed in (("a.png", 1), ("b.png", 1), ("c.png", 2)):
        (tmp_path / name).write_bytes(picture(seed))
    (tmp_path / "d.png").write_bytes(b"no picture")
    home = tmp_path / "home"
    quiet_build(tmp_path, name="mine", home=str(home))
    with rdmpipe.open("mine", home=home) as mine:
        found = mine.duplicates()
        assert found.select(["group", "kind", "item_id"]).to_pylist() == [
            {"group": 0, "kind": "exact", "item_id": "a.png"}, {"group": 0, "kind": "exact", "item_id": "b.png"},
        ]  # fmt: skip
        assert mine.failures()["item"].to_pylist() == ["d.png"]


def test_open_says_what_is_missing(drawn: Path) -> None:
    with pytest.raises(rdmpipe.DatabaseError, match="did you mean 'atelier'"):
        rdmpipe.open("ateleir", home=drawn)


@pytest.mark.process
def test_generate_takes_prompts_and_rows_and_continues(drawn: Path) -> None:
    def again(prompts: list[str] | list[dict[str, object]]) -> rdmpipe.Run:
        db = ["atelier-mosaic", "atelier-woodcut"]
        return rdmpipe.generate(prompts, db=db, steps=2, k=2, home=drawn, progress=False)

    run = again(["a castle by the sea", "a cat"])
    assert run.table["db"].to_pylist() == ["atelier-mosaic", "atelier-woodcut"] * 2
    assert [picture.size for picture in run.pictures if picture] == [(64, 64)] * 4
    assert (run.folder / "index.html").is_file() and run.show().size == Image.open(run.folder / "contact.png").size
    assert "4 made now" in str(run) and "data:image/png;base64," in run._repr_html_()
    assert again(["a castle by the sea", "a cat"]).summary.made == 0
    rows = again([{"prompt": "a castle by the sea", "seed": 7, "series": "mine"}])
    assert set(rows.table["seed"].to_pylist()) == {7} and rows.table["series"].to_pylist() == ["mine", "mine"]
    with pytest.raises(rdmpipe.PromptError, match="steps"):
        again([{"prompt": "a castle", "steps": "many"}])


def test_a_model_loads_by_name() -> None:
    model = rdmpipe.load_model("rdm-mini")
    assert type(model).__name__ == "RDM"
    with pytest.raises(rdmpipe.ModelError, match="did you mean 'rdm-mini'"):
        rdmpipe.load_model("rdm-mimi")


def test_training_and_evaluation_name_a_job_that_is_wrong(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text("run = 'x'\nstesp = 1\n")
    with pytest.raises(rdmpipe.ConfigError, match="unknown key 'stesp'"):
        rdmpipe.train("rdm", job, progress=False)
    with pytest.raises(rdmpipe.ConfigError, match="unknown key 'run'"):
        rdmpipe.evaluate(job, progress=False)
