"""Renaming a database is one step; uses of the old name still find it, or are an error that names the new one."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.building import BuildRequest, build, for_second_encoder
from pipeline.catalog import companion_name, listing, resolve_database, resolve_encoded
from pipeline.database import RetrievalDatabase, list_databases, record_former_name
from pipeline.errors import BusyError, ConfigError, DatabaseError
from pipeline.execution import Progress
from pipeline.maintenance import check_database, plan_deletion, rename_database
from pipeline.maintenance.moving import finish_move, is_copy_of, move_database
from pipeline.retrieval import open_database
from pipeline.storage import Storage, holder_of, lease
from tests.builds import contents, folder_of, manifest_of, quiet_build
from tests.encoders import RANDOM
from tests.generations import add_view

OTHER = RANDOM.replace("seed=0", "seed=1")


@pytest.fixture
def manifest(home: Path, tmp_path: Path) -> str:
    made = manifest_of(tmp_path / "mine.toml", folder_of(tmp_path / "pictures", 13))
    quiet_build(made)
    return made


def test_a_renamed_database_is_the_same_under_its_new_name(home: Path, manifest: str) -> None:
    view = add_view(home, "mine", "odd", "style = 'odd'")
    before, version = contents(home), resolve_database("mine").version
    done = rename_database("mine", "yours")
    assert done.views == (view,) and list_databases(str(home)) == ["yours"]
    after = contents(home, "yours")
    assert after.pop("former_names") == b"mine\n" and after == before
    database = RetrievalDatabase("yours")
    assert check_database(database).damages == () and holder_of(database.storage) is None
    for name in ("yours", "mine", f"mine@{version.id}", view):
        assert resolve_database(name).database.name == "yours" and resolve_database(name).version == version
    assert {line.name: line.base for line in listing()} == {"yours": "", view: "yours"}
    assert plan_deletion("yours").views == (view,)
    with open_database(view) as searcher:
        assert len(searcher.matching()) == 6


def test_a_refresh_continues_and_does_nothing_twice(home: Path, manifest: str, tmp_path: Path) -> None:
    rename_database("mine", "yours")
    folder_of(tmp_path / "pictures", 15)
    done = quiet_build("yours", refresh=True)
    assert done.name == "yours" and done.changes["added"] == 2
    assert done.shards["download"]["ran"] == 1, "old shards keep their fingerprints"
    assert check_database(RetrievalDatabase("yours")).damages == ()
    assert not (home / "databases" / "mine").exists()
    with open_database("yours") as searcher:
        assert set(searcher.metadata(searcher.keys)["source"].to_pylist()) == {"mine"}


def test_a_build_of_the_old_name_is_an_error_that_names_the_new_one(home: Path, manifest: str) -> None:
    rename_database("mine", "yours")
    with pytest.raises(DatabaseError, match=r"was renamed to 'yours'"):
        quiet_build(manifest, refresh=True)
    (home / "databases" / "yours" / "former_names").unlink()
    quiet_build(manifest)
    assert resolve_database("mine").database.name == "mine"


def test_a_renaming_that_was_killed_before_its_step_changed_nothing(home: Path, manifest: str) -> None:
    record_former_name(RetrievalDatabase("mine"), "mine")  # written before the step
    assert resolve_database("mine").database.name == "mine"
    rename_database("mine", "yours")
    rename_database("yours", "mine")
    assert resolve_database("mine").database.name == "mine" and resolve_database("yours").database.name == "mine"


def test_the_vectors_of_other_encoders_follow(home: Path, tmp_path: Path) -> None:
    pictures = folder_of(tmp_path / "pictures", 6)
    quiet_build(pictures, name="mine", images="keep")
    embed("mine")
    before = resolve_encoded("mine", OTHER).version
    with pytest.raises(ConfigError, match="`rdmpipe rename mine NEW` renames both"):
        rename_database(companion_name("mine", OTHER), "new")
    done = rename_database("mine", "yours")
    assert done.companions == (companion_name("yours", OTHER),) and done.companions[0] in done.text()
    assert list_databases(str(home)) == ["yours", *done.companions]
    for name in ("mine", "yours", companion_name("mine", OTHER)):
        found = resolve_encoded(name, OTHER)
        assert (found.database.name, found.version) == (done.companions[0], before)
    assert [path.name for path in (home / "manifests").iterdir()] == [f"{done.companions[0]}.toml"]
    assert check_database(RetrievalDatabase(done.companions[0])).damages == ()
    shutil.rmtree(pictures)  # the pictures that the database keeps are read
    assert embed("yours").shards["embed"].get("ran", 0) == 0


def embed(name: str) -> Any:
    request = for_second_encoder(BuildRequest(target=name, encoder=OTHER, stages=("download", "embed")))
    return build(request, Progress(stream=io.StringIO()))


# ---- moving.py: what `rename` does on an object store, which tests/test_s3.py does on a store


class Killed(BaseException):
    """Stands for SIGKILL: no code of ours catches it."""


def writes_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """Count the calls that change files. The returned function sets the number of the call at which the process "dies"."""
    made: list[str] = []
    dies_at = [-1]

    def counted(name: str) -> None:
        plain = getattr(Storage, name)

        def call(self: Storage, *arguments: object) -> object:
            if len(made) == dies_at[0]:
                raise Killed
            made.append(f"{name} {arguments[0]}")
            return plain(self, *arguments)

        monkeypatch.setattr(Storage, name, call)

    for name in ("copy_to", "swap", "remove"):
        counted(name)

    def die_at(number: int) -> list[str]:
        dies_at[0] = number
        made.clear()
        return made

    return die_at


@pytest.fixture
def small(home: Path, tmp_path: Path) -> Path:
    """A folder of databases with one published database, of which only the files matter."""
    storage = Storage(str(tmp_path / "before" / "mine"))
    for path in ("manifest.json", "plan/1.json", "images/000000.tar", "index/e/1/keys.npy", "versions/1.json"):
        storage.write_text(path, f'"{path}"')
    storage.write_text(".checksums/manifest.json", "# none\n")
    storage.write_text("current", "0123456789ab")
    return tmp_path / "before"


def publish_another(storage: Storage) -> None:
    storage.write_text("images/000001.tar", "more")
    storage.write_text("current", "ba9876543210")


def again(home: Path, small: Path) -> tuple[RetrievalDatabase, RetrievalDatabase]:
    shutil.rmtree(home / "databases", ignore_errors=True)
    shutil.copytree(small, home / "databases")
    return RetrievalDatabase("mine"), RetrievalDatabase("yours")


def test_a_move_that_is_killed_at_any_point_loses_nothing_and_continues(
    home: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    die_at = writes_of(monkeypatch)
    source, target = again(home, small)
    before, version = contents(home), source.current_id()
    steps = die_at(-1)
    move_database(source, target)
    assert contents(home, "yours") == before and not (home / "databases" / "mine").exists()
    copies = sum(step.startswith("copy_to") for step in steps)
    assert copies == 6 and steps[copies - 1].endswith("manifest.json")
    for number in range(len(steps)):
        source, target = again(home, small)
        die_at(number)
        with pytest.raises(Killed):
            move_database(source, target)
        published = [name for name in ("mine", "yours") if RetrievalDatabase(name).exists()]
        assert published, "the database is there under one of its names"
        for name in published:
            assert RetrievalDatabase(name).current_id() == version
            assert {path: data for path, data in contents(home, name).items() if path != "renaming.json"} == before
        if published == ["mine"] and (home / "databases" / "yours").exists():
            assert is_copy_of("mine", target)
            with pytest.raises(DatabaseError, match="unfinished copy of 'mine'; run `rdmpipe rename mine yours`"):
                resolve_database("yours")
        die_at(-1)
        if (home / "databases" / "mine").exists():
            move_database(source, target)
        else:
            assert finish_move("mine", target)
        assert contents(home, "yours") == before and not (home / "databases" / "mine").exists()


def test_a_copy_of_an_older_version_is_begun_again(home: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    die_at = writes_of(monkeypatch)
    source, target = again(home, small)
    die_at(4)
    with pytest.raises(Killed):
        move_database(source, target)
    die_at(-1)
    target.storage.write_text("images/purged.tar", "a purged picture")
    publish_another(source.storage)
    before = contents(home)
    move_database(source, target)
    assert contents(home, "yours") == before


def test_two_databases_that_both_changed_are_not_merged(home: Path, small: Path) -> None:
    source, target = again(home, small)
    shutil.copytree(home / "databases" / "mine", home / "databases" / "yours")
    (home / "databases" / "yours" / "renaming.json").write_text(
        json.dumps({"from": "mine", "version": source.current_id()})
    )
    publish_another(source.storage)
    before = contents(home), contents(home, "yours")
    with pytest.raises(DatabaseError, match="are both published, and one of them changed"):
        move_database(source, target)
    assert (contents(home), contents(home, "yours")) == before


def test_what_cannot_be_renamed_is_refused(home: Path, manifest: str, tmp_path: Path) -> None:
    quiet_build(folder_of(tmp_path / "others", 3), name="other")
    for old, new, error, message in (
        ("none", "new", DatabaseError, "no database 'none'"),
        ("mine", "other", DatabaseError, "already"),
        ("mine", "../x", DatabaseError, "cannot be the name"),
    ):
        with pytest.raises(error, match=message):
            rename_database(old, new)
    with lease(RetrievalDatabase("mine").storage, "test"), pytest.raises(BusyError):
        rename_database("mine", "new")
