"""rdmpipe.json lists the files of a repository on the Hub that rdmpipe wrote, each with its checksum.

    {"format": 1, "kind": "database", "name": "wikiart", "version": "0123456789ab", "made_by": "...", "files": [...]}

Repositories are untrusted: `read_listing` accepts a listing only if each path is one that a database or a model has, so that
nothing is written elsewhere, and no pickle or program is fetched. Reads and writes nothing itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.config import canonical_json, from_mapping, parse_json
from pipeline.database import RetrievalDatabase, Version
from pipeline.errors import ConfigError, SourceError
from pipeline.schema import is_name, shard_name
from pipeline.storage import Artifact

FILE = "rdmpipe.json"

FORMAT = 1

MOST_BYTES = 64 << 20  # of rdmpipe.json: enough for some 300,000 files

Kind = Literal["database", "model"]

_FOLDER = r"[a-z0-9][a-z0-9-]{0,80}"

_SHARD = r"[0-9]{6,12}"

_ID = r"[0-9a-f]{8,64}"

_PATHS: Mapping[str, re.Pattern[str]] = {
    "database": re.compile(
        "|".join(
            (
                r"(?:manifest|encoder)\.json|blocked\.txt",
                r"versions/[0-9a-f]{12}\.json",
                rf"plan/{_ID}\.(?:json|parquet)",
                rf"gone/{_ID}\.parquet",
                rf"embeddings/{_FOLDER}/{_SHARD}\.(?:json|parquet)",
                rf"images/{_SHARD}\.(?:json|parquet|tar)",
                rf"thumbnails/{_SHARD}\.tar",
                rf"index/{_FOLDER}/{_ID}/(?:entry\.json|metadata\.parquet|(?:keys|vectors|norms)\.npy|index\.faiss)",
            )
        )
    ),
    "model": re.compile(
        "|".join(
            (
                r"rdm\.json|README\.md|LICENSE|scheduler/scheduler_config\.json",
                r"(?:unet|vae|vqvae|folded)/config\.json",
                r"(?:unet|vae|vqvae)/diffusion_pytorch_model(?:-[0-9]{5}-of-[0-9]{5})?\.safetensors",
                r"(?:unet|vae|vqvae)/diffusion_pytorch_model\.safetensors\.index\.json",
            )
        )
    ),
}

_SUM = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Listing:
    """The contents of a repository. `version` is that of a database, and empty for a model."""

    kind: Kind
    name: str
    version: str
    files: tuple[Artifact, ...]
    made_by: str = ""
    format: int = FORMAT

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def to_json(self) -> str:
        return canonical_json(self) + "\n"


def belongs(kind: Kind, path: str) -> bool:
    """Whether a file of a database or a model can have this path."""
    return _PATHS[kind].fullmatch(path) is not None


def read_listing(text: bytes, repo: str) -> Listing:
    """The listing in a repository's rdmpipe.json. Raises SourceError for anything that rdmpipe does not write."""
    try:
        table = parse_json(text)
        if not isinstance(table, Mapping):
            raise ConfigError("an object was expected")
        if table.get("format") != FORMAT:
            raise ConfigError(
                f"format is {table.get('format')!r}; this rdmpipe reads {FORMAT}. A newer rdmpipe may read it"
            )
        found = from_mapping(Listing, table, FILE)
        _check(found)
    except (ConfigError, ValueError) as error:
        raise SourceError(f"{repo}: {FILE} is refused: {error}") from error
    return found


def _check(listing: Listing) -> None:
    """Raise ConfigError for invalid names, paths, sizes or checksums."""
    if listing.kind == "database" and (not is_name(listing.name) or not re.fullmatch(r"[0-9a-f]{12}", listing.version)):
        raise ConfigError(f"it names database {listing.name[:60]!r}, version {listing.version[:60]!r}")
    for file in listing.files:
        if not belongs(listing.kind, file.path):
            raise ConfigError(f"{file.path[:120]!r} is not a file of a {listing.kind}; nothing was fetched")
        if not _SUM.fullmatch(file.sha256) or not 0 <= file.bytes < 1 << 48:
            raise ConfigError(f"{file.path}: {file.bytes} bytes with the checksum {file.sha256[:70]!r} is not possible")
    if len({file.path for file in listing.files}) != len(listing.files):
        raise ConfigError("it lists a file twice")


def database_files(db: RetrievalDatabase, version: Version) -> list[Artifact]:
    """The files that the current version needs, and that `rdmpipe check` compares, by path. Raises DamagedError."""
    storage = db.storage
    found = {artifact.path: artifact for artifact in version.files()}

    def small(path: str) -> None:
        data = storage.read_bytes(path)
        found[path] = _artifact(path, data)

    for path in (
        "manifest.json",
        f"versions/{version.id}.json",
        f"plan/{version.plan}.json",
        f"plan/{version.plan}.parquet",
        f"{db.index_folder(version.encoder, version.index.id)}/entry.json",
    ):
        if not storage.exists(path):
            raise db.damaged(path, "the file is missing")
        small(path)
    for path in ("encoder.json", "blocked.txt"):
        if storage.exists(path):
            small(path)
    for shard in version.shards:
        made = db.embedding_receipt(version.encoder, shard.id)
        found |= {artifact.path: artifact for artifact in db.read_receipt(made).artifacts}
        small(made)
        fetched = f"images/{shard_name(shard.id)}.json"
        if storage.exists(fetched):
            kept = db.read_receipt(fetched).artifacts
            found |= {one.path: one for one in kept if version.images == "keep" or one.path.endswith(".parquet")}
            small(fetched)
    for path in found:
        if not belongs("database", path):
            raise db.damaged(path, "a version names it, but it is not a file of a database")
    return _sorted(found.values())


def _sorted(files: Iterable[Artifact]) -> list[Artifact]:
    return sorted(files, key=lambda file: file.path)


def _artifact(path: str, data: bytes) -> Artifact:
    import hashlib

    return Artifact(path, hashlib.sha256(data).hexdigest(), len(data))
