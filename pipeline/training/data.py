"""Labelled pictures for training, in memory: from Parquet files of a style collection or from retrieval databases.

Reads: Parquet with the columns caption, style, tags, license, png and one that names the content (base_hexcode), or the
image shards of a database. Writes nothing. Decides what is held out: whole styles, and a share of the contents in all
styles, the same for everybody who asks with the same pictures and names.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, SourceError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DataConfig:
    """What to train on.

    parquet     files or glob patterns
    atelier     contents of the atelier (seed 0), each drawn in every style; its own held-out contents are held out
    contents    share of the contents held out, in all styles; only such whose every word remains in another caption or
                tag, because a text tower trained from nothing cannot know a word that it never read
    styles      styles held out whole
    size        pixels a side
    """

    parquet: tuple[str, ...] = ()
    databases: tuple[str, ...] = ()
    atelier: int = 0
    held_out_contents: float = 0.1
    held_out_styles: tuple[str, ...] = ()
    size: int = 64


@dataclass(frozen=True)
class LabelledPictures:
    """N labelled pictures: pixels (N, 3, S, S) uint8, and per picture its texts and names."""

    pixels: Tensor
    captions: tuple[str, ...]
    tags: tuple[str, ...]
    contents: tuple[str, ...]
    styles: tuple[str, ...]
    licences: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.captions)

    def take(self, rows: Sequence[int]) -> LabelledPictures:
        def pick(values: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(values[i] for i in rows)

        texts = (self.captions, self.tags, self.contents, self.styles, self.licences)
        return LabelledPictures(self.pixels[list(rows)], *(pick(values) for values in texts))


def read_pictures(config: DataConfig, cache: Path | None = None, home: str | None = None) -> LabelledPictures:
    """All pictures of the sources, held out or not, on white ground. Raises SourceError naming what is missing.

    The atelier's are drawn once and kept in `cache`, a folder.
    """
    import torch

    rows: list[tuple[Any, ...]] = []
    for pattern in config.parquet:
        rows += _parquet_rows(Path(pattern), config.size)
    for name in config.databases:
        rows += _database_rows(name, home, config.size)
    if config.atelier:
        rows += _atelier_rows(config.atelier, config.size, cache)
    if not rows:
        raise ConfigError(
            "no pictures to train on: give [data] parquet = [...] or databases = [...], or atelier = 1000"
        )
    pixels, captions, tags, contents, styles, licences = zip(*rows, strict=True)
    return LabelledPictures(torch.stack(pixels), captions, tags, contents, styles, licences)


def _parquet_rows(path: Path, size: int) -> Iterator[tuple[Any, ...]]:
    import pyarrow.parquet as pq

    files = sorted(path.parent.glob(path.name))
    if not files:
        raise SourceError(f"no file matches {path}: give the path of a Parquet collection")
    for file in files:
        table = pq.read_table(file)
        missing = {"caption", "style", "png", "base_hexcode"} - set(table.column_names)
        if missing:
            raise SourceError(f"{file} lacks the columns {', '.join(sorted(missing))}")
        for row in table.to_pylist():
            yield (
                decode_picture(row["png"], size), row["caption"], row.get("tags") or "", row["base_hexcode"], row["style"],
                row.get("license") or "",
            )  # fmt: skip


def _database_rows(name: str, home: str | None, size: int) -> Iterator[tuple[Any, ...]]:
    from pipeline.database import RetrievalDatabase, picture_key
    from pipeline.errors import DatabaseError
    from pipeline.schema import OK
    from pipeline.storage import read_member, tar_members

    database = RetrievalDatabase(name, home)
    for shard in database.version().shards:
        rows = {row["key"]: row for row in database.read_table(database.image_table(shard.id)).to_pylist()}
        tar = database.image_tar(shard.id)
        where = f"database {name!r}: {tar}"
        with database.storage.open(tar) as handle:
            for member in tar_members(handle, where, DatabaseError):
                row = rows.get(picture_key(member))
                if row is None or row["status"] != OK:
                    continue
                if not row.get("style"):
                    raise SourceError(f"database {name!r} has no column `style`: its pictures cannot be labelled")
                data = read_member(handle, member, where, DatabaseError)
                content = row.get("content") or row["caption"]
                yield (
                    decode_picture(data, size), row["caption"] or "", row.get("tags") or "", content, row["style"],
                    row["licence"] or "",
                )  # fmt: skip


ATELIER = "atelier:"  # how the atelier's contents are named


def _atelier_rows(contents: int, size: int, cache: Path | None) -> Iterator[tuple[Any, ...]]:
    import numpy as np
    import torch

    from pipeline.atelier import STYLES, metadata, picture

    count = contents * len(STYLES)
    kept = cache / f"atelier-{contents}x{len(STYLES)}-{size}.npy" if cache else None
    if kept is not None and kept.exists():
        drawn = np.load(kept)
    else:
        drawn = np.stack([picture(i, seed=0, size=size).image for i in range(count)])
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with kept.with_suffix(".part").open("wb") as handle:
                np.save(handle, drawn)
            kept.with_suffix(".part").replace(kept)
    pixels = torch.from_numpy(drawn).permute(0, 3, 1, 2)
    for i in range(count):
        row = metadata(i, seed=0)
        yield pixels[i], row["caption"], "", f"{ATELIER}{row['content_id']}", row["style"], "MIT"


def decode_picture(data: bytes, size: int) -> Tensor:
    """Picture bytes as (3, size, size) uint8 on white ground."""
    import numpy as np
    import torch
    from PIL import Image

    with Image.open(io.BytesIO(data)) as opened:
        layers = opened.convert("RGBA")
    picture = Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def caption_words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def held_out_contents(pictures: LabelledPictures, share: float) -> frozenset[str]:
    """The contents to hold out: `share` of all, in the order of their hashes, each word of theirs kept elsewhere."""
    if any(name.startswith(ATELIER) for name in pictures.contents):
        from pipeline.atelier import split_of

        own_split = {n for n in set(pictures.contents) if n.startswith(ATELIER)}
        rest = [i for i, name in enumerate(pictures.contents) if name not in own_split]
        held_there = {n for n in own_split if split_of(int(n.removeprefix(ATELIER))) == "held_out"}
        return frozenset(held_there) | (held_out_contents(pictures.take(rest), share) if rest else frozenset())
    texts: dict[str, set[str]] = {}
    own: dict[str, set[str]] = {}
    for content, caption, tags in zip(pictures.contents, pictures.captions, pictures.tags, strict=True):
        texts.setdefault(content, set()).update(caption_words(caption), caption_words(tags))
        own.setdefault(content, set()).update(caption_words(caption))
    left = Counter(word for found in texts.values() for word in found)
    held: set[str] = set()
    for content in sorted(texts, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if len(held) >= round(share * len(texts)):
            break
        if all(left[word] > 1 for word in own[content]):
            held.add(content)
            left.subtract(texts[content])
    return frozenset(held)


def training_rows(pictures: LabelledPictures, config: DataConfig) -> list[int]:
    """Rows that may be trained on: neither their style nor their content is held out."""
    unknown = set(config.held_out_styles) - set(pictures.styles)
    if unknown:
        raise ConfigError(f"held_out_styles: no picture has the style {', '.join(sorted(unknown))}")
    held = held_out_contents(pictures, config.held_out_contents)
    return [
        i for i, (content, style) in enumerate(zip(pictures.contents, pictures.styles, strict=True))
        if content not in held and style not in config.held_out_styles
    ]  # fmt: skip
