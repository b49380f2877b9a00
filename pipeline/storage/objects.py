"""Object stores through fsspec: how one is opened, its compare-and-swap, and its errors in our words.

Reads: the usual AWS_* environment (keys, AWS_ENDPOINT_URL or AWS_ENDPOINT_URL_S3 for a store other than Amazon's,
AWS_MAX_ATTEMPTS). Listings are never cached, since other machines write too. Throttling, 5xx answers and cut connections are
tried again with growing pauses; what is still wrong then is an OSError, which fails a shard's attempt and not the run.
Missing keys, refused access and a missing bucket are ConfigErrors: no other shard would do better.
"""

from __future__ import annotations

import contextlib
import functools
import os
import uuid
from collections.abc import Iterator
from typing import Any

from pipeline.errors import ConfigError

CONFLICTS = 50  # times a swap is tried while the store reports conflicts

ATTEMPTS = 8  # by botocore, with exponential back-off; s3fs tries again what breaks off in the middle of a body


def open_store(url: str) -> Any:
    """fsspec's file system for `url`. Raises ConfigError where there is none for this kind of address."""
    import fsspec

    options: dict[str, Any] = {}
    if url.startswith(("s3://", "s3a://")):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        options = {
            "use_listings_cache": False,
            # Both are named here so that fsspec, which keeps one instance for the same options, tells two stores apart.
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
            f"{url}: no file system for this kind of address: {error}. For s3:// install `rdmpipe[s3]`."
        ) from error


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn what an object store's library raises into a ConfigError with the fix, or an OSError where trying later may do."""
    try:
        yield
    except FileNotFoundError as error:
        if "bucket" in str(error).lower() and "does not exist" in str(error).lower():
            raise ConfigError(
                f"{url}: there is no such bucket. Create it, or mend RDMPIPE_HOME; rdmpipe creates none."
            ) from error
        raise
    except PermissionError as error:
        raise ConfigError(
            f"{url}: the store refuses access: {error}. Its keys (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE or the "
            "machine's role) need to read, list, write and delete objects under this prefix."
        ) from error
    except OSError:
        raise
    except Exception as error:
        name = type(error).__name__
        if name in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError"):
            raise ConfigError(
                f"{url}: no usable keys: {error}. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
            ) from error
        if type(error).__module__.split(".")[0] in ("botocore", "aiobotocore", "aiohttp"):
            raise ConnectionError(f"{url}: the store does not answer as it should: {name}: {error}") from error
        raise


def swap_object(fs: Any, path: str, expected: str | None, new: str) -> bool:
    """Compare-and-swap by conditional PUT (S3's If-Match / If-None-Match). Raises ConfigError where the store has none.

    A PUT whose answer was lost is sent again by the library and then meets its own object: each carries a token of its
    own, by which it is known. (Only if somebody else swapped in between is a won swap reported as lost.)
    """
    if not hasattr(fs, "call_s3"):
        raise ConfigError(f"{path}: publishing needs an object store with conditional writes; use s3:// or a disk")
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
            # Not ours: the loop looks whether the object still reads `expected` (a conflict S3 wants tried again) or not.
    raise OSError(f"{path}: the store refuses to replace it although nobody changes it")


@functools.lru_cache(maxsize=256)
def _check_conditional_writes(fs: Any, bucket: str, folder: str) -> None:
    """Once a process and folder: a PUT of what must not exist has to be refused where it does. Raises ConfigError.

    A store that takes every PUT would let two writers publish over each other without a word.
    """
    key = f"{folder}/.conditional-writes" if folder else ".conditional-writes"
    for _ in range(2):  # the first may make the object
        try:
            fs.call_s3("put_object", Bucket=bucket, Key=key, Body=b"", IfNoneMatch="*")
        except OSError as error:
            if _code(error) in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409"):
                return
            raise
    raise ConfigError(
        f"s3://{bucket}/{folder}: this store does not decide conditional PUTs (If-None-Match), on which safe publishing rests. "
        "Use one that does (Amazon S3, a current MinIO, ...), or a home on a disk that all nodes share."
    )


def _code(error: BaseException) -> str:
    """The store's error code; s3fs wraps the response in an OSError."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _read(fs: Any, bucket: str, key: str) -> tuple[str | None, str, str]:
    """(text or None, ETag, swap token) of one object, all from one answer."""
    from fsspec.asyn import sync
    from s3fs.core import _error_wrapper

    async def get() -> tuple[str | None, str, str]:
        try:
            answer = await fs._call_s3("get_object", Bucket=bucket, Key=key)
        except FileNotFoundError:
            return None, "", ""
        async with answer["Body"] as stream:
            text = (await stream.read()).decode("utf-8")
        return text, answer["ETag"], answer.get("Metadata", {}).get("swap", "")

    found: tuple[str | None, str, str] = sync(fs.loop, _error_wrapper, get, retries=fs.retries)
    return found
