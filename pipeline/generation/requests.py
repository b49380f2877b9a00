"""Requested pictures: rows x databases x copies, each with the key that names its pixels; and the plan of batches.

Pure functions, no files. One picture is one key: a hash of everything that changes its pixels and of nothing else, so that
equal keys share a file and a finished one is never made again. The plan depends on the request and the batch size alone,
never on the number of workers.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from pipeline.config import digest
from pipeline.execution import Shard
from pipeline.generation.prompts import PromptRow

RECIPE = (
    1  # raise it when a change of this code changes pictures: old files then keep their keys and new ones get theirs
)

TEXT, NEIGHBOURS, BOTH = "text", "neighbours", "both"

USES = (BOTH, NEIGHBOURS, TEXT)


@dataclass(frozen=True)
class Maker:
    """What all pictures of a run have in common: model, encoder and arithmetic."""

    model: str  # sha256 over the model's files
    encoder: str  # EncoderRecord.id
    precision: str  # fp32 | fp16 | bf16


@dataclass(frozen=True)
class Neighbourhood:
    """Where a picture's neighbours come from: a published version, and the filters on it (all of them hold)."""

    database: str
    version: str
    where: tuple[str, ...] = ()


@dataclass(frozen=True)
class PictureRequest:
    """Everything that changes the pixels, but for the Maker. Sizes in pixels; `image` is the sha256 of an image prompt."""

    prompt: str
    negative: str
    image: str
    use: str
    text_weight: float
    seed: int
    source: Neighbourhood | None  # None where no neighbours are used
    k: int
    sampler: str
    steps: int
    scale: float
    eta: float
    width: int
    height: int

    def key(self, maker: Maker) -> str:
        """24 hex digits of sha256 over the picture, the maker and RECIPE; what this picture does not use leaves it alone."""
        used = asdict(self)
        used |= {name: float(used[name]) for name in ("text_weight", "scale", "eta")}  # 1 is 1.0
        if self.scale == 1:  # without guidance there is nothing to lead away from
            used["negative"] = ""
        if self.use == NEIGHBOURS:  # and without the prompt's token, none to weigh
            used["text_weight"] = 1.0
        return digest([RECIPE, used, asdict(maker)], 24)

    def shape(self) -> tuple[Any, ...]:
        """What pictures of one batch have in common."""
        return (self.width, self.height, self.sampler, self.steps, self.scale, self.eta, bool(self.negative))

    @staticmethod
    def from_dict(table: Mapping[str, Any]) -> PictureRequest:
        values = {name.name: table[name.name] for name in fields(PictureRequest)}
        if values["source"] is not None:
            source = dict(values["source"])
            values["source"] = Neighbourhood(source["database"], source["version"], tuple(source["where"]))
        return PictureRequest(**values)


@dataclass(frozen=True)
class RequestedCopy:
    """One requested picture: the row and copy it came from, the name the user gave the database, and its file."""

    row: PromptRow
    copy: int
    db: str
    picture: PictureRequest
    key: str

    @property
    def file(self) -> str:
        return file_name(self.picture.prompt, self.picture.seed, self.key)


def file_name(prompt: str, seed: int, key: str) -> str:
    """images/<beginning of the prompt>-<seed>-<key>.png: readable in a folder, and the same for the same key."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:48].strip("-")
    return f"images/{slug + '-' if slug else ''}{seed}-{key}.png"


def copies(row_seed: int, n: int) -> Iterator[int]:
    """Seeds of a row's n copies: seed, seed + 1, ..."""
    return iter(range(row_seed, row_seed + n))


def batches(pictures: Mapping[str, PictureRequest], size: int) -> list[list[str]]:
    """Keys in batches of at most `size` pictures of one shape, in order of first appearance."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for key, picture in pictures.items():
        groups.setdefault(picture.shape(), []).append(key)
    return [keys[i : i + size] for keys in groups.values() for i in range(0, len(keys), size)]


def shards(pictures: Mapping[str, PictureRequest], plan: Sequence[Sequence[str]], per_shard: int) -> list[Shard]:
    """The plan's batches, whole, in shards of about `per_shard` pictures."""
    made: list[Shard] = []
    pending: list[list[dict[str, Any]]] = []

    def close() -> None:
        if pending:
            spec = {"batches": [list(batch) for batch in pending]}
            made.append(Shard(len(made), sum(map(len, pending)), digest(spec, 32), spec))
            pending.clear()

    for batch in plan:
        pending.append([{"key": key, **asdict(pictures[key])} for key in batch])
        if sum(map(len, pending)) >= per_shard:
            close()
    close()
    return made


def unique(requests: Iterable[RequestedCopy]) -> dict[str, PictureRequest]:
    """Pictures by key, in order of first appearance."""
    return {request.key: request.picture for request in requests}
