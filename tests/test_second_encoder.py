"""`embed NAME --encoder X` on a published database: its own pictures, another encoder's vectors, nothing fetched again.

Search and generate find these vectors, and commands on NAME (purge, refresh, gc) include or name them.
"""

from __future__ import annotations

import hashlib
import io
import json
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.building import BuildRequest, build, for_second_encoder
from pipeline.catalog import (
    command_that_adds,
    companion_name,
    companions,
    listing,
    main_database,
    resolve_database,
    resolve_encoded,
    status_of,
)
from pipeline.cli.app import app
from pipeline.database import picture_files
from pipeline.errors import DatabaseError
from pipeline.execution import Progress
from pipeline.generation import GenerateConfig, Sampling, find_model
from pipeline.generation.expand import Expander
from pipeline.generation.prompts import read_prompts
from pipeline.maintenance import PurgeRequest, plan_deletion, purge
from pipeline.retrieval import QueryRequest, open_search, run_query
from tests.adapters import small_adapter_model
from tests.builds import folder_of, quiet_build
from tests.encoders import RANDOM
from tests.generations import add_view, style_pictures

OTHER = RANDOM.replace("seed=0", "seed=1")


def add_vectors(name: str, encoder: str = OTHER) -> None:
    request = for_second_encoder(BuildRequest(target=name, encoder=encoder, stages=("download", "embed")))
    build(request, Progress(stream=io.StringIO()))


def rows_of(name: str, home: Path, encoder: str = "", columns: tuple[str, ...] = ()) -> dict[str, tuple[object, ...]]:
    selection = resolve_encoded(name, encoder, str(home))
    with open_search(selection.database, selection.version) as searcher:
        table = searcher.metadata(searcher.keys, ["sha256", "caption", "licence", "style", *columns]).to_pylist()
    return {row["sha256"]: tuple(row.values()) for row in table}


@pytest.mark.process
def test_the_kept_pictures_are_embedded_again_and_generate_takes_the_right_ones(
    tmp_path: Path, home: Path, shared: Path
) -> None:
    pictures = style_pictures(tmp_path / "pictures", shared, ("noto", "openmoji"), 8)
    quiet_build(pictures, name="art", images="keep")
    view = add_view(home, "art", "noto", "style = 'noto'")
    shutil.rmtree(pictures)  # nothing can be read from the source again
    wanted = BuildRequest(target="art", encoder=OTHER, stages=("download", "embed"))
    made = build(for_second_encoder(wanted), Progress(stream=io.StringIO()))
    assert (made.ok, made.failed) == (16, 0)
    name = companion_name("art", OTHER)
    first, second = resolve_database("art", str(home)).version, resolve_database(name, str(home)).version
    assert (first.encoder.name, second.encoder.name) == (RANDOM, OTHER)
    title = ("title",)
    assert rows_of(name, home, "", title) == rows_of("art", home, "", title), (
        "the same pictures with the same captions, licences and columns"
    )
    again = build(for_second_encoder(wanted), Progress(stream=io.StringIO()))
    assert (again.version, again.shards["embed"].get("ran", 0)) == (made.version, 0), "nothing is left to do"
    for encoder, expected in ((RANDOM, "art"), (OTHER, name)):
        model = find_model(str(small_adapter_model(tmp_path / encoder[-1], "sd15", encoder)))
        config = GenerateConfig("a fox", db=(view,), k=2, sampling=Sampling(steps=1), home=str(home))
        expander = Expander(config, model, "fp32")
        (request,), bad = expander.requests(read_prompts("a fox"))
        assert not bad and request.picture.source is not None
        assert (request.picture.source.database, request.db) == (expected, view)
        said = f"the vectors of {OTHER} come from {name!r}"
        assert any(said in text for text in expander.warnings) == (expected == name)


@pytest.mark.process
def test_search_takes_the_vectors_that_are_asked_for_and_status_and_list_show_them(tmp_path: Path, home: Path) -> None:
    quiet_build(folder_of(tmp_path / "pictures", 12), name="mine", images="keep")
    view = add_view(home, "mine", "odd", "style = 'odd'")
    with pytest.raises(
        DatabaseError, match=r"holds no vectors of .*seed=1; it holds those of .*seed=0\. Add them: `rdm"
    ):
        run_query(QueryRequest("mine", "a fox", encoder=OTHER))
    with pytest.raises(
        DatabaseError, match=r"not mix with others.*or add the vectors of .*`rdmpipe embed mine --encoder"
    ):
        quiet_build(tmp_path / "pictures", name="mine", encoder=OTHER)
    add_vectors("mine")
    name = companion_name("mine", OTHER)
    own, other = run_query(QueryRequest(view, "a fox")), run_query(QueryRequest(view, "a fox", encoder=OTHER))
    assert (own.selection.database.name, other.selection.database.name) == ("mine", name)
    assert {row["style"] for row in other.records()} == {"odd"}, "the view's filter holds"
    assert [row["score"] for row in own.records()] != [row["score"] for row in other.records()]
    assert not any("come from" in text for text in own.warnings)
    assert any(f"the vectors of {OTHER} come from {name!r}" in text for text in other.warnings)
    same = run_query(QueryRequest("mine", "a fox", encoder=RANDOM))
    assert same.selection.database.name == "mine" and not any("come from" in text for text in same.warnings)
    told = CliRunner().invoke(app, ["search", "mine", "a fox", "--encoder", OTHER, "--json"])
    assert told.exit_code == 0 and len(json.loads(told.stdout)) == 10
    assert f"also vectors of {OTHER}: 12 rows, in {name}" in status_of("mine").text()
    listed = {row.name: row.belongs_to for row in listing()}
    assert listed == {"mine": "", view: "view of mine", name: "vectors for mine"}
    assert main_database(name, OTHER) == "mine" and main_database("mine", RANDOM) == ""
    assert f"`rdmpipe delete {name}` removes them" in plan_deletion("mine").text()
    noted = CliRunner().invoke(app, ["gc", "mine"])
    assert f"note: {name} has versions of its own: `rdmpipe gc {name}`" in noted.output


@pytest.mark.process
def test_a_purged_picture_leaves_the_other_encoders_vectors_too(tmp_path: Path, home: Path) -> None:
    quiet_build(folder_of(tmp_path / "pictures", 12), name="mine", images="keep")
    add_vectors("mine")
    (one,) = companions("mine")
    doomed = hashlib.sha256((tmp_path / "pictures" / "0003.png").read_bytes()).hexdigest()
    (tmp_path / "sums.txt").write_text(f"{doomed}\n")
    counted = purge(PurgeRequest("mine", hash_list=tmp_path / "sums.txt", dry_run=True))
    assert (counted.rows, [part.rows for part in counted.companions]) == (1, [1])
    done = purge(PurgeRequest("mine", hash_list=tmp_path / "sums.txt"))
    assert [(part.name, part.rows, part.found) for part in done.companions] == [(one.database.name, 1, 0)]
    assert doomed not in rows_of("mine", home) and doomed not in rows_of("mine", home, OTHER)
    by_filter = purge(PurgeRequest("mine", where="caption = 'picture number 5'"))
    assert (by_filter.rows, [part.rows for part in by_filter.companions]) == (1, [1])
    assert len(rows_of("mine", home)) == len(rows_of("mine", home, OTHER)) == 10
    keys = range(12)
    assert len(picture_files(one.database, keys)) == 10, "its thumbnail is gone too"
    assert one.database.name in by_filter.text()
    add_vectors("mine")
    assert len(rows_of("mine", home, OTHER)) == 10, "and it does not come back"


@pytest.mark.process
def test_a_refresh_names_the_other_vectors_and_the_command_brings_them_up_to_date(tmp_path: Path, home: Path) -> None:
    folder = folder_of(tmp_path / "pictures", 12)
    quiet_build(folder, name="mine", images="keep")
    add_vectors("mine")
    name = companion_name("mine", OTHER)
    folder_of(folder, 15)
    (folder / "0002.png").unlink()
    fresh = quiet_build(folder, name="mine", refresh=True)
    (note,) = [text for text in fresh.warnings if name in text]
    words = shlex.split(note.rpartition("`rdmpipe ")[2].rstrip("`"))
    assert words == ["embed", "mine", "--encoder", OTHER]
    stale = run_query(QueryRequest("mine", "a fox", encoder=OTHER))
    assert any("which has 12 rows where 'mine' has 14. Bring it up to date" in text for text in stale.warnings)
    assert CliRunner().invoke(app, words).exit_code == 0
    assert rows_of("mine", home, OTHER).keys() == rows_of("mine", home).keys()
    (folder / "0005.png").unlink()
    quiet_build(folder, name="mine", refresh=True)  # no new tar: the pictures that are kept stay as they are
    add_vectors("mine")
    assert rows_of("mine", home, OTHER).keys() == rows_of("mine", home).keys()
    assert not any("up to date" in text for text in run_query(QueryRequest("mine", "a fox", encoder=OTHER)).warnings)


@pytest.mark.process
def test_a_database_without_its_pictures_is_refused_with_a_command_that_works(tmp_path: Path, home: Path) -> None:
    folder = folder_of(tmp_path / "some pictures", 4)
    quiet_build(folder, name="small", images="thumbnail")
    with pytest.raises(DatabaseError, match=r"does not keep its pictures.*`rdmpipe build-index .*--encoder") as refused:
        for_second_encoder(BuildRequest(target="small", encoder=OTHER))
    words = shlex.split(str(refused.value).partition("`rdmpipe ")[2].partition("`")[0])
    assert CliRunner().invoke(app, words).exit_code == 0
    assert rows_of("small", home, OTHER).keys() == rows_of("small", home).keys()
    same = BuildRequest(target="small", encoder=RANDOM)
    assert for_second_encoder(same) == same
    new = BuildRequest(target="not_built", encoder="vit-h-14")
    assert for_second_encoder(new) == new
    named = BuildRequest(target="small", encoder="vit-h-14", name="other")
    assert for_second_encoder(named) == named
    selection = resolve_database("small")
    assert f"--home {shlex.quote(str(home))}" not in command_that_adds(selection.database, "vit-h-14")
