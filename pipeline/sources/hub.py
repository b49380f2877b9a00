"""Files of a repository on the Hugging Face Hub at one commit: listed, streamed by range, or fetched into the cache.

Reads: the Hub (HF_ENDPOINT, or `base_url` for a mirror or a local server) through huggingface_hub, with its token.
Writes: `<cache>/hub`, in the Hub client's own layout (resumed, checked, shared by all databases), and `<cache>/hub-notes`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeVar

from pipeline.config import cache_dir, digest
from pipeline.errors import NoRepositoryError, SourceError, nearest
from pipeline.sources.base import SourceOptions
from pipeline.sources.listing import matches_any
from pipeline.sources.names import is_junk, kind_of_name
from pipeline.sources.web.retries import TRANSIENT_STATUS, Broken, Patience, patiently
from pipeline.storage import disk_full_is_an_error

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")


@dataclass(frozen=True)
class HubFile:
    path: str
    size: int
    identity: str  # sha256 of a large file, git blob id of a small one


class HubRepository:
    """One repository of a data set or a model. Holds a client; connects at the first request."""

    def __init__(
        self,
        repo: str,
        revision: str,
        options: SourceOptions,
        patience: Patience | None = None,
        kind: Literal["dataset", "model"] = "dataset",
    ) -> None:
        self.repo = repo
        self.kind = kind
        self.name = f"{'data set' if kind == 'dataset' else kind} {repo}"  # in messages
        self.revision = revision or "main"
        self.options = options
        self.patience = patience or Patience()
        self.endpoint = options.base_url or None
        self.token: str | None = options.token or None

    def commit(self) -> str:
        """The commit that the manifest's revision names now. Offline: the one that it last named."""
        if len(self.revision) == 40 and set(self.revision) <= set("0123456789abcdef"):
            return self.revision
        note = self._notes / f"revision-{digest(self.revision)}"
        if self.options.offline:
            if not note.exists():
                raise SourceError(f"{self.repo}: revision {self.revision!r} is not in the cache; run without --offline")
            return note.read_text().strip()
        info = self.ask(lambda: self.api.repo_info(self.repo, repo_type=self.kind, revision=self.revision))
        _write(note, str(info.sha))
        return str(info.sha)

    def files(self, commit: str, patterns: tuple[str, ...], required: bool = True) -> list[HubFile]:
        """The files that match one of the glob patterns, sorted by path. With `required`, it is an error if there are none."""
        every = self._listing(commit)
        found = [file for file in every if _is_wanted(file.path, patterns)]
        if required and not found:
            known = [file.path for file in every]
            raise SourceError(
                f"{self.name}: no file matches {' or '.join(patterns)}{nearest(patterns[0], known)}; it holds "
                f"{', '.join(known[:8]) or 'nothing'}{' ...' if len(known) > 8 else ''}"
            )
        return found

    def left_out(self, commit: str, patterns: tuple[str, ...]) -> dict[str, int]:
        """How many files match none of the patterns, by kind."""
        others = (file.path for file in self._listing(commit) if not _is_wanted(file.path, patterns))
        return dict(sorted(Counter(map(kind_of_name, others)).items()))

    def _listing(self, commit: str) -> list[HubFile]:
        """All files of a commit. They never change, so they are requested once and then kept in the cache."""
        note = self._notes / f"files-{commit}.json"
        if not note.exists():
            if self.options.offline:
                raise SourceError(f"{self.repo}: its list of files is not in the cache; run once without --offline")
            from huggingface_hub.hf_api import RepoFile

            entries = self.ask(
                lambda: list(self.api.list_repo_tree(self.repo, recursive=True, revision=commit, repo_type=self.kind))
            )
            files = [entry for entry in entries if isinstance(entry, RepoFile)]
            rows = [[file.path, file.size, file.lfs.sha256 if file.lfs else file.blob_id] for file in files]
            _write(note, json.dumps(sorted(rows)))
        return [HubFile(*row) for row in json.loads(note.read_text())]

    def local(self, path: str, commit: str) -> Path:
        """The file as a local path, fetched into the cache at the first call."""
        from huggingface_hub import hf_hub_download

        with disk_full_is_an_error(str(self._cache)):
            return Path(
                self.ask(
                    lambda: hf_hub_download(
                        self.repo,
                        path,
                        repo_type=self.kind,
                        revision=commit,
                        cache_dir=self._cache,
                        endpoint=self.endpoint,
                        token=self.token,
                        local_files_only=self.options.offline,
                    )
                )
            )

    @contextlib.contextmanager
    def stream(self, path: str, commit: str, size: int) -> Iterator[BinaryIO]:
        """The file as a seekable stream of range requests. Nothing is kept. Raises SourceError if the connection breaks and
        the client cannot continue."""
        from huggingface_hub import HfFileSystem
        from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # the client under it, by whatever name

        fs = HfFileSystem(endpoint=self.endpoint, token=self.token)
        handle: BinaryIO = self.ask(
            lambda: fs.open(f"{self._prefix}{self.repo}/{path}", "rb", revision=commit, size=size, block_size=4 << 20)
        )
        try:
            with handle:
                yield handle
        except httpx.HTTPError as error:
            broken = (
                f"{self.name}: {path}: the connection broke: {type(error).__name__}: {error}. What is finished is "
                "kept: check the connection and run the same command again."
            )
            raise SourceError(self._lasting(error) or broken) from error

    @property
    def _cache(self) -> Path:
        return cache_dir() / "hub"

    @property
    def _prefix(self) -> str:
        """What stands before a repository's name in an address."""
        return "datasets/" if self.kind == "dataset" else ""

    @property
    def api(self) -> HfApi:
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=self.token)

    @property
    def _notes(self) -> Path:
        """The folder of cached notes for this repository and server."""
        named = [self.repo, self.endpoint or ""]
        return cache_dir() / "hub-notes" / digest(named if self.kind == "dataset" else [*named, self.kind])

    def ask(self, action: Callable[[], T]) -> T:
        """Run one client call. Temporary failures are retried; permanent ones become a SourceError with the fix."""

        def attempt() -> T:
            try:
                return action()
            except Exception as error:
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                lasting = self._lasting(error)
                if lasting:
                    raise (NoRepositoryError if _is_absent(error) else SourceError)(lasting) from error
                raise Broken(f"{type(error).__name__}: {error}") from error

        return patiently(attempt, self.name, self.patience)

    def _lasting(self, error: Exception) -> str:
        """The message for a failure that a retry cannot fix; empty for other failures."""
        from huggingface_hub import errors

        name = self.name
        if isinstance(error, errors.LocalEntryNotFoundError):
            if not self.options.offline:
                return ""
            return f"{name}: a file is not in the cache ({self._cache}); run once without --offline"
        if isinstance(error, errors.GatedRepoError):
            return (
                f"{name}: access must be requested: accept its terms at https://huggingface.co/{self._prefix}{self.repo}, "
                "then give a token (HF_TOKEN or `hf auth login`)"
            )
        if _is_absent(error):
            return f"{name}: there is no such repository, or the token may not see it; check its name and HF_TOKEN"
        if isinstance(error, errors.RevisionNotFoundError):
            return f"{name}: no revision {self.revision!r}; check `revision`"
        if isinstance(error, errors.EntryNotFoundError):
            return f"{name}: a file is gone: {error}"
        answers = [
            getattr(one, "response", None) for one in (error, error.__cause__)
        ]  # uploads wrap the client's error
        status = next((answer.status_code for answer in answers if answer is not None), None)
        if status is not None and 400 <= status < 500 and status not in TRANSIENT_STATUS:
            return f"{name}: HTTP {status}: {error}"
        return ""


def _is_absent(error: Exception) -> bool:
    """Whether the Hub knows no such repository. (The client's error for a gated one is of the same class.)"""
    from huggingface_hub import errors

    return isinstance(error, errors.RepositoryNotFoundError) and not isinstance(error, errors.GatedRepoError)


def _is_wanted(path: str, patterns: tuple[str, ...]) -> bool:
    return matches_any(path, patterns) and not is_junk(path)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    part.write_text(text)
    part.replace(path)
