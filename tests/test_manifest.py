"""Manifests are strict, views name a base and a filter, and errors name the nearest spelling."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.catalog import add_manifest, load_manifest, resolve_database, resolve_target
from pipeline.catalog.manifests import manifest_for_path, shipped_manifests
from pipeline.errors import ConfigError, DatabaseError, ManifestError
from pipeline.sources import Manifest, View, parse_manifest

ARTBENCH_STYLES = {
    "art_nouveau", "baroque", "expressionism", "impressionism", "post_impressionism",
    "realism", "renaissance", "romanticism", "surrealism", "ukiyo_e",
}  # fmt: skip

MINIMAL = """
name = "mine"
title = "Mine"
licence = "CC0-1.0"
terms = "none"
opt_out = "write to me"
[source]
kind = "folder"
path = "/pictures"
"""


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_every_shipped_manifest_loads_and_is_called_as_its_file() -> None:
    names = shipped_manifests()
    assert {"wikiart", "artbench"} <= set(names)
    for name, path in names.items():
        made = load_manifest(str(path))
        assert made.name == name
        if isinstance(made, View):
            assert made.base in names
        else:
            assert made.checked is not None
            assert all([made.licence, made.terms, made.opt_out])


def test_artbench_has_its_ten_views() -> None:
    views = {name.removeprefix("artbench-") for name in shipped_manifests() if name.startswith("artbench-")}
    assert views == ARTBENCH_STYLES
    view = load_manifest("artbench-baroque")
    assert isinstance(view, View)
    assert (view.base, view.where) == ("artbench", "style = 'baroque'")


def test_wikiart_is_what_the_hub_has() -> None:
    wikiart = load_manifest("wikiart")
    assert isinstance(wikiart, Manifest)
    assert (wikiart.source.repo, wikiart.expected_rows) == ("huggan/wikiart", 81_444)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("title", "titel"), "unknown key 'titel' \\(did you mean 'title'"),
        (('kind = "folder"', "kind = 3"), "kind: expected str, found int"),
        (('licence = "CC0-1.0"\n', ""), "missing key 'licence'"),
        (('name = "mine"', 'name = "../mine"'), "use lower-case letters"),
        (('path = "/pictures"', 'path = "/pictures"\nshard_rows = 20000'), "shard_rows is 20000"),
        (("[source]", "[source"), "not a readable TOML"),
    ],
)
def test_a_bad_manifest_says_what_is_wrong(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_manifest(write(tmp_path / "mine.toml", MINIMAL.replace(*change)))


def test_a_view_needs_a_filter_and_its_bases_name() -> None:
    with pytest.raises(ManifestError, match="needs a `where`"):
        parse_manifest({"name": "a-b", "base": "a", "where": " "}, "x.toml")
    with pytest.raises(ManifestError, match="does not start with a-"):
        parse_manifest({"name": "b", "base": "a", "where": "1 = 1"}, "x.toml")


def test_an_unknown_name_gets_the_nearest_one(home: Path) -> None:
    with pytest.raises(ManifestError, match="did you mean 'wikiart'"):
        load_manifest("wikart")
    with pytest.raises(ManifestError, match="no such file or folder"):
        resolve_target("./no-such-folder")
    with pytest.raises(DatabaseError, match="did you mean 'artbench-baroque'"):
        resolve_database("artbench-baroqe")
    with pytest.raises(DatabaseError, match="build-index artbench"):
        resolve_database("artbench-baroque")


def test_a_folder_needs_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "My Pictures!").mkdir()
    made = resolve_target(str(tmp_path / "My Pictures!"))
    assert (made.name, made.source.kind, made.encoder) == ("my_pictures", "folder", "vit-l-14")
    with pytest.raises(ManifestError, match="--name"):
        manifest_for_path(tmp_path, name="No Spaces")


def test_a_manifest_added_to_the_home_is_known_by_name(tmp_path: Path, home: Path) -> None:
    add_manifest(Path(write(tmp_path / "mine.toml", MINIMAL)))
    assert isinstance(load_manifest("mine"), Manifest)
    with pytest.raises(ManifestError, match="comes with the package"):
        add_manifest(Path(write(tmp_path / "w.toml", MINIMAL.replace('"mine"', '"wikiart"'))))


def test_building_a_view_means_building_its_base() -> None:
    assert resolve_target("artbench-baroque").name == "artbench"
