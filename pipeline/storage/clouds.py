"""Azure Blob Storage and Google Cloud Storage through obstore: a file system in fsspec's form, and its compare-and-swap.

    az://CONTAINER/PREFIX    AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, a managed
                             identity, or `az login` with AZURE_USE_AZURE_CLI=true
    gs://BUCKET/PREFIX       GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth application-default login`, or the machine's account

Reads those variables. Tested against Azurite, against Google's storage testbench (docs/log.md) and, through the same calls,
against an S3 server; not against the services themselves. obstore repeats requests that are throttled, answered with 5xx or cut
off. S3 homes go through s3fs (objects.py), which also reads AWS profiles and SSO logins.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import obstore
from fsspec.spec import AbstractBufferedFile
from obstore.exceptions import AlreadyExistsError, PreconditionError

from pipeline.errors import ConfigError
from pipeline.storage.litter import PROBE

if TYPE_CHECKING:
    from obstore import UpdateVersion
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

CONFLICTS = 50  # attempts at a swap while the store reports conflicts

BLOCK = 8 << 20  # bytes read at a time when an object is copied to a disk

_DELETED_AT_ONCE = 500

_CLIENT: ClientConfig = {"connect_timeout": "10s", "timeout": "60s"}

_RETRY: RetryConfig = {"max_retries": 8, "retry_timeout": datetime.timedelta(seconds=120)}


@functools.lru_cache(maxsize=32)
def bucket(root: str) -> ObjectStore:
    """The bucket or container at `az://NAME` or `gs://NAME`; settings come from the environment."""
    from obstore.store import AzureStore, GCSStore

    kind, _, name = root.partition("://")
    if kind == "az":
        return AzureStore(container_name=name, client_options=_CLIENT, retry_config=_RETRY)
    return GCSStore(name, client_options=_CLIENT, retry_config=_RETRY)


class CloudFiles(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The objects of one bucket, as `BUCKET/KEY`. Folders are prefixes: they exist while there is an object below them."""

    protocol = ("az", "gs")

    def __init__(self, root: str, **options: Any) -> None:
        super().__init__(**options)
        self.bucket = bucket(root)

    def key(self, path: str) -> str:
        """The object's name inside the bucket."""
        return str(self._strip_protocol(path)).partition("/")[2]

    def info(self, path: str, **_: Any) -> dict[str, object]:
        name, key = str(self._strip_protocol(path)), self.key(path)
        if key:
            with contextlib.suppress(FileNotFoundError):
                found = obstore.head(self.bucket, key)
                return {"name": name, "size": found["size"], "type": "file", "modified": found["last_modified"]}
        if not key or self._below(path):
            return {"name": name, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def exists(self, path: str, **_: Any) -> bool:
        """Whether there is an object or a folder. Raises what the store reports: fsspec's own method treats every error
        as a no."""
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        found = self._below(path) or [self.info(path)]
        return found if detail else [str(entry["name"]) for entry in found]

    def _below(self, path: str) -> list[dict[str, object]]:
        root = str(self._strip_protocol(path)).partition("/")[0]
        found = obstore.list_with_delimiter(self.bucket, self.key(path) or None)
        folders = [
            {"name": f"{root}/{name.rstrip('/')}", "size": 0, "type": "directory"} for name in found["common_prefixes"]
        ]
        files = [{"name": f"{root}/{one['path']}", "size": one["size"], "type": "file"} for one in found["objects"]]
        return [*folders, *files]

    def modified(self, path: str) -> datetime.datetime:
        return obstore.head(self.bucket, self.key(path))["last_modified"]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        if start is None and end is None:
            return bytes(obstore.get(self.bucket, self.key(path)).bytes())
        size = int(str(self.info(path)["size"]))
        first, last, _step = slice(start, end).indices(size)
        return bytes(obstore.get_range(self.bucket, self.key(path), start=first, end=last)) if last > first else b""

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        obstore.put(self.bucket, self.key(path), value)

    def put_file(self, lpath: str, rpath: str, *_: Any, **__: Any) -> None:
        obstore.put(self.bucket, self.key(rpath), Path(lpath))

    def get_file(self, rpath: str, lpath: str, *_: Any, **__: Any) -> None:
        parts = obstore.get(self.bucket, self.key(rpath)).stream(min_chunk_size=BLOCK)
        with Path(lpath).open("wb") as out:
            for part in parts:
                out.write(part)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        obstore.copy(self.bucket, self.key(path1), self.key(path2))

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove an object, and with `recursive` everything below it."""
        key = self.key(path)
        for found in obstore.list(self.bucket, key or None, chunk_size=_DELETED_AT_ONCE) if recursive else ():
            obstore.delete(self.bucket, [one["path"] for one in found])
        with contextlib.suppress(FileNotFoundError):
            if key:
                obstore.delete(self.bucket, key)

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **_: Any) -> CloudFile:
        if mode != "rb":
            raise ValueError(
                f"{path}: opened with mode {mode!r}; objects are written whole, with pipe_file or put_file"
            )
        return CloudFile(self, path, mode, block_size or "default")


class CloudFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    """An object that is read in ranges, with fsspec's read-ahead."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.fs.cat_file(self.path, start, end)  # type: ignore[no-any-return]


def swap_in_cloud(fs: CloudFiles, path: str, expected: str | None, new: str) -> bool:
    """Compare-and-swap by a conditional PUT. Raises ConfigError if the store ignores conditions.

    If the answer to a PUT is lost, obstore may send it again and find the object it wrote itself: the random token in the
    object's metadata shows this. (A swap that succeeded is reported as failed only if another writer swapped in between.)
    """
    key, token = fs.key(path), uuid.uuid4().hex
    _check_conditional_writes(fs, key.rpartition("/")[0])
    for _ in range(CONFLICTS):
        found, version, _token = _read(fs.bucket, key)
        if found != expected:
            return False
        try:
            obstore.put(
                fs.bucket,
                key,
                new.encode("utf-8"),
                attributes={"swap": token},
                mode=version or "create",
                use_multipart=False,
            )
            return True
        except (AlreadyExistsError, PreconditionError, FileNotFoundError):
            if _read(fs.bucket, key)[2] == token:
                return True
            # Not ours. If the object still reads `expected`, the store reported a conflict: try again.
    raise OSError(f"{path}: the store refused {CONFLICTS} times to replace it, although nobody changed it")


@functools.lru_cache(maxsize=256)
def _check_conditional_writes(fs: CloudFiles, folder: str) -> None:
    """Check, once per process and folder, that the store refuses to create an object that exists. Raises ConfigError."""
    key = f"{folder}/{PROBE}" if folder else PROBE
    for _ in range(2):  # the first attempt may create the object
        try:
            obstore.put(fs.bucket, key, b"", mode="create", use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            return
    raise ConfigError(
        f"{folder or 'the bucket'}: this store ignores conditional writes, which publishing needs. Use another store, or a "
        "home on a disk that all nodes share."
    )


def _read(store: ObjectStore, key: str) -> tuple[str | None, UpdateVersion | None, str]:
    """(text or None, what a conditional PUT names, swap token) of one object, from one request."""
    try:
        found = obstore.get(store, key)
    except FileNotFoundError:
        return None, None, ""
    version: UpdateVersion = {}  # Azure compares the e_tag, Google the version
    if (mark := found.meta["e_tag"]) is not None:
        version["e_tag"] = mark
    if (number := found.meta["version"]) is not None:
        version["version"] = number
    return bytes(found.bytes()).decode("utf-8"), version, str(found.attributes.get("swap", ""))
