"""Tests that need the network: published data sets and weights are fetched, compared with known values, and used.

`make test-online` runs these tests and nothing else does. Downloads and databases stay in RDMPIPE_ONLINE (default:
~/.cache/rdmpipe-online), so that a second run fetches nothing; weights stay in the Hub's cache. They are skipped, with the
reason, if the Hub cannot be reached.
"""

from __future__ import annotations

import io
import os
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from pipeline.building import BuildRequest, build
from pipeline.building.request import BuildSummary
from pipeline.doctor import published, verify
from pipeline.encoders import load_encoder
from pipeline.execution import Backend, Progress
from pipeline.generation import find_model
from pipeline.retrieval import count_rows, open_database
from pipeline.sources import SourceOptions

pytestmark = [pytest.mark.long, pytest.mark.online]

HOME = Path(os.environ.get("RDMPIPE_ONLINE", "~/.cache/rdmpipe-online")).expanduser()


@pytest.fixture(scope="module", autouse=True)
def _network() -> None:
    """Skip without a network; any answer of the Hub shows that there is one."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        pytest.skip("HF_HUB_OFFLINE is set: unset it to run these tests")
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=10).close()
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError) as error:
        pytest.skip(f"no network: {constants.ENDPOINT} cannot be reached ({getattr(error, 'reason', error)})")


@pytest.fixture(autouse=True)
def online_home(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("RDMPIPE_HOME", str(HOME))
    monkeypatch.setenv("RDMPIPE_CACHE", str(HOME / "cache"))
    return str(HOME)


def built(target: str, name: str, limit: int, encoder: str = "mini") -> BuildSummary:
    request = BuildRequest(
        target=target, name=name, encoder=encoder, source=SourceOptions(limit=limit), backend=Backend()
    )
    return build(request, Progress(stream=io.StringIO()))


def test_wikiart_has_pictures_with_artist_genre_and_style(online_home: str) -> None:
    summary = built("wikiart", "wikiart-sample", 24)
    assert (summary.counts["ok"], summary.counts["failed"]) == (24, 0)
    with open_database("wikiart-sample", online_home) as art:
        rows = art.metadata(art.keys).to_pylist()
    for column in ("artist", "genre", "style"):
        assert all(isinstance(row[column], str) and not row[column].isdigit() for row in rows), column


def test_artbench_is_whole(online_home: str) -> None:
    """All 60,000 pictures: the archive and its list have the md5 sums of the manifest, and each style has 6,000 rows."""
    summary = built("artbench", "artbench", 0)
    assert (summary.counts["input"], summary.counts["failed"]) == (60_000, 0)
    assert count_rows("artbench-ukiyo_e", online_home) == published.STYLES_ROWS
    found = {one.area: one for one in verify(online_home, only=("artbench",))}
    assert {one.state for one in found.values()} == {"ok"}, found


@pytest.mark.parametrize("name", list(published.ENCODERS))
def test_clip_is_openais(name: str, online_home: str) -> None:
    load_encoder(name, "cpu")
    (found,) = verify(online_home, only=(name,))
    assert found.state == "ok", found


def test_the_published_model_draws(online_home: str) -> None:
    load_encoder("vit-l-14", "cpu")
    find_model(published.RDM, online_home)
    model, picture = verify(online_home, only=(published.RDM,))
    assert (model.state, picture.state) == ("ok", "ok"), (model, picture)
    print(picture.found)
