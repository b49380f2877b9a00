"""Names of databases and versions: no name leads out of the home, in any look-up."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.catalog import base_of, resolve_database, resolve_target, status_of
from pipeline.database import RetrievalDatabase, list_databases
from pipeline.errors import ConfigError, DatabaseError
from pipeline.storage import Storage

HOSTILE = [
    "../evil/outside", "..", ".", "", "/etc", "a/b", "a\\b", "a\0b", "a\nb", "A", "a b", "-a", "a-", "a--b", "ä", "a" * 201,
    "a" * 5000, "~root", "a\u202eb", "con:", "*", "a\n", "%2e%2e", "${HOME}", "a;b", "\ud800", "a\x1b[2J",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_every_look_up_refuses_an_invalid_name(tmp_path: Path, name: str) -> None:
    home = tmp_path / "home"
    (tmp_path / "home" / "databases").mkdir(parents=True)
    (tmp_path / "evil" / "outside").mkdir(parents=True)
    (tmp_path / "evil" / "outside" / "current").write_text("0" * 12)
    before = sorted(tmp_path.rglob("*"))
    for look_up in (RetrievalDatabase, resolve_database, base_of, status_of):
        with pytest.raises(DatabaseError, match="cannot be the name of a database"):
            look_up(name, str(home))
    with pytest.raises(ConfigError):
        resolve_target(str(tmp_path / "evil"), name=name or "-", home=str(home))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "version", ["g", "A" * 12, "0" * 13, "0" * 5000, "../../x", "a/b", "a\0", " ", "0\n", "current", "\ud800"]
)
def test_an_invalid_version_is_a_separate_error(tmp_path: Path, version: str) -> None:
    database = RetrievalDatabase("art", str(tmp_path))
    database.storage.write_text("current", "0" * 12)
    with pytest.raises(DatabaseError, match="is not a version"):
        database.version(version)
    with pytest.raises(DatabaseError, match="is not a version"):
        resolve_database(f"art@{version}", str(tmp_path))


def test_a_directory_with_another_kind_of_name_is_not_listed(tmp_path: Path) -> None:
    for name in ("art", "Not A Name", ".hidden", "a" * 220):
        (tmp_path / "databases" / name).mkdir(parents=True)
        (tmp_path / "databases" / name / "current").write_text("0" * 12)
    assert list_databases(str(tmp_path)) == ["art"]


@pytest.mark.parametrize("path", ["..", "a/../../b", "/etc/passwd", "a\0b"])
def test_a_storage_does_not_leave_its_root(tmp_path: Path, path: str) -> None:
    storage = Storage(str(tmp_path / "root"))
    for ask in (storage.full, storage.child, storage.read_text, storage.exists, storage.remove, storage.list):
        with pytest.raises(DatabaseError, match="is not a path inside"):
            ask(path)
    with pytest.raises(DatabaseError, match=r"File name too long"):
        storage.write_text("x" * 300, "")
