"""Object stores through fsspec: opening a store, compare-and-swap, and the translation of its errors. clouds.py: Azure, Google.

Reads: the usual AWS_* environment (keys, AWS_ENDPOINT_URL or AWS_ENDPOINT_URL_S3 for a store other than Amazon's,
AWS_MAX_ATTEMPTS). Listings are never cached, because other machines write too. Requests that are throttled, answered with
5xx or cut off are retried with growing pauses. If that does not help, the error is an OSError, which fails one attempt at
a shard and not the run. Missing keys, refused access and a missing bucket are ConfigErrors, which end the run, because
no other shard would succeed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
import uuid
from collections.abc import Iterator
from typing import Any, TypeAlias

from pipeline.errors import ConfigError
from pipeline.installation import require
from pipeline.storage.litter import PROBE

FileSystem: TypeAlias = Any  # fsspec's AbstractFileSystem: fsspec has no types

CONFLICTS = 50  # attempts at a swap while the store reports conflicts

CLOUDS = ("az://", "gs://")

ATTEMPTS = 8  # by botocore, with exponential back-off; s3fs itself repeats an interrupted read


def open_store(url: str) -> FileSystem:
    """fsspec's file system for `url`. Raises ConfigError for a kind of address that fsspec does not know."""
    import fsspec

    if url.startswith(CLOUDS):
        require("cloud", url)
        from pipeline.storage.clouds import CloudFiles

        return CloudFiles("/".join(url.split("/")[:3]))
    options: dict[str, object] = {}
    if url.startswith(("s3://", "s3a://")):
        require("s3", url)
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        options = {
            "use_listings_cache": False,
            # fsspec keeps one instance for equal options; passing the endpoint gives each store its own instance.
            "endpoint_url": endpoint,
            "config_kwargs": {
                "retries": {"mode": "standard", "max_attempts": int(os.environ.get("AWS_MAX_ATTEMPTS") or ATTEMPTS)},
                "connect_timeout": 10,
                "read_timeout": 60,
            },
        }
    try:
        return fsspec.core.url_to_fs(url, **options)[0]
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{url}: no file system for this kind of address: {error}. Use a folder, s3://BUCKET/PREFIX, az://CONTAINER/PREFIX "
            "or gs://BUCKET/PREFIX"
        ) from error


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn errors of an object store's library into a ConfigError, or into an OSError if a later attempt may succeed."""
    try:
        yield
    except FileNotFoundError as error:
        said = str(error).lower()
        if ("bucket" in said or "container" in said) and "does not exist" in said:
            raise ConfigError(
                f"{url}: there is no such bucket. Create it, or correct RDMPIPE_HOME; rdmpipe does not create buckets."
            ) from error
        raise
    except PermissionError as error:
        raise ConfigError(
            f"{url}: the store refuses access: {error}. The keys (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or "
            "the machine's role) need permission to read, list, write and delete objects under this prefix."
        ) from error
    except OSError:
        raise
    except Exception as error:
        name = type(error).__name__
        if name in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError"):
            raise ConfigError(
                f"{url}: no usable keys: {error}. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
            ) from error
        if name in ("PermissionDeniedError", "UnauthenticatedError"):
            raise ConfigError(
                f"{url}: the store refuses access: {str(error)[:500]}. az:// needs AZURE_STORAGE_ACCOUNT_NAME "
                "and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, gs:// GOOGLE_APPLICATION_CREDENTIALS; or give the "
                "machine an identity that may read, list, write and delete objects under this prefix."
            ) from error
        if type(error).__module__.split(".")[0] in ("botocore", "aiobotocore", "aiohttp", "obstore"):
            raise ConnectionError(f"{url}: unexpected answer of the store: {name}: {error}") from error
        raise


def swap_object(fs: FileSystem, path: str, expected: str | None, new: str) -> bool:
    """Compare-and-swap by conditional PUT (S3's If-Match / If-None-Match). Raises ConfigError if the store has none.

    If the answer to a PUT is lost, the library sends the PUT again and meets the object that it wrote itself. A random token in
    the object's metadata identifies it. (A swap that succeeded is reported as failed only if another writer swapped in
    between.)
    """
    if path.startswith(CLOUDS):
        from pipeline.storage.clouds import swap_in_cloud

        return swap_in_cloud(fs, path, expected, new)
    if not hasattr(fs, "call_s3"):
        raise ConfigError(
            f"{path}: publishing needs an object store with conditional writes; use s3://, az://, gs:// or a disk"
        )
    bucket, key, _ = fs.split_path(path)
    _check_conditional_writes(fs, bucket, key.rpartition("/")[0])
    token = uuid.uuid4().hex
    for _ in range(CONFLICTS):
        found, etag, _ = _read(fs, bucket, key)
        if found != expected:
            return False
        condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": etag}
        try:
            body = new.encode("utf-8")
            fs.call_s3("put_object", Bucket=bucket, Key=key, Body=body, Metadata={"swap": token}, **condition)
            return True
        except OSError as error:
            code = _code(error)
            if code not in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409", "NoSuchKey", "404"):
                raise
            if _read(fs, bucket, key)[2] == token:
                return True
            # Not ours. If the object still reads `expected`, S3 reported a conflict and asks for another attempt.
    raise OSError(f"{path}: the store refused {CONFLICTS} times to replace it, although no other writer changed it")


@functools.lru_cache(maxsize=256)
def _check_conditional_writes(fs: FileSystem, bucket: str, folder: str) -> None:
    """Check, once per process and folder, that the store refuses If-None-Match for an object that exists.

    A store that accepts every PUT would let two writers publish over each other. Raises ConfigError for such a store.
    """
    key = f"{folder}/{PROBE}" if folder else PROBE
    for _ in range(2):  # the first may create the object
        try:
            fs.call_s3("put_object", Bucket=bucket, Key=key, Body=b"", IfNoneMatch="*")
        except OSError as error:
            if _code(error) in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409"):
                return
            raise
    raise ConfigError(
        f"s3://{bucket}/{folder}: this store ignores conditional PUTs (If-None-Match), which publishing needs. "
        "Use one that honours them (Amazon S3, a current MinIO, ...), or a home on a disk that all nodes share."
    )


def _code(error: BaseException) -> str:
    """The store's error code; s3fs wraps the response in an OSError."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _read(fs: FileSystem, bucket: str, key: str) -> tuple[str | None, str, str]:
    """(text or None, ETag, swap token) of one object, from one request. An interrupted answer is requested again."""
    from fsspec.asyn import sync
    from s3fs.core import S3_RETRYABLE_ERRORS

    for attempt in range(ATTEMPTS):
        try:
            answer = fs.call_s3("get_object", Bucket=bucket, Key=key)
        except FileNotFoundError:
            return None, "", ""
        try:
            text: str = sync(fs.loop, answer["Body"].read).decode("utf-8")
        except S3_RETRYABLE_ERRORS as error:
            if attempt == ATTEMPTS - 1:
                raise ConnectionError(
                    f"s3://{bucket}/{key}: every attempt to read it was interrupted: {error}"
                ) from error
            time.sleep(min(1.7**attempt * 0.1, 15.0))  # as s3fs waits
            continue
        return text, answer["ETag"], answer.get("Metadata", {}).get("swap", "")
    raise AssertionError("unreachable")


def read_url(url: str) -> bytes:
    """The bytes at an address that fsspec knows, or at az:// or gs://. Raises OSError, ImportError, ValueError."""
    import fsspec

    if url.startswith(CLOUDS):
        with explained(url):
            return bytes(open_store(url).cat_file(url))
    with fsspec.open(url, "rb") as handle:
        return bytes(handle.read())
