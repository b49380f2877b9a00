"""Labelled pictures for training, in memory: from Parquet files of a style collection, from retrieval databases, or drawn.

Reads Parquet with the columns caption, style, tags, license, png and base_hexcode (which names the content), or the image
shards of a database. Writes only the cache of drawn pictures. Decides what is held out: whole styles, and a share of the
contents in all styles. The decision depends only on the pictures and their names.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import ConfigError, SourceError
from pipeline.schema import read_parquet
from pipeline.storage import is_litter

if TYPE_CHECKING:
    from torch import Tensor


ATELIER = "atelier:"  # prefix of the names of the atelier's contents

CONTENT_COLUMNS = ("content_id", "base_hexcode")


@dataclass(frozen=True)
class DataConfig:
    """What to train on.

    parquet     files or glob patterns
    databases   names of retrieval databases, versions or views
    where       a filter over the databases' rows, as in `rdmpipe search --where`
    prepared    a database that `rdmpipe train prepare` prepared, as DATABASE or DATABASE/ID; only for [rdm], in place of all
                other sources
    content     columns that name the content of a database's row; the first that a database has is used. Without one, each row
                is a separate content
    atelier     number of contents of the atelier (seed 0), each drawn in every style; the atelier defines which are held out
    held_out_contents   share of the contents held out, in all styles. Every word of a held-out caption remains in another
                caption or tag, because a text tower cannot know a word that it never read
    held_out_styles     styles held out completely
    size        pixels a side
    """

    parquet: tuple[str, ...] = ()
    databases: tuple[str, ...] = ()
    where: str = ""
    prepared: str = ""
    content: tuple[str, ...] = CONTENT_COLUMNS
    atelier: int = 0
    held_out_contents: float = 0.1
    held_out_styles: tuple[str, ...] = ()
    size: int = 64


class LabelledPicture(NamedTuple):
    """One picture, (3, S, S) uint8, with its texts and names."""

    pixels: Tensor
    caption: str
    tags: str
    content: str
    style: str
    licence: str


@dataclass(frozen=True)
class LabelledPictures:
    """N labelled pictures: pixels (N, 3, S, S) uint8, and the texts and names of each."""

    pixels: Tensor
    captions: tuple[str, ...]
    tags: tuple[str, ...]
    contents: tuple[str, ...]
    styles: tuple[str, ...]
    licences: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.captions)

    def require_captions(self, for_what: str) -> None:
        """Raise SourceError if a picture has no caption."""
        lacking = sum(not caption.strip() for caption in self.captions)
        if lacking:
            raise SourceError(
                f"{lacking} of {len(self)} pictures have no caption, which {for_what} needs: leave them out with [data] where, "
                "or name another source"
            )

    def take(self, rows: Sequence[int]) -> LabelledPictures:
        def pick(values: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(values[i] for i in rows)

        texts = (self.captions, self.tags, self.contents, self.styles, self.licences)
        return LabelledPictures(self.pixels[list(rows)], *(pick(values) for values in texts))


def read_pictures(config: DataConfig, cache: Path | None = None, home: str | None = None) -> LabelledPictures:
    """All pictures of the sources, including held-out ones, on a white background.

    Drawn pictures are cached in the folder `cache`. Raises SourceError if a source lacks something, ConfigError if there is
    no picture.
    """
    import torch

    rows: list[LabelledPicture] = []
    for pattern in config.parquet:
        rows += _parquet_rows(Path(pattern), config.size)
    for name in config.databases:
        rows += _database_rows(name, config, home)
    if config.atelier:
        rows += _atelier_rows(config.atelier, config.size, cache)
    if not rows:
        raise ConfigError("[data] names no picture: give parquet = [...], databases = [...] or atelier = 1000")
    pixels, captions, tags, contents, styles, licences = zip(*rows, strict=True)
    return LabelledPictures(torch.stack(pixels), captions, tags, contents, styles, licences)


def _parquet_rows(path: Path, size: int) -> Iterator[LabelledPicture]:
    files = sorted(file for file in path.parent.glob(path.name) if not is_litter(file.name))
    if not files:
        raise SourceError(
            f"no file matches {path}: name Parquet collections in [data] parquet, or remove that key and train on the atelier: "
            "atelier = 900"
        )
    for file in files:
        table = read_parquet(file)
        missing = {"caption", "style", "png", "base_hexcode"} - set(table.column_names)
        if missing:
            raise SourceError(f"{file} lacks the columns {', '.join(sorted(missing))}: add them, or name another file")
        for row in table.to_pylist():
            yield LabelledPicture(
                decode_picture(row["png"], size), row["caption"], row.get("tags") or "", row["base_hexcode"], row["style"],
                row.get("license") or "",
            )  # fmt: skip


def _database_rows(name: str, config: DataConfig, home: str | None) -> Iterator[LabelledPicture]:
    """The rows of a database, version or view with a stored picture, without removed rows, in the order of their keys."""
    from pipeline.catalog import resolve_database
    from pipeline.database import SIDE, picture_files
    from pipeline.retrieval import open_search
    from pipeline.schema import shard_of

    selection = resolve_database(name, home)
    images = selection.version.images
    if images == "drop" or (images == "thumbnail" and config.size > SIDE):
        found = "keeps no pictures" if images == "drop" else f"keeps pictures of {SIDE} pixels"
        lower = "" if images == "drop" else f", or set [data] size to {SIDE} or less"
        raise SourceError(
            f"database {name!r} {found}, and [data] size is {config.size}: build it again with `rdmpipe build-index "
            f"{selection.database.name} --images keep`{lower}"
        )
    with open_search(selection.database, selection.version, selection.where, threads=1) as searcher:
        places = searcher.matching(config.where)
        keys = [int(key) for key in (searcher.keys if places is None else searcher.keys[places])]
        column = next((c for c in config.content if c in searcher.columns), "")
        wanted = [c for c in ("caption", "tags", "style", "licence", column) if c in searcher.columns]
        rows = searcher.metadata(keys, list(dict.fromkeys(wanted))).to_pylist()
    yielded = False
    for _, group in itertools.groupby(zip(keys, rows, strict=True), key=lambda pair: shard_of(pair[0])):
        of_shard = dict(group)
        files = picture_files(selection.database, of_shard, originals=True)
        for key, row in of_shard.items():
            if key not in files:
                continue
            yielded = True
            content = content_name(selection.database.name, key, column, row.get(column))
            yield LabelledPicture(
                decode_picture(files[key], config.size), row.get("caption") or "", row.get("tags") or "", content,
                row.get("style") or "", row.get("licence") or "",
            )  # fmt: skip
    if not yielded:
        which = f" that match {config.where!r}" if config.where else ""
        raise SourceError(f"database {name!r} has no stored pictures{which}: name another database, or change `where`")


def content_name(database: str, key: int, column: str, value: object) -> str:
    """The name of the content of a database's row, for training and evaluation: rows with the same name show the same content.

    `value` is the value of the content column; without it, each row is a separate content.
    """
    if value is None:
        return f"{database}:{key}"
    return f"{ATELIER}{value}" if column == "content_id" else str(value)


def _atelier_rows(contents: int, size: int, cache: Path | None) -> Iterator[LabelledPicture]:
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
        content = f"{ATELIER}{row['content_id']}"
        yield LabelledPicture(pixels[i], str(row["caption"]), "", content, str(row["style"]), "MIT")


def decode_picture(data: bytes, size: int) -> Tensor:
    """The picture in a file's bytes as (3, size, size) uint8 on a white background."""
    import numpy as np
    import torch
    from PIL import Image

    with Image.open(io.BytesIO(data)) as opened:
        layers = opened.convert("RGBA")
    picture = Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


_OWN = re.compile(r"[\w-]+:\d+")  # the content's name of a row that is a separate content


def content_order(name: str) -> int:
    """A content's rank between 0 and 2**64: the first contents in this order are held out. It depends only on the name.

    Contents of the atelier follow the atelier's split: its held-out contents are first, the others last.
    """
    if name.startswith(ATELIER):
        from pipeline.atelier import split_of

        return 0 if split_of(int(name.removeprefix(ATELIER))) == "held_out" else 2**64 - 1
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def caption_words(text: str) -> list[str]:
    """The words of a text in lower case."""
    return re.findall(r"\w+", text.lower())


def held_out_contents(pictures: LabelledPictures, share: float) -> frozenset[str]:
    """The contents to hold out.

    For the atelier, these are its own held-out contents. Rows that are separate contents are held out by the hash of their
    name, so that a part of a database gives the same ones as the whole. Of the others, a `share` is held out in the order of
    their hashes, without those whose captions have a word that no other content has.
    """
    if any(name.startswith(ATELIER) for name in pictures.contents):
        from pipeline.atelier import split_of

        own_split = {n for n in set(pictures.contents) if n.startswith(ATELIER)}
        rest = [i for i, name in enumerate(pictures.contents) if name not in own_split]
        held_there = {n for n in own_split if split_of(int(n.removeprefix(ATELIER))) == "held_out"}
        return frozenset(held_there) | (held_out_contents(pictures.take(rest), share) if rest else frozenset())
    own = [i for i, name in enumerate(pictures.contents) if _OWN.fullmatch(name)]
    if own:
        single = {pictures.contents[i] for i in own if content_order(pictures.contents[i]) <= share * 2**64}
        rest = sorted(set(range(len(pictures))) - set(own))
        return frozenset(single) | (held_out_contents(pictures.take(rest), share) if rest else frozenset())
    texts: dict[str, set[str]] = {}
    said: dict[str, set[str]] = {}
    for content, caption, tags in zip(pictures.contents, pictures.captions, pictures.tags, strict=True):
        texts.setdefault(content, set()).update(caption_words(caption), caption_words(tags))
        said.setdefault(content, set()).update(caption_words(caption))
    left = Counter(word for found in texts.values() for word in found)
    held: set[str] = set()
    for content in sorted(texts, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if len(held) >= round(share * len(texts)):
            break
        if all(left[word] > 1 for word in said[content]):
            held.add(content)
            left.subtract(texts[content])
    return frozenset(held)


def training_rows(pictures: LabelledPictures, config: DataConfig) -> list[int]:
    """The rows for training: neither their style nor their content is held out. Raises ConfigError."""
    unknown = set(config.held_out_styles) - set(pictures.styles)
    if unknown:
        raise ConfigError(
            f"held_out_styles: no picture has the style {', '.join(sorted(unknown))}; styles: "
            f"{', '.join(sorted(set(pictures.styles)))}"
        )
    held = held_out_contents(pictures, config.held_out_contents)
    rows = [
        i for i, (content, style) in enumerate(zip(pictures.contents, pictures.styles, strict=True))
        if content not in held and style not in config.held_out_styles
    ]  # fmt: skip
    if not rows:
        raise ConfigError(
            f"all {len(pictures)} pictures are held out: lower [data] held_out_contents, or shorten held_out_styles"
        )
    return rows
