"""Random crops of a source's pictures as rows, for a manifest's `patches`.

Reads: the wrapped source. Writes nothing. Every row of the source becomes `per_image` consecutive rows with the same item and
picture. Which crop a row is depends only on the seed, the item and the row's place among them (`box_of`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.config import digest
from pipeline.errors import SourceError
from pipeline.images import upright_size
from pipeline.schema import IMAGE_KEY, OK, PATCH_COORDS
from pipeline.sources.base import FetchingSource, Row, Sample, ShardSpec, Source, Spec
from pipeline.sources.manifest import Patches


def box_of(patches: Patches, item: str, patch: int, width: int, height: int) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) of a crop in pixels of the upright picture: a square of `size`, or of the shorter side if that is
    less, at a uniformly distributed position."""
    side = min(patches.size, width, height)
    drawn = hashlib.sha256(f"{patches.seed} {patch} {item}".encode("utf-8", "surrogatepass")).digest()
    x0 = int.from_bytes(drawn[:8], "big") % (width - side + 1)
    y0 = int.from_bytes(drawn[8:16], "big") % (height - side + 1)
    return x0, y0, x0 + side, y0 + side


def written(box: Sequence[int]) -> str:
    """A box as the column stores it: `0, 0, 256, 256`."""
    return ", ".join(map(str, box))


def read_box(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def name_patches(
    patches: Patches, rows: list[Row], batch: list[Sample], last: tuple[Sample, int] | None
) -> tuple[Sample, int] | None:
    """Give rows their image_key, the key of the picture's first row in the shard, and if its size can be read their
    patch_coords. `last` is the row before these, with its image_key; returns the same for the next rows."""
    for row, sample in zip(rows, batch, strict=True):
        same = last is not None and (last[0].item_id, last[0].url) == (sample.item_id, sample.url)
        image = last[1] if last is not None and same and sample.patch > last[0].patch else row["key"]
        last = sample, image
        row[IMAGE_KEY] = image
        size = upright_size(sample.data) if row["status"] == OK and sample.data else None
        row[PATCH_COORDS] = written(box_of(patches, sample.item_id, sample.patch, *size)) if size else None
    return last and (replace(last[0], data=None), last[1])


def patched(source: Source, patches: Patches) -> Source:
    """The source with `per_image` rows for each of its own."""
    return PatchedUrls(source, patches) if isinstance(source, FetchingSource) else Patched(source, patches)


class Patched:
    def __init__(self, source: Source, patches: Patches) -> None:
        self.source, self.patches = source, patches
        self.rereadable = source.rereadable

    @property
    def revision_is_whole(self) -> bool:
        return self.source.revision_is_whole

    def columns(self) -> dict[str, str]:
        own = self.source.columns()
        for name in (IMAGE_KEY, PATCH_COORDS):
            if name in own:
                raise SourceError(f"the source has a column {name!r}, which patches write; leave it out with `columns`")
        return {**own, IMAGE_KEY: "int64", PATCH_COORDS: "string"}

    def plan(self) -> Iterator[ShardSpec]:
        for spec in self.source.plan():
            rows = spec.rows * self.patches.per_image if spec.rows >= 0 else -1
            yield replace(spec, rows=rows, fingerprint=digest([spec.fingerprint, "patches", self.patches.per_image]))

    def read(self, spec: Spec) -> Iterator[Sample]:
        for sample in self.source.read(spec):
            for patch in range(self.patches.per_image):
                yield replace(sample, patch=patch)

    def estimate(self) -> tuple[int, int]:
        rows, size = self.source.estimate()
        return rows * self.patches.per_image, size

    def revision(self) -> str:
        return self.source.revision()

    def left_out(self) -> dict[str, int]:
        return self.source.left_out()


class PatchedUrls(Patched):
    def fetch(self, samples: Sequence[Sample], scratch: Path) -> Iterator[Sample]:
        assert isinstance(self.source, FetchingSource)
        yield from self.source.fetch(samples, scratch)
