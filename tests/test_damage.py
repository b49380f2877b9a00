"""Damaged homes: a seeded run of damages over every file of a small database.

Whatever is damaged, a command ends with an error that names the file or the fix, or gives the answer of before; `rdmpipe check`
finds the damage; `--repair` makes again what can be made again.
"""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.catalog import home_status, listing, resolve_database, status_of
from pipeline.database import RetrievalDatabase, gone_keys, picture_files, read_block_list
from pipeline.errors import DatabaseError, RdmpipeError
from pipeline.execution import Progress
from pipeline.maintenance import check_database, list_versions, repair_database
from pipeline.retrieval import QueryRequest, run_query
from tests.builds import folder_of, manifest_of, quiet_build

pytestmark = pytest.mark.process

NAME = "mine"

Damage = Callable[[bytes, random.Random], bytes | None]


def flipped(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randrange(1, 4)):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


DAMAGES: dict[str, Damage] = {
    "gone": lambda data, chance: None,
    "empty": lambda data, chance: b"",
    "cut": lambda data, chance: data[: chance.randrange(len(data))] if data else b"",
    "longer": lambda data, chance: data + bytes(chance.randrange(1, 100)),
    "flipped bits": lambda data, chance: flipped(data, chance) if data else b"x",
    "zeros": lambda data, chance: bytes(len(data)),
    "noise": lambda data, chance: chance.randbytes(len(data) or 10),
    "a list": lambda data, chance: b"[]",
    "a number": lambda data, chance: b"7",
    "another table": lambda data, chance: b'{"a": 1}',
    "null": lambda data, chance: b"null",
    "deep": lambda data, chance: b"[" * 50_000,
    "not UTF-8": lambda data, chance: b"\xff\xfe" + data,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one database of two versions, tombstones and kept pictures."""
    root = tmp_path_factory.mktemp("damage")
    folder = folder_of(root / "pictures", 14)
    manifest = manifest_of(root / "mine.toml", folder)
    home = str(root / "home")
    quiet_build(manifest, home=home, images="keep")
    (folder / "0003.png").unlink()
    lines = (folder / "metadata.csv").read_text().splitlines(keepends=True)
    (folder / "metadata.csv").write_text("".join(line for line in lines if not line.startswith("0003")))
    quiet_build(manifest, home=home, images="keep", refresh=True)
    assert check_database(RetrievalDatabase(NAME, home)).damages == ()
    return root / "home"


def files_of(home: Path) -> list[str]:
    root = home / "databases" / NAME
    return sorted(
        str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and ".lock" not in path.name
    )


@pytest.fixture
def home(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "home")
    return tmp_path / "home"


def ask(home: Path) -> dict[str, object]:
    """What users can ask of the database; an error that is ours counts as an answer, any other one fails the test."""
    database = RetrievalDatabase(NAME, str(home))
    questions: dict[str, Callable[[], object]] = {
        "search": lambda: run_query(QueryRequest(NAME, key=5, k=20, home=str(home))).records(),
        "filter": lambda: run_query(QueryRequest(NAME, key=5, k=9, where="style = 'even'", home=str(home))).records(),
        "version": lambda: resolve_database(NAME, str(home)).version,
        "status": lambda: status_of(NAME, str(home)).text(),
        "all": lambda: [state.name for state in home_status(str(home))],
        "list": lambda: [row.name for row in listing(str(home))],
        "versions": lambda: [line.version for line in list_versions(database)],
        "gone": lambda: gone_keys(database, database.version().gone),
        "blocked": lambda: read_block_list(database.storage),
        "pictures": lambda: sorted(picture_files(database, [0, 5, 11])),
    }
    answers: dict[str, object] = {}
    for name, question in questions.items():
        try:
            answers[name] = question()
        except RdmpipeError as error:
            answers[name] = error
    return answers


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 12))])
def test_a_damage_is_an_error_or_harmless_and_never_a_wrong_answer(
    whole: Path, home: Path, seed: int, kind: str
) -> None:
    chance = random.Random(f"{seed} {kind}")
    before, root = ask(whole), home / "databases" / NAME
    for file in chance.sample(files_of(home), 6):
        path = root / file
        data = path.read_bytes()
        bad = DAMAGES[kind](data, chance)
        if bad == data:
            continue
        path.unlink() if bad is None else path.write_bytes(bad)
        after = ask(home)
        for name, answer in after.items():
            if isinstance(answer, RdmpipeError):
                told = str(answer)
                assert Path(file).name in told or NAME in told, (file, name, told)
            elif name in ("search", "filter", "version", "gone"):
                assert answer == before[name], (file, name)
        assert (
            "all" in after
            and not isinstance(after["all"], RdmpipeError)
            and not isinstance(after["list"], RdmpipeError)
        )
        found = {each.file for each in check_database(RetrievalDatabase(NAME, str(home))).damages}
        harmless = (
            file.startswith(("nonce", "progress", "failures", "lease", "encoder", "manifest", "current"))
            or "entry.json" in file
        )
        # A receipt is made again if it matters; only a refresh reads a plan, whose bits are not compared.
        harmless = harmless or (kind == "flipped bits" and (file.endswith(".json") or file.startswith("plan/")))
        assert file in found or harmless or (bad is None and file.startswith("versions/")) or _unused(whole, file), file
        path.write_bytes(data)


def _unused(whole: Path, file: str) -> bool:
    """Whether no version needs the file."""
    from pipeline.maintenance.versions import paths_of

    database = RetrievalDatabase(NAME, str(whole))
    return file not in paths_of(database, [database.version(name) for name in database.versions()])


def test_a_check_says_which_file_is_damaged_and_what_to_run(home: Path) -> None:
    database = RetrievalDatabase(NAME, str(home))
    current = database.version()
    (home / "databases" / NAME / current.index.files["vectors"].path).write_bytes(b"x")
    with pytest.raises(DatabaseError, match=rf"vectors\.npy is damaged: .*`rdmpipe check mine --home {home} --repair`"):
        run_query(QueryRequest(NAME, key=5, home=str(home)))
    (damage,) = check_database(database).damages
    assert damage.file == current.index.files["vectors"].path and "expected" in damage.problem
    with pytest.raises(DatabaseError, match="no database 'other'"):
        check_database(RetrievalDatabase("other", str(home)))


def repaired(home: Path) -> tuple[str, ...]:
    report = repair_database(RetrievalDatabase(NAME, str(home)), Progress(stream=io.StringIO()), "cpu")
    assert report.damages == (), report.text()
    return report.repaired


def test_a_repair_makes_a_damaged_shard_and_index_again_byte_for_byte(whole: Path, home: Path) -> None:
    database, before = RetrievalDatabase(NAME, str(home)), ask(whole)
    current, root = database.version(), home / "databases" / NAME
    for path in (current.shards[0].artifact.path, current.index.files["keys"].path):
        (root / path).write_bytes(b"damaged")
    assert repaired(home)
    assert ask(home)["search"] == before["search"]
    assert database.version().id == current.id
    same = [file.path for file in current.files()]
    assert [(root / path).read_bytes() for path in same] == [
        (whole / "databases" / NAME / path).read_bytes() for path in same
    ]


def test_a_repair_points_current_at_a_version_that_can_be_read(home: Path) -> None:
    database, root = RetrievalDatabase(NAME, str(home)), home / "databases" / NAME
    good = database.current_id()
    (root / "current").write_text("nonsense")
    (root / "lease").write_text("nonsense")
    (root / "progress.json").write_text("nonsense")
    assert any(good in what for what in repaired(home) if good)
    assert database.current_id() == good
    (root / "versions" / f"{good}.json").write_text("{}")
    repaired(home)
    assert (root / "damaged" / f"{good}.json").read_text() == "{}"
    assert database.current_id() not in (None, good) and not isinstance(ask(home)["search"], RdmpipeError)


def test_a_repair_writes_a_lost_manifest_from_the_version(whole: Path, home: Path) -> None:
    manifest = home / "databases" / NAME / "manifest.json"
    manifest.write_text("{")
    repaired(home)
    was = json.loads((whole / "databases" / NAME / "manifest.json").read_text())
    now = json.loads(manifest.read_text())
    assert now["manifest"] == was["manifest"]
    assert {**now["settings"], "plan": ""} == {**was["settings"], "plan": ""}  # the plan is now the last refresh's


def test_what_nothing_else_holds_is_said_to_need_a_copy(home: Path) -> None:
    database = RetrievalDatabase(NAME, str(home))
    gone = database.version().gone
    assert gone is not None
    (home / "databases" / NAME / gone.path).write_bytes(b"")
    (home / "databases" / NAME / "blocked.txt").write_text("not a hash\n")
    fixes = {each.file: each.fix for each in check_database(database).damages}
    assert set(fixes) == {gone.path, "blocked.txt"} and all("restore it from a copy" in fix for fix in fixes.values())
