"""Input and output of commands: help, names of result files, and requests that are refused before work."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from rich.text import Text
from typer.testing import CliRunner

from pipeline.building import BuildRequest, build
from pipeline.catalog import check_manifest, status_of
from pipeline.cli.app import app
from pipeline.cli.options import print_json
from pipeline.errors import BudgetError, ConfigError, DatabaseError, FilterError, IndexBuildError, ManifestError
from pipeline.execution import Progress
from pipeline.index import IndexConfig
from pipeline.retrieval import QueryRequest, run_query
from tests.builds import REPO, folder_of, quiet_build
from tests.encoders import RANDOM


def texts(command: Any) -> Iterator[str]:
    yield command.help or ""
    yield from (parameter.help for parameter in command.params if getattr(parameter, "help", None))
    for below in getattr(command, "commands", {}).values():
        yield from texts(below)


@pytest.mark.process
@pytest.mark.parametrize(("arguments", "code"), [(["encoders"], 0), (["search", "--no-such-flag"], 2)])
def test_a_command_ends_with_its_code_and_after_what_python_does_at_its_end(arguments: list[str], code: int) -> None:
    program = (
        "import atexit, sys; from pipeline.cli import main\n"
        f"atexit.register(print, 'the end'); sys.argv = ['rdmpipe', *{arguments}]; main(); print('not reached')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPO)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (code, "the end"), done.stderr


def test_help_loses_no_word_to_markup() -> None:
    found = list(texts(typer.main.get_command(app)))
    assert len(found) > 150
    assert [text for text in found if Text.from_markup(text).plain != text] == []


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the database `pictures`, of a folder a/pictures, and its view `pictures-even`."""
    root = tmp_path_factory.mktemp("console")
    quiet_build(folder_of(root / "a" / "pictures", 6), home=str(root / "home"))
    (root / "home" / "manifests").mkdir()
    view = 'name = "pictures-even"\nbase = "pictures"\nwhere = "style = \'even\'"\n'
    (root / "home" / "manifests" / "pictures-even.toml").write_text(view)
    return root


def test_another_folder_of_the_same_name_is_refused_and_a_moved_one_is_not(begun: Path) -> None:
    home = str(begun / "home")
    other = folder_of(begun / "b" / "pictures", 3)
    for refresh in (False, True):
        with pytest.raises(DatabaseError, match=r"was built from folder .*a/pictures, not from .*b/pictures.*--name"):
            quiet_build(other, home=home, refresh=refresh)
    with pytest.raises(DatabaseError, match="not from atelier"):
        quiet_build("atelier", name="pictures", home=home)
    (begun / "a" / "pictures").rename(begun / "moved")
    try:
        assert quiet_build(begun / "moved", name="pictures", home=home).input == 6
    finally:
        (begun / "moved").rename(begun / "a" / "pictures")


def test_an_invalid_filter_is_refused_before_work_and_not_recorded(tmp_path: Path) -> None:
    folder, home = folder_of(tmp_path / "mine", 3), str(tmp_path / "home")
    with pytest.raises(FilterError, match="did you mean 'style'"):
        quiet_build(folder, home=home, where="styl = 'odd'")
    assert quiet_build(folder, home=home).ok == 3


def test_impossible_index_settings_are_refused_before_work(tmp_path: Path) -> None:
    folder, home = folder_of(tmp_path / "mine", 3), str(tmp_path / "home")
    with pytest.raises(IndexBuildError, match=r"'IVF4,NOPE' is not a faiss index key .* examples"):
        quiet_build(folder, home=home, index=IndexConfig(key="IVF4,NOPE"))
    with pytest.raises(BudgetError, match="--memory"):
        quiet_build(folder, home=home, index=IndexConfig(key="Flat", memory=1 << 20))
    assert not (tmp_path / "home" / "databases" / "mine" / "images").exists()


def test_json_has_no_infinity(capsys: pytest.CaptureFixture[str]) -> None:
    print_json([{"a": float("inf"), "b": [float("nan"), 1.5]}])
    assert capsys.readouterr().out == '[{"a": null, "b": [null, 1.5]}]\n'


def test_a_home_that_cannot_be_written_is_refused_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatabaseError, match=r"cannot be written.*--home"):
        quiet_build(folder_of(tmp_path / "mine", 2), home=str(tmp_path / "file" / "home"))


def test_names_of_result_files_are_checked_before_the_search(begun: Path, tmp_path: Path) -> None:
    home = str(begun / "home")
    with pytest.raises(ConfigError, match=r"end its name in \.png"):
        run_query(QueryRequest("nothing_of_the_kind", text="x", sheet=tmp_path / "a.jpg", home=home))
    with pytest.raises(ConfigError, match=r"end its name in \.parquet or \.csv or \.html"):
        run_query(QueryRequest("nothing_of_the_kind", text="x", out=tmp_path / "a.json", home=home))
    (tmp_path / "file").touch()
    found = run_query(QueryRequest("pictures", key=0, k=2, home=home))
    for write in (found.write_sheet, lambda path: found.write(path, "a title")):
        with pytest.raises(ConfigError, match="cannot be written"):
            write(tmp_path / "file" / "below")


def test_a_row_is_a_line_in_a_pipe_and_says_which_file_it_is(begun: Path) -> None:
    ran = CliRunner().invoke(app, ["search", "pictures", "--key", "0", "-k", "2", "--home", str(begun / "home")])
    header, *lines = ran.stdout.splitlines()
    assert header.split("\t") == ["key", "score", "item_id", "caption", "style"]
    assert [line.count("\t") for line in lines] == [4, 4]
    none = ["search", "pictures", "--key", "0", "--where", "false", "--home", str(begun / "home")]
    assert CliRunner().invoke(app, none).stdout == "key\tscore\n"


@pytest.mark.parametrize("arguments", [["search", "pictures", "--key", "9" * 30], ["build-index", "x", "--memory", "1e999GB"],
                                       ["build-index", "x", "--log-format", "xml"]])  # fmt: skip
def test_numbers_and_words_out_of_range_are_refused(arguments: list[str]) -> None:
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 2
    assert isinstance(ran.exception, SystemExit)


def test_a_view_can_be_asked_for_its_state_its_versions_and_its_rows(begun: Path, tmp_path: Path) -> None:
    home = str(begun / "home")
    state = status_of("pictures-even", home)
    assert (state.name, getattr(state, "base", "")) == ("pictures-even", "pictures")
    version = getattr(state, "version", "")
    assert version in CliRunner().invoke(app, ["versions", "pictures-even", "--home", home]).stdout
    ran = CliRunner().invoke(app, ["export", "pictures-even", str(tmp_path / "out"), "--home", home])
    assert ran.exit_code == 0
    import numpy as np

    assert len(np.load(tmp_path / "out" / "000000.npz")["embedding"]) == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('where = "year >"', "bad.toml: filter .* is not an SQL expression"),
        ('encoder = "nonsense"', "bad.toml: no encoder called 'nonsense'"),
    ],
)
def test_checking_a_manifest_finds_what_its_build_would(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    head = 'name = "x"\ntitle = "X"\nlicence = "CC0-1.0"\nterms = "none"\nopt_out = "none"\n'
    path.write_text(f'{head}{line}\n[source]\nkind = "folder"\n')
    with pytest.raises(ManifestError, match=message):
        check_manifest(path)
    path.write_text(f'{head}[source]\nkind = "foldr"\n')
    with pytest.raises(ManifestError, match=r"unknown source kind 'foldr' .did you mean 'folder'"):
        build(BuildRequest(target=str(path), home=str(tmp_path), encoder=RANDOM), Progress(stream=io.StringIO()))
