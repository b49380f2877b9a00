"""Labelled real pictures of a database, and the choice of captions.

Reads: a published database's metadata and stored pictures (kept or thumbnails). Writes nothing. The rule of
pipeline/training/data.py finds the contents that training held out.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, DatabaseError, nearest
from pipeline.evaluation.config import EvaluateConfig, Prompts
from pipeline.training import LabelledPictures, content_name, decode_picture, held_out_contents

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Labelled:
    """N real pictures: pixels (N, 3, S, S) uint8 and texts in `pictures`, keys, and the checksums of their files.

    A filter selects a content by column = value; both are empty if each picture is a separate content.
    """

    keys: tuple[int, ...]
    checksums: tuple[str, ...]
    pictures: LabelledPictures
    column: str
    values: Mapping[str, str]  # content -> SQL constant

    def rows(self) -> dict[str, int]:
        """Row by checksum, to find a neighbour's picture from any database."""
        return {checksum: row for row, checksum in enumerate(self.checksums)}


@dataclass(frozen=True)
class Caption:
    """A requested caption. `content` is empty for a prompt from the user."""

    text: str
    content: str = ""


def read_labelled(name: str, config: EvaluateConfig, home: str | None) -> Labelled:
    """The rows of a database or view with a stored picture; at most `most_pictures` of them, chosen by the hash of the key.

    Style and caption are empty if the database has no such column. Raises DatabaseError if no picture is stored.
    """
    import torch

    from pipeline.catalog import resolve_database
    from pipeline.database import picture_files
    from pipeline.retrieval import open_search

    selection = resolve_database(name, home)
    with open_search(selection.database, selection.version, selection.where, threads=1) as searcher:
        places = searcher.matching()
        keys = [int(key) for key in (searcher.keys if places is None else searcher.keys[places])]
        if len(keys) > config.most_pictures:
            keys = sorted(sorted(keys, key=lambda key: digest_order(str(key)))[: config.most_pictures])
        column = next((c for c in config.content if c in searcher.columns), "")
        wanted = [
            c for c in (config.style, config.caption, config.tags, "licence", "sha256", column) if c in searcher.columns
        ]
        rows = searcher.metadata(keys, list(dict.fromkeys(wanted))).to_pylist()
    files = picture_files(selection.database, keys, originals=True)
    if not files:
        raise DatabaseError(
            f"database {name!r} has no stored pictures to judge by: build it with --images keep, or --images thumbnail"
        )
    own = selection.database.name
    kept, values = [], {}
    for key, row in zip(keys, rows, strict=True):
        if key not in files:
            continue
        value = row.get(column) if column else None
        content = content_name(own, key, column, value)
        if value is not None:
            values[content] = str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"
        kept.append((key, row["sha256"], row.get(config.caption) or "", row.get(config.tags) or "", content,
                     row.get(config.style) or "", row.get("licence") or ""))  # fmt: skip
    pixels = torch.stack([decode_picture(files[entry[0]], config.size) for entry in kept])
    numbers, checksums, captions, tags, contents, styles, licences = zip(*kept, strict=True)
    pictures = LabelledPictures(pixels, captions, tags, contents, styles, licences)
    return Labelled(numbers, checksums, pictures, column, values)


def digest_order(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def chosen_styles(labelled: Labelled, config: EvaluateConfig) -> tuple[str, ...]:
    """The styles to evaluate: the named ones, else all of the database. Raises ConfigError."""
    there = sorted(set(labelled.pictures.styles) - {""})
    for style in config.styles:
        if style not in there:
            raise ConfigError(f"style {style!r}{nearest(style, there)}: the database has {', '.join(there) or 'none'}")
    styles = config.styles or tuple(there)
    if len(there) < 2:
        raise ConfigError(
            f"database {config.database!r} has {len(there)} value(s) of {config.style!r}: a classifier of styles needs two"
        )
    return tuple(styles)


def common_captions(pictures: LabelledPictures) -> dict[str, str]:
    """The caption that most pictures of a content have, by content; contents without one are left out."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for content, caption in zip(pictures.contents, pictures.captions, strict=True):
        if caption:
            found[content][caption] += 1
    return {content: max(counts, key=lambda text: (counts[text], text)) for content, counts in found.items()}


def choose_captions(
    labelled: Labelled, styles: Sequence[str], prompts: Prompts
) -> tuple[tuple[Caption, ...], tuple[Caption, ...]]:
    """(validation, test): captions of held-out contents in the order of their hashes, first those of contents in all styles.

    If there are too few for both, all are used for the test, and validation uses captions of contents that training saw.
    Without a content column each picture is a separate content, which counts as present in all styles. Raises ConfigError.
    """
    pictures = labelled.pictures
    texts = common_captions(pictures)
    held = held_out_contents(pictures, prompts.held_out) & texts.keys()
    has: defaultdict[str, set[str]] = defaultdict(set)
    for content, style in zip(pictures.contents, pictures.styles, strict=True):
        has[content].add(style)

    def order(contents: Iterable[str]) -> list[str]:
        lacking = {content: len(set(styles) - has[content]) if labelled.column else 0 for content in contents}
        return sorted(lacking, key=lambda content: (lacking[content], digest_order(content)))

    made: dict[str, Caption] = {}  # by text, because two contents may have the same caption
    for content in order(held):
        made.setdefault(texts[content], Caption(texts[content], content))
    test = list(made.values())[: prompts.test]
    if len(test) < 2:
        raise ConfigError(
            f"{len(test)} held-out captions are there, of {len(texts)} contents with a caption: raise [prompts] held_out, or "
            "give a list with --prompts"
        )
    for content in order(texts.keys() - held):
        made.setdefault(texts[content], Caption(texts[content], content))
    return tuple(made.values())[len(test) : len(test) + prompts.validation], tuple(test)


def own_prompts(path: str, prompts: Prompts) -> tuple[tuple[Caption, ...], tuple[Caption, ...]]:
    """(validation, test) of a prompt list: prompts at regular distances are for validation. Raises PromptError, ConfigError."""
    from pipeline.generation import accept_rows, read_prompts

    rows = accept_rows(read_prompts(path))
    texts = list(dict.fromkeys(row.prompt for row in rows if row.prompt))
    if len(texts) < 3:
        raise ConfigError(f"{path} holds {len(texts)} different prompts; an evaluation needs three or more")
    validation = sorted(texts, key=digest_order)[: max(1, min(prompts.validation, len(texts) // 4))]
    test = [text for text in texts if text not in validation][: prompts.test]
    return tuple(Caption(text) for text in validation), tuple(Caption(text) for text in test)


def split_by_content(contents: Sequence[str], share: float, salt: str) -> tuple[list[int], list[int]]:
    """(training rows, held-out rows): whole contents, by hash."""
    names = sorted(set(contents), key=lambda name: digest_order(f"{salt}:{name}"))
    out = set(names[: max(1, round(share * len(names)))])
    return (
        [row for row, content in enumerate(contents) if content not in out],
        [row for row, content in enumerate(contents) if content in out],
    )


def split_by_picture(keys: Sequence[int], share: float, salt: str) -> tuple[list[int], list[int]]:
    """(training rows, held-out rows): single pictures, by hash; their contents may be seen in other styles."""
    order = sorted(range(len(keys)), key=lambda row: digest_order(f"{salt}:{keys[row]}"))
    out = set(order[: max(1, round(share * len(keys)))])
    return [row for row in range(len(keys)) if row not in out], sorted(out)


def perturb(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Augmented uint8 pictures (B, 3, S, S) for training judges, float in -1..1: shifted, some blurred, some with noise.

    A judge then depends on what is drawn and not on the finest detail, which a model's first stage does not keep.
    """
    import torch
    from torch.nn import functional as F

    from pipeline.training import augment

    values = augment(pixels, generator).float() / 127.5 - 1
    soft = F.interpolate(F.avg_pool2d(values, 2), size=values.shape[-2:], mode="bilinear", align_corners=False)
    amount = torch.rand(len(values), 1, 1, 1, generator=generator).mul(2).sub(1).clamp(min=0)
    noise = torch.randn(values.shape, generator=generator) * 0.1 * torch.rand(len(values), 1, 1, 1, generator=generator)
    return torch.lerp(values, soft, amount) + noise
