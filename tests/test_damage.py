"""Damaged homes: seeded damage to every file of a small database.

A command on a damaged home ends with an error that names the file or the fix, or gives the same answer as before;
`rdmpipe check` finds the damage, even a single flipped bit; `--repair` rebuilds what can be rebuilt.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.building import begun, plan_shards, read_plan
from pipeline.catalog import failed_rows, home_status, listing, resolve_database, status_of
from pipeline.database import BlockList, RetrievalDatabase, gone_keys, picture_files, read_block_list, write_block_list
from pipeline.errors import DatabaseError, RdmpipeError
from pipeline.exchange import export_embeddings
from pipeline.execution import Progress
from pipeline.maintenance import PurgeRequest, check_database, collect, list_versions, purge, repair_database
from pipeline.retrieval import QueryRequest, run_query
from tests.attempts import tried
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
    """The operations of users on the database; an RdmpipeError counts as an answer, any other error fails the test."""
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
        "plan": lambda: [shard.spec for shard in plan_shards(database, database.version().plan)],
        "next shard": lambda: read_plan(database, database.version().plan).options["next_shard"],
        "begun": lambda: begun(NAME, str(home)),
        "failures": lambda: [row.item for row in failed_rows(database)],
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
            elif name not in ("status", "all", "list", "versions", "pictures", "blocked"):
                assert answer == before[name], (file, name)
        assert (
            "all" in after
            and not isinstance(after["all"], RdmpipeError)
            and not isinstance(after["list"], RdmpipeError)
        )
        found = {each.file for each in check_database(RetrievalDatabase(NAME, str(home))).damages}
        # These describe a run and not the data. Without its list of checksums, a file counts as an older rdmpipe's.
        of_a_run = file in ("nonce", "progress.json", "failures.json", "lease")
        optional = bad is None and (file.startswith(".checksums/") or file == "encoder.json")
        assert file in found or of_a_run or optional, (kind, file)
        path.write_bytes(data)
    tried(6)


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


def test_files_that_cannot_be_rebuilt_are_reported_to_need_a_copy(home: Path) -> None:
    database = RetrievalDatabase(NAME, str(home))
    gone = database.version().gone
    assert gone is not None
    (home / "databases" / NAME / gone.path).write_bytes(b"")
    (home / "databases" / NAME / "blocked.txt").write_text("not a hash\n")
    fixes = {each.file: each.fix for each in check_database(database).damages}
    assert set(fixes) == {gone.path, "blocked.txt"} and all("restore it from a copy" in fix for fix in fixes.values())


# ---- single bits


def bits_of(home: Path, chance: random.Random, count: int) -> list[tuple[str, int]]:
    """Places of single bits: in every file one, and the rest anywhere in the small files."""
    root = home / "databases" / NAME
    files = [file for file in files_of(home) if (root / file).stat().st_size]
    small = [file for file in files if file.endswith((".json", ".txt")) or file.startswith(("plan/", ".checksums/"))]
    chosen = [*files, *(chance.choice(small) for _ in range(count))]
    return [(file, chance.randrange((root / file).stat().st_size * 8)) for file in chosen]


def not_found(home: Path, seed: int, count: int) -> list[tuple[str, int]]:
    """The bits that a check does not find when they are flipped one at a time. The files are then as before."""
    root, missed = home / "databases" / NAME, []
    for file, bit in bits_of(home, random.Random(seed), count):
        if file in ("nonce", "progress.json", "failures.json", "lease"):
            continue
        data = (root / file).read_bytes()
        (root / file).write_bytes(data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :])
        if file not in {each.file for each in check_database(RetrievalDatabase(NAME, str(home))).damages}:
            missed.append((file, bit))
        (root / file).write_bytes(data)
    tried(count + len(files_of(home)))
    return missed


def test_a_single_flipped_bit_in_any_file_is_found(home: Path) -> None:
    block_something(home)
    assert not_found(home, seed=1, count=8) == []


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 8))
def test_a_single_flipped_bit_in_any_file_is_found_at_other_places(home: Path, seed: int) -> None:
    block_something(home)
    assert not_found(home, seed, count=400) == []


def block_something(home: Path) -> None:
    storage = RetrievalDatabase(NAME, str(home)).storage
    write_block_list(storage, BlockList().with_values("sha256", ["a" * 64, "b" * 64]))


def test_a_lost_or_shortened_block_list_is_found(home: Path) -> None:
    block_something(home)
    database = RetrievalDatabase(NAME, str(home))
    path = home / "databases" / NAME / "blocked.txt"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0])
    with pytest.raises(DatabaseError, match=r"blocked\.txt is damaged: its checksum"):
        read_block_list(database.storage)
    path.unlink()
    with pytest.raises(DatabaseError, match=r"blocked\.txt is damaged: the file is missing"):
        purge(PurgeRequest(NAME, where="item_id = '0005.png'", home=str(home)))


@pytest.mark.parametrize("after", ["list", "file"])
def test_a_writer_that_is_killed_between_list_and_file_leaves_no_damage(home: Path, after: str) -> None:
    database = RetrievalDatabase(NAME, str(home))
    block_something(home)
    before = (home / "databases" / NAME / "blocked.txt").read_bytes()
    write_block_list(database.storage, BlockList().with_values("sha256", ["c" * 64]))
    if after == "list":
        (home / "databases" / NAME / "blocked.txt").write_bytes(before)
    assert len(read_block_list(database.storage).marks) == (2 if after == "list" else 1)
    assert check_database(database).damages == ()


# ---- repairs of what has no checksum in its version


def without_lists(home: Path) -> RetrievalDatabase:
    """The database in the form of an older rdmpipe."""
    shutil.rmtree(home / "databases" / NAME / ".checksums")
    database = RetrievalDatabase(NAME, str(home))
    assert check_database(database).damages == ()
    return database


@pytest.mark.parametrize("lists", [True, False])
@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("embed", '"ok":10', '"ok":9'), ("images", '"filtered":0', '"filtered":1'), ("embed", '"input":"', '"input":"0')],
)
def test_wrong_counts_in_a_receipt_are_found_never_published_and_repaired(
    home: Path, lists: bool, name: str, old: str, new: str
) -> None:
    database = RetrievalDatabase(NAME, str(home)) if lists else without_lists(home)
    version = database.version()
    shard = version.shards[0].id
    file = database.embedding_receipt(version.encoder, shard) if name == "embed" else f"images/{shard:06d}.json"
    path = home / "databases" / NAME / file
    whole = path.read_text()
    assert old in whole
    path.write_text(whole.replace(old, new))
    assert {each.file for each in check_database(database).damages} == {file}
    with contextlib.suppress(RdmpipeError):
        quiet_build(NAME, home=str(home), refresh=True)
    assert database.version().counts == version.counts
    if path.read_text() != whole:
        assert repaired(home)
    assert path.read_text() == whole


@pytest.mark.parametrize("part", ["json", "parquet"])
def test_a_damaged_plan_is_made_again_from_its_shards_or_the_source(tmp_path: Path, part: str) -> None:
    manifest = manifest_of(tmp_path / "mine.toml", folder_of(tmp_path / "pictures", 6))
    quiet_build(manifest, home=str(tmp_path / "home"))
    database = RetrievalDatabase(NAME, str(tmp_path / "home"))
    plan = database.version().plan
    before = [(shard.id, shard.fingerprint, shard.spec) for shard in plan_shards(database, plan)]
    database.storage.write_bytes(f"plan/{plan}.{part}", b"PAR1 and no more")
    assert any(plan in what for what in repaired(tmp_path / "home"))
    assert [(shard.id, shard.fingerprint, shard.spec) for shard in plan_shards(database, plan)] == before
    assert quiet_build(manifest, home=str(tmp_path / "home"), refresh=True).changes == {
        "added": 0, "changed": 0, "removed": 0,
    }  # fmt: skip


def test_damaged_lists_of_checksums_are_written_again(home: Path) -> None:
    root = home / "databases" / NAME / ".checksums"
    lists = sorted(path for path in root.rglob("*") if path.is_file())
    for path in lists:
        path.write_text("nonsense")
    damages = check_database(RetrievalDatabase(NAME, str(home))).damages
    assert {each.file for each in damages} == {str(path.relative_to(root.parent)) for path in lists}
    assert len(repaired(home)) == len(lists)


def test_a_home_of_version_0_1_is_whole() -> None:
    fixture = Path(__file__).parent / "fixtures" / "v0_1" / "home"
    for name in ("gallery", "drawn", "imported"):
        assert check_database(RetrievalDatabase(name, str(fixture))).damages == ()


# ---- commands that write, over a damaged home


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 40))])
def test_commands_that_write_end_with_an_error_or_do_their_work(whole: Path, home: Path, seed: int) -> None:
    chance = random.Random(f"writing {seed}")
    root, before = home / "databases" / NAME, ask(whole)
    kind = chance.choice(sorted(DAMAGES))
    file = chance.choice([name for name in files_of(home) if not name.startswith(".checksums/receipts")])
    bad = DAMAGES[kind]((root / file).read_bytes(), chance)
    (root / file).unlink() if bad is None else (root / file).write_bytes(bad)
    database = RetrievalDatabase(NAME, str(home))
    commands: dict[str, Callable[[], object]] = {
        "refresh": lambda: quiet_build(NAME, home=str(home), images="keep", refresh=True),
        "gc": lambda: collect(database, 1),
        "purge": lambda: purge(PurgeRequest(NAME, where="item_id = '0005.png'", home=str(home), dry_run=True)),
        "build": lambda: quiet_build(NAME, home=str(home), images="keep"),
        "retry": lambda: quiet_build(NAME, home=str(home), images="keep", retry=True),
        "export": lambda: export_embeddings(database, database.version(), "npz", home / "out"),
    }
    for name in chance.sample(sorted(commands), 3):
        with contextlib.suppress(RdmpipeError):
            commands[name]()
        after = ask(home)["search"]
        assert isinstance(after, RdmpipeError) or after == before["search"], (kind, file, name)
    tried(3)
