"""Homes on Azure and Google Cloud Storage: over memory, over an S3 server by the same calls, and over Azurite."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import hashlib
import hmac
import http.client
import shutil
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore, S3Store

from pipeline.errors import ConfigError
from pipeline.maintenance import PurgeRequest, purge, rename_database
from pipeline.retrieval import QueryRequest, run_query
from pipeline.storage import Storage, clouds, read_url
from tests.builds import folder_of, manifest_of, quiet_build
from tests.s3server import BUCKET, KEYS, s3_server

AZURITE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # Azurite's own, public
)


@contextlib.contextmanager
def azurite(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of an Azurite server with the container BUCKET. Skips if Azurite is not installed."""
    command = shutil.which("azurite-blob")
    if not command:
        pytest.skip("needs azurite-blob (npm install -g azurite)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = [
        "--blobPort",
        str(port),
        "--location",
        str(folder),
        "--skipApiVersionCheck",
        "--disableTelemetry",
        "--silent",
    ]
    server = subprocess.Popen([command, *options], stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        date, version = email.utils.formatdate(usegmt=True), "2021-08-06"
        signed = (
            f"PUT{chr(10) * 12}x-ms-date:{date}\nx-ms-version:{version}\n/devstoreaccount1/devstoreaccount1/{BUCKET}\n"
        )
        mark = hmac.new(base64.b64decode(AZURITE_KEY), f"{signed}restype:container".encode(), hashlib.sha256).digest()
        headers = {"x-ms-date": date, "x-ms-version": version, "Content-Length": "0"}
        headers["Authorization"] = f"SharedKey devstoreaccount1:{base64.b64encode(mark).decode()}"
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("PUT", f"/devstoreaccount1/{BUCKET}?restype=container", headers=headers)
        answer = connection.getresponse()
        assert answer.status == 201, answer.read()
        yield {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": f"http://127.0.0.1:{port}"}
    finally:
        server.kill()
        server.wait()


@pytest.fixture(
    scope="module", params=["memory", *(pytest.param(n, marks=pytest.mark.process) for n in ("s3", "azurite"))]
)
def stores(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Any] | None]:
    """The replacement of `clouds.bucket`; None: the real function."""
    clouds.CloudFiles.clear_instance_cache()
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        if request.param == "memory":
            memory = MemoryStore()
            yield lambda root: memory
        elif request.param == "s3":
            for name, value in KEYS.items():
                patch.setenv(name, value)
            address = stack.enter_context(s3_server())
            store = S3Store(BUCKET, endpoint=address, client_options={"allow_http": True})
            yield lambda root: store
        else:
            for name, value in stack.enter_context(azurite(tmp_path_factory.mktemp("azurite"))).items():
                patch.setenv(name, value)
            yield None
        clouds.bucket.cache_clear()
        clouds.CloudFiles.clear_instance_cache()


@pytest.fixture
def root(stores: Callable[[str], Any] | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setenv("RDMPIPE_CACHE", str(tmp_path / "cache"))
    if stores is not None:
        monkeypatch.setattr(clouds, "bucket", stores)
    return f"az://{BUCKET}/{uuid.uuid4().hex}"


def test_a_written_file_reads_back_is_listed_and_removed(root: str, tmp_path: Path) -> None:
    storage = Storage(root)
    artifact = storage.write_text("a/b.txt", "héllo")
    assert storage.read_text("a/b.txt") == "héllo" == read_url(f"{root}/a/b.txt").decode()
    assert artifact.bytes == 6 == storage.size("a/b.txt")
    storage.write_text("ab/c", "x")
    assert storage.list("a") == ["b.txt"] and storage.list() == ["a", "ab"] and storage.list("a", ".json") == []
    assert storage.list("a/b.txt") == [] == storage.list("none")
    assert storage.read_text("a/none") is None and storage.size("a/none") is None
    assert storage.exists("a") and storage.exists("a/b.txt") and not storage.exists("b")
    assert abs(storage.age_s("a/b.txt") or 1e9) < 3600 and storage.age_s("none") is None
    with storage.open("a/b.txt") as handle:
        assert (handle.read(1), handle.seek(-2, 2), handle.read(), handle.read()) == (b"h", 4, b"lo", b"")
    storage.remove("a")
    storage.remove("a")
    assert not storage.exists("a/b.txt") and storage.exists("ab/c")


def test_a_large_file_goes_up_whole_and_comes_down_by_its_checksum(root: str, tmp_path: Path) -> None:
    storage, local = Storage(root), tmp_path / "large"
    local.write_bytes(bytes(range(256)) * (13 << 12))  # 13 MiB: more than one part
    before = hashlib.sha256(local.read_bytes()).hexdigest()
    artifact = storage.publish(local, "a/large")
    assert not local.exists() and artifact.sha256 == before == storage.sha256("a/large")
    assert hashlib.sha256(storage.local(artifact).read_bytes()).hexdigest() == before


def test_a_swap_from_the_wrong_value_changes_nothing(root: str) -> None:
    storage = Storage(root)
    assert not storage.swap("current", "v0", "v1") and storage.read_text("current") is None
    assert storage.swap("current", None, "v1") and not storage.swap("current", None, "v2")
    assert not storage.swap("current", "v0", "v2") and storage.read_text("current") == "v1"
    assert storage.swap("current", "v1", "v2") and storage.read_text("current") == "v2"


def test_compare_and_swap_loses_no_update_between_writers(root: str) -> None:
    storage = Storage(root)
    storage.swap("count", None, "0")

    def count() -> None:
        for _ in range(5):
            while not storage.swap("count", now := storage.read_text("count") or "", str(int(now) + 1)):
                pass

    writers = [threading.Thread(target=count) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert storage.read_text("count") == "20"


def test_a_lost_answer_to_a_swap_is_no_lost_swap(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store carried out the PUT; obstore sends it again, and the store answers that the object exists."""
    storage, put = Storage(root), clouds.obstore.put

    def lost(store: Any, key: str, data: bytes, **options: Any) -> Any:
        put(store, key, data, **options)
        return put(store, key, data, **options)

    storage.swap("current", None, "v0")
    monkeypatch.setattr(clouds.obstore, "put", lost)
    assert storage.swap("current", "v0", "v1") and storage.swap("other", None, "v1")
    assert storage.read_text("current") == "v1" == storage.read_text("other")


def test_a_store_that_ignores_conditions_is_refused(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put = clouds.obstore.put
    monkeypatch.setattr(clouds.obstore, "put", lambda store, key, data, **options: put(store, key, data))
    with pytest.raises(ConfigError, match="ignores conditional writes"):
        Storage(f"{root}/ignoring").swap("current", None, "v1")


@pytest.mark.process
@pytest.mark.parametrize("stores", ["memory", "azurite"], indirect=True)
def test_a_database_is_built_searched_and_purged_as_on_a_disk(root: str, tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path / "mine.toml", folder_of(tmp_path / "pictures", 12))
    homes = (str(tmp_path / "home"), root)
    assert len({quiet_build(manifest, home=home).version for home in homes}) == 1
    on_disk, in_cloud = (run_query(QueryRequest("mine", key=5, k=30, home=home)).rows for home in homes)
    assert on_disk.equals(in_cloud) and in_cloud.num_rows == 11
    gone = [purge(PurgeRequest("mine", where="caption LIKE '%1'", home=home)) for home in homes]
    assert gone[0] == gone[1] and gone[1].rows > 0
    left = run_query(QueryRequest("mine", key=5, k=30, home=root)).rows
    assert rename_database("mine", "yours", root).version and Storage(root).list("databases") == ["yours"]
    assert all(run_query(QueryRequest(name, key=5, k=30, home=root)).rows.equals(left) for name in ("mine", "yours"))


def test_without_obstore_the_error_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'rdmpipe\[cloud\]'"):
        Storage("gs://homes/a").exists("b")


@pytest.mark.parametrize("url", ["ftp+x://a/b", "gcs://a/b", "abfs://c/d"])
def test_another_kind_of_store_is_an_error_that_names_those_that_work(url: str) -> None:
    with pytest.raises(ConfigError, match=r"s3://.*az://.*gs://"):
        Storage(url).swap("current", None, "v1")
