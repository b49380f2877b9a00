"""Whole builds of the shipped manifests against a local server that serves files of their exact formats, checksums on,
and of the real pictures beside the checkout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.catalog import resolve_database
from pipeline.catalog.manifests import shipped_manifests
from pipeline.errors import SourceError
from pipeline.retrieval import QueryRequest, run_query
from pipeline.sources import SourceOptions
from tests.builds import command, last_json, picture, quiet_build
from tests.encoders import RANDOM
from tests.pictures import APPLE_DOUBLE, csv_of, md5, tar_of, wikiart_files
from tests.server import Fault, Server, serve

pytestmark = pytest.mark.process


@pytest.fixture
def server(tmp_path: Path, home: Path) -> Iterator[Server]:
    (tmp_path / "served" / "files").mkdir(parents=True)
    with serve(tmp_path / "served") as running:
        yield running


def test_wikiart_from_the_hub_to_a_filtered_search(server: Server) -> None:
    told = wikiart_files(server.folder / "hub/huggan/wikiart", [picture(i, kind="JPEG") for i in range(60)], files=3)
    built = quiet_build("wikiart", encoder=RANDOM, source=SourceOptions(base_url=server.url))
    assert (built.input, built.ok) == (60, 60)
    assert "expects 81,444" in built.warnings[-1]
    where = "style = 'Impressionism' AND artist LIKE '%monet%'"
    expected = sum(row["style"] == "Impressionism" and "monet" in row["artist"] for row in told)
    found = run_query(QueryRequest("wikiart", key=0, k=60, where=where))
    assert found.rows.num_rows == expected > 0
    assert set(found.rows["artist"].to_pylist()) == {"claude-monet"}


def artbench(server: Server, where: Path, damage: bool = False) -> str:
    """The shipped manifest with the checksums of a small archive of the real one's layout, as a file."""
    members: list[tuple[str, bytes]] = []
    rows = []
    for split in ("train", "test"):
        for style in ("baroque", "ukiyo_e"):
            for i in range(6):
                name = f"artist-{len(rows)}_work-{i}-1900.jpg"
                folder = f"artbench-10-imagefolder-split/{split}/{style}"
                members += [(f"{folder}/._{name}", APPLE_DOUBLE), (f"{folder}/{name}", picture(len(rows), kind="JPEG"))]
                rows.append({"name": name, "artist": f"artist-{len(rows)}", "url": f"https://example.org/{name}",
                             "is_public_domain": i % 2 == 0, "length": 900, "width": 700.0, "label": style,
                             "split": split, "cifar_index": len(rows)})  # fmt: skip
    archive = tar_of(server.folder / "files/artbench-10-imagefolder-split.tar", members)
    table = csv_of(server.folder / "files/ArtBench-10.csv", rows)
    text = shipped_manifests()["artbench"].read_text()
    text = text.replace("64f4d66dcf34b3c77e8c7d68fed2ec8c", "0" * 32 if damage else md5(archive))
    text = text.replace("cc8e5df471b294f19f3fab19ad9f5100", md5(table))
    where.write_text(text)
    return str(where)


def test_artbench_and_a_view_of_it(server: Server, tmp_path: Path) -> None:
    manifest = artbench(server, tmp_path / "artbench.toml")
    built = quiet_build(manifest, encoder=RANDOM, source=SourceOptions(base_url=server.url))
    assert (built.input, built.ok, built.failed) == (24, 24, 0)  # the AppleDouble files are no rows
    found = run_query(QueryRequest("artbench-baroque", key=0, k=24))
    assert set(found.rows["style"].to_pylist()) == {"baroque"}
    assert found.rows.num_rows == 11
    assert all(url.startswith("https://example.org/") for url in found.rows["url"].to_pylist())


def test_an_archive_with_the_wrong_checksum_is_refused_before_anything_is_embedded(
    server: Server, tmp_path: Path, home: Path
) -> None:
    manifest = artbench(server, tmp_path / "artbench.toml", damage=True)
    with pytest.raises(SourceError, match="md5"):
        quiet_build(manifest, encoder=RANDOM, source=SourceOptions(base_url=server.url))
    assert not list((home / "databases" / "artbench").rglob("*.parquet"))


def test_a_source_that_fails_for_a_while_is_waited_for(server: Server, tmp_path: Path) -> None:
    manifest = artbench(server, tmp_path / "artbench.toml")
    server.fail("/files/ArtBench-10.csv", Fault("status", 503), times=2)
    built = quiet_build(manifest, encoder=RANDOM, source=SourceOptions(base_url=server.url))
    assert built.ok == 24


STYLES = """
name = "styles"
title = "Seven drawing styles"
licence = "see each row"
terms = "each row has its own licence"
opt_out = "none"
encoder = "{encoder}"
[source]
kind = "parquet"
path = "{path}"
image = "png"
item_id = "id"
caption = "caption"
licence = "license"
columns = ["style", "category", "base_hexcode"]
"""


def test_real_drawings_in_seven_styles_with_a_view_for_each(shared: Path, tmp_path: Path, home: Path) -> None:
    part = tmp_path / "part"
    part.mkdir()
    names = []
    for file in sorted((shared / "data" / "styles").glob("*.parquet")):
        pq.write_table(pq.read_table(file).slice(0, 30), part / file.name)
        names.append(file.stem)
    (tmp_path / "styles.toml").write_text(STYLES.format(path=part, encoder=RANDOM))
    built = quiet_build(tmp_path / "styles.toml")
    assert (built.input, built.ok, built.failed) == (210, 210, 0)
    (home / "manifests").mkdir()
    for name in names:
        view = f"styles-{name.replace('-', '_')}"
        (home / "manifests" / f"{view}.toml").write_text(
            f'name = "{view}"\nbase = "styles"\nwhere = "style = \'{name}\'"\n'
        )
        found = run_query(QueryRequest(view, key=0, k=5))
        assert set(found.rows["style"].to_pylist()) == {name}
        assert set(found.rows["licence"].to_pylist()) != {"see each row"}
    assert len(names) == 7


def test_real_paintings_as_a_folder_with_the_full_size_architecture(shared: Path, home: Path) -> None:
    """ViT-B-32 with random weights on real pictures: the real network, sizes and preprocessing, if not its weights."""
    built = quiet_build(shared / "data" / "paintings", encoder="random:ViT-B-32?seed=0", source=SourceOptions(limit=6))
    assert (built.input, built.ok) == (6, 6)
    version = resolve_database("paintings").version
    assert (version.encoder.dim, version.encoder.trained) == (512, False)


def test_the_command_line_takes_a_mirror(server: Server, home: Path) -> None:
    wikiart_files(server.folder / "hub/huggan/wikiart", [picture(i, kind="JPEG") for i in range(8)], files=1)
    built = last_json(
        command(
            "build-index", "wikiart", "--encoder", RANDOM, "--base-url", server.url, "--limit", "8", "--json", home=home
        )
    )
    assert (built["name"], built["input"], built["ok"]) == ("wikiart", 8, 8)


def test_a_missing_column_names_the_nearest_one(tmp_path: Path, home: Path) -> None:
    pq.write_table(pa.table({"picture": [b"x"], "caption": ["c"]}), tmp_path / "rows.parquet")
    text = STYLES.format(path=tmp_path / "rows.parquet", encoder=RANDOM).replace('image = "png"', 'image = "pictures"')
    (tmp_path / "styles.toml").write_text(text)
    with pytest.raises(SourceError, match="'picture'"):
        quiet_build(tmp_path / "styles.toml")
