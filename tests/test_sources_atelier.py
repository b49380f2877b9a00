"""The project's own pictures as a source."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.atelier import STYLES
from pipeline.catalog import load_manifest
from pipeline.catalog.manifests import shipped_manifests
from pipeline.errors import ConfigError, RdmpipeError
from pipeline.sources import Manifest, SourceOptions, View, open_source, sniff


def atelier(**options: Any) -> Manifest:
    made = load_manifest("atelier")
    assert isinstance(made, Manifest)
    return replace(made, source=replace(made.source, shard_rows=15, options={"count": 40, "size": 64, **options}))


def test_each_content_comes_in_every_style_with_its_caption() -> None:
    source = open_source(atelier())
    specs = list(source.plan())
    assert [spec.rows for spec in specs] == [15, 15, 10]
    found = [sample for spec in specs for sample in source.read(spec.spec)]
    assert [sample.metadata["style"] for sample in found[: len(STYLES)]] == list(STYLES)
    assert len({sample.caption for sample in found[: len(STYLES)]}) == 1
    assert len({sample.item_id for sample in found}) == 40
    assert all(sniff(sample.data or b"") == ("png", None) for sample in found)
    assert set(found[0].metadata) == set(source.columns()) >= {"subject", "style", "content_id", "split", "seed"}


def test_a_shard_reads_the_same_bytes_whatever_the_limit_and_the_reader() -> None:
    whole, part = open_source(atelier()), open_source(atelier(), SourceOptions(limit=15))
    (first,) = part.plan()
    assert first == next(iter(whole.plan()))
    assert list(part.read(first.spec)) == list(whole.read(first.spec))


def test_the_fingerprint_changes_with_what_is_drawn() -> None:
    prints = [
        next(iter(open_source(atelier(**options)).plan())).fingerprint for options in ({}, {"seed": 1}, {"size": 65})
    ]
    assert len(set(prints)) == 3


def test_one_style_alone_can_be_asked_for() -> None:
    source = open_source(atelier(style="woodcut", layout="own"))
    found = list(source.read(next(iter(source.plan())).spec))
    assert {sample.metadata["style"] for sample in found} == {"woodcut"}


@pytest.mark.parametrize("options", [{"count": 0}, {"style": "woodcutt"}, {"colour": 1}, {"layout": "tree"}])
def test_invalid_options_are_errors(options: dict[str, Any]) -> None:
    with pytest.raises(RdmpipeError):
        open_source(atelier(**options))


def test_the_shipped_manifest_and_a_view_for_every_style_fit_the_package() -> None:
    made = load_manifest("atelier")
    assert isinstance(made, Manifest)
    source = open_source(made)
    assert source.estimate()[0] == made.expected_rows
    views = [load_manifest(name) for name in shipped_manifests() if name.startswith("atelier-")]
    assert {view.where for view in views if isinstance(view, View)} == {f"style = '{style}'" for style in STYLES}


def test_an_unknown_option_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="known keys: count, layout, seed, size, style"):
        open_source(atelier(colour="red"))
