"""The crash matrix for the network: a source on a server whose connection breaks at seeded bytes, for a short or a long
time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.catalog.manifests import shipped_manifests
from pipeline.errors import RdmpipeError
from pipeline.execution import Backend
from pipeline.sources import SourceOptions
from tests.builds import contents, picture, quiet_build
from tests.crashes import KILLS
from tests.encoders import RANDOM
from tests.pictures import wikiart_files
from tests.server import serve
from tests.wire import Wire, wire

pytestmark = pytest.mark.long

ROWS, FILES, SHARD_ROWS = 96, 8, 6


@pytest.fixture
def line(tmp_path: Path, home: Path) -> Iterator[Wire]:
    """WikiArt's exact format on a server behind a connection that can be cut."""
    wikiart_files(
        tmp_path / "served/hub/huggan/wikiart", [picture(i, 96, "PNG") for i in range(ROWS)], FILES, SHARD_ROWS
    )
    text = shipped_manifests()["wikiart"].read_text()
    (tmp_path / "wikiart.toml").write_text(text.replace("shard_rows = 1200", f"shard_rows = {SHARD_ROWS}"))
    with serve(tmp_path / "served") as server, wire(server.url) as made:
        yield made


def test_a_network_cut_at_many_points_changes_nothing(
    line: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build survives a cut of a second. After a longer cut it reports the error, and continues when it is run again."""

    def run(place: str, backend: Backend | None = None) -> Path:
        monkeypatch.setenv("RDMPIPE_CACHE", str(tmp_path / place / "cache"))  # or nothing would be asked for again
        home = tmp_path / place / "home"
        source = SourceOptions(base_url=line.url)
        made = quiet_build(
            tmp_path / "wikiart.toml", home=str(home), encoder=RANDOM, threads=1, source=source,
            backend=backend or Backend(),
        )  # fmt: skip
        assert (made.input, made.ok) == (ROWS, ROWS)
        return home

    undisturbed = contents(run("undisturbed"), "wikiart")
    total, rng = line.carried, random.Random("network points")
    assert total > 500_000
    again = 0
    for i in range(KILLS):
        place, for_good = f"cut {i}", i in (0, 7)
        line.cut_after(int(total * (i + rng.random()) / (KILLS + 1)), seconds=600.0 if for_good else 1.0)
        try:
            home = run(
                place, Backend(retries=0, max_failures=1) if for_good else None
            )  # it is patient enough within one
        except RdmpipeError as error:
            assert for_good, f"a cut of a second ended the build: {error}"
            assert "Traceback" not in str(error)
            line.repair()
            again += 1
            home = run(place)
        assert line.cuts == i + 1
        assert contents(home, "wikiart") == undisturbed
    assert again == 2 and line.refused
    print(f"network: {line.cuts} cuts, identical; {again} builds run again, {KILLS - again} waited")
