"""Kills of a refresh, a purge, a retry, a repair and a generation at twenty seeded points each.

After each kill all visible files are complete, searches answer as before or as after, and the same command then does the
rest: the result is that of an uninterrupted run.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.database import RetrievalDatabase
from pipeline.errors import DatabaseError
from pipeline.execution import Backend, Progress
from pipeline.generation import GenerateConfig, Sampling, generate
from pipeline.maintenance import PurgeRequest, check_database, purge, repair_database
from pipeline.retrieval import QueryRequest, run_query
from pipeline.sources import SourceOptions
from tests.attempts import tried
from tests.builds import contents, folder_of, manifest_of, picture, quiet_build
from tests.forked import preloaded_processes
from tests.generations import save_model
from tests.server import Fault, serve
from tests.urls import HOST
from tests.urls import manifest_of as list_manifest

pytestmark = [pytest.mark.process, pytest.mark.long]

POINTS = 20
ALLOWED = SourceOptions(allow_private=(f"{HOST}/32",))


def refresh(root: str, home: str) -> None:
    quiet_build(f"{root}/mine.toml", home=home, threads=1, refresh=True)


def purge_some(root: str, home: str) -> None:
    request = PurgeRequest("mine", where="caption LIKE '%3'", home=home)
    begun = RetrievalDatabase("mine", home).storage.exists("purge.json")
    purge(PurgeRequest("mine", home=home) if begun else request)


def retry(root: str, home: str) -> None:
    quiet_build(f"{root}/listed.toml", home=home, threads=1, retry=True, source=ALLOWED)


def repair(root: str, home: str) -> None:
    repair_database(RetrievalDatabase("mine", home), Progress(stream=io.StringIO()), "cpu")


def draw(root: str, home: str) -> None:
    config = GenerateConfig(
        prompts=f"{root}/prompts.csv", db=("mine",), model=f"{root}/model", run="drawn", home=home, threads=1, batch=2,
        k=3, sampling=Sampling(steps=2),
    )  # fmt: skip
    generate(config, Progress(stream=io.StringIO()), Backend())


COMMANDS: dict[str, Callable[[str, str], None]] = {
    "refresh": refresh, "purge": purge_some, "retry": retry, "repair": repair, "generate": draw,
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Sources, a model, and a home in which every command has work to do."""
    root = tmp_path_factory.mktemp("kills")
    save_model(root / "model")
    (root / "prompts.csv").write_text("prompt,seed\n" + "".join(f"a thing {i},{i}\n" for i in range(8)))
    folder = folder_of(root / "pictures", 60)
    quiet_build(
        manifest_of(root / "mine.toml", folder, shard_rows=6), home=str(root / "home"), threads=1, images="keep"
    )
    for name in ("0007.png", "0031.png"):
        (folder / name).unlink()
    (folder / "0002.png").write_bytes(picture(90))
    (folder / "new.png").write_bytes(picture(91))
    (root / "served").mkdir()
    with serve(root / "served", host=HOST) as server:
        import pyarrow as pa
        import pyarrow.parquet as pq

        links = []
        for number in range(24):
            (root / "served" / f"{number}.png").write_bytes(picture(number))
            links.append(f"{server.url}/{number}.png")
            if number % 4 == 1:
                server.fail(f"/{number}.png", Fault("status", 404), times=-1)
        columns = {"link": links, "text": [str(i) for i in range(24)], "punsafe": [0.0] * 24}
        pq.write_table(pa.table(columns), root / "list.parquet")
        list_manifest(root / "listed.toml", root / "list.parquet", shard_rows=4)
        quiet_build(root / "listed.toml", home=str(root / "home"), threads=1, source=ALLOWED)
        server.repair()
        yield root


def begin(root: Path, home: Path, command: str) -> None:
    shutil.copytree(root / "home", home)
    if command == "repair":
        chance = random.Random("repair")
        version = RetrievalDatabase("mine", str(home)).version()
        for artifact in [*chance.sample([entry.artifact for entry in version.shards], 3), version.index.files["keys"]]:
            (home / "databases" / "mine" / artifact.path).write_bytes(b"damaged")


def state(home: Path, command: str) -> dict[str, bytes]:
    """The content that has to be identical at the end."""
    if command == "generate":
        folder = home / "generations" / "drawn" / "images"
        return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}
    return contents(home, "listed" if command == "retry" else "mine")


def _run(command: str, root: str, home: str, said: str) -> None:
    os.setsid()
    with Path(said).open("w") as out, contextlib.redirect_stderr(out):
        COMMANDS[command](root, home)


def killed(command: str, root: Path, home: Path, after_s: float) -> bool:
    """Run a command in a process that is killed after this many seconds. Returns whether it was killed before its end."""
    said = home.parent / f"said {time.monotonic_ns()}"
    process = preloaded_processes().Process(target=_run, args=(command, str(root), str(home), str(said)))
    process.start()
    process.join(after_s)
    alive = process.is_alive()
    process.kill()
    process.join()
    assert alive or process.exitcode == 0, said.read_text()
    return alive


def look(home: Path, command: str) -> None:
    """Check all visible files: the database answers, and every file of a published version has its checksum."""
    name = "listed" if command == "retry" else "mine"
    database = RetrievalDatabase(name, str(home))
    if command != "repair":
        assert len(run_query(QueryRequest(name, key=0, k=5, home=str(home))).records()) == 5
        version = database.version()
        if not database.storage.exists("purge.json"):
            for artifact in version.files():
                assert database.storage.sha256(artifact.path) == artifact.sha256
    for path in home.glob("generations/*/images/*.png"):
        from PIL import Image

        with Image.open(path) as image:
            image.load()


def blows(root: Path, tmp_path: Path, command: str, points: range) -> tuple[int, int]:
    """(kills before the end, points tried), each on a separate home; the result is always that of an uninterrupted run."""
    whole, warm = tmp_path / "whole", tmp_path / "warm"
    begin(root, warm, command)
    killed(command, root, warm, 300.0)  # the first process of the server takes longer than the others
    begin(root, whole, command)
    began = time.monotonic()
    assert not killed(command, root, whole, 300.0)
    took, expected, fell = time.monotonic() - began, state(whole, command), 0
    assert expected
    for point in points:
        home = tmp_path / f"home {point}"
        begin(root, home, command)
        share = (point + random.Random(f"{command} {point}").random()) / POINTS
        fell += killed(command, root, home, share * took)
        look(home, command)
        with contextlib.suppress(DatabaseError) if command == "purge" else contextlib.nullcontext():
            COMMANDS[command](str(root), str(home))  # a purge that ended before the kill finds no row left
        assert state(home, command) == expected, point
        if command not in ("generate",):
            assert (
                check_database(RetrievalDatabase("listed" if command == "retry" else "mine", str(home))).damages == ()
            )
        shutil.rmtree(home)
    tried(len(points))
    return fell, len(points)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_killed_at_any_point_ends_as_if_it_had_not_been(root: Path, tmp_path: Path, command: str) -> None:
    fell, tried = blows(root, tmp_path, command, range(POINTS))
    print(f"{command}: {tried} points, {fell} kills before the end, all identical")
    assert fell  # on a busy machine, a run may end before its kill
