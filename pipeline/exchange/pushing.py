"""`rdmpipe push`: upload the current version of a database, or a model's folder, to a repository on the Hub.

Reads: a database's files under its lease, or a model's folder. Writes to the Hub through huggingface_hub, with its token
(HF_TOKEN or `hf auth login`; HF_ENDPOINT is honoured): new files in commits of limited size, then in the last commit README.md,
rdmpipe.json and those files that replace others. Until that commit, the repository is pulled as it was before. The same command
continues, and uploads only what is missing. Files that only an older rdmpipe.json lists are removed, but stay in the
repository's history.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.catalog import Selection
from pipeline.errors import ConfigError, SourceError
from pipeline.exchange.cards import body_of, database_card, front_matter, model_card
from pipeline.exchange.licences import RowsOfLicence, identify, licences_of
from pipeline.exchange.listing import FILE, MOST_BYTES, Kind, Listing, belongs, database_files, read_listing
from pipeline.installation import version as program_version
from pipeline.sources import HubFile, HubRepository, SourceOptions
from pipeline.storage import Artifact, lease, sha256_file

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    Operation = CommitOperationAdd | CommitOperationDelete

CARD = "README.md"

# diffusers' pipeline in a model's folder, and the names of its classes: programs, so a pull writes its own.
PIPELINE = ("pipeline.py", "model_index.json")

_COMMIT_FILES, _COMMIT_BYTES = 100, 2 << 30  # of one commit, so that an interruption loses little

_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")

Say = Callable[[str], None]


@dataclass(frozen=True)
class PushRequest:
    """What to push, and where. `despite_licence`: also rows or a model whose licence is not known to allow redistribution."""

    repo: str  # OWNER/REPO
    public: bool = False  # of a repository that does not exist yet; an existing one keeps its visibility
    despite_licence: bool = False
    endpoint: str = ""  # empty: HF_ENDPOINT, else the Hub
    wait_s: float = 0.0


@dataclass(frozen=True)
class PushSummary:
    """The result of a push. `uploaded` and `removed` count files; `notes` are for the person who pushed."""

    kind: Kind
    name: str
    repo: str
    version: str
    files: int
    bytes: int
    uploaded: int
    removed: int
    commit: str
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        what = f"{self.kind} {self.name}" + (f", version {self.version}" if self.version else "")
        return "\n".join(
            [
                f"pushed {what} to {self.repo}: {self.files:,} files, {self.bytes:,} bytes; {self.uploaded:,} uploaded, "
                f"{self.files - self.uploaded:,} existed already, {self.removed:,} removed; commit {self.commit[:12]}",
                *(f"note: {note}" for note in self.notes),
                f"try: rdmpipe pull {self.repo}",
            ]
        )


def repository(repo: str, kind: Kind, endpoint: str = "", revision: str = "") -> HubRepository:
    """The Hub's repository of a database (a data set there) or of a model. Raises ConfigError for an invalid name."""
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise ConfigError(f"{repo[:120]!r} is no repository of the Hub: give OWNER/REPO, as in anna/harbours")
    return HubRepository(
        repo, revision, SourceOptions(base_url=endpoint), kind="dataset" if kind == "database" else "model"
    )


# ---- a database


def push_database(selection: Selection, request: PushRequest, say: Say) -> PushSummary:
    """Push the current version of a database.

    Raises ConfigError for a view, an old version, or rows whose licence does not allow it; SourceError if the Hub refuses;
    DamagedError if a file does not match the version.
    """
    db, version = selection.database, selection.version
    if selection.where:
        raise ConfigError(
            f"{selection.name!r} is a view: it holds no rows of its own. Push its base, `rdmpipe push {db.name} "
            f"{request.repo}`, or "
            f"export the view: `rdmpipe export {selection.name} DIR --to datasets`"
        )
    hub = repository(request.repo, "database", request.endpoint)
    with lease(db.storage, f"push {db.name}", request.wait_s, notify=say):
        if version.id != db.current_id():
            raise ConfigError(
                f"{selection.name!r} is not the current version, and only that can be pushed: give {db.name!r}"
            )
        licences = licences_of(db, version)
        if not request.despite_licence:
            _require_permission(selection.name, request.repo, licences)
        files = database_files(db, version)
        listing = Listing("database", db.name, version.id, tuple(files), f"rdmpipe {program_version()}")
        push = _Push(hub, listing, lambda file: _checked(db.local(file), file), say, before=version.database)
        done = push.run(database_card(version, request.repo, licences), public=request.public)
        for file in files:
            db.storage.forget(file)
    return _summary(done, listing, request, tuple(_notes(version.manifest, version.encoder.name)))


def _require_permission(name: str, repo: str, licences: Sequence[RowsOfLicence]) -> None:
    """Raise ConfigError, which names the rows, if rows have no licence that allows redistribution."""
    standing = [one for one in licences if not one.allows]
    if not standing:
        return
    rows, every = sum(one.rows for one in standing), sum(one.rows for one in licences)
    lines = [
        f"  {one.licence!r}: {one.rows:,} rows ({', '.join(one.names)}{', ...' if one.rows > len(one.names) else ''})"
        for one in standing[:8]
    ]
    if len(standing) > 8:
        lines.append(f"  and {len(standing) - 8:,} other licences")
    raise ConfigError(
        f"{name!r} is not pushed: {rows:,} of {every:,} rows have no licence that is known to allow redistribution:\n"
        + "\n".join(lines)
        + "\nBuild a database of the others with `--where`, or remove these rows with `rdmpipe purge`. If you "
        "have the right to "
        f"publish them, run: rdmpipe push {name} {repo} --despite-licence"
    )


def _notes(manifest: Mapping[str, object], encoder: str) -> Iterator[str]:
    """Notes on what others will learn or will lack."""
    source = manifest.get("source")
    path = source.get("path") if isinstance(source, dict) else ""
    if path:
        yield f"the manifest names the folder or file that the pictures came from, {path}; it was pushed with the rest"
    if encoder.startswith(("local:", "random:")):
        yield f"encoder {encoder} exists only on this machine: others need it to search by text or picture"


def _checked(path: Path, file: Artifact) -> Path:
    """A local file, if its checksum is the listed one. Raises SourceError if not."""
    if sha256_file(path) != file.sha256:
        raise SourceError(f"{path} does not match its version; nothing more was pushed. Run `rdmpipe check NAME`")
    return path


# ---- a model


def push_model(
    name: str, folder: Path, licence: str, facts: Mapping[str, object], request: PushRequest, say: Say
) -> PushSummary:
    """Push an RDM's folder: descriptions and safetensors, never pickles.

    licence, facts: of its weights, for the card; a licence in the YAML of the folder's own README.md comes first. Raises
    ConfigError if it does not allow redistribution, or if the folder holds no safetensors.
    """
    hub = repository(request.repo, "model", request.endpoint)
    own = (folder / CARD).read_text(encoding="utf-8", errors="replace") if (folder / CARD).is_file() else ""
    licence = str(front_matter(own).get("license") or licence)
    if not identify(licence) and not request.despite_licence:
        raise ConfigError(
            f"model {name!r} is not pushed: its licence ({licence or 'not stated'}) is not known to allow "
            "redistribution. State it "
            f"in {folder / CARD}, in YAML as `license: cc-by-4.0` between two lines `---`; or, if you have the "
            "right to publish "
            f"it, run: rdmpipe push {name} {request.repo} --despite-licence"
        )
    ours = "rdmpipe" in front_matter(own)  # a pulled card is not changed
    card = own if ours else model_card(name, request.repo, licence, facts, body_of(own))
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [(path, path.relative_to(folder).as_posix()) for path in paths]
    files = [
        Artifact(inside, sha256_file(path), path.stat().st_size)
        for path, inside in names
        if belongs("model", inside) and inside != CARD
    ]
    if not any(file.path.endswith(".safetensors") or file.path.startswith("folded/") for file in files):
        raise ConfigError(
            f"{folder} holds no safetensors: `rdmpipe convert CHECKPOINT FOLDER` converts the weights of a checkpoint"
        )
    listing = Listing("model", name, "", tuple(files), f"rdmpipe {program_version()}")
    code = {name: folder / name for name in PIPELINE if (folder / name).is_file()}
    done = _Push(hub, listing, lambda file: folder / file.path, say, code).run(card, public=request.public)
    left = [inside for _, inside in names if not belongs("model", inside) and inside not in (*PIPELINE, "SHA256SUMS")]
    notes = (f"not pushed, because they are not part of a model: {', '.join(left[:8])}",) if left else ()
    return _summary(done, listing, request, notes)


# ---- the Hub


@dataclass(frozen=True)
class _Done:
    uploaded: int
    removed: int
    commit: str


def _summary(done: _Done, listing: Listing, request: PushRequest, notes: tuple[str, ...]) -> PushSummary:
    return PushSummary(
        listing.kind, listing.name, request.repo, listing.version, len(listing.files), listing.bytes, done.uploaded,
        done.removed, done.commit, notes,
    )  # fmt: skip


class _Push:
    """One push: a client, the files that the repository is to have, and those that it has."""

    def __init__(
        self,
        hub: HubRepository,
        listing: Listing,
        local: Callable[[Artifact], Path],
        say: Say,
        beside: Mapping[str, Path] | None = None,
        before: str = "",
    ) -> None:
        self.hub, self.listing, self.local, self.say = hub, listing, local, say
        self.before = before  # its name at earlier pushes, if it was renamed since
        self.beside = beside or {}  # files that are pushed, but never pulled

    def run(self, card: str, public: bool) -> _Done:
        """Upload what is missing, then the card and the listing in one commit. Raises SourceError, ConflictError."""
        from huggingface_hub.utils.tqdm import disable_progress_bars

        if not sys.stderr.isatty():
            disable_progress_bars()
        hub, listing = self.hub, self.listing
        hub.ask(lambda: hub.api.create_repo(hub.repo, repo_type=hub.kind, private=not public, exist_ok=True))
        head = hub.commit()
        there = {file.path: file for file in hub.files(head, ("*",), required=False)}
        before = self._before(head, there)
        missing = [file for file in listing.files if not self._is_there(file, there.get(file.path))]
        count = sum(file.bytes for file in missing)
        self.say(f"{hub.repo}: {len(missing):,} of {len(listing.files):,} files to upload, {count:,} bytes")
        sent = 0
        replaced = [file for file in missing if file.path in before]  # a pull of the version there needs the old ones
        for group in _groups([file for file in missing if file.path not in before]):
            self._commit([self._add(file.path, self.local(file)) for file in group], f"{len(group)} files")
            sent += len(group)
            self.say(f"{hub.repo}: {sent:,} of {len(missing):,} files uploaded")
        wanted = {file.path for file in listing.files}
        stale = sorted(before - wanted & there.keys())
        commit = self._finish(card, replaced, stale)
        return _Done(len(missing), len(stale), commit)

    def _finish(self, card: str, replaced: Sequence[Artifact], stale: Sequence[str]) -> str:
        from huggingface_hub import CommitOperationDelete

        last = [self._add(CARD, card.encode()), self._add(FILE, self.listing.to_json().encode())]
        last += [self._add(name, path) for name, path in self.beside.items()]
        last += [self._add(file.path, self.local(file)) for file in replaced]
        removed = [CommitOperationDelete(path) for path in stale]
        what = f"{self.listing.kind} {self.listing.name}" + (f" {self.listing.version}" if self.listing.version else "")
        return self._commit([*last, *removed], what)

    def _before(self, head: str, there: Mapping[str, HubFile]) -> set[str]:
        """The files that the repository's listing names now. Raises SourceError if it lists something else."""
        if FILE not in there:
            return set()
        found = read_listing(read_file(self.hub, there[FILE], head), self.hub.repo)
        if found.kind != self.listing.kind or found.name not in (self.listing.name, self.before):
            raise ConfigError(
                f"{self.hub.repo} holds {found.kind} {found.name!r}, not {self.listing.kind} "
                f"{self.listing.name!r}; name another "
                "repository"
            )
        return {file.path for file in found.files}

    def _is_there(self, file: Artifact, found: HubFile | None) -> bool:
        """Whether the repository holds the same bytes: by sha256 for large files, by git's hash for small ones."""
        if found is None or found.size != file.bytes:
            return False
        if len(found.identity) == 64:
            return found.identity == file.sha256
        return found.identity == _git_blob(self.local(file))

    def _add(self, path: str, content: Path | bytes) -> CommitOperationAdd:
        from huggingface_hub import CommitOperationAdd

        return CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))

    def _commit(self, operations: Sequence[Operation], message: str) -> str:
        """Make a commit and return its id. Each retry makes new operations, because the client marks those that it has sent."""

        def commit() -> str:
            fresh = [_copy(operation) for operation in operations]
            made = self.hub.api.create_commit(
                self.hub.repo, fresh, commit_message=f"rdmpipe: {message}", repo_type=self.hub.kind
            )
            return str(made.oid)

        return self.hub.ask(commit)


def _copy(operation: Operation) -> Operation:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    if isinstance(operation, CommitOperationAdd):
        return CommitOperationAdd(operation.path_in_repo, operation.path_or_fileobj)
    return CommitOperationDelete(operation.path_in_repo)


def read_file(hub: HubRepository, file: HubFile, commit: str, most: int = MOST_BYTES) -> bytes:
    """A small file of a repository. Raises SourceError if it has more than `most` bytes."""
    if file.size > most:
        raise SourceError(f"{hub.repo}: {file.path} has {file.size:,} bytes; at most {most:,} are read")
    with hub.stream(file.path, commit, file.size) as handle:
        return handle.read(most)


def _git_blob(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _groups(files: Sequence[Artifact]) -> Iterator[list[Artifact]]:
    """Files of one commit each."""
    group: list[Artifact] = []
    size = 0
    for file in files:
        if group and (len(group) >= _COMMIT_FILES or size + file.bytes > _COMMIT_BYTES):
            yield group
            group, size = [], 0
        group.append(file)
        size += file.bytes
    if group:
        yield group
