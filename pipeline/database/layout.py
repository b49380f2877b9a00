"""RetrievalDatabase: every path under `<home>/databases/<name>`, its versions, and the pointer to the current one.

Reads and writes, all through `Storage` (each file whole or not at all):

    manifest.json                               frozen copy of the manifest, and the build's settings
    plan/<id>.parquet                           the list of shards, and what each of them reads
    images/<shard>.tar .parquet .json           pictures in img2dataset's layout, rows, receipt
    thumbnails/<shard>.tar                      256-pixel JPEGs, if the pictures were not kept
    embeddings/<encoder>/<shard>.parquet .json  rows with unit vectors, receipt
    index/<encoder>/<id>/                       keys.npy vectors.npy norms.npy metadata.parquet [index.faiss [values.lists]]
    gone/<id>.parquet                           keys that left the database (see database/tombstones.py)
    versions/<id>.json, current                 the files of a version; the id of the current version
    versions/<id>.purged                        a version that was removed because it held purged rows
    pulled.json                                 the repository on the Hub that the database was pulled from
    former_names                                former names, which `rdmpipe rename` replaced, one a line
    renaming.json                               the database that is being copied here, by a renaming on an object store
    blocked.txt                                 the block list: hashes of what was purged (see database/blocklist.py)
    .checksums/                                 checksums of files that no version lists (see database/checksums.py)

Files that only older versions use may disappear, because `rdmpipe gc` removes them. A file with another content than was
written is a DamagedError, which names the file and the command that repairs it.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import default_home
from pipeline.database.checksums import recorded_problem, write_recorded
from pipeline.database.version import Version
from pipeline.encoders import EncoderRecord
from pipeline.errors import ConfigError, ConflictError, DamagedError, DatabaseError, nearest
from pipeline.execution import Receipt
from pipeline.schema import check_name, is_name, read_parquet, shard_name
from pipeline.storage import Artifact, Storage

if TYPE_CHECKING:
    import pyarrow as pa

_ID = re.compile(r"[0-9a-f]{12}")

_ID_BEGINNING = re.compile(r"[0-9a-f]{1,12}")


PULLED = "pulled.json"

BEGUN = ("manifest.json", PULLED)  # a folder with one of these is a database, published or not

FORMER_NAMES = "former_names"

RENAMING = "renaming.json"


class RetrievalDatabase:
    """One database's directory. Cheap to build and picklable; holds no open file.

    Raises DatabaseError for a text that cannot be a database's name, so that no name leads out of the home.
    """

    def __init__(self, name: str, home: str | None = None) -> None:
        self.name = check_name(name)
        self.home = home or default_home()
        self.storage = Storage(f"{self.home.rstrip('/')}/databases/{name}")

    def __repr__(self) -> str:
        return f"RetrievalDatabase({self.name!r}, {self.home!r})"

    # ---- paths, relative to the storage's root

    def image_tar(self, shard: int) -> str:
        return f"images/{shard_name(shard)}.tar"

    def image_table(self, shard: int) -> str:
        return f"images/{shard_name(shard)}.parquet"

    def thumbnail_tar(self, shard: int) -> str:
        return f"thumbnails/{shard_name(shard)}.tar"

    def embedding_folder(self, encoder: EncoderRecord) -> str:
        return f"embeddings/{encoder.id}"

    def embedding_table(self, encoder: EncoderRecord, shard: int) -> str:
        return f"embeddings/{encoder.id}/{shard_name(shard)}.parquet"

    def embedding_receipt(self, encoder: EncoderRecord, shard: int) -> str:
        return f"embeddings/{encoder.id}/{shard_name(shard)}.json"

    def index_folder(self, encoder: EncoderRecord, index_id: str) -> str:
        return f"index/{encoder.id}/{index_id}"

    # ---- files

    def damaged(self, relative: str, problem: str) -> DamagedError:
        """The error for a damaged file of this database."""
        where = "" if self.home == default_home() else f" --home {shlex.quote(self.home)}"
        return DamagedError(
            f"{self.storage.full(relative)} is damaged: {problem}. `rdmpipe check {self.name}{where}` lists all damaged files; "
            f"`rdmpipe check {self.name}{where} --repair` rebuilds what can be rebuilt"
        )

    def read_json(self, relative: str) -> object:
        """The value in a JSON file; None if there is no file. Raises DamagedError, also if the recorded checksum differs."""
        if problem := recorded_problem(self.storage, relative, self.storage.read_text(relative)):
            raise self.damaged(relative, problem)
        return self.storage.read_json(relative, self.damaged)

    def read_receipt(self, relative: str) -> Receipt:
        """A receipt that must exist. Raises DamagedError."""
        text = self.storage.read_text(relative)
        if text is None:
            raise self.damaged(relative, "the file is missing")
        try:
            return Receipt.from_json(text)
        except ConfigError as error:
            raise self.damaged(relative, str(error)) from error

    def local(self, artifact: Artifact) -> Path:
        """A local path of a finished file of a version. Raises DamagedError, as `Storage.require` does."""
        try:
            if self.storage.is_local:  # a store's file is checked when it is fetched
                self.storage.require(artifact)
            return self.storage.local(artifact)
        except DamagedError as error:
            raise self.damaged(artifact.path, str(error)) from error

    def write_table(self, relative: str, table: pa.Table, **options: Any) -> Artifact:
        """Write a Parquet file. `options` are those of pyarrow.parquet.write_table. The same table gives the same bytes."""
        import pyarrow.parquet as pq

        options = {"compression": "zstd", "row_group_size": 10_000, **options}
        with self.storage.scratch() as scratch:
            part = scratch / "part.parquet"
            pq.write_table(table, part, **options)
            return self.storage.publish(part, relative)

    def read_table(self, file: str | Artifact, columns: list[str] | None = None) -> pa.Table:
        """The rows of a Parquet file. Raises DamagedError for a file that is missing, unreadable or without the columns.

        file: its path, or its artifact, whose size (and, for a small file, checksum) is then checked first.
        """
        import pyarrow as pa

        relative = file if isinstance(file, str) else file.path
        try:
            if isinstance(file, Artifact):
                self.storage.require(file)
            with self.storage.open(relative) as handle:
                table = read_parquet(handle, columns=columns)
        except FileNotFoundError as error:
            raise self.damaged(relative, "the file is missing") from error
        except DamagedError as error:
            raise self.damaged(relative, str(error)) from error
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self.damaged(relative, f"it cannot be read as Parquet: {error}") from error
        missing = [name for name in columns or () if name not in table.column_names]
        if missing:
            raise self.damaged(relative, f"it has no column {', '.join(missing)}")
        return table

    # ---- versions

    def exists(self) -> bool:
        """Whether a version was published."""
        return self.current_id() is not None

    def current_id(self) -> str | None:
        """The id of the current version; None if nothing was published. Raises DamagedError."""
        text = self.storage.read_text("current")
        if text is None:
            return None
        if not _ID.fullmatch(text.strip()):
            raise self.damaged("current", f"expected the id of a version, 12 hex digits, and found {text[:40]!r}")
        return text.strip()

    def version(self, version: str = "") -> Version:
        """A version by its id or a unique prefix of it, or the current version. Raises DatabaseError."""
        if version and not _ID_BEGINNING.fullmatch(version):
            raise DatabaseError(
                f"{version[:60]!r} is not a version of a database: expected up to 12 hex digits, as `rdmpipe versions "
                f"{self.name}` lists them"
            )
        current = None if version else self.current_id()
        wanted = version or current
        if wanted is None and isinstance(pulled := self.read_json(PULLED), dict):
            raise DatabaseError(
                f"database {self.name!r} was pulled in part; run `rdmpipe pull {pulled.get('repo')} {self.name}` to continue"
            )
        if wanted is None and isinstance(moved := self.read_json(RENAMING), dict):
            raise DatabaseError(
                f"database {self.name!r} is an unfinished copy of {moved.get('from')!r}; run `rdmpipe rename "
                f"{moved.get('from')} {self.name}` to continue, or `rdmpipe delete {self.name}`"
            )
        if wanted is None:
            raise DatabaseError(
                f"database {self.name!r} was started but never finished; run `{self.build_command()}` to continue"
                if self.storage.exists("plan")
                else f"no database {self.name!r} in {self.home}; build it with `rdmpipe build-index {self.name}`"
            )
        text = self.storage.read_text(f"versions/{wanted}.json")
        if text is None and current is not None:
            raise self.damaged("current", f"it names version {current}, and versions/{current}.json does not exist")
        if text is None:
            wanted = self._unique(wanted)
            text = self.storage.read_text(f"versions/{wanted}.json") or ""
        return self._checked(wanted, text)

    def _checked(self, version: str, text: str) -> Version:
        try:
            found = Version.from_json(text, version)
        except ConfigError as error:
            raise self.damaged(f"versions/{version}.json", str(error)) from error
        if problem := recorded_problem(self.storage, f"versions/{version}.json", text):
            raise self.damaged(f"versions/{version}.json", problem)
        return found

    def _unique(self, beginning: str) -> str:
        """The only version whose id has this prefix. Raises DatabaseError."""
        known = self.versions()
        begins = [name for name in known if name.startswith(beginning)]
        if len(begins) == 1:
            return begins[0]
        if any(name.startswith(beginning) for name in self.storage.list("versions", ".purged")):
            raise DatabaseError(
                f"version {beginning} of database {self.name!r} was purged: it held rows that were removed permanently. "
                f"Use {self.name}@{self.current_id()}, the current version, which does not hold them"
            )
        problem = "has several versions that begin with" if begins else "has no version"
        raise DatabaseError(
            f"database {self.name!r} {problem} {beginning!r}{nearest(beginning, known)}; it has {', '.join(known) or 'none'}"
        )

    def build_command(self) -> str:
        """The command that continues an unfinished build, with its part of the source and its filter."""
        try:
            written = self.read_json("manifest.json")
        except DamagedError:
            written = None
        found = written.get("settings") if isinstance(written, dict) else None
        settings = found if isinstance(found, dict) else {}
        words = ["rdmpipe", "build-index", self.name]
        if settings.get("limit"):
            words += ["--limit", str(settings["limit"])]
        if isinstance(settings.get("shards"), list):
            words += ["--shards", ":".join(map(str, settings["shards"]))]
        if settings.get("where"):
            words += ["--where", str(settings["where"])]
        return shlex.join(words)

    def versions(self) -> list[str]:
        """The ids of all versions, sorted."""
        return [name.removesuffix(".json") for name in self.storage.list("versions", ".json")]

    def publish(self, version: Version, expected: str | None) -> None:
        """Write the version file and move `current` from `expected` to it. Raises ConflictError if `current` moved."""
        write_recorded(self.storage, f"versions/{version.id}.json", version.to_json())
        if expected == version.id == self.current_id():
            return
        if not self.storage.swap("current", expected, version.id):
            raise ConflictError(
                f"database {self.name!r}: another build published {self.current_id()} while this one was working from "
                f"{expected}. Nothing was overwritten: run the same command again."
            )


def list_databases(home: str | None = None) -> list[str]:
    """Names of the databases in a home that have a published version."""
    root = Storage(home or default_home())
    names = root.list("databases")
    return [name for name in names if is_name(name) and root.exists(f"databases/{name}/current")]


# ---- names


def record_former_name(database: RetrievalDatabase, name: str) -> None:
    """Add a name to a database's former names, before the database loses it."""
    known = former_names(database)
    database.storage.write_text(FORMER_NAMES, "".join(f"{one}\n" for one in dict.fromkeys([*known, name])))


def renamed_to(name: str, home: str | None = None) -> str:
    """The database that was formerly called `name`; empty if there is none, or if a database has this name now.

    A folder that only a removal left behind is no database.
    """
    root = Storage(home or default_home())
    names = [other for other in root.list("databases") if is_name(other)]
    if name in names and any(root.exists(f"databases/{name}/{file}") for file in ("current", *BEGUN)):
        return ""
    found = [one for one in names if one != name and name in former_names(RetrievalDatabase(one, home))]
    return found[-1] if found else ""


def former_names(database: RetrievalDatabase) -> list[str]:
    """The names that a database had before it was renamed, the oldest first."""
    return _former_names(database.storage.read_text(FORMER_NAMES))


def _former_names(text: str | None) -> list[str]:
    return [line for line in (text or "").split("\n") if is_name(line)]
