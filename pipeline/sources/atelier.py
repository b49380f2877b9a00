"""Pictures that the project draws itself: no download, in any number, the same pictures for the same options.

[source.options]: count (how many), size (pixels a side, 64 to 1024), seed, layout (`grid`: every content in every style;
`own`: a different content in each picture), style (only this one). Reads and writes nothing. item id: seed, content, style.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal

from pipeline.config import digest, from_mapping
from pipeline.errors import SourceError
from pipeline.sources.base import Sample, ShardSpec, SourceOptions, Spec
from pipeline.sources.drawing import About, Drawers, Drawing
from pipeline.sources.manifest import Manifest

_TYPES: dict[type, str] = {str: "string", bool: "bool", int: "int64", float: "float64"}

_WORTH_PROCESSES = 500 * 128**2  # pixels of all pictures: a process takes about a second to start

_NOT_COLUMNS = ("item_id", "caption")

_PNG_BYTES_PER_PIXEL = 1.5  # measured: 75 kB at 256 pixels, 8 kB at 64; rounded up


@dataclass(frozen=True)
class AtelierOptions:
    count: int = 10_000
    size: int = 128
    seed: int = 0
    layout: Literal["grid", "own"] = "grid"
    style: str = ""


class AtelierSource:
    rereadable = True
    revision_is_whole = True

    def __init__(self, manifest: Manifest, options: SourceOptions) -> None:
        self.own = from_mapping(AtelierOptions, manifest.source.options, f"{manifest.name} [source] options")
        self.shard_rows = manifest.source.shard_rows
        if self.own.count < 1:
            raise SourceError(
                f"{manifest.name} [source] options: count is {self.own.count}; ask for at least one picture"
            )
        self.count = min(self.own.count, options.limit or self.own.count)
        worth_it = self.count * self.own.size**2 >= _WORTH_PROCESSES
        self.processes = options.processes if worth_it else 1
        self._describe(0)  # raises if the options are invalid

    def columns(self) -> dict[str, str]:
        return {name: _TYPES[type(value)] for name, value in self._describe(0).items() if name not in _NOT_COLUMNS}

    def plan(self) -> Iterator[ShardSpec]:
        drawing = [self.revision(), self.own.size, self.own.seed, self.own.layout, self.own.style]
        for start in range(0, self.count, self.shard_rows):
            stop = min(start + self.shard_rows, self.count)
            yield ShardSpec(
                rows=stop - start,
                fingerprint=digest(["atelier", *drawing, start, stop]),
                spec={"start": start, "stop": stop},
            )

    def read(self, spec: Spec) -> Iterator[Sample]:
        for about, data in self._drawn(spec["start"], spec["stop"]):
            yield Sample(
                item_id=str(about["item_id"]),
                data=data,
                caption=str(about["caption"]),
                metadata={name: value for name, value in about.items() if name not in _NOT_COLUMNS},
            )

    def _drawn(self, start: int, stop: int) -> Iterator[tuple[About, bytes]]:
        """(metadata, PNG file) of the pictures from `start` to before `stop`."""
        if self.processes > 1:
            yield from self._drawers.draw(start, stop)
            return
        from pipeline.atelier import picture, png_bytes

        for index in range(start, stop):
            made = picture(index, **asdict(self._drawing))
            yield made.metadata, png_bytes(made.image)

    @property
    def _drawing(self) -> Drawing:
        return Drawing(self.own.seed, self.own.size, self.own.style or None, self.own.layout)

    @cached_property
    def _drawers(self) -> Drawers:
        return Drawers(self._drawing, self.processes)

    def estimate(self) -> tuple[int, int]:
        return self.count, int(self.count * self.own.size**2 * _PNG_BYTES_PER_PIXEL)

    def revision(self) -> str:
        """A hash over one small picture in every style: it changes when the drawing code does."""
        return self._revision

    def left_out(self) -> dict[str, int]:
        return {}

    @cached_property
    def _revision(self) -> str:
        from pipeline.atelier import STYLES, picture

        hasher = hashlib.sha256()
        for style in STYLES:
            hasher.update(picture(0, style=style, size=64).image.tobytes())
        return hasher.hexdigest()[:16]

    def _describe(self, index: int) -> dict[str, str | int]:
        from pipeline.atelier import metadata

        found: dict[str, str | int] = metadata(
            index, seed=self.own.seed, style=self.own.style or None, layout=self.own.layout
        )
        return found
