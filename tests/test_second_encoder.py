"""`embed NAME --encoder X` on a published database: its own pictures, another encoder's vectors, nothing fetched again."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest

from pipeline.building import BuildRequest, build, for_second_encoder, second_name
from pipeline.catalog import resolve_database
from pipeline.errors import DatabaseError
from pipeline.execution import Progress
from pipeline.generation import GenerateConfig, Sampling, find_model
from pipeline.generation.expand import Expander
from pipeline.generation.prompts import read_prompts
from pipeline.retrieval import open_search
from tests.adapters import small_adapter_model
from tests.builds import quiet_build
from tests.encoders import RANDOM
from tests.generations import add_view, style_pictures

OTHER = RANDOM.replace("seed=0", "seed=1")


def rows_of(name: str, home: Path) -> dict[str, tuple[object, ...]]:
    selection = resolve_database(name, str(home))
    with open_search(selection.database, selection.version) as searcher:
        table = searcher.metadata(searcher.keys, ["sha256", "caption", "licence", "style", "title"]).to_pylist()
    return {row["sha256"]: tuple(row.values()) for row in table}


@pytest.mark.process
def test_the_kept_pictures_are_embedded_again_and_generate_takes_the_right_one(
    tmp_path: Path, home: Path, shared: Path
) -> None:
    pictures = style_pictures(tmp_path / "pictures", shared, ("noto", "openmoji"), 8)
    quiet_build(pictures, name="art", images="keep")
    view = add_view(home, "art", "noto", "style = 'noto'")
    shutil.rmtree(pictures)  # nothing can be read from the source again
    wanted = BuildRequest(target="art", encoder=OTHER, stages=("download", "embed"))
    made = build(for_second_encoder(wanted), Progress(stream=io.StringIO()))
    assert (made.ok, made.failed) == (16, 0)
    name = second_name("art", OTHER)
    first, second = resolve_database("art", str(home)).version, resolve_database(name, str(home)).version
    assert (first.encoder.name, second.encoder.name) == (RANDOM, OTHER)
    assert rows_of(name, home) == rows_of("art", home), "the same pictures with the same captions, licences and columns"
    again = build(for_second_encoder(wanted), Progress(stream=io.StringIO()))
    assert (again.version, again.shards["embed"]["ran"]) == (made.version, 0), "nothing is left to do"
    for encoder, expected in ((RANDOM, "art"), (OTHER, name)):
        model = find_model(str(small_adapter_model(tmp_path / encoder[-1], "sd15", encoder)))
        config = GenerateConfig("a fox", db=(view,), k=2, sampling=Sampling(steps=1), home=str(home))
        expander = Expander(config, model, "fp32")
        (request,), bad = expander.requests(read_prompts("a fox"))
        assert not bad and request.picture.source is not None
        assert (request.picture.source.database, request.db) == (expected, view)
        said = f"neighbours come from {name!r}, which holds the vectors of {OTHER}"
        assert any(said in text for text in expander.warnings) == (expected == name)


@pytest.mark.process
def test_a_database_without_its_pictures_is_refused_with_the_command(tmp_path: Path, home: Path, shared: Path) -> None:
    quiet_build(style_pictures(tmp_path / "pictures", shared, ("noto",), 4), name="small", images="thumbnail")
    with pytest.raises(
        DatabaseError, match=r"does not keep its pictures.*`rdmpipe build-index small --encoder vit-h-14 --name"
    ):
        for_second_encoder(BuildRequest(target="small", encoder="vit-h-14"))
    same = BuildRequest(target="small", encoder=RANDOM)
    assert for_second_encoder(same) == same
    new = BuildRequest(target="not_built", encoder="vit-h-14")
    assert for_second_encoder(new) == new
    named = BuildRequest(target="small", encoder="vit-h-14", name="other")
    assert for_second_encoder(named) == named
