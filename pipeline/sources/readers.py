"""The reader of a manifest: the class of its kind, wrapped for random crops if the manifest has `patches`."""

from __future__ import annotations

import importlib

from pipeline.errors import ManifestError, nearest
from pipeline.sources.base import Source, SourceOptions
from pipeline.sources.kinds import READERS
from pipeline.sources.manifest import Manifest


def open_source(manifest: Manifest, options: SourceOptions | None = None) -> Source:
    """The reader of a manifest's source. Raises ManifestError (unknown kind) or SourceError."""
    kind = manifest.source.kind
    if kind not in READERS:
        raise ManifestError(
            f"{manifest.name}: unknown source kind {kind!r}{nearest(kind, READERS)}; known: {', '.join(READERS)}"
        )
    module, name = READERS[kind].split(":")
    reader: Source = getattr(importlib.import_module(module), name)(manifest, options or SourceOptions())
    if manifest.patches is None:
        return reader
    from pipeline.sources.patches import patched

    return patched(reader, manifest.patches)
