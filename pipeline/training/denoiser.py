"""Training of the denoiser: neighbours and latents are computed once, and then the loop only reads tensors.

Reads the run's pictures, and an encoder and a first stage (see pipeline/training/networks.py). Writes the part's folder (see
pipeline/training/run.py), `cache.pt` with neighbours and latents, and `model/`: the RDM in the layout of diffusers, in fp16.

The method is that of arXiv 2204.11824. The neighbours of a picture are the training pictures nearest to its own vector, without
itself. The number of neighbours is drawn for each batch, so that no masks are needed; p_null drops all of them. Neighbours are
found by a database's exact search, over vectors in the form in which a database stores them. Text is not needed; with `p_text`
the first token of some batches is the caption's vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypedDict, cast

from pipeline.config import digest
from pipeline.encoders import sha256_of_state
from pipeline.errors import ConfigError
from pipeline.training.config import DenoiserConfig, TrainConfig, recipe
from pipeline.training.data import LabelledPictures
from pipeline.training.encoder import Names, with_style
from pipeline.training.networks import (
    choose_embedder,
    choose_first_stage,
    describe_first_stage,
    encode_pictures,
    is_saved_model,
    load_first_stage,
)
from pipeline.training.streaming import open_prepared

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pipeline.index import SearchIndex
    from pipeline.training.crew import Crew
    from pipeline.training.loop import PartRun
    from pipeline.training.networks import Embedder
    from pipeline.training.preparing import Prepared
    from pipeline.training.streaming import PreparedRows
    from rdm import RDM
    from rdm.config import RDMConfig
    from rdm.untyped import FirstStage, JsonObject, UNet

_TEXTS = 3  # captions of one picture: two that name the content, one that also names the style

_COLUMNS = 10  # of a sheet


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
    """The training data of a denoiser: N pictures, by row numbers or places."""

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def dim(self) -> int: ...

    def __len__(self) -> int: ...

    def captions(self, rows: Tensor, which: Tensor) -> Tensor: ...

    def neighbours(self, rows: Tensor, count: int, own: bool) -> Tensor: ...


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
    """The cache: read from cache.pt if that was made from the same data and networks, else computed and written."""
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
    made_of = [data, embedder.identity, latents_by, part.neighbours, pictures.captions, _TEXTS]
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
        texts = vectors[:, None].repeat(1, _TEXTS, 1)
    latents = encode_pictures(first_stage, pictures.pixels, run.device)
    run.folder.mkdir(parents=True, exist_ok=True)
    np.save(run.folder / FILES["vectors"], vectors.numpy().astype(np.float16))
    index = SearchIndex(run.folder / FILES["vectors"])
    near = nearest_others(index, part.neighbours)
    near_own = nearest_others(index, part.neighbours, Names.of(pictures).styles) if part.p_own_style else near
    index.close()
    return Cache(latents, vectors, texts, near, near_own, 1 / float(latents.std()))


def build_rdm(config: TrainConfig, scale: float, device: str = "cpu") -> RDM:
    """The model to train: the networks of a saved `base` with their weights, else a fresh denoiser.

    `scale` is one over the deviation of the latents, for a model without a `base`. A fresh first stage has only the right
    shape; its weights stay in their folder.
    """
    from rdm import RDM
    from rdm.config import read_config

    part = config.rdm
    assert part is not None
    ours = {
        "name": part.name,
        "encoder": part.encoder,
        "max_neighbours": part.neighbours,
        "default_k": part.default_k,
        "default_size": config.data.size,
        "default_guidance": part.default_guidance,
    }
    if is_saved_model(part.base):
        saved = RDM.from_pretrained(part.base)
        _check_predicts_noise(saved.config)
        return RDM(read_config({**saved.config.to_dict(), **ours}), saved.unet, saved.first_stage)
    description: JsonObject
    if part.base:
        description = read_config(part.base).to_dict()
        if (config.folder() / "autoencoder" / "model" / "config.json").exists() and not part.first_stage:
            description["scale_factor"] = scale
    else:
        described = describe_first_stage(choose_first_stage(config, part))
        description = {"unet": part.model, "first_stage": described, "scale_factor": scale}
    wanted = read_config({**description, **ours})
    _check_predicts_noise(wanted)
    return RDM.from_config(wanted, device=device)


def _check_predicts_noise(config: RDMConfig) -> None:
    """Raise ConfigError for a denoiser that this training's loss does not fit."""
    kind, pooled = config.prediction_type, config.unet.get("class_embed_type")
    if kind != "epsilon" or pooled is not None:
        raise ConfigError(
            f"model {config.name!r} has prediction_type {kind!r} and class_embed_type {pooled!r}; this training expects "
            "'epsilon' and none. Choose another [rdm] base or model; jobs/train_atelier.py trains such models"
        )


def check_fit(model: RDM, examples: Examples, size: int) -> None:
    """Raise ConfigError if the encoder or the first stage does not fit the denoiser."""
    wanted = (model.config.latent_channels, *model.config.latent_size(size, size))
    if examples.shape != wanted:
        raise ConfigError(
            f"the first stage makes latents of {examples.shape} from pictures of {size} pixels; the denoiser "
            f"takes {wanted}: give [rdm] first_stage or base its counterpart"
        )
    if examples.dim != model.config.context_dim:
        raise ConfigError(
            f"the encoder makes vectors of {examples.dim} numbers; the denoiser takes {model.config.context_dim}: "
            "name the encoder of the base in [rdm] encoder, or change cross_attention_dim"
        )


def draw_context(
    examples: Examples, part: DenoiserConfig, rows: Tensor, generator: torch.Generator,
    mine: Callable[[Tensor], Tensor] = lambda rows: rows,
) -> Tensor:  # fmt: skip
    """Contexts (b, T, D) of this worker's rows: their neighbours, in some batches preceded by their caption, some dropped.

    Random numbers are drawn for all rows of the batch, so that several workers use parts of the same batch.
    """
    import torch

    from rdm.objectives import drop

    count = part.counts[int(torch.randint(len(part.counts), (1,), generator=generator))]
    worded = float(torch.rand(1, generator=generator)) < part.p_text
    own = float(torch.rand(1, generator=generator)) < part.p_own_style
    which = torch.randint(_TEXTS, (len(rows),), generator=generator)
    gone = torch.rand(len(rows), generator=generator) < part.p_null
    tokens = examples.neighbours(mine(rows), count, own)
    if worded:
        tokens = torch.cat([examples.captions(mine(rows), mine(which))[:, None], tokens], dim=1)
    return drop(tokens, mine(gone))


def train_rdm(run: PartRun) -> Path:
    """Train, and save the averaged weights. Returns the folder of the model."""
    if run.config.data.prepared:
        return _train_on_prepared(run)
    part, crew = run.config.rdm, run.crew
    assert part is not None
    first_stage = choose_first_stage(run.config, part)  # a run without one ends before pictures are read
    pictures = run.read_pictures().chosen
    cache = read_cache(run, pictures)
    model = start_model(run, cache, cache.scale)
    run.say(f"{len(pictures)} pictures, a denoiser of {_millions(model.unet)} M parameters")

    def batch(index: int, generator: torch.Generator) -> Batch:
        import torch

        chosen = torch.randint(len(cache.latents), (part.train.rows,), generator=generator)
        noise = torch.randn((part.train.rows, *cache.latents.shape[1:]), generator=generator)
        times = torch.randint(model.config.train_steps, (part.train.rows,), generator=generator)
        context = draw_context(cache, part, chosen, generator, crew.mine)
        return Batch(cache.latents[crew.mine(chosen)], context, crew.mine(noise), crew.mine(times))

    def keep(step: int, twin: nn.Module) -> None:
        unet = cast("UNet", twin)
        # The decoder may have been trained further, so the first stage is read again.
        model.first_stage = load_first_stage(first_stage)
        save_rdm(model, unet, run.folder / "model")
        run.write_sheet(step, sample_sheet(model, unet, cache, pictures, part, _COLUMNS), _COLUMNS)

    return run.fit(model.unet, batch_loss(run, model, part, batch), keep, ("loss", "error"))


def _train_on_prepared(run: PartRun) -> Path:
    """Train on a prepared database, with a held-out loss by time at every save."""
    data = run.config.data
    with open_prepared(data.prepared, data.held_out_contents) as rows:
        return _train_on_rows(run, rows)


def _train_on_rows(run: PartRun, rows: PreparedRows) -> Path:
    import torch

    from rdm.train import draw

    part, crew, data = run.config.rdm, run.crew, run.config.data
    assert part is not None
    check_prepared(rows.prepared, part, data.size)
    place = part.first_stage or rows.prepared.first_stage
    run = replace(run, config=replace(run.config, rdm=(part := replace(part, first_stage=place))))
    model = start_model(run, rows, rows.prepared.scale)
    run.say(f"{len(rows)} prepared rows, a denoiser of {_millions(model.unet)} M parameters")

    def batch(index: int, generator: torch.Generator) -> Batch:
        return prepared_batch(rows, part, model.config.train_steps, crew, index, generator)

    held = rows.held_out_places()

    def keep(step: int, twin: nn.Module) -> None:
        unet = cast("UNet", twin)
        model.first_stage = load_first_stage(place)
        save_rdm(model, unet, run.folder / "model")
        if not len(held):
            return
        context = rows.neighbours(held, min(part.default_k, part.neighbours), False)
        if part.p_text:
            context = torch.cat([rows.captions(held, held[:, 0])[:, None], context], dim=1)
        errors = held_out_error(model, unet, rows.latents(held), context, draw(part.train.seed, 0))
        run.write_figures(step, errors)
        run.say(f"step {step}, held out: " + ", ".join(f"{name} {value:.4f}" for name, value in errors.items()))

    return run.fit(model.unet, batch_loss(run, model, part, batch), keep, ("loss", "error"))


def prepared_batch(
    rows: PreparedRows, part: DenoiserConfig, train_steps: int, crew: Crew, index: int, generator: torch.Generator
) -> Batch:
    """This worker's rows of pass `index`. Each row's noise has its own seed, so that no worker draws the noise of others."""
    import torch

    places = rows.places(index, part.train.rows, part.train.seed)
    times = torch.randint(train_steps, (part.train.rows,), generator=generator)
    context = draw_context(rows, part, places, generator, crew.mine)
    seeds = crew.mine(torch.randint(1 << 62, (part.train.rows,), generator=generator))
    noise = [torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds.tolist()]
    return Batch(rows.latents(crew.mine(places)), context, torch.stack(noise), crew.mine(times))


def check_prepared(prepared: Prepared, part: DenoiserConfig, size: int) -> None:
    """Raise ConfigError if a recipe needs what was not prepared."""
    from pipeline.encoders import same_encoder

    for name, wanted, found, fits in (
        ("[data] size", size, prepared.size, size == prepared.size),
        ("[rdm] neighbours", part.neighbours, prepared.neighbours, part.neighbours <= prepared.neighbours),
        ("[rdm] encoder", part.encoder, prepared.encoder, same_encoder(part.encoder, prepared.encoder)),
        ("[rdm] p_own_style", part.p_own_style, 0.0, not part.p_own_style),
    ):
        if not fits:
            raise ConfigError(
                f"{name} is {wanted!r}, but {prepared.database}/{prepared.id} was prepared with {found!r}: change the recipe, "
                "or prepare the database again"
            )


class Batch(NamedTuple):
    """This worker's rows of a batch: latents (b, C, h, w) unscaled, context (b, T, D), noise like the latents, times (b,)."""

    latents: Tensor
    context: Tensor
    noise: Tensor
    times: Tensor


def start_model(run: PartRun, examples: Examples, scale: float) -> RDM:
    """The model to train, its denoiser on the run's device. Raises ConfigError if the examples do not fit it."""
    import torch

    from rdm.objectives import scale_context_weights

    part = run.config.rdm
    assert part is not None
    torch.manual_seed(part.train.seed)
    model = build_rdm(run.config, scale)
    check_fit(model, examples, run.config.data.size)
    if not is_saved_model(part.base):
        scale_context_weights(model.unet, model.config.context_dim)
    model.unet.to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if part.checkpointing:
        model.unet.enable_gradient_checkpointing()
    return model


def batch_loss(
    run: PartRun, model: RDM, part: DenoiserConfig, batch: Callable[[int, torch.Generator], Batch]
) -> Callable[[int, torch.Generator], tuple[Tensor, Mapping[str, Tensor]]]:
    """The loss of the batches that `batch` draws."""
    import torch

    from rdm.objectives import denoising_loss

    def loss(index: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        drawn, device = batch(index, generator), run.device
        latents = (model.config.scale_factor * drawn.latents).to(device, memory_format=torch.channels_last)
        return denoising_loss(
            model.unet, latents, drawn.context.to(device), drawn.noise.to(device), drawn.times.to(device), model.schedule,
            snr_limit=part.snr_limit,
        )  # fmt: skip

    return loss


def held_out_error(
    model: RDM, unet: UNet, latents: Tensor, context: Tensor, generator: torch.Generator
) -> dict[str, float]:
    """The mean squared error of the noise at five times, by `t=TIME`; latents (N, C, h, w) unscaled, context (N, T, D)."""
    import torch

    from rdm.objectives import denoising_loss

    noise = torch.randn(latents.shape, generator=generator)
    device, steps, found = next(unet.parameters()).device, model.config.train_steps, {}
    for time in (steps * share // 100 for share in (10, 30, 50, 70, 95)):
        errors = []
        with torch.inference_mode():
            for part, known, added in zip(*(torch.split(rows, 8) for rows in (latents, context, noise)), strict=True):
                times = torch.full((len(part),), time, device=device)
                scaled = (model.config.scale_factor * part).to(device)
                _, values = denoising_loss(unet, scaled, known.to(device), added.to(device), times, model.schedule)
                errors.append(float(values["error"]) * len(part))
        found[f"t={time}"] = sum(errors) / len(latents)
    return found


def _millions(network: nn.Module) -> str:
    return f"{sum(value.numel() for value in network.parameters()) / 1e6:.2f}"


def save_rdm(model: RDM, unet: UNet, folder: Path) -> None:
    """Write the RDM with this denoiser, in fp16, by RDM.save_pretrained."""
    import copy

    import torch

    from rdm import RDM

    half = copy.deepcopy(unet).to("cpu", torch.float16)
    first_stage = copy.deepcopy(model.first_stage).to("cpu", torch.float16)
    RDM(model.config, half, first_stage).save_pretrained(folder)


def sample_sheet(
    model: RDM, unet: UNet, cache: Cache, pictures: LabelledPictures, part: DenoiserConfig, columns: int
) -> Tensor:
    """The pictures of a sheet, (N, 3, S, S) in [0, 1]: for each style a row of real pictures and a row of samples.

    The first token of a sample is the vector of a picture's caption; the others are the nearest pictures of that style to this
    vector, as from a swapped database. The contents are the same in all styles of a collection.
    """
    import torch

    from rdm import RDM

    drawing = RDM(model.config, unet, model.first_stage.to(next(unet.parameters()).device))
    shown, chosen, contexts = [], [], []
    for style in dict.fromkeys(pictures.styles):
        members = torch.tensor([i for i, name in enumerate(pictures.styles) if name == style])
        picked = _spread(pictures, members.tolist(), columns)
        chosen.append(picked)
        words = cache.texts[picked, 0]
        near = (words @ cache.vectors[members].T).topk(min(part.default_k, len(members)), dim=1).indices
        contexts.append(torch.cat([words[:, None], cache.vectors[members[near]]], dim=1))
    drawn = drawing.sample(
        torch.cat(contexts), steps=25, guidance_scale=part.default_guidance, generator=torch.Generator().manual_seed(0)
    )
    made = ((drawing.decode(drawn).cpu() + 1) / 2).clamp(0, 1)
    start = 0
    for picked in chosen:
        shown += [pictures.pixels[picked].float() / 255, made[start : start + len(picked)]]
        start += len(picked)
    return torch.cat(shown)


def _spread(pictures: LabelledPictures, members: Sequence[int], most: int) -> list[int]:
    """Rows of at most `most` members, whose contents are evenly distributed over those of all members."""
    contents = sorted({pictures.contents[i] for i in members})
    wanted = set(contents[:: max(1, len(contents) // most)][:most])
    return [i for i in members if pictures.contents[i] in wanted][:most]
