"""Homes that cannot be written, are reached through links, run out of disk or belong to another user.

Every command ends with its work done or with an RdmpipeError; all files are complete; the same command then does its work.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.catalog import home_status, status_of
from pipeline.database import RetrievalDatabase
from pipeline.errors import BudgetError, DiskFullError, RdmpipeError
from pipeline.maintenance import PurgeRequest, check_database, collect, list_versions, purge
from pipeline.retrieval import QueryRequest, run_query
from tests.attempts import tried
from tests.builds import contents, folder_of, manifest_of, quiet_build

pytestmark = pytest.mark.process

NAME = "mine"
NOBODY = 65_534  # a user who owns nothing


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source and a home with one database."""
    root = tmp_path_factory.mktemp("base")
    manifest = manifest_of(root / "mine.toml", folder_of(root / "pictures", 40))
    quiet_build(manifest, home=str(root / "home"), images="keep", threads=1)
    (root / "pictures" / "0003.png").unlink()  # so that a refresh has something to do
    return root


def mounted(folder: Path, options: str) -> None:
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder.mkdir(exist_ok=True)
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"this machine does not let a test mount a file system: {made.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    mounted(tmp_path / "disk", "size=4m,nr_inodes=2000")
    yield tmp_path / "disk"
    subprocess.run(["umount", "--lazy", tmp_path / "disk"], check=True)


COMMANDS: dict[str, Callable[[Path, Path], object]] = {
    "build": lambda base, home: quiet_build(base / "mine.toml", home=str(home), images="keep", threads=1),
    "refresh": lambda base, home: quiet_build(
        base / "mine.toml", home=str(home), images="keep", threads=1, refresh=True
    ),
    "purge": lambda base, home: purge(PurgeRequest(NAME, where="item_id = '0005.png'", home=str(home))),
    "gc": lambda base, home: collect(RetrievalDatabase(NAME, str(home)), 1),
}


# ---- a disk that is full


def filled(disk: Path, free: int) -> None:
    """Fill the disk except for this many bytes."""
    room = shutil.disk_usage(disk).free - free
    with (disk / "filler").open("wb") as handle:
        handle.write(b"x" * max(0, room))


def full_disks(base: Path, disk: Path, tmp_path: Path, command: str, seeds: range) -> tuple[int, int]:
    """(tried, ended with an error) over seeded amounts of free space. Raises AssertionError for a wrong result."""
    failed = 0
    begins = base / "home" if command != "build" else None
    whole = tmp_path / f"whole {command}"
    if begins:
        shutil.copytree(begins, whole)
    COMMANDS[command](base, whole)
    for seed in seeds:
        home = disk / "home"
        shutil.rmtree(home, ignore_errors=True)
        if begins:
            shutil.copytree(begins, home)
        filled(disk, random.Random(f"{command} {seed}").randrange(0, 300) << 10)
        try:
            COMMANDS[command](base, home)
        except (DiskFullError, BudgetError) as error:
            assert "space" in str(error) or "free" in str(error), error
            failed += 1
        (disk / "filler").unlink()
        if begins and (home / "databases" / NAME / "current").exists():
            assert isinstance(run_query(QueryRequest(NAME, key=7, home=str(home))).records(), list)
        COMMANDS[command](base, home)
        assert contents(home) == contents(whole), seed
        assert check_database(RetrievalDatabase(NAME, str(home))).damages == ()
    tried(len(seeds))
    return len(seeds), failed


@pytest.mark.parametrize("command", ["refresh", "purge"])
def test_a_disk_that_fills_up_in_the_middle_leaves_a_whole_home(
    base: Path, disk: Path, tmp_path: Path, command: str
) -> None:
    full_disks(base, disk, tmp_path, command, range(2))


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
def test_a_disk_that_fills_up_at_other_points_loses_nothing(
    base: Path, disk: Path, tmp_path: Path, command: str
) -> None:
    count, failed = full_disks(base, disk, tmp_path, command, range(2, 22))
    print(f"disk full, {command}: {count} tried and held, {failed} of them ended with an error")


# ---- a home that cannot be written


def read(home: Path) -> list[object]:
    """The operations of a user who may only read the home."""
    database = RetrievalDatabase(NAME, str(home))
    return [
        run_query(QueryRequest(NAME, key=7, k=5, where="style = 'even'", home=str(home))).records(),
        status_of(NAME, str(home)).text(),
        [state.name for state in home_status(str(home))],
        [line.version for line in list_versions(database)],
        check_database(database).damages,
    ]


def refused(base: Path, home: Path) -> list[str]:
    """The errors of all commands that write."""
    said = []
    for name, command in COMMANDS.items():
        with pytest.raises(RdmpipeError) as error:
            command(base, home)
        assert str(home) in str(error.value), name
        said.append(str(error.value))
    return said


def test_a_read_only_home_is_searched_and_not_written(base: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    mounted(disk, "size=8m")
    try:
        shutil.copytree(base / "home", disk / "home")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert read(disk / "home") == read(base / "home")
        assert all("cannot be written" in said or "Read-only" in said for said in refused(base, disk / "home"))
        with pytest.raises(RdmpipeError, match=r"cannot be written|Read-only"):
            quiet_build(base / "pictures", name="new", home=str(disk / "home"))
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


# ---- two users


def as_nobody(work: Callable[[], str]) -> str:
    """The result of `work` in a process of a user who owns nothing, or its traceback if it raises."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reader)
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            try:
                said = work()
            except BaseException as error:
                said = f"{type(error).__name__}: {error}"
            os.write(writer, said.encode()[:60_000])
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as handle:
        data = handle.read()
    os.waitpid(child, 0)
    return data.decode()


@pytest.fixture
def shared_home(base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the home in a folder that others may read, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="rdmpipe-shared-") as folder:
        os.chmod(folder, 0o755)  # noqa: PTH101
        shutil.copytree(base, Path(folder) / "base")
        (Path(folder) / "base").chmod(0o755)
        monkeypatch.setenv("RDMPIPE_CACHE", f"{folder}/cache")
        yield Path(folder) / "base"


def test_another_user_searches_a_home_and_cannot_write_it(base: Path, shared_home: Path) -> None:
    expected = read(shared_home / "home")
    assert as_nobody(lambda: str(read(shared_home / "home") == expected)) == "True"
    before = contents(shared_home / "home")
    for command in ("refresh", "purge", "gc"):
        said = as_nobody(lambda command=command: str(COMMANDS[command](shared_home, shared_home / "home")))  # type: ignore[misc]
        assert said.startswith("DatabaseError: ") and "cannot be written" in said, (command, said)
    assert contents(shared_home / "home") == before


def test_files_that_another_user_may_not_read_are_an_error_that_names_them(shared_home: Path) -> None:
    root = shared_home / "home" / "databases" / NAME
    version = RetrievalDatabase(NAME, str(shared_home / "home")).version()
    files = ["current", f"versions/{version.id}.json", version.index.files["vectors"].path, ".", "blocked.txt"]
    (root / "blocked.txt").write_text("")
    for file in files:
        mode = (root / file).stat().st_mode
        (root / file).chmod(0o000)
        said = as_nobody(lambda: str(read(shared_home / "home")))
        (root / file).chmod(mode)
        # A search does not read the block list; the check names it.
        assert said.startswith(("DatabaseError: ", "DamagedError: ")) or file == "blocked.txt", (file, said)
        assert Path(file).name in said and "Permission denied" in said
    tried(len(files))


def test_a_lease_of_another_users_process_is_believed_while_it_lives(shared_home: Path) -> None:
    from pipeline.storage import Storage, holder_of, lease

    storage = Storage(str(shared_home / "home" / "databases" / NAME))
    with lease(storage, "ours"):
        said = as_nobody(lambda: str(getattr(holder_of(storage), "purpose", None)))
        assert said == "ours"
        os.chmod(storage.full("."), 0o777)  # noqa: PTH101
        (Path(storage.full(".lease.lock"))).chmod(0o666)

        def take() -> str:
            with lease(storage, "theirs"):
                return "held"

        assert as_nobody(take).startswith("BusyError: ")
    said = as_nobody(take)  # the folder for unfinished files is still ours alone
    assert said.startswith("DatabaseError: ") and "Permission denied" in said
    Path(storage.full(".tmp")).chmod(0o777)
    assert as_nobody(take) == "held"


# ---- links


def linked(base: Path, tmp_path: Path, kind: str) -> Path:
    """A home in which one part is a symbolic link to a folder or file elsewhere."""
    real, home = tmp_path / "real", tmp_path / "home"
    shutil.copytree(base / "home", real)
    if kind == "home":
        home.symlink_to(real)
        return home
    shutil.copytree(base / "home", home)
    part = {"databases": "databases", "database": f"databases/{NAME}", "images": f"databases/{NAME}/images"}.get(kind)
    if part is None:
        part = str(next((home / "databases" / NAME / "embeddings").glob("*/*.parquet")).relative_to(home))
    shutil.rmtree(home / part) if (home / part).is_dir() else (home / part).unlink()
    (home / part).symlink_to(real / part)
    return home


@pytest.mark.parametrize(
    "kind",
    ["home", "a shard", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("databases", "database", "images"))],
)
def test_a_linked_home_is_worked_on_as_any_other(base: Path, tmp_path: Path, kind: str) -> None:
    home = linked(base, tmp_path, kind)
    assert read(home)[:-1] == read(base / "home")[:-1]
    commands = ["purge", "gc"] if kind != "home" else ["refresh", "purge", "gc"]
    for command in commands:
        COMMANDS[command](base, home)
    assert check_database(RetrievalDatabase(NAME, str(home))).damages == ()
    keys = [row["key"] for row in run_query(QueryRequest(NAME, key=7, k=40, home=str(home))).records()]
    assert 5 not in keys and 8 in keys


@pytest.mark.parametrize("kind", ["home", "database", "current", "version"])
def test_links_that_lead_nowhere_or_in_circles_are_errors(base: Path, tmp_path: Path, kind: str) -> None:
    for target in ("nowhere", "itself"):
        home = tmp_path / target
        place = {"home": "", "database": f"databases/{NAME}", "current": f"databases/{NAME}/current"}.get(kind)
        if kind != "home":
            shutil.copytree(base / "home", home)
        if place is None:
            version = RetrievalDatabase(NAME, str(home)).version().id
            place = f"databases/{NAME}/versions/{version}.json"
        path = home / place if place else home
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
        path.symlink_to(path if target == "itself" else tmp_path / "nothing")
        for ask in (lambda home=home: read(home), *(lambda c=c, home=home: c(base, home) for c in COMMANDS.values())):
            with contextlib.suppress(RdmpipeError):
                ask()  # type: ignore[operator]
    tried(2 * (1 + len(COMMANDS)))
