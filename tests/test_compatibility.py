"""A home that version 0.1 wrote opens, searches and continues as before: tests/fixtures/v0_1, with the command line only.

Names, keys, counts, plans, metadata and files that must not change are always compared exactly. Computed numbers
(vectors, pixels, weights) are compared exactly if processor and libraries are those of the recording, else with
the tolerances below. The results depend on the shipped encoder and model: newly trained weights are another version
and need their own fixtures.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from tests.forked import Forked

pytestmark = pytest.mark.process

REPO = Path(__file__).parent.parent
FIXTURE = Path(__file__).parent / "fixtures" / "v0_1"
EXPECTED = FIXTURE / "expected"
TIME = 1_700_000_000  # of the gallery's files: a folder's plan holds times, and a checkout does not keep them
LIBRARIES = ("torch", "numpy", "pyarrow", "pillow", "open_clip_torch", "diffusers", "faiss-cpu", "duckdb")
# What another processor may make of it. Of weights: their distance, as a share of the way that the resumed steps went.
SCORE, COSINE, PIXEL, LOSS, APART = 1e-4, 0.9999, 2, 1e-3, 0.05

BUILD = ("build-index", "gallery.toml", "--threads", "1", "--json")
BUILD_HALTED = ("build-index", "halted.toml", "--images", "thumbnail", "--threads", "1", "--json")
BUILD_DRAWN = ("build-index", "drawn", "--images", "keep", "--index-key", "HNSW16", "--threads", "1", "--json")
_STEPS = ("--steps", "3", "--device", "cpu", "--json")
FINISHED = ("generate", "prompts.csv", "--db", "gallery,gallery-woodcut", "-k", "3", "--run", "finished", *_STEPS)
AGAIN = (*FINISHED[:6], "--run", "again", *_STEPS)
NAMED = ("generate", "a castle by the sea", "--db", "drawn", "--where", "weather = 'clear'", "-k", "2", *_STEPS)
GENERATE_STOPPED = ("generate", "all.csv", "--db", "gallery", "--seed", "5", "--run", "stopped", *_STEPS)
TRAIN = ("train", "autoencoder", "train.toml", "--json")
JOB = ("run", "nightly.toml", "--slot", "20260101t0115z", "--scheduled", "--json")

LISTINGS = (
    ("list", "--json"), ("status", "--json"), ("status", "gallery-woodcut", "--json"), ("status", "stopped", "--json"),
    ("status", "nightly", "--json"), ("versions", "gallery", "--json"), ("versions", "imported", "--json"),
    ("manifests", "drawn", "--json"),
)  # fmt: skip
SEARCHES = (
    ("search", "gallery", "two green pears on a wooden table", "-k", "5", "--json"),
    ("search", "gallery", "--image", "gallery/0003.png", "-k", "4", "--no-duplicates", "--json"),
    ("search", "gallery", "a picture of an animal", "-k", "8", "--where", "year >= 1850 AND style <> 'woodcut'", "--json"),
    ("search", "gallery-woodcut", "a picture", "-k", "3", "--json"),
    ("search", "gallery@{first}", "--key", "0", "-k", "40", "--json"),
    ("search", "drawn", "--key", "4", "-k", "5", "--where", "style LIKE '%o%'", "--json"),
    ("search", "drawn", "a green pear", "-k", "6", "--json"),
    ("search", "imported", "--key", "3", "-k", "5", "--json"),
)  # fmt: skip


# ---- shared with the script that wrote the fixture


def machine() -> dict[str, str]:
    """The properties on which the last digits of a computed number depend."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    facts = [next((line for line in lines if line.startswith(name)), "") for name in ("model name", "flags")]
    processor = hashlib.sha256(json.dumps([platform.machine(), *facts]).encode()).hexdigest()[:16]
    return {"processor": processor, **{name: importlib.metadata.version(name) for name in LIBRARIES}}


def set_times(work: Path) -> None:
    for path in (work / "gallery").iterdir():
        os.utime(path, (TIME, TIME))


def remove_picture(work: Path) -> None:
    """Remove a picture and its line from the gallery."""
    table = work / "gallery" / "metadata.csv"
    table.write_text("".join(line for line in table.read_text().splitlines(True) if not line.startswith("0007.png")))
    (work / "gallery" / "0007.png").unlink()
    set_times(work)


def first_version(work: Path, name: str = "gallery") -> str:
    """The version before the current one."""
    root = work / "home" / "databases" / name
    names = {path.stem for path in (root / "versions").iterdir()} - {(root / "current").read_text().strip()}
    return names.pop()


def bury_holders(work: Path) -> None:
    """Make a dead process of this machine the holder of every lease, as after a kill here."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    try:
        pids = os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:
        pids = ""
    for path in (work / "home").rglob("lease"):
        if text := path.read_text():
            mine = {"host": socket.gethostname(), "pids": pids, "pid": dead.pid}
            path.write_text(json.dumps({**json.loads(text), **mine}))


def database_files(root: Path) -> dict[str, Path]:
    """The files of a database, by path, without records of runs and hidden files."""
    records = {"lease", "progress.json", "failures.json"}
    return {
        str(path.relative_to(root)): path
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in records
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    }  # fmt: skip


def sums(files: Mapping[str, Path]) -> dict[str, str]:
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


# ---- the command line, and a copy of the fixture


@dataclass(frozen=True)
class Ran:
    code: int | None
    out: str
    err: str

    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out.strip().splitlines()[-1])


def rdmpipe(work: Path, *arguments: str) -> Ran:
    env = {name: value for name, value in os.environ.items() if name not in ("RDMPIPE_ENCODER", "RAY_ADDRESS")}
    env |= {"RDMPIPE_HOME": "home", "RDMPIPE_CACHE": "cache"}
    line = tuple(word.replace("{first}", first_version(work)) for word in arguments)
    process = Forked(line, module="pipeline.cli", env=env, cwd=work)
    out, err = process.communicate(240)
    return Ran(process.returncode, out, err)


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return json.loads((EXPECTED / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def same_libraries(expected: dict[str, Any]) -> bool:
    """Whether files without computed numbers have to be the same byte for byte."""
    return {**machine(), "processor": ""} == {**expected["machine"], "processor": ""}


@pytest.fixture(scope="module")
def same_machine(expected: dict[str, Any]) -> bool:
    """Whether all files have to be the same byte for byte."""
    return bool(machine() == expected["machine"])


def copied(to: Path) -> Path:
    shutil.copytree(FIXTURE, to, ignore=shutil.ignore_patterns("expected", "make.py", "__pycache__"))
    set_times(to)
    return to


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy that tests only read; it has to be unchanged at the end."""
    work = copied(tmp_path_factory.mktemp("read") / "v0_1")
    bury_holders(work)
    before = sums(home_files(work))
    yield work
    assert sums(home_files(work)) == before


def home_files(work: Path) -> dict[str, Path]:
    return {str(path.relative_to(work)): path for path in (work / "home").rglob("*") if path.is_file()}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A separate copy whose lease holders are dead."""
    copied(tmp_path / "v0_1")
    bury_holders(tmp_path / "v0_1")
    return tmp_path / "v0_1"


def marks(root: Path, pattern: str) -> dict[Path, tuple[bytes, int]]:
    """The content and time of files that must not be touched: the same bytes written again have another time."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.glob(pattern)}


NEWER = ("hosts", "left_out", "vectors_for")  # fields of summaries that version 0.1 did not have


def holds(found: Any, wanted: Any) -> bool:
    """Whether a JSON value has all that an older one has; it may have more fields, and a value where that one had none."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(name in found and holds(found[name], wanted[name]) for name in wanted)
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(holds, found, wanted))
    return bool(wanted is None or found == wanted)


def told(summary: Mapping[str, Any], *left_out: str) -> dict[str, Any]:
    """A build's summary, without its times and without values that depend on computed numbers."""
    return {
        name: value
        for name, value in summary.items()
        if name not in ("seconds", "version", "index", *NEWER, *left_out)
    }  # fmt: skip


# ---- databases


@pytest.mark.parametrize("line", LISTINGS, ids=" ".join)
def test_listings_and_status_are_the_same_as_before(
    line: tuple[str, ...], untouched: Path, expected: dict[str, Any]
) -> None:
    assert holds(rdmpipe(untouched, *line).json(), expected["listings"][" ".join(line)])


@pytest.mark.parametrize("line", SEARCHES, ids=" ".join)
def test_a_search_finds_the_same_rows(line: tuple[str, ...], untouched: Path, expected: dict[str, Any]) -> None:
    found, wanted = rdmpipe(untouched, *line).json(), expected["searches"][" ".join(line)]
    scores, wanted_scores = ([row.pop("score") for row in rows] for rows in ([*found], [dict(row) for row in wanted]))
    assert found == [{name: value for name, value in row.items() if name != "score"} for row in wanted]
    np.testing.assert_allclose(scores, wanted_scores, atol=1e-6 if "--key" in line else SCORE)


def test_a_version_with_purged_rows_stays_refused(untouched: Path) -> None:
    purged = next((untouched / "home/databases/imported/versions").glob("*.purged")).stem
    ran = rdmpipe(untouched, "search", f"imported@{purged}", "--key", "3", "--json")
    assert ran.code not in (0, None)
    assert "was purged" in ran.err


def test_imported_embeddings_come_out_bit_for_bit(untouched: Path) -> None:
    files = rdmpipe(untouched, "export", "imported", "exported", "--json").json()
    with np.load(untouched / "vectors.npz") as given, np.load(untouched / files[0]) as found:
        kept = np.arange(30) != 7  # the purged row
        assert len(files) == 1
        assert sorted(found) == sorted(given)
        for name in given:
            assert found[name].dtype == given[name].dtype
            assert np.array_equal(found[name], given[name][kept])


@pytest.mark.parametrize("line", [BUILD, (*BUILD, "--refresh"), BUILD_DRAWN, (*BUILD_DRAWN, "--refresh")])
def test_a_finished_build_has_nothing_to_do(line: tuple[str, ...], work: Path) -> None:
    name = "drawn" if "drawn" in line else "gallery"
    root = work / "home" / "databases" / name
    before = sums(database_files(root))
    made = rdmpipe(work, *line).json()
    assert made["version"] == (root / "current").read_text().strip()
    assert {stage: count["ran"] for stage, count in made["shards"].items()} == {"download": 0, "embed": 0}
    assert made["shards"]["embed"]["skipped"] > 1
    assert sums(database_files(root)) == before


def test_a_refresh_sees_what_changed_and_nothing_else(work: Path, expected: dict[str, Any], same_machine: bool) -> None:
    root = work / "home" / "databases" / "gallery"
    remove_picture(work)
    before, old = marks(root, "embeddings/*/*"), (root / "current").read_text().strip()
    made, wanted = rdmpipe(work, *BUILD, "--refresh").json(), expected["refresh"]["summary"]
    assert told(made) == told(wanted)
    assert made["changes"] == {"added": 0, "changed": 0, "removed": 1}
    assert {path: mark for path, mark in marks(root, "embeddings/*/*").items() if path in before} == before
    lines = rdmpipe(work, "versions", "gallery", "--json").json()
    assert [line["parent"] for line in lines] == [old, lines[2]["version"], ""]
    assert lines[0]["rows"] == lines[1]["rows"] - 1
    if same_machine:
        assert made["version"] == wanted["version"]
        assert sums(database_files(root)) == expected["refresh"]["sums"]


def test_a_killed_build_continues_and_gives_the_same_bytes(
    work: Path, expected: dict[str, Any], same_libraries: bool, same_machine: bool
) -> None:
    root = work / "home" / "databases" / "halted"
    done = {path.stem for path in root.glob("embeddings/*/*.json")}
    before = {path: mark for path, mark in marks(root, "*/**/*.*").items() if path.stem in done}
    made, wanted = rdmpipe(work, *BUILD_HALTED).json(), dict(expected["halted"]["summary"])
    total = wanted["shards"]["embed"]["ran"]
    assert 0 < len(done) < total
    assert made["shards"] == {
        stage: {"ran": total - len(done), "skipped": len(done)} for stage in ("download", "embed")
    }
    assert {path: mark for path, mark in marks(root, "*/**/*.*").items() if path in before} == before
    assert told(made, "shards") == told(wanted, "shards")
    found, whole = sums(database_files(root)), expected["halted"]["sums"]
    if same_machine:
        assert found == whole
        assert made["version"] == wanted["version"]
    fixed = re.compile(r"(plan|images)/|manifest\.json")
    there, there_whole = ({name for name in names if fixed.match(name)} for names in (found, whole))
    assert there == there_whole
    if same_libraries:
        assert {name: found[name] for name in there} == {name: whole[name] for name in there}
    vectors = [np.load(path) for path in (next(root.glob("index/*/*/vectors.npy")), EXPECTED / "halted-vectors.npy")]
    assert vectors[0].shape == vectors[1].shape
    one, other = (found / np.linalg.norm(found, axis=1, keepdims=True) for found in (v.astype(float) for v in vectors))
    assert ((one * other).sum(axis=1) > COSINE).all()


def test_a_lease_of_another_machine_is_believed(tmp_path: Path) -> None:
    work = copied(tmp_path / "v0_1")
    os.utime(work / "home/databases/halted/lease")
    holder = json.loads((work / "home/databases/halted/lease").read_text())
    assert rdmpipe(work, "status", "halted", "--json").json()[0]["running"] == holder
    ran = rdmpipe(work, *BUILD_HALTED)
    assert ran.code not in (0, None)
    assert f"process {holder['pid']} on {holder['host']}" in ran.err


# ---- pictures


def record(path: Path) -> dict[str, Any]:
    """The provenance in a picture, without the version of the program that made it."""
    with Image.open(path) as image:
        made = json.loads(image.info["rdmpipe"])  # type: ignore[attr-defined]
    made.pop("rdmpipe")
    return dict(made)


def same_records(one: dict[str, Any], other: dict[str, Any], exact: bool) -> bool:
    if exact:
        return one == other
    scores = [[row.pop("score") for row in made["neighbours"]] for made in (one, other)]
    return one == other and bool(np.allclose(*scores, atol=SCORE))


def test_finished_pictures_are_known_by_their_keys(work: Path, same_libraries: bool) -> None:
    runs = work / "home" / "generations"
    before = marks(runs, "*/images/*.png")
    table = (runs / "finished" / "results.parquet").read_bytes()
    count = len(list((runs / "finished/images").iterdir()))
    made = rdmpipe(work, *FINISHED).json()
    assert (made["made"], made["copied"], made["ok"], made["failed"]) == (0, 0, count, 0)
    if same_libraries:
        assert (runs / "finished" / "results.parquet").read_bytes() == table
    made = rdmpipe(work, *AGAIN).json()
    assert (made["made"], made["copied"], made["ok"]) == (0, count, count)
    names = {path.name: path.read_bytes() for path in (runs / "again" / "images").iterdir()}
    assert names == {path.name: path.read_bytes() for path in (runs / "finished" / "images").iterdir()}
    assert {path: mark for path, mark in marks(runs, "*/images/*.png").items() if path in before} == before


def test_a_run_without_a_name_has_the_same_name(work: Path) -> None:
    runs = work / "home" / "generations"
    before = {path.name for path in runs.iterdir()}
    made = rdmpipe(work, *NAMED).json()
    assert made["run"] in before
    assert (made["made"], made["copied"], made["ok"]) == (0, 0, 1)
    assert {path.name for path in runs.iterdir()} == before


def test_a_killed_run_continues_and_gives_the_same_pictures(
    work: Path, expected: dict[str, Any], same_machine: bool
) -> None:
    run = work / "home" / "generations" / "stopped"
    before, plans = marks(run, "images/*.png"), marks(run, "plan/*")
    made, wanted = rdmpipe(work, *GENERATE_STOPPED).json(), expected["generation"]["summary"]
    assert 0 < len(before) < wanted["pictures"]
    assert made["made"] == wanted["pictures"] - len(before)
    assert (made["requested"], made["ok"], made["copied"]) == (wanted["requested"], wanted["ok"], 0)
    assert {path: mark for path, mark in marks(run, "images/*.png").items() if path in before} == before
    assert marks(run, "plan/*") == plans
    assert sorted(path.name for path in (run / "images").iterdir()) == expected["generation"]["files"]
    for path in (run / "images").iterdir():
        other = EXPECTED / "images" / path.name
        assert same_records(record(path), record(other), same_machine)
        pixels, wanted_pixels = (np.asarray(Image.open(file), np.int16) for file in (path, other))
        assert np.abs(pixels - wanted_pixels).max() <= (0 if same_machine else PIXEL)
    left_out = ["seconds", "rdmpipe", "neighbour_scores"]
    found, whole = (pq.read_table(folder / "results.parquet").drop_columns(left_out) for folder in (run, EXPECTED))
    assert found.equals(whole)


# ---- training, jobs


def weights(path: Path) -> NDArray[Any]:
    """All weights of a file as one vector."""
    found = load_file(path)
    return np.concatenate([found[name].astype(np.float64).ravel() for name in sorted(found)])


def test_a_killed_training_continues_to_the_same_weights(work: Path, same_machine: bool) -> None:
    part = work / "train" / "autoencoder"
    recipe = (part / "config.json").read_bytes()
    with (part / "curve.csv").open(newline="") as handle:
        before = list(csv.DictReader(handle))
    assert rdmpipe(work, *TRAIN).code not in (0, None)  # without --resume it is not trained over
    model = Path(rdmpipe(work, *TRAIN, "--resume").json()["model"])
    assert (part / "config.json").read_bytes() == recipe
    (found, whole) = (list(csv.DictReader((f / "curve.csv").open(newline=""))) for f in (part, EXPECTED))
    assert 0 < len(before) < len(found) == len(whole)
    kept = len(before) - 1  # the last step may have come after the last save
    assert found[:kept] == before[:kept]
    assert kept > 0
    columns = [name for name in whole[0] if name != "seconds"]
    for row, wanted in zip(found, whole, strict=True):
        if same_machine:
            assert {name: row[name] for name in columns} == {name: wanted[name] for name in columns}
        np.testing.assert_allclose(*([float(r[name]) for name in columns] for r in (row, wanted)), rtol=LOSS)
    now, whole_run = weights(next((work / model).glob("*.safetensors"))), weights(EXPECTED / "autoencoder.safetensors")
    if same_machine:
        assert np.array_equal(now, whole_run)
    then = weights(next((FIXTURE / "train" / "autoencoder" / "model").glob("*.safetensors")))
    assert np.linalg.norm(now - whole_run) < APART * np.linalg.norm(whole_run - then)
    noted = json.loads((work / "train" / "weights.json").read_text())
    assert [hashlib.sha256((work / "train" / name).read_bytes()).hexdigest() for name in noted] == [*noted.values()]


def test_a_slot_that_succeeded_is_not_run_again(untouched: Path) -> None:
    made = rdmpipe(untouched, *JOB).json()
    assert (made["status"], made["exit_code"], made["attempts"]) == ("done before", 0, [])
