"""The documentation: its Python examples run as written, its links are valid, README stays a front page."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
FENCE = re.compile(r"(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?^```python\n(?P<code>.*?)^```$", re.M | re.S)
MADE = {
    "docs/reference/cli.md",
    "docs/reference/toml.md",
    "docs/reference/errors.txt",
    "docs/guides/tour.md",
}  # by `make docs`


def pages() -> list[Path]:
    made = [path for path in sorted(REPO.glob("docs/**/*.md")) if "site" not in path.relative_to(REPO).parts]
    return [*sorted(REPO.glob("*.md")), REPO / "jobs/README.md", *made]


def examples(path: Path) -> list[tuple[str, str]]:
    """(code, reason not to run it) of every Python block."""
    return [(found["code"], found["reason"] or "") for found in FENCE.finditer(path.read_text("utf-8"))]


WITH_EXAMPLES = [path for path in pages() if any(not reason for _, reason in examples(path))]


@pytest.mark.process
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.relative_to(REPO).as_posix())
def test_python_examples_run_as_written(
    path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks of a page run one after another, in an empty folder, offline. The pages share a home, so each build
    runs once."""
    home = tmp_path_factory.getbasetemp() / "docs-home"
    monkeypatch.setenv("RDMPIPE_HOME", str(home))
    monkeypatch.setenv("RDMPIPE_CACHE", str(home / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path_factory.mktemp("examples"))
    names: dict[str, object] = {}
    for code, reason in examples(path):
        if not reason:
            exec(compile(code, path.name, "exec"), names)


@pytest.mark.process
@pytest.mark.timeout(900)
def test_the_notebooks_cells_run(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, offline, in the home that the pages' examples share. The notebook contains the output of its cells."""
    import sys

    monkeypatch.setattr(sys, "path", [str(REPO / "docs"), *sys.path])
    import notebook  # type: ignore[import-not-found]

    home = tmp_path_factory.getbasetemp() / "docs-home"
    monkeypatch.setenv("RDMPIPE_HOME", str(home))
    monkeypatch.setenv("RDMPIPE_CACHE", str(home / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    place = REPO / "docs/guides/tour.ipynb"
    cells = notebook.read(place)
    made = notebook.run(cells, {})
    assert all(output["data"].keys() == kept["data"].keys()
               for one, other in zip(made, cells, strict=True) if one["cell_type"] == "code"
               for output, kept in zip(one["outputs"], other["outputs"], strict=True) if "data" in output)  # fmt: skip
    assert sum("image/jpeg" in output.get("data", {}) for one in made for output in one.get("outputs", ())) >= 4
    assert "# A tour in Python" in notebook.page(place) and "data:image/jpeg;base64," in notebook.page(place)


@pytest.mark.process
def test_recipes_that_the_guides_change_with_sed_are_read(tmp_path: Path) -> None:
    from pipeline.catalog import check_manifest
    from pipeline.training import read_train_config

    shutil.copytree(REPO / "jobs", tmp_path / "jobs", ignore=shutil.ignore_patterns("pictures"))
    for guide in ("train", "evaluate"):
        (line,) = re.findall(r"^    (sed .*)$", (REPO / f"docs/guides/{guide}.md").read_text("utf-8"), re.M)
        subprocess.run(line, shell=True, cwd=tmp_path, check=True)
    data = read_train_config(tmp_path / "train-atelier.toml").data
    assert (data.parquet, data.held_out_styles, data.atelier) == ((), (), 900)
    assert str(check_manifest(tmp_path / "styles.toml").source.path).endswith("styles")


ELSEWHERE = ("wikiart", "http://")  # commands of README that need a network or a cluster


def readme_commands() -> list[str]:
    lines = re.findall(r"^    (rdmpipe .*)$", (REPO / "README.md").read_text("utf-8"), re.M)
    return [line for line in lines if not any(word in line for word in ELSEWHERE)]


@pytest.mark.process
@pytest.mark.timeout(900)
def test_readme_commands_run_as_printed(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after another in a new home, offline, with a folder of drawn pictures as `my-pictures`."""
    from typer.testing import CliRunner

    from pipeline.atelier import picture, png_bytes
    from pipeline.cli.app import app

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(REPO / "jobs", "jobs", ignore=shutil.ignore_patterns("pictures"))
    Path("my-pictures").mkdir()
    for number in range(30):
        Path(f"my-pictures/{number}.png").write_bytes(png_bytes(picture(number).image))
    commands = readme_commands()
    assert len(commands) >= 8
    for command in commands:
        ended = CliRunner().invoke(app, shlex.split(command, comments=True)[1:])
        assert ended.exit_code == 0, f"{command}\n{ended.output}"
    assert Path("boat.png").is_file() and Path("similar.png").is_file()


def test_readme_is_a_front_page_with_running_examples() -> None:
    readme = REPO / "README.md"
    assert len(readme.read_text("utf-8").splitlines()) <= 150
    assert readme in WITH_EXAMPLES and REPO / "docs/guides/python.md" in WITH_EXAMPLES


def anchors(text: str) -> set[str]:
    """GitHub's and MyST's names of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.relative_to(REPO).as_posix())
def test_links_between_files_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        place = target.relative_to(REPO).as_posix()
        assert target.exists() or place in MADE, f"{link} of {path.name}"
        if anchor and target.exists():
            assert anchor in anchors(target.read_text("utf-8")), f"{link} of {path.name}"


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = set()
    for path in REPO.glob("docs/**/*.md"):
        for tree in re.findall(r"^```\{toctree\}\n(.*?)^```$", path.read_text("utf-8"), re.M | re.S):
            lines = [line for line in tree.splitlines() if line and not line.startswith(":")]
            listed |= {(path.parent / f"{line}.md").relative_to(REPO).as_posix() for line in lines}
    there = {path.relative_to(REPO).as_posix() for path in pages() if "docs" in path.relative_to(REPO).parts}
    assert listed - MADE == there - MADE - {"docs/index.md"}
