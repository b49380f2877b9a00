"""A home on an object store behaves like one on a disk, even while the store fails and connections break."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.database import RetrievalDatabase
from pipeline.errors import BusyError, ConfigError, ConflictError, DatabaseError
from pipeline.maintenance import PurgeRequest, Renaming, collect, purge, rename_database
from pipeline.retrieval import QueryRequest, run_query
from pipeline.storage import Storage, lease
from tests.builds import folder_of, manifest_of, quiet_build
from tests.generations import quiet_generate, save_model
from tests.s3server import BUCKET, Proxy, proxied, s3_server
from tests.stages import shards, stage
from tests.writers import count_up, hold, publish_late, small_version

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def proxy(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Proxy]:
    with proxied(server, monkeypatch, tmp_path / "cache") as made:
        yield made


@pytest.fixture
def root(proxy: Proxy) -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


def test_a_written_file_reads_back_and_is_listed(root: str) -> None:
    storage = Storage(root)
    artifact = storage.write_text("a/b.txt", "héllo")
    assert storage.read_text("a/b.txt") == "héllo"
    assert artifact.bytes == 6 == storage.size("a/b.txt")
    assert storage.list("a") == ["b.txt"]
    assert storage.list() == ["a"]
    assert storage.list("a", ".json") == []
    assert storage.list("a/b.txt") == [] == storage.list("none")
    assert storage.read_text("a/none") is None
    assert storage.size("a/none") is None
    assert storage.exists("a") and storage.exists("a/b.txt") and not storage.exists("b")
    storage.remove("a")
    storage.remove("a")
    assert not storage.exists("a/b.txt")


def test_what_another_process_writes_is_seen_at_once(root: str) -> None:
    storage = Storage(root)
    assert storage.list("a") == []
    assert not storage.exists("a/b.txt")
    code = "import sys; from pipeline.storage import Storage; Storage(sys.argv[1]).write_text('a/b.txt', 'new')"
    subprocess.run([sys.executable, "-c", code, root], check=True)
    assert storage.list("a") == ["b.txt"]
    assert storage.read_text("a/b.txt") == "new"


def test_a_large_file_goes_up_in_parts_and_appears_whole(root: str, tmp_path: Path, proxy: Proxy) -> None:
    storage, local = Storage(root), tmp_path / "large"
    data = random.Random(3).randbytes(1 << 20) * 101
    local.write_bytes(data)
    proxy.order("PUT", "500", "cut", "lost")
    artifact = storage.publish(local, "large")
    assert proxy.seen["POST"] >= 2  # begun and completed as a multipart upload
    assert not local.exists()
    assert artifact.bytes == len(data) == storage.size("large")
    assert storage.local(artifact).read_bytes() == data


@pytest.mark.parametrize("fault", ["500", "503", "cut", "lost"])
def test_a_write_survives_a_store_that_fails_for_a_while(root: str, proxy: Proxy, fault: str) -> None:
    proxy.order("PUT", fault, fault, fault)
    Storage(root).write_text("file", "whole")
    assert proxy.seen[fault] == 3
    assert Storage(root).read_text("file") == "whole"


@pytest.mark.parametrize("fault", ["500", "503", "cut", "lost", "half"])
def test_a_read_survives_a_store_that_fails_for_a_while(root: str, proxy: Proxy, fault: str) -> None:
    storage, data = Storage(root), random.Random(4).randbytes(3_000_000)
    artifact = storage.write_bytes("file", data)
    proxy.order("GET", fault, fault, fault)
    assert storage.read_bytes("file") == data
    proxy.order("GET", fault, fault)
    assert storage.local(artifact).read_bytes() == data
    proxy.order("GET", fault, fault)
    with storage.open("file") as handle:
        handle.seek(1_000_000)
        assert handle.read(500_000) == data[1_000_000:1_500_000]
    assert proxy.seen[fault] == 7


def test_a_store_that_stays_away_is_an_os_error_that_names_it_and_leaves_no_file(
    root: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    storage = Storage(root)
    proxy.down = True
    with pytest.raises(OSError, match=root):
        storage.write_text("file", "never")
    proxy.down = False
    assert storage.read_text("file") is None


def test_a_missing_bucket_is_an_error_that_says_the_fix(proxy: Proxy) -> None:
    with pytest.raises(ConfigError, match="no such bucket"):
        Storage("s3://no-such-bucket-here/home").write_text("file", "x")


def test_missing_keys_are_an_error_that_says_the_fix(root: str, proxy: Proxy, tmp_path: Path) -> None:
    code = (
        "import sys; from pipeline.storage import Storage; from pipeline.errors import ConfigError\n"
        "try:\n    Storage(sys.argv[1]).read_text('x')\nexcept ConfigError as error:\n    print(error)\n"
    )
    away = {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_ACCESS")} | away
    clean = {name: value for name, value in clean.items() if not name.startswith("AWS_SECRET")}
    done = subprocess.run([sys.executable, "-c", code, root], env=clean, capture_output=True, text=True, check=True)
    assert "AWS_ACCESS_KEY_ID" in done.stdout


def test_a_killed_writer_leaves_the_file_that_was_there_or_its_own_and_no_mixture(root: str) -> None:
    code = (
        "import sys; from pipeline.storage import Storage\n"
        "storage = Storage(sys.argv[1]); i = 0\n"
        "while True:\n"
        "    storage.write_bytes('file', bytes([i % 251]) * 3_000_000); i += 1; print(i, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, root], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.03)
    process.send_signal(signal.SIGKILL)
    process.wait()
    data = b""
    for _ in range(50):
        # While the test's server takes the last write, it may send the checksum of one file with the bytes of the other.
        with contextlib.suppress(ConnectionError):
            data = Storage(root).read_bytes("file")
            break
        time.sleep(0.1)
    assert len(data) == 3_000_000
    assert data == data[:1] * len(data)


# ---- compare-and-swap, leases, versions


def test_compare_and_swap_loses_no_update_between_processes(root: str) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=count_up, args=(root, 6)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert Storage(root).read_text("counter") == "18"


def test_a_swap_from_the_wrong_value_changes_nothing(root: str) -> None:
    storage = Storage(root)
    assert storage.swap("current", None, "one")
    assert not storage.swap("current", None, "two")
    assert not storage.swap("current", "zero", "two")
    assert not storage.swap("absent", "zero", "two")
    assert storage.read_text("current") == "one"


def test_a_store_that_ignores_conditions_is_refused(root: str, proxy: Proxy) -> None:
    proxy.unconditional = True
    with pytest.raises(ConfigError, match="ignores conditional PUTs"):
        Storage(root).swap("current", None, "one")
    assert Storage(root).read_text("current") is None


@pytest.mark.parametrize("expected", [None, "before"])
def test_a_swap_whose_answer_is_lost_still_knows_that_it_won(root: str, proxy: Proxy, expected: str | None) -> None:
    storage = Storage(root)
    if expected is not None:
        storage.write_text("current", expected)
    storage.swap("warm", None, "")  # the check of the store itself is over
    proxy.order("PUT", "lost", "503", "lost")
    assert storage.swap("current", expected, "after")
    assert proxy.seen["lost"] == 2
    assert storage.read_text("current") == "after"


def test_a_swap_that_another_won_while_the_answer_was_lost_says_so(root: str, proxy: Proxy) -> None:
    """Another writer put the same new value there; the token of the PUT tells them apart."""
    storage = Storage(root)
    results = []
    threads = [threading.Thread(target=lambda: results.append(storage.swap("x", None, "same"))) for _ in range(6)]
    proxy.order("PUT", "lost", "500", "lost", "cut", "lost")
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(results) == [False] * 5 + [True]


def test_a_second_writer_is_told_who_holds_the_lease(root: str) -> None:
    storage = Storage(root)
    with lease(storage, "the first build"), pytest.raises(BusyError, match="the first build"), lease(storage, "second"):
        pass
    with lease(storage, "after it"):
        pass


def test_of_writers_that_start_together_exactly_one_works(root: str) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=hold, args=(root, f"w{i}")) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(100)
    assert len(Storage(root).list("held")) == 1
    assert len(Storage(root).list("busy")) == 2


def test_a_lease_outlives_a_store_that_fails_while_it_is_renewed(root: str, proxy: Proxy) -> None:
    storage = Storage(root)
    with lease(storage, "long work", term_s=1.5):
        proxy.order("PUT", "lost", "500", "lost")
        time.sleep(2.5)
        first = json.loads(storage.read_text("lease") or "")
        time.sleep(1.5)
        later = json.loads(storage.read_text("lease") or "")
        assert later["beat"] > first["beat"] > 0
        assert later["holder"] == first["holder"]
    assert storage.read_text("lease") == ""


@pytest.mark.parametrize("kind", ["disk", "s3"])
def test_a_holder_that_comes_back_late_can_no_longer_publish(kind: str, root: str, tmp_path: Path) -> None:
    home = root if kind == "s3" else str(tmp_path)
    database = RetrievalDatabase("db", home)
    process = multiprocessing.get_context("spawn").Process(target=publish_late, args=(home,))
    process.start()
    while not database.storage.exists("working"):
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    # It looks alive to this machine: as on another one, only its term can tell.
    text = json.loads(database.storage.read_text("lease") or "")
    database.storage.write_text("lease", json.dumps({**text, "host": "elsewhere"}))
    with lease(database.storage, "next", wait_s=20, term_s=1.0):
        database.publish(small_version("next"), database.current_id())
        os.kill(process.pid, signal.SIGCONT)
        process.join(60)
    assert "another build published" in (database.storage.read_text("said") or "")
    assert database.version().manifest["note"] == "next"


def test_versions_are_published_read_and_pinned(root: str, proxy: Proxy) -> None:
    database = RetrievalDatabase("db", root)
    first, second = small_version("first"), small_version("second")
    proxy.order("PUT", "lost", "lost")
    database.publish(first, None)
    database.publish(second, first.id)
    assert database.version() == second
    assert database.version(first.id) == first
    assert database.versions() == sorted([first.id, second.id])
    with pytest.raises(ConflictError, match=second.id):
        database.publish(small_version("third"), first.id)
    assert database.current_id() == second.id


# ---- finished files, cached here by checksum


def test_a_finished_file_is_fetched_once_and_kept_by_checksum(root: str, proxy: Proxy) -> None:
    storage = Storage(root)
    artifact = storage.write_bytes("index/vectors.npy", b"v" * 100_000)
    path = storage.local(artifact)
    before = proxy.seen["GET"]
    assert storage.local(artifact) == path
    assert proxy.seen["GET"] == before
    assert path.read_bytes() == b"v" * 100_000


def test_a_damaged_file_is_refused_and_not_kept(root: str, tmp_path: Path) -> None:
    storage = Storage(root)
    artifact = storage.write_text("file", "right")
    storage.write_text("file", "wrong")
    with pytest.raises(DatabaseError, match="its checksum is not the one"):
        storage.local(artifact)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_a_run_over_a_store_that_keeps_failing_gives_the_same_files_as_on_a_disk(
    root: str, proxy: Proxy, tmp_path: Path
) -> None:
    import io

    from pipeline.execution import Progress, run_stages

    rng = random.Random(11)
    for method in ("GET", "PUT"):
        proxy.order(method, *(rng.choice(["500", "503", "cut", "lost", *[""] * 12]) for _ in range(40)))
    found = []
    for home in (Storage(str(tmp_path / "disk")), Storage(root)):
        chain = (stage(tmp_path, "first", storage=home), stage(tmp_path, "second", before="first", storage=home))
        outcome = run_stages(chain, shards(6), None, Progress(stream=io.StringIO()), total=6)
        assert outcome.failures == []
        assert outcome.ran == {"first": 6, "second": 6}
        found.append(
            {f"{s}/{name}": home.read_bytes(f"{s}/{name}") for s in ("first", "second") for name in home.list(s)}
        )
    assert proxy.seen["lost"] > 0
    assert found[0] == found[1]
    assert len(found[0]) == 24


def test_a_database_is_built_refreshed_and_searched_on_a_store_as_on_a_disk(
    root: str, proxy: Proxy, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "pictures", 24)
    manifest = manifest_of(tmp_path / "mine.toml", folder)
    rng = random.Random(12)
    for method in ("GET", "PUT", "HEAD"):
        proxy.order(method, *(rng.choice(["500", "503", "cut", "lost", *[""] * 16]) for _ in range(80)))
    homes = (str(tmp_path / "home"), root)
    first = [quiet_build(manifest, home=home).version for home in homes]
    assert [quiet_build(manifest, home=home, refresh=True).version for home in homes] == first  # nothing new
    lines = (folder / "metadata.csv").read_text().splitlines()
    folder_of(folder, 2, first=30)
    (folder / "0003.png").unlink()
    kept = [line for line in lines if not line.startswith("0003")]
    (folder / "metadata.csv").write_text("\n".join([*kept, "0030.png,even,new", "0031.png,odd,new"]) + "\n")
    second = [quiet_build(manifest, home=home, refresh=True).version for home in homes]
    assert first[0] == first[1] != second[0] == second[1]
    for name, others in (("mine", 24), (f"mine@{first[0]}", 23)):
        on_disk, on_store = (run_query(QueryRequest(name, key=5, k=30, home=home)).rows for home in homes)
        assert on_disk.equals(on_store)
        assert on_disk.num_rows == others
    assert proxy.seen["lost"] > 0
    databases = [RetrievalDatabase("mine", home) for home in homes]
    on_disk, on_store = (collect(database, keep=1) for database in databases)
    assert on_disk == on_store
    assert [database.versions() for database in databases] == [[second[0]]] * 2
    assert run_query(QueryRequest("mine", key=5, k=30, home=root)).rows.num_rows == 24
    proxy.order("GET", "500", "", "cut", "", "503")
    proxy.order("PUT", "", "500", "", "cut")
    gone = [purge(PurgeRequest("mine", where="caption LIKE '%1'", home=home)) for home in homes]
    assert gone[0] == gone[1]
    assert gone[1].rows > 0 == gone[1].found
    rows = [run_query(QueryRequest("mine", key=5, k=30, home=home)).rows for home in homes]
    assert rows[0].equals(rows[1])
    assert rows[1].num_rows == 24 - gone[1].rows
    proxy.order("PUT", "", "500", "", "lost", "", "cut")
    assert rename_database("mine", "yours", root) == Renaming("mine", "yours", gone[1].version, ())
    assert Storage(root).list("databases") == ["yours"]
    for name in ("mine", "yours"):
        assert run_query(QueryRequest(name, key=5, k=30, home=root)).rows.equals(rows[1])


def test_pictures_made_into_a_store_are_those_made_onto_a_disk(root: str, proxy: Proxy, tmp_path: Path) -> None:
    manifest, model = (
        manifest_of(tmp_path / "mine.toml", folder_of(tmp_path / "pictures", 12)),
        save_model(tmp_path / "m"),
    )
    (tmp_path / "prompts.txt").write_text("a red cat\na blue boat\na horse\n")
    rng, made = random.Random(13), []
    for home in (str(tmp_path / "home"), root):
        quiet_build(manifest, home=home)
        if home == root:
            for method in ("GET", "PUT"):
                proxy.order(method, *(rng.choice(["500", "503", "cut", *[""] * 12]) for _ in range(60)))
        runs = [
            quiet_generate(tmp_path / "prompts.txt", db=("mine",), model=str(model), run="night", home=home)
            for _ in "12"
        ]
        assert [run.made for run in runs] == [3, 0]
        storage = Storage(f"{home}/generations/night")
        made.append({name: storage.read_bytes(f"images/{name}") for name in storage.list("images", ".png")})
        assert storage.exists("results.parquet") and storage.exists("index.html")
    assert made[0] == made[1] and len(made[0]) == 3
    assert proxy.seen["503"] > 0
