"""A second encoder's vectors for the pictures of a database, without fetching the pictures again.

The vectors are put into a separate database, the companion NAME_ENCODER (pipeline/catalog/vectors.py), whose source is the
pictures that NAME keeps. Reads: the database's version, settings, rows and block list. Writes: the companion's manifest in
<home>/manifests, and its block list. Builds nothing.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from pipeline.building.request import STAGES, BuildRequest, begun
from pipeline.catalog import base_of, command_that_adds, companion_name, companions, keeps_pictures
from pipeline.config import default_home
from pipeline.database import BlockList, RetrievalDatabase, Version, gone_keys, read_block_list, write_block_list
from pipeline.encoders import same_encoder
from pipeline.errors import DatabaseError
from pipeline.schema import FROM_SOURCE


def for_second_encoder(request: BuildRequest) -> BuildRequest:
    """The request that builds NAME_ENCODER from the pictures of a published NAME, or brings it up to date; any other request
    unchanged.

    Raises DatabaseError if NAME does not keep its pictures.
    """
    if not request.encoder or request.name:
        return request
    base = base_of(request.target, request.home)
    database = RetrievalDatabase(base, request.home)
    if not database.exists() or same_encoder(database.version().encoder.name, request.encoder):
        return request
    version = database.version()
    if not keeps_pictures(database):
        raise DatabaseError(
            f"database {base!r} does not keep its pictures on this disk (--images {version.images}), so another encoder cannot "
            f"read them. {command_that_adds(database, request.encoder)} reads the source again"
        )
    same = [one for one in companions(base, request.home) if same_encoder(one.encoder, request.encoder)]
    # An encoder may have two names; an existing companion keeps the name it has.
    encoder = same[0].encoder if same else request.encoder
    name = companion_name(base, encoder)
    manifests = Path(request.home or default_home()) / "manifests"
    manifests.mkdir(parents=True, exist_ok=True)
    manifest = manifests / f"{name}.toml"
    if not manifest.is_file():
        manifest.write_text(_manifest(database, version, name, encoder), encoding="utf-8")
    second = RetrievalDatabase(name, request.home)
    write_block_list(second.storage, _left_out(database, version, encoder))
    return replace(request, target=str(manifest), encoder=encoder, stages=STAGES, refresh=second.exists())


def _left_out(database: RetrievalDatabase, version: Version, encoder: str) -> BlockList:
    """The kept pictures that are not part of the database: purged rows, and pictures of rows that were removed later.

    Raises DatabaseError if only the metadata of a row changed, because its old picture cannot be distinguished from the
    new one.
    """
    blocked = read_block_list(database.storage)
    gone = set(gone_keys(database, version.gone))
    if not gone:
        return blocked
    living: set[str] = set()
    left: set[str] = set()
    for shard in version.shards:
        for row in database.read_table(shard.artifact, ["key", "sha256"]).to_pylist():
            if row["sha256"]:
                (left if row["key"] in gone else living).add(row["sha256"])
    if left & living:
        raise DatabaseError(
            f"database {database.name!r} keeps {len(left & living):,} picture(s) twice, because their metadata changed since "
            f"they were fetched: another encoder would read both. {command_that_adds(database, encoder, from_source=True)} "
            "reads the source as it is now"
        )
    return blocked.with_values("sha256", left)


def _manifest(database: RetrievalDatabase, version: Version, name: str, encoder: str) -> str:
    """A manifest, as TOML, whose source is the picture tars of another database."""
    before = (begun(database.name, database.home) or {})["manifest"]
    # JSON strings and lists of strings are valid TOML.
    top = {
        "name": name,
        "title": f"{before['title']}, vectors of {encoder}",
        "licence": before["licence"],
        "terms": before["terms"],
        "opt_out": before["opt_out"],
        "encoder": encoder,
    }
    source = {
        "kind": "webdataset",
        "path": f"{database.storage.url}/images",
        "files": ["*.tar"],
        "item_id": "item_id",
        "caption": "caption",
        "licence": "licence",
        "source_url": "url",
        "columns": [column for column in version.columns if column not in FROM_SOURCE],
    }
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in top.items()]
    lines += ["[source]", *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in source.items())]
    return "\n".join(lines) + "\n"
