"""The project's own pictures as a source."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.atelier import STYLES
from pipeline.catalog import load_manifest
from pipeline.catalog.manifests import shipped_manifests
from pipeline.errors import ConfigError, RdmpipeError, SourceError
from pipeline.sources import Manifest, SourceOptions, View, open_source, sniff
from pipeline.sources.drawing import PART, Drawers, Drawing


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


@pytest.mark.process
def test_several_processes_draw_the_same_bytes_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.atelier._WORTH_PROCESSES", 0)
    alone, together = open_source(atelier()), open_source(atelier(), SourceOptions(processes=2))
    specs = [spec.spec for spec in alone.plan()]
    assert [list(together.read(spec)) for spec in specs] == [list(alone.read(spec)) for spec in specs]


@pytest.mark.process
def test_a_drawing_process_that_dies_is_an_error_and_the_next_attempt_starts_another() -> None:
    drawers = Drawers(Drawing(seed=0, size=64, style=None, layout="grid"), count=1)
    stream = drawers.draw(0, 3 * PART)
    next(stream)
    drawers._children[0].kill()
    with pytest.raises(SourceError, match="a process that draws pictures ended with code -9"):
        list(stream)
    assert len(list(drawers.draw(0, 2))) == 2
    drawers.close()
    assert all(child.returncode is not None for child in drawers._children)
