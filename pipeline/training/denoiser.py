"""Training of the denoiser, on pictures in memory or on the rows of a prepared database.

Reads the run's pictures or prepared rows, and an encoder and a first stage (see pipeline/training/networks.py). Writes the
part's folder (see pipeline/training/run.py), `cache.pt` with neighbours and latents of pictures in memory, and `model/`:
the RDM in the layout of diffusers, in fp16, or only its adapters (rdm/lora.py).

The method is that of arXiv 2204.11824. The neighbours of a picture are the training pictures nearest to its own vector, without
itself. The number of neighbours is drawn for each batch, so that no masks are needed; p_null drops all of them. Text is not
needed; with `p_text` the first token of some batches is the caption's vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from pipeline.errors import ConfigError
from pipeline.training.ahead import Ahead
from pipeline.training.cache import TEXTS, Examples, HeldOut, held_out_examples, read_cache
from pipeline.training.config import DenoiserConfig, TrainConfig
from pipeline.training.keeping import DRAWN, held_out_error, held_out_sheet, sample_sheet, save_adapters, save_rdm
from pipeline.training.networks import choose_first_stage, describe_first_stage, is_saved_model, load_first_stage
from pipeline.training.reporting import WAIT, count_work
from pipeline.training.streaming import open_prepared
from pipeline.training.teamwork import Shared, rebuild, share

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pipeline.training.crew import Crew
    from pipeline.training.loop import Keep, PartRun, Twin
    from pipeline.training.preparing import Prepared
    from pipeline.training.reporting import Work
    from pipeline.training.streaming import PreparedRows
    from rdm import RDM
    from rdm.config import RDMConfig
    from rdm.lora import Adapters
    from rdm.train import Loss
    from rdm.untyped import JsonObject, UNet

_COLUMNS = 10  # of a sheet


def describe_rdm(config: TrainConfig, scale: float) -> RDMConfig:
    """The description of the model to train: that of a saved or published `base`, else of the run's own networks.

    `scale` is one over the deviation of the latents, for a model whose first stage is not the base's.
    """
    from rdm.config import read_config
    from rdm.folder import read_folder_config

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
    description: JsonObject
    if is_saved_model(part.base):
        description = read_folder_config(Path(part.base)).to_dict()
    elif part.base:
        description = read_config(part.base).to_dict()
        if (config.folder() / "autoencoder" / "model" / "config.json").exists() and not part.first_stage:
            description["scale_factor"] = scale
    else:
        described = describe_first_stage(choose_first_stage(config, part))
        description = {"unet": part.model, "first_stage": described, "scale_factor": scale}
    if part.distil_guidance:
        from rdm.distillation import describe_student

        return describe_student(read_config({**description, **ours}), *part.distil_guidance)
    return read_config({**description, **ours})


def build_rdm(config: TrainConfig, scale: float, device: str = "cpu") -> RDM:
    """The model to train: the networks of a saved `base` with their weights, else a fresh denoiser.

    A student of distillation starts with the weights of its base. A fresh first stage has only the right shape; its weights
    stay in their folder. `scale` as in `describe_rdm`.
    """
    from rdm import RDM

    part = config.rdm
    assert part is not None
    if is_saved_model(part.base):
        saved = RDM.from_pretrained(part.base)
        description = describe_rdm(config, scale)
        if part.distil_guidance:
            from rdm.distillation import start_student
            from rdm.networks import build

            student, _ = build(description, device)
            start_student(student, saved.unet)
            return RDM(description, student, saved.first_stage)
        return RDM(description, saved.unet, saved.first_stage)
    return RDM.from_config(describe_rdm(config, scale), device=device)


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
    which = torch.randint(TEXTS, (len(rows),), generator=generator)
    gone = torch.rand(len(rows), generator=generator) < part.p_null
    tokens = examples.neighbours(mine(rows), count, own)
    if worded:
        tokens = torch.cat([examples.captions(mine(rows), mine(which))[:, None], tokens], dim=1)
    return drop(tokens, mine(gone))


def train_rdm(run: PartRun) -> Path:
    """Train, and save the averaged weights. Returns the folder of the model."""
    return _train_on_prepared(run) if run.config.data.prepared else _train_on_pictures(run)


def _train_on_pictures(run: PartRun) -> Path:
    import torch

    part, crew = run.config.rdm, run.crew
    assert part is not None
    first_stage = choose_first_stage(run.config, part)  # a run without one ends before pictures are read
    found = run.read_pictures()
    pictures = found.chosen
    cache = read_cache(run, pictures)
    training = start(run, cache, cache.scale)
    run.say(f"{len(pictures)} pictures, {training.summary}")
    if training.model.config.context_norm == "raw":
        raise ConfigError(
            f"model {training.model.config.name!r} takes vectors of their own length, which pictures in memory lack: build a "
            "database of them, and run `rdmpipe train prepare` on it"
        )
    model, steps = training.model, training.model.config.train_steps

    def batch(index: int, generator: torch.Generator) -> Batch:
        chosen = torch.randint(len(cache.latents), (part.train.rows,), generator=generator)
        noise = torch.randn((part.train.rows, *cache.latents.shape[1:]), generator=generator)
        times = torch.randint(steps, (part.train.rows,), generator=generator)
        context = draw_context(cache, part, chosen, generator, crew.mine)
        scales = draw_scales(part, generator, crew)
        return Batch(cache.latents[crew.mine(chosen)], context, crew.mine(noise), crew.mine(times), scales)

    def loss(index: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        return training.loss(batch(index, generator))

    held = held_out_examples(run, found, cache) if crew.first else None

    def keep(step: int, twin: nn.Module) -> Mapping[str, float]:
        # The decoder may have been trained further, so the first stage is read again.
        model.first_stage = load_first_stage(first_stage)
        unet = training.save(twin)
        run.write_sheet(step, sample_sheet(model, unet, cache, pictures, part, _COLUMNS), _COLUMNS)
        return _measure(run, training, unet, held, step)

    return training.fit(loss, keep)


def _measure(run: PartRun, training: Training, unet: UNet, held: HeldOut | None, step: int) -> dict[str, float]:
    """The held-out errors of a save: of the denoiser, or of a student's guidance."""
    from rdm.train import draw

    if held is None:
        return {}
    errors = held_out_error(training.model, unet, held, draw(run.steps.seed, 0), training.teacher)
    run.say(f"step {step}, held out: " + ", ".join(f"{name} {value:.4f}" for name, value in errors.items()))
    return errors


def _train_on_prepared(run: PartRun) -> Path:
    data = run.config.data
    with open_prepared(data.prepared, data.held_out_contents) as rows:
        return _train_on_rows(run, rows)


def _train_on_rows(run: PartRun, rows: PreparedRows) -> Path:
    import torch

    part, crew, data = run.config.rdm, run.crew, run.config.data
    assert part is not None
    check_prepared(rows.prepared, part, data.size)
    place = part.first_stage or rows.prepared.first_stage
    run = replace(run, config=replace(run.config, rdm=(part := replace(part, first_stage=place))))
    training = start(run, rows, rows.prepared.scale)
    run.say(f"{len(rows)} prepared rows, {training.summary}")
    model = training.model
    rows.raw = model.config.context_norm == "raw"
    if rows.raw and part.p_text:
        raise ConfigError(
            f"[rdm] p_text is {part.p_text}, but {model.config.name!r} takes raw vectors, and captions have none: set it to 0"
        )

    def batch(index: int, generator: torch.Generator) -> Batch:
        return prepared_batch(rows, part, model.config.train_steps, crew, index, generator)

    held = held_out_context(rows, rows.held_out_places(), part) if crew.first else None

    def keep(step: int, twin: nn.Module) -> Mapping[str, float]:
        model.first_stage = load_first_stage(place)
        unet = training.save(twin)
        if held is not None:
            run.write_sheet(step, held_out_sheet(model, unet, held, part.default_guidance), DRAWN)
        return _measure(run, training, unet, held, step)

    with closing(Ahead(batch, part.train)) as batches:

        def loss(index: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
            drawn, waited = batches(index)
            value, values = training.loss(drawn)
            return value, {**values, WAIT: torch.tensor(waited * part.train.accumulate)}

        return training.fit(loss, keep)


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
    scales = draw_scales(part, generator, crew)
    return Batch(rows.latents(crew.mine(places)), context, torch.stack(noise), crew.mine(times), scales)


def draw_scales(part: DenoiserConfig, generator: torch.Generator, crew: Crew) -> Tensor | None:
    """Guidance scales (b,) of this worker's rows, uniform between the limits of distillation; None without distillation."""
    import torch

    if not part.distil_guidance:
        return None
    low, high = part.distil_guidance
    return crew.mine(low + (high - low) * torch.rand(part.train.rows, generator=generator))


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
    """This worker's rows of a batch: latents (b, C, h, w) unscaled, context (b, T, D), noise like the latents, times (b,).

    scales: guidance scales (b,), for distillation.
    """

    latents: Tensor
    context: Tensor
    noise: Tensor
    times: Tensor
    scales: Tensor | None = None


@dataclass(frozen=True)
class Training:
    """A denoiser in training on this worker: the model, the network to call, and the parameters to optimise.

    teacher: the frozen denoiser whose guidance is distilled, if any.
    """

    run: PartRun
    model: RDM
    shared: Shared
    adapters: Adapters | None
    work: Work | None
    teacher: UNet | None = None

    @property
    def summary(self) -> str:
        """The denoiser and the way it is trained, as text."""
        text = f"a denoiser of {_millions(self.model.unet)} M parameters"
        return text if self.adapters is None else f"{text}, adapters of {_millions(self.adapters)} M"

    def loss(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of this worker's rows of a batch."""
        import torch

        from rdm.objectives import denoising_loss

        config, device, part = self.model.config, self.run.device, self.run.config.rdm
        assert part is not None
        latents = (config.scale_factor * batch.latents).to(device, memory_format=torch.channels_last)
        if self.teacher is not None and batch.scales is not None:
            from rdm.distillation import distillation_loss

            return distillation_loss(
                self.shared.forward, self.teacher, config, latents, batch.context.to(device), batch.noise.to(device),
                batch.times.to(device), batch.scales.to(device), self.model.schedule,
            )  # fmt: skip
        return denoising_loss(
            self.shared.forward, latents, batch.context.to(device), batch.noise.to(device), batch.times.to(device),
            self.model.schedule, snr_limit=part.snr_limit, prediction=config.prediction_type, pooled=config.pooled,
        )  # fmt: skip

    def fit(self, loss: Loss, keep: Keep) -> Path:
        """Train on a loss. Returns the folder of the model."""
        part, model = self.run.config.rdm, self.model
        assert part is not None
        twin: Twin | None = None
        if part.sharding == "fsdp" and self.run.crew.size > 1:
            twin = partial(rebuild, model.config, device=self.run.device)
        network = model.unet if self.adapters is None else self.adapters
        shown = ("loss", "error" if self.teacher is None else "missed")
        return self.run.fit(network, loss, keep, shown, team=self.shared.team, twin=twin, work=self.work)

    def save(self, twin: nn.Module) -> UNet:
        """Write the model's folder, and return the denoiser that was saved. The first stage is the model's."""
        folder, part = self.run.folder / "model", self.run.config.rdm
        assert part is not None
        if self.adapters is None:
            unet = cast("UNet", twin)
            save_rdm(self.model, unet, folder)
            return unet
        from rdm.lora import merge

        adapters = cast("Adapters", twin)
        save_adapters(adapters, part.name, part.base, folder)
        unet = rebuild(self.model.config, self.model.unet.state_dict(), self.run.device)
        merge(unet, adapters.weights())
        return unet


def start(run: PartRun, examples: Examples, scale: float) -> Training:
    """The training of a model on these examples, its denoiser on the run's device and shared between the workers.

    Raises ConfigError if the examples do not fit the model, or if adapters have no base.
    """
    import torch

    from rdm.lora import Adapters
    from rdm.objectives import scale_context_weights

    part, crew = run.config.rdm, run.crew
    assert part is not None
    if part.lora and not is_saved_model(part.base):
        raise ConfigError(
            f"[rdm] lora = {part.lora} adapts the weights of a saved model, but base is {part.base!r}: name a model's folder "
            "in `base`, or give `--base MODEL`"
        )
    if part.distil_guidance and not is_saved_model(part.base):
        raise ConfigError(
            f"[rdm] distil_guidance needs a saved model, but base is {part.base!r}: name a model's folder in `base`, or give "
            "`--base MODEL`"
        )
    torch.manual_seed(part.train.seed)
    model = build_rdm(run.config, scale)
    check_fit(model, examples, run.config.data.size)
    if model.config.guidance_range and not part.distil_guidance:
        raise ConfigError(
            f"model {model.config.name!r} has distilled guidance, which this training would unlearn: train the model that it "
            "was distilled from, and distil that again"
        )
    if part.snr_limit and model.config.prediction_type != "epsilon":
        raise ConfigError(
            f"[rdm] snr_limit is {part.snr_limit}, but model {model.config.name!r} predicts {model.config.prediction_type!r}: "
            "set it to 0"
        )
    if not is_saved_model(part.base):
        scale_context_weights(model.unet, model.config.context_dim)
    work = None
    if crew.first:
        tokens, passes = max(part.counts) + bool(part.p_text), 2 if part.lora else 3
        work = count_work(model.unet, examples.shape, tokens, run.device, part.train.precision, crew.size, passes)
    if part.sharding == "ddp" or crew.size == 1:  # FSDP2 needs the parameters in order, and moves them itself
        model.unet.to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if part.checkpointing:
        model.unet.enable_gradient_checkpointing()
    adapters = Adapters(model.unet, part.lora, part.train.seed) if part.lora else None
    teacher = read_teacher(part, run.device) if part.distil_guidance else None
    return Training(run, model, share(model.unet, crew, part, run.folder), adapters, work, teacher)


def read_teacher(part: DenoiserConfig, device: torch.device) -> UNet:
    """The frozen denoiser of the base, in the precision that the training computes in."""
    import torch
    from torch import nn

    from rdm import RDM

    unet = RDM.from_pretrained(part.base).unet
    kind = torch.bfloat16 if part.train.precision == "bf16" else torch.float32
    nn.Module.to(unet, device=device, dtype=kind)
    nn.Module.to(unet, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return unet.eval().requires_grad_(False)


def held_out_context(rows: PreparedRows, places: Tensor, part: DenoiserConfig) -> HeldOut | None:
    """Held-out rows with their neighbours, preceded by their captions if texts are trained on; None without places."""
    import torch

    if not len(places):
        return None
    context = rows.neighbours(places, part.default_k, False)
    if part.p_text:
        context = torch.cat([rows.captions(places, places[:, 0])[:, None], context], dim=1)
    return HeldOut(rows.latents(places), context)


def _millions(network: nn.Module) -> str:
    return f"{sum(value.numel() for value in network.parameters()) / 1e6:.2f}"
