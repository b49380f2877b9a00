"""A second encoder's vectors for the pictures of a database, without fetching the pictures again.

The vectors get a database of their own, NAME_ENCODER, whose source is the pictures that NAME keeps. Reads: the database's
version, settings and block list. Writes: the new database's manifest in <home>/manifests, and its block list. Builds nothing.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from pipeline.building.request import STAGES, BuildRequest, begun
from pipeline.catalog import base_of
from pipeline.config import default_home
from pipeline.database import RetrievalDatabase, Version, read_block_list, write_block_list
from pipeline.encoders import same_encoder
from pipeline.errors import DatabaseError
from pipeline.schema import FROM_SOURCE


def second_name(base: str, encoder: str) -> str:
    """The name of a database with the same pictures as `base` and another encoder's vectors: `wikiart_vit_h_14`."""
    slug = re.sub(r"[^a-z0-9]+", "_", encoder.lower()).strip("_")[-40:].strip("_")
    return f"{base}_{slug}"


def for_second_encoder(request: BuildRequest) -> BuildRequest:
    """The request that builds NAME_ENCODER from the pictures of a published NAME; any other request as it is.

    Raises DatabaseError where NAME does not keep its pictures, or holds rows that were removed since.
    """
    if not request.encoder or request.name:
        return request
    base = base_of(request.target, request.home)
    database = RetrievalDatabase(base, request.home)
    if not database.exists() or same_encoder(database.version().encoder.name, request.encoder):
        return request
    name, version = second_name(base, request.encoder), database.version()
    _require_pictures(database, version, request.encoder)
    manifests = Path(request.home or default_home()) / "manifests"
    manifests.mkdir(parents=True, exist_ok=True)
    manifest = manifests / f"{name}.toml"
    if not manifest.is_file():
        manifest.write_text(_manifest(database, version, name, request.encoder), encoding="utf-8")
    second = RetrievalDatabase(name, request.home)
    write_block_list(second.storage, read_block_list(database.storage))
    return replace(request, target=str(manifest), stages=STAGES)


def _require_pictures(database: RetrievalDatabase, version: Version, encoder: str) -> None:
    base = database.name
    command = f"`rdmpipe build-index {base} --encoder {encoder} --name {second_name(base, encoder)}`"
    settings = (begun(base, database.home) or {}).get("settings", {})
    if settings.get("images") != "keep" or "://" in database.storage.url:
        raise DatabaseError(
            f"database {base!r} does not keep its pictures on this disk (--images {settings.get('images')}), so another "
            f"encoder cannot read them. {command} fetches them again"
        )
    if version.gone is not None:
        raise DatabaseError(
            f"database {base!r} keeps pictures of rows that were removed since, which another encoder would read. {command} "
            "reads the source as it is now"
        )


def _manifest(database: RetrievalDatabase, version: Version, name: str, encoder: str) -> str:
    """A manifest, as TOML, whose source is the tars of another database."""
    before = (begun(database.name, database.home) or {})["manifest"]
    # JSON's strings and lists of strings are TOML's.
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
