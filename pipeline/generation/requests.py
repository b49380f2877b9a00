"""Requested pictures: rows x databases x copies, each with the key that names its pixels; and the plan of batches.

Pure functions, no files. Each picture has a key: a hash of everything that changes its pixels and of nothing else. Equal keys
share a file, and a finished picture is never made again. The plan depends only on the request and the batch size, never on
the number of workers.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

from pipeline.config import Table, digest
from pipeline.execution import Shard
from pipeline.generation.prompts import PromptRow
from pipeline.generation.sampling import SETTINGS, Sampling

# Increase it when a change of the code changes pictures by more than rounding: existing files keep their keys, and new pictures
# get other keys. (A model's recipe, ModelInfo.recipe, changes only the last digits.)
RECIPE = 1

TEXT, NEIGHBOURS, BOTH = "text", "neighbours", "both"

USES = (BOTH, NEIGHBOURS, TEXT)

Weighting = Literal["equal", "similarity", "mean"]

WEIGHTINGS: tuple[Weighting, ...] = ("equal", "similarity", "mean")


@dataclass(frozen=True)
class Maker:
    """The properties that all pictures of a run share: model, encoder and arithmetic."""

    model: str  # sha256 over the model's files
    encoder: str  # EncoderRecord.id; empty if no encoder is used
    precision: str  # fp32 | fp16 | bf16


@dataclass(frozen=True)
class Neighbourhood:
    """The source of a picture's neighbours: a published version, and the filters on it, which must all match."""

    database: str
    version: str
    where: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImagePrompting:
    """How a model uses the neighbours' vectors as image prompts (IP-Adapter).

    scale      strength relative to the text; 0 leaves the neighbours out
    weighting  equal: k images in one attention; similarity: one weighted attention for each image; mean: one image, their mean
    blocks     the attention blocks that see them, by a name of the model's description: `all`, `style`, ...
    """

    scale: float
    weighting: str = "equal"
    blocks: str = "all"


@dataclass(frozen=True)
class PictureRequest:
    """Everything that changes the pixels, except the Maker. `image` is the sha256 of an image prompt."""

    prompt: str
    negative: str
    image: str
    use: str
    text_weight: float
    seed: int
    source: Neighbourhood | None  # None if no neighbours are used
    k: int
    sampling: Sampling  # with all settings
    prompting: ImagePrompting | None = None  # None for models without image prompts

    def to_dict(self) -> Table:
        """One flat table, as in plans, keys and provenance. `prompting` is only present if the model has it."""
        table = asdict(self)
        table |= table.pop("sampling")
        if table["prompting"] is None:
            del table["prompting"]
        return table

    @staticmethod
    def from_dict(table: Table) -> PictureRequest:
        """The request of a table from `to_dict`, also after a round trip through JSON; other keys are ignored."""
        values = {it.name: table[it.name] for it in fields(PictureRequest) if it.name not in ("sampling", "prompting")}
        source, prompting = values["source"], table.get("prompting")
        if source is not None:
            values["source"] = Neighbourhood(source["database"], source["version"], tuple(source["where"]))
        sampling = Sampling(**{name: table[name] for name in SETTINGS})
        return PictureRequest(**values, sampling=sampling, prompting=ImagePrompting(**prompting) if prompting else None)

    def key(self, maker: Maker) -> str:
        """24 hex digits of sha256 over the picture, the maker and RECIPE, without settings that the picture does not use."""
        sampling = self.sampling
        used = replace(
            self,
            negative="" if sampling.scale == 1 else self.negative,  # without guidance it has no effect
            text_weight=1.0
            if self.use == NEIGHBOURS
            else float(self.text_weight),  # without the prompt it has no effect
            sampling=replace(sampling, scale=_float(sampling.scale), eta=_float(sampling.eta)),  # 1 is 1.0
        )
        return digest([RECIPE, used.to_dict(), asdict(maker)], 24)

    def shape(self) -> tuple[object, ...]:
        """The properties that pictures of one batch share."""
        return (self.sampling, bool(self.negative), self.prompting)


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


@dataclass(frozen=True)
class RequestedCopy:
    """One requested picture: its row and copy, the database's name as the user gave it, and its file."""

    row: PromptRow
    copy: int
    db: str
    picture: PictureRequest
    key: str

    @property
    def file(self) -> str:
        return file_name(self.picture.prompt, self.picture.seed, self.key)


def file_name(prompt: str, seed: int, key: str) -> str:
    """images/<beginning of the prompt>-<seed>-<key>.png: a readable name, the same for the same key."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:48].strip("-")
    return f"images/{slug + '-' if slug else ''}{seed}-{key}.png"


def copies(row_seed: int, n: int) -> Iterator[int]:
    """Seeds of a row's n copies: seed, seed + 1, ..."""
    return iter(range(row_seed, row_seed + n))


def batches(pictures: Mapping[str, PictureRequest], size: int) -> list[list[str]]:
    """Keys in batches of at most `size` pictures of one shape, in order of first appearance."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for key, picture in pictures.items():
        groups.setdefault(picture.shape(), []).append(key)
    return [keys[i : i + size] for keys in groups.values() for i in range(0, len(keys), size)]


def shards(pictures: Mapping[str, PictureRequest], plan: Sequence[Sequence[str]], per_shard: int) -> list[Shard]:
    """The plan's whole batches in shards of about `per_shard` pictures."""
    made: list[Shard] = []
    pending: list[list[dict[str, object]]] = []

    def close() -> None:
        if pending:
            spec = {"batches": [list(batch) for batch in pending]}
            made.append(Shard(len(made), sum(map(len, pending)), digest(spec, 32), spec))
            pending.clear()

    for batch in plan:
        pending.append([{"key": key, **pictures[key].to_dict()} for key in batch])
        if sum(map(len, pending)) >= per_shard:
            close()
    close()
    return made


def unique(requests: Iterable[RequestedCopy]) -> dict[str, PictureRequest]:
    """Pictures by key, in order of first appearance."""
    return {request.key: request.picture for request in requests}
