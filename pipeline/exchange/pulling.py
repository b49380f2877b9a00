"""`rdmpipe pull`: get a database or a model from a repository on the Hub that `rdmpipe push` wrote.

Reads: rdmpipe.json of one commit, and the files that it lists, each compared with its size and sha256. Writes: a
database under its lease, `current` last, or a folder in <home>/models, which gets its name last. A pull that was
interrupted continues: finished files are kept, and the unfinished one continues where it stopped. A repository is
untrusted: refused are paths that do not occur in a database or a model, sizes that differ from those that the Hub
reports, wrong checksums, and pickles. A model's program (pipeline.py) is not fetched.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.config import canonical_json, default_home
from pipeline.database import PULLED, RetrievalDatabase, Version, record_receipts, record_sum
from pipeline.errors import ConfigError, DatabaseError, DiskFullError, ModelError, NoRepositoryError, SourceError
from pipeline.exchange.cards import front_matter
from pipeline.exchange.listing import FILE, Kind, Listing, read_listing
from pipeline.exchange.pushing import CARD, Say, read_file, repository
from pipeline.schema import is_name
from pipeline.sources import NAME, HubFile, HubRepository
from pipeline.storage import Artifact, Storage, lease, sha256_file

_MOST_CARD = 1 << 20  # bytes of a README.md that are read

_AT_ONCE = 4  # files that are fetched at a time

_LAST = ("plan/", "manifest.json", "versions/")  # a build treats the folder as a database only once these exist


@dataclass(frozen=True)
class PullRequest:
    """What to pull. Empty values mean the name that it was pushed under, the kind that the repository has, the newest
    commit."""

    repo: str  # OWNER/REPO
    name: str = ""
    kind: Literal["", "database", "model"] = ""
    revision: str = ""
    home: str | None = None
    endpoint: str = ""
    wait_s: float = 0.0


@dataclass(frozen=True)
class PullSummary:
    """The result of a pull. `fetched` counts files; the other files existed already."""

    kind: Kind
    name: str
    repo: str
    commit: str
    version: str
    files: int
    bytes: int
    fetched: int
    place: str
    licence: str

    def text(self) -> str:
        what = f"{self.kind} {self.name}" + (f", version {self.version}" if self.version else "")
        follow = (
            f'rdmpipe search {self.name} "a harbour at dawn" -k 5'
            if self.kind == "database"
            else f'rdmpipe generate "a red boat" --model {self.name}'
        )
        return "\n".join(
            [
                f"pulled {what} from {self.repo} at {self.commit[:12]}: {self.files:,} files, {self.bytes:,} "
                f"bytes; {self.fetched:,} "
                f"fetched, {self.files - self.fetched:,} existed already",
                f"licence: {self.licence}",
                f"{self.place}; try: {follow}",
            ]
        )


def pull(request: PullRequest, say: Say, finish_model: Callable[[Path], None] = lambda folder: None) -> PullSummary:
    """Pull a repository. `finish_model` is called with a model's folder before it gets its name, and may write into it.

    Raises SourceError if the repository does not exist or is refused, DatabaseError or ModelError if the name is taken.
    """
    hub, commit, there, listing = _find(request)
    _require_announced(listing, there, request.repo)
    asked = _Pull(request, hub, commit, listing, there.get(CARD), say)
    return _pull_database(asked) if listing.kind == "database" else _pull_model(asked, finish_model)


def _find(request: PullRequest) -> tuple[HubRepository, str, Mapping[str, HubFile], Listing]:
    """The repository at one commit: of the requested kind, else of the kind that exists."""
    kinds: tuple[Kind, ...] = (request.kind,) if request.kind else ("database", "model")
    found = []
    for kind in kinds:
        hub = repository(request.repo, kind, request.endpoint, request.revision)
        try:
            commit = hub.commit()
        except NoRepositoryError:
            if len(kinds) == 1:
                raise
            continue
        there = {file.path: file for file in hub.files(commit, ("*",), required=False)}
        if FILE in there:
            found.append((hub, commit, there, read_listing(read_file(hub, there[FILE], commit), request.repo)))
    if len(found) > 1:
        raise ConfigError(f"{request.repo} is a database and a model; say which with --kind database or --kind model")
    if found:
        hub, _, _, listing = found[0]
        if (listing.kind == "model") != (hub.kind == "model"):
            raise SourceError(f"{request.repo}: {FILE} is refused: a {listing.kind} in a repository of another kind")
        return found[0]
    raise SourceError(
        f"{request.repo}: no {FILE} in it, or no such repository for this token: it was not pushed with "
        "`rdmpipe push`, or that push is not finished. "
        "A data set of pictures is read with a manifest; a model in diffusers' layout with `--model OWNER/REPO`"
    )


def _require_announced(listing: Listing, there: Mapping[str, HubFile], repo: str) -> None:
    """Raise SourceError if the Hub reports other sizes or checksums than the listing; nothing is fetched then."""
    for file in listing.files:
        found = there.get(file.path)
        if found is None:
            raise SourceError(f"{repo}: {file.path} is listed and does not exist; push it again")
        if found.size != file.bytes or (len(found.identity) == 64 and found.identity != file.sha256):
            raise SourceError(
                f"{repo}: {file.path} is refused: the listing says {file.bytes:,} bytes with sha256 "
                f"{file.sha256[:12]}..., the Hub "
                f"{found.size:,} bytes{' with ' + found.identity[:12] + '...' if len(found.identity) == 64 else ''}"
            )


@dataclass(frozen=True)
class _Pull:
    """One pull: from where, and what."""

    request: PullRequest
    hub: HubRepository
    commit: str
    listing: Listing
    card: HubFile | None
    say: Say

    def fetch(self, file: Artifact, part: Path) -> None:
        """Fetch a file, or the rest of it, into `part`. Raises SourceError if the checksum is not the listed one."""
        part.parent.mkdir(parents=True, exist_ok=True)
        start = part.stat().st_size if part.exists() else 0
        if start > file.bytes:
            start = 0
            part.unlink()
        with part.open("ab") as out:
            if start < file.bytes:
                with self.hub.stream(file.path, self.commit, file.bytes) as remote:
                    remote.seek(start)
                    left = file.bytes - start
                    while left and (block := remote.read(min(left, 4 << 20))):
                        out.write(block)
                        left -= len(block)
        if part.stat().st_size != file.bytes or sha256_file(part) != file.sha256:
            part.unlink()
            raise SourceError(
                f"{self.hub.repo}: {file.path} is refused: the fetched file does not have the checksum {file.sha256[:12]}... "
                f"that {FILE} lists. Run the same command again; if it fails again, the repository is damaged"
            )

    def each(self, files: list[Artifact], action: Callable[[Artifact], None]) -> None:
        """Do the work for all files, several at a time, and report the progress. The first error ends it."""
        size, done, told = sum(file.bytes for file in files), 0, 0
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            futures = {pool.submit(action, file): file for file in files}
            try:
                for count, (future, file) in enumerate(futures.items(), 1):
                    future.result()
                    done += file.bytes
                    if done - told >= max(size // 20, 1) or count == len(files):
                        self.say(f"{self.hub.repo}: {count:,} of {len(files):,} files, {done:,} of {size:,} bytes")
                        told = done
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def require_room(self, folder: str, files: list[Artifact]) -> None:
        """Raise DiskFullError if the disk has too little space for the files."""
        place = Path(folder)
        while not place.exists():
            place = place.parent
        free, need = shutil.disk_usage(place).free, sum(file.bytes for file in files)
        if need > free:
            raise DiskFullError(
                f"{self.hub.repo} takes {need:,} bytes, and {place} has {free:,} free. Free some space, or set "
                "RDMPIPE_HOME to a "
                "folder on a larger disk, and run the same command again"
            )

    def summary(self, name: str, fetched: int, place: str, licence: str) -> PullSummary:
        listing = self.listing
        return PullSummary(
            listing.kind, name, self.hub.repo, self.commit, listing.version, len(listing.files), listing.bytes, fetched,
            place, licence,
        )  # fmt: skip


# ---- a database


def _pull_database(pull: _Pull) -> PullSummary:
    listing, request = pull.listing, pull.request
    name = request.name or listing.name
    if not NAME.match(name) or not is_name(name):
        raise ConfigError(f"name {name[:60]!r}: use lower-case letters, digits and _, parts joined by -")
    db = RetrievalDatabase(name, request.home)
    with lease(db.storage, f"pull {request.repo}", request.wait_s, notify=pull.say):
        _claim(db, pull)
        missing = [file for file in listing.files if not _is_here(db.storage, file)]
        if db.storage.is_local:
            pull.require_room(db.storage.url, missing)
        early = [file for file in missing if not file.path.startswith(_LAST)]
        late = [file for file in missing if file.path.startswith(_LAST)]
        with _parts(db.storage) as parts:
            pull.each(early, lambda file: _place(pull, db, file, parts))
            version = _version(pull, db, parts)
            for file in sorted(late, key=lambda file: _LAST.index(_first(file.path))):
                _place(pull, db, file, parts)
        for file in listing.files:
            if _has_list(file.path):
                record_sum(db.storage, file.path, file.sha256)
        record_receipts(db, version)
        if db.current_id() is None:
            db.publish(version, None)
        if db.storage.is_local:
            shutil.rmtree(Path(db.storage.full(".tmp")) / "pull", ignore_errors=True)
    licence = str(version.manifest.get("licence") or "not stated")
    return pull.summary(name, len(missing), db.storage.url, licence)


def _claim(db: RetrievalDatabase, pull: _Pull) -> None:
    """Mark the folder as this pull's. Raises DatabaseError if another database exists there or was begun there."""
    current, marked = db.current_id(), db.read_json(PULLED)
    mine = isinstance(marked, dict) and marked.get("repo") == pull.hub.repo
    other = f"pull under another name: rdmpipe pull {pull.hub.repo} NAME"
    if current == pull.listing.version:
        return
    if current is not None:
        raise DatabaseError(
            f"there is a database {db.name!r} already, at version {current}; the repository has "
            f"{pull.listing.version}. Remove it first "
            f"(`rdmpipe delete {db.name}`), or {other}"
        )
    if not mine and (db.storage.exists("manifest.json") or marked is not None):
        raise DatabaseError(f"a database {db.name!r} was begun here; {other}")
    about = {"repo": pull.hub.repo, "commit": pull.commit, "version": pull.listing.version}
    db.storage.write_text(PULLED, canonical_json(about) + "\n")


def _first(path: str) -> str:
    return next(start for start in _LAST if path.startswith(start))


def _has_list(path: str) -> bool:
    """Whether the database records a checksum of this file beside it (database/checksums.py)."""
    return (
        path in ("manifest.json", "blocked.txt")
        or path.startswith(("plan/", "versions/"))
        or path.endswith("entry.json")
    )


def _is_here(storage: Storage, file: Artifact) -> bool:
    """Whether a finished file of an earlier pull exists."""
    return storage.size(file.path) == file.bytes and storage.sha256(file.path) == file.sha256


@contextlib.contextmanager
def _parts(storage: Storage) -> Iterator[Path]:
    """A folder for unfinished files. On a disk it is kept, so that a later pull continues within a file."""
    if storage.is_local:
        folder = Path(storage.full(".tmp")) / "pull"
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    else:
        with storage.scratch() as folder:
            yield folder


def _place(pull: _Pull, db: RetrievalDatabase, file: Artifact, parts: Path) -> None:
    part = parts / file.sha256
    pull.fetch(file, part)
    db.storage.publish(part, file.path)


def _version(pull: _Pull, db: RetrievalDatabase, parts: Path) -> Version:
    """The version that the listing names, if the listing contains its files. Raises SourceError if not."""
    listed = {file.path: file for file in pull.listing.files}
    path = f"versions/{pull.listing.version}.json"
    if path not in listed:
        raise SourceError(f"{pull.hub.repo}: {FILE} is refused: it lists no {path}")
    if db.storage.exists(path):
        text = db.storage.read_text(path) or ""
    else:
        part = parts / listed[path].sha256
        pull.fetch(listed[path], part)
        text = part.read_text(encoding="utf-8", errors="backslashreplace")
    try:
        version = Version.from_json(text, pull.listing.version)
    except ConfigError as error:
        raise SourceError(f"{pull.hub.repo}: {path} is refused: {error}") from error
    needed = {"manifest.json", f"plan/{version.plan}.json", f"plan/{version.plan}.parquet"}
    wrong = [file.path for file in version.files() if listed.get(file.path) != file]
    wrong += sorted(needed - listed.keys())
    if wrong:
        raise SourceError(
            f"{pull.hub.repo}: {FILE} is refused: it does not list what version {version.id} of "
            f"{version.database!r} consists of: "
            f"{', '.join(wrong[:4])}"
        )
    return version


# ---- a model


def _pull_model(pull: _Pull, finish: Callable[[Path], None]) -> PullSummary:
    listing, request = pull.listing, pull.request
    name = request.name or listing.name
    home = request.home or default_home()
    if not is_name(name):
        raise ConfigError(
            f"name {name[:60]!r}: use lower-case letters, digits and _, parts joined by -; give one as NAME"
        )
    if "://" in home:
        raise ConfigError(f"models are kept on a disk, and the home is {home}; give --home FOLDER")
    target = Path(home) / "models" / name
    begun = Storage(str(target.parent / f".{name}.pull"))
    with lease(begun, f"pull {request.repo}", request.wait_s, notify=pull.say):
        if target.exists():
            here = Storage(str(target))
            if not all(_is_here(here, file) for file in listing.files):
                raise ModelError(
                    f"{target} exists already and holds something else; pull under another name: rdmpipe pull "
                    f"{request.repo} NAME"
                )
            files = []
        else:
            files = _fetch_model(pull, begun, target, finish)
    begun.remove("")
    licence = (
        front_matter((target / CARD).read_text("utf-8", "replace")).get("license") if (target / CARD).is_file() else ""
    )
    return pull.summary(name, len(files), str(target), str(licence or "not stated"))


def _fetch_model(pull: _Pull, begun: Storage, target: Path, finish: Callable[[Path], None]) -> list[Artifact]:
    """Fetch the missing files, let the caller finish the folder, and give it its name."""
    made = begun.child("model")
    files = [file for file in pull.listing.files if not _is_here(made, file)]
    pull.require_room(begun.url, files)
    with _parts(begun) as parts:

        def take(file: Artifact) -> None:
            part = parts / file.sha256
            pull.fetch(file, part)
            made.publish(part, file.path)

        pull.each(files, take)
    folder = Path(made.url)
    if (card := pull.card) is not None:
        (folder / CARD).write_bytes(read_file(pull.hub, card, pull.commit, _MOST_CARD))
    finish(folder)
    shutil.rmtree(folder / ".tmp", ignore_errors=True)
    folder.replace(target)
    return files
