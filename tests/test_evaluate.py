"""A whole evaluation of a tiny model: its files, the agreement of its numbers with its rows, and a killed one that
continues."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.evaluation import EvaluateConfig
from tests.evaluations import atelier_database, quiet_evaluate, small_config
from tests.forked import Forked
from tests.generations import pictures, save_model

pytestmark = pytest.mark.process


@pytest.fixture(scope="module", autouse=True)
def process_as_it_was() -> Iterator[None]:
    """Restore the process's thread count and denormals, which an evaluation changes."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EvaluateConfig]:
    """A home with the small database, and the protocol."""
    folder = tmp_path_factory.mktemp("evaluate")
    atelier_database(folder, folder / "home")
    return folder, small_config(save_model(folder / "model"))


@pytest.fixture(scope="module")
def whole(place: tuple[Path, EvaluateConfig]) -> dict[str, Any]:
    folder, config = place
    return quiet_evaluate(config, folder / "whole", folder / "home")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / "pictures.parquet").to_pylist()
    return found


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Every leaf of a summary by its path, except for times."""
    if isinstance(value, dict):
        return {k: v for name, one in value.items() if name != "cost" for k, v in flat(one, f"{path}/{name}").items()}
    if isinstance(value, list):
        return {k: v for i, one in enumerate(value) for k, v in flat(one, f"{path}/{i}").items()}
    return {path: value}


def test_an_evaluation_answers_every_question_and_leaves_one_page(
    place: tuple[Path, EvaluateConfig], whole: dict[str, Any]
) -> None:
    out = place[0] / "whole"
    assert json.loads((out / "summary.json").read_text()) == whole
    assert set(whole["postfix"]) == {"common", "rare", "unseen"}
    assert all(len(made["conditions"]) == 5 and len(made["swap minus"]) == 4 for made in whole["postfix"].values())
    assert list(whole["sweeps"]["neighbours"]) == ["0", "2", "6"]
    assert list(whole["swap"]["by style"]) == ["mosaic", "pixel_art", "woodcut"]
    assert whole["swap"]["styles never seen"]["style_hit"]["pictures"] == len(whole["setup"]["test captions"])
    assert whole["swap"]["content absent"] is not None
    assert whole["retrieved"] is not None
    assert np.array(whole["judges"]["style"]["confusion"]).sum() == whole["judges"]["style"]["pictures"]
    assert {"the same, through the model's first stage", "real pictures, held against another's caption"} <= set(
        whole["judges"]["references"]
    )
    page = (out / "index.html").read_text()
    assert page.index("In short") < page.index("Set-up") and "made with the database of a style that" in page
    assert page.count("<svg") >= 6
    assert page.count("data:image/png;base64,") >= 12
    assert not re.search(r'(src|href)="(?!data:)', page)  # everything is inside it
    assert "FID" not in re.sub('"data:[^"]*"', "", page)  # the word is for Inception's features
    assert json.loads((out / "protocol.json").read_text())["test captions"] == whole["setup"]["test captions"]


def test_the_numbers_are_those_of_the_rows(place: tuple[Path, EvaluateConfig], whole: dict[str, Any]) -> None:
    rows = rows_of(place[0] / "whole")
    swap = [row for row in rows if row["phase"] == "swap" and row["condition"] == "swap"]
    captions = len(whole["setup"]["test captions"])
    assert len(swap) == 3 * captions
    by_caption: dict[str, list[float]] = {}
    for row in swap:
        assert row["style_hit"] == float(row["guess"] == row["style"])
        assert row["found"] == float(row["rank"] == 1)
        by_caption.setdefault(row["caption"], []).append(row["style_hit"])
    mean = float(np.mean([np.mean(values) for values in by_caption.values()]))
    assert whole["swap"]["all"]["style_hit"]["value"] == pytest.approx(mean)
    assert whole["swap"]["all"]["style_hit"]["captions"] == captions
    assert whole["cost"]["rows"] == len(rows)
    assert whole["cost"]["different pictures"] == len({row["key"] for row in rows})


def test_neighbours_come_from_where_the_condition_says(
    place: tuple[Path, EvaluateConfig], whole: dict[str, Any]
) -> None:
    folder, config = place
    from pipeline.evaluation.data import read_labelled

    labelled = read_labelled("small", config, str(folder / "home"))
    style = dict(zip(labelled.checksums, labelled.pictures.styles, strict=True))
    content = dict(zip(labelled.checksums, labelled.pictures.contents, strict=True))
    asked = {row["content"] for row in rows_of(folder / "whole")}
    seen = set()
    for row in rows_of(folder / "whole"):
        own = [style[checksum] == row["style"] for checksum in row["neighbour_pictures"]]
        if row["condition"] == "swap":
            assert all(own)
        elif row["condition"] == "swap, content absent":
            assert all(own)
            assert not {content[checksum] for checksum in row["neighbour_pictures"]} & asked
        elif row["level"] == "unseen" and row["k"]:
            assert not any(own)
        elif row["condition"] == "postfix, text only":
            assert not own
        seen.add(row["condition"])
    assert len(seen) == 6


def test_a_filter_and_a_database_of_the_style_alone_find_the_same_pictures(whole: dict[str, Any]) -> None:
    assert whole["sweeps"]["separate"]["pairs"] == 1
    assert whole["sweeps"]["separate"]["same neighbours"] == 1.0


def test_another_protocol_needs_another_folder(place: tuple[Path, EvaluateConfig], whole: dict[str, Any]) -> None:
    folder, config = place
    with pytest.raises(ConfigError, match="--out"):
        quiet_evaluate(replace(config, encoder_captions="something else"), folder / "whole", folder / "home")


PROGRAM = """
import sys
from pathlib import Path
from tests.evaluations import quiet_evaluate, small_config
folder = Path(sys.argv[1])
quiet_evaluate(small_config(folder / "model"), folder / "killed", folder / "home")
"""


@pytest.mark.parametrize("moment", ["judges/content/state.pt", "pictures/images"])
def test_a_killed_evaluation_continues_to_the_same_numbers(
    place: tuple[Path, EvaluateConfig], whole: dict[str, Any], moment: str
) -> None:
    """The evaluation is killed in each of its parts in turn; the last case finishes it."""
    folder, config = place
    until = time.monotonic() + 200
    process = Forked((str(folder),), code=PROGRAM)
    while not (folder / "killed" / moment).exists() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said
    assert not (folder / "killed" / "summary.json").exists()
    if moment == "pictures/images":
        found, expected = flat(quiet_evaluate(config, folder / "killed", folder / "home")), flat(whole)
        assert found.keys() == expected.keys()
        for path, value in expected.items():  # sums in another process's memory may differ in their last digits
            assert found[path] == (pytest.approx(value, rel=1e-3, abs=1e-5) if isinstance(value, float) else value), (
                path
            )
        assert [row["key"] for row in rows_of(folder / "killed")] == [row["key"] for row in rows_of(folder / "whole")]
        mine, theirs = pictures(folder / "killed" / "pictures"), pictures(folder / "whole" / "pictures")
        assert mine == theirs
