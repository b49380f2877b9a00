"""Latents, vectors and neighbours of pictures in memory, computed once to train a denoiser on them.

Reads an encoder and a first stage (see pipeline/training/networks.py). Writes `cache.pt` in the part's folder, on the first
worker. Neighbours are found by the exact search of a database over vectors as a database stores them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypedDict

from pipeline.config import digest
from pipeline.encoders import sha256_of_state
from pipeline.errors import ConfigError
from pipeline.training.config import DenoiserConfig, recipe
from pipeline.training.data import LabelledPictures
from pipeline.training.encoder import Names, with_style
from pipeline.training.networks import choose_embedder, choose_first_stage, encode_pictures, load_first_stage

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.index import SearchIndex
    from pipeline.training.loop import PartRun, TrainingPictures
    from pipeline.training.networks import Embedder
    from rdm.untyped import FirstStage

TEXTS = 3  # captions of a picture: two that name the content, one that also names the style

SHOWN = 64  # held-out pictures that are measured


@dataclass(frozen=True)
class Cache:
    """The tensors that are computed once from N training pictures.

    latents (N, C, h, w) from the first stage, unscaled; vectors (N, D) unit rows of the pictures; texts (N, 3, D) of their
    captions; near (N, k) rows of the nearest others, nearest first; near_own (N, k) the same within the picture's own style;
    scale, one over the standard deviation of the latents.
    """

    latents: Tensor
    vectors: Tensor
    texts: Tensor
    near: Tensor
    near_own: Tensor
    scale: float

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.latents.shape[1:]
        return channels, height, width

    @property
    def dim(self) -> int:
        return self.vectors.shape[1]

    def captions(self, rows: Tensor, which: Tensor) -> Tensor:
        """(B, D) vectors of one caption of each row."""
        return self.texts[rows, which]

    def neighbours(self, rows: Tensor, count: int, own: bool) -> Tensor:
        """(B, count, D) vectors of the nearest other rows; with `own`, only of the row's own style."""
        return self.vectors[(self.near_own if own else self.near)[rows, :count]]


class Examples(Protocol):
    """The training data of a denoiser: N pictures, addressed by row numbers or places."""

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def dim(self) -> int: ...

    def __len__(self) -> int: ...

    def captions(self, rows: Tensor, which: Tensor) -> Tensor: ...

    def neighbours(self, rows: Tensor, count: int, own: bool) -> Tensor: ...


class HeldOut(NamedTuple):
    """Held-out pictures, at most 64: latents (N, C, h, w) unscaled, and contexts (N, T, D) as in sampling."""

    latents: Tensor
    context: Tensor


def nearest_others(index: SearchIndex, k: int, groups: Tensor | None = None) -> Tensor:
    """The k nearest other rows of each row of an index of N unit vectors, (N, k), nearest first, by exact inner product.

    groups (N,) keeps the search within the group of a row; the members of a group of k or fewer are repeated. Raises
    ConfigError for k >= N.
    """
    import numpy as np
    import torch

    count = len(index.vectors)
    if k >= count:
        raise ConfigError(
            f"[rdm] neighbours is {k}, but there are {count} pictures: lower it, or train on more pictures"
        )
    found = np.empty((count, k), np.int64)
    for group in [None] if groups is None else sorted(set(groups.tolist())):
        members = None if group is None or groups is None else np.flatnonzero(groups.numpy() == group)
        rows = np.arange(count) if members is None else members
        some = min(k, len(rows) - 1)
        if not some:
            raise ConfigError("a style has only one picture, which has no neighbour of its own style: leave it out")
        for part in np.array_split(rows, max(1, len(rows) // 512)):
            queries = np.asarray(index.vectors[part], np.float32)
            _, near, _ = index.top(queries, some + 1, members, exact=True)
            # A stable sort by "is the row itself" moves the row to the end and keeps the order of the others.
            order = np.argsort(near == part[:, None], axis=1, kind="stable")[:, :some]
            found[part] = np.take_along_axis(near, order, 1)[:, np.arange(k) % some]
    return torch.from_numpy(found)


class _Kept(TypedDict):
    """The content of cache.pt."""

    identity: str
    latents: Tensor
    vectors: Tensor
    texts: Tensor
    near: Tensor
    near_own: Tensor
    scale: float


def read_cache(run: PartRun, pictures: LabelledPictures) -> Cache:
    """The cache: read from cache.pt if that has the same data and networks, else computed and written."""
    import torch

    part = run.config.rdm
    assert part is not None
    if part.p_text:
        pictures.require_captions(f"p_text = {part.p_text}")
    if part.p_own_style and not any(pictures.styles):
        raise ConfigError(f"[rdm] p_own_style is {part.p_own_style}, but no picture has a style: set it to 0")
    embedder = choose_embedder(run.config, part.encoder, run.device)
    first_stage = load_first_stage(choose_first_stage(run.config, part))
    halves = [getattr(first_stage, name, None) for name in ("encoder", "quant_conv")]
    latents_by = sha256_of_state({name: value for half in halves if half for name, value in half.state_dict().items()})
    data = recipe(run.config, "rdm")["data"]
    made_of = [data, embedder.identity, latents_by, part.neighbours, pictures.captions, TEXTS]
    identity = digest(made_of if part.p_own_style else [*made_of, "near alone"])
    kept = run.folder / "cache.pt"
    if kept.exists():
        content: _Kept = torch.load(kept, weights_only=True)
        if content["identity"] == identity:
            return Cache(**{name: value for name, value in content.items() if name != "identity"})  # type: ignore[arg-type]
    run.say("encoding pictures and captions, finding neighbours (once)")
    cache = _compute(run, pictures, embedder, first_stage, part)
    shared = [
        sum(pictures.styles[j] == pictures.styles[i] for j in row) / part.neighbours
        for i, row in enumerate(cache.near.tolist())
    ]  # fmt: skip
    run.say(
        f"scale of the latents {cache.scale:.4f}; {sum(shared) / len(shared):.3f} of the neighbours share the style"
    )
    if run.crew.first:
        torch.save({"identity": identity, **vars(cache)}, kept.with_suffix(".part"))
        kept.with_suffix(".part").replace(kept)
    return cache


def _compute(
    run: PartRun, pictures: LabelledPictures, embedder: Embedder, first_stage: FirstStage, part: DenoiserConfig
) -> Cache:
    """Latents, vectors and neighbours of the pictures."""
    import numpy as np
    import torch

    from pipeline.index import FILES, SearchIndex

    first_stage.to(run.device)
    vectors = embedder.pictures(pictures.pixels)
    if any(pictures.captions):
        drawn = [f"a picture of {caption}" for caption in pictures.captions]
        named = [with_style(caption, style) for caption, style in zip(pictures.captions, pictures.styles, strict=True)]
        texts = torch.stack([embedder.texts(words) for words in (pictures.captions, drawn, named)], dim=1)
    else:  # in the sheets, a picture without a caption is represented by its own vector
        texts = vectors[:, None].repeat(1, TEXTS, 1)
    latents = encode_pictures(first_stage, pictures.pixels, run.device)
    run.folder.mkdir(parents=True, exist_ok=True)
    # Every worker searches its own file: workers that share a disk must not write the same one.
    path = run.folder / FILES["vectors"] if run.crew.first else run.folder / f"worker{run.crew.rank}.npy"
    np.save(path, vectors.numpy().astype(np.float16))
    index = SearchIndex(path)
    near = nearest_others(index, part.neighbours)
    near_own = nearest_others(index, part.neighbours, Names.of(pictures).styles) if part.p_own_style else near
    index.close()
    if not run.crew.first:
        path.unlink()
    return Cache(latents, vectors, texts, near, near_own, 1 / float(latents.std()))


def held_out_examples(run: PartRun, pictures: TrainingPictures, cache: Cache) -> HeldOut | None:
    """Pictures of held-out contents with their nearest training pictures, preceded by their captions if texts are trained on.

    None if no content is held out.
    """
    import torch

    part, everything = run.config.rdm, pictures.everything
    assert part is not None
    styles, contents = set(pictures.chosen.styles), set(pictures.chosen.contents)
    held = [row for row, (style, content) in enumerate(zip(everything.styles, everything.contents, strict=True))
            if style in styles and content not in contents]  # fmt: skip
    if not held:
        return None
    shown = everything.take(held[:: -(-len(held) // SHOWN)])
    first_stage = load_first_stage(choose_first_stage(run.config, part))
    first_stage.to(run.device)
    embedder = choose_embedder(run.config, part.encoder, run.device)
    near = (embedder.pictures(shown.pixels) @ cache.vectors.T).topk(part.default_k, dim=1).indices
    context = cache.vectors[near]
    if part.p_text:
        context = torch.cat([embedder.texts(list(shown.captions))[:, None], context], dim=1)
    return HeldOut(encode_pictures(first_stage, shown.pixels, run.device), context)
