"""Renaming a database is one step; uses of the old name still find it, or are an error that names the new one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.catalog import resolve_database
from pipeline.database import RetrievalDatabase, list_databases, record_former_name
from pipeline.errors import BusyError, ConfigError, DatabaseError
from pipeline.maintenance import check_database, rename_database
from pipeline.retrieval import open_database
from pipeline.storage import holder_of, lease
from tests.builds import contents, folder_of, manifest_of, quiet_build
from tests.generations import add_view


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
    with pytest.raises((ConfigError, DatabaseError)):
        rename_database("mine", "new", "memory://home")
