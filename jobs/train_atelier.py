"""Train a small denoiser while the atelier draws its pictures: one process draws, another trains, and both can be resumed.

    python jobs/train_atelier.py draw DATA named --chunks 8        # the ten styles; also: random (styles without a name)
    python jobs/train_atelier.py real DATA '../shared/data/styles/*.parquet' --held-out openmoji,unifont
    python jobs/train_atelier.py train DATA RUN until=18:30 batch=32
    python jobs/train_atelier.py save RUN MODEL_FOLDER

`draw` writes chunks of 2,048 pictures (pixels, encoder vectors, caption vectors); `train` uses the existing chunks and
looks for more every three minutes. The loss is the error of v, for any kind of prediction, over times with a normal logit. A
picture's neighbours are those of its caption's vector among other pictures of its style, as in retrieval; text,
neighbours or both are dropped with probability 0.1 each. RUN holds state.pt (weights, average, optimizer, step),
constant.pt (the same before the rate began to fall: continue from there with `start=`) and log.csv with the held-out
error at six noise levels.

It differs from `rdmpipe train rdm`, which keeps all pictures in memory, finds neighbours once by image vectors, and has no
held-out loss. Both write the same kind of model folder.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import re
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

from pipeline.training.trained import embed_pictures, embed_texts, load_encoder
from rdm import RDM
from rdm.denoiser import cross_attentions, pool
from rdm.prediction import error_by_level, levels, logit_normal_times, velocity_error
from rdm.schedule import Schedule

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ASSETS = Path(__file__).resolve().parent.parent / "pipeline" / "assets"
MINI = ASSETS / "encoders" / "mini"
CHUNK = 2048
SEEDS = {"named": 11, "random": 12}  # evaluation draws from seed 0
SHARES = {"named": 0.42, "random": 0.40, "real": 0.18}  # of a batch's rows
COUNTS = (1, 1, 2, 2, 3, 4, 5, 6, 8, 8, 8, 10, 12, 16, 20)  # neighbours, drawn for each batch
TIMES = (950, 850, 700, 500, 300, 100)
GROUP = 8  # rows of a batch that share a style
MINI_SCALE = 1.005126817668796  # of rdm-mini's latents
PIXEL_SCALE = 1.6  # brings the deviation of pixels near 1
HELD_FAMILIES = ("dots", "relief")  # of random styles: never drawn for training

T = TypeVar("T", bound="DataclassInstance")


@dataclass(frozen=True)
class Options:
    """How to train.

    mode            "latent" (rdm-mini's first stage), or "f8", "f4": pixels folded by 8 or 4
    warm            start from rdm-mini's weights where shapes agree
    pooled          add the context's first token and mean to the time embedding
    drop            "token": text, neighbours or both, 0.1 each; "whole": as rdm-mini was trained
    until           the time of day (18:30) at which the rate has fallen to zero, over decay_minutes
    seconds, steps  instead of `until`: processor time, with a fall over the share decay; or a number of steps at a
    constant rate
    own             share of the groups whose neighbours are all of one style
    start           a state to continue from in a new run
    encoder         name of the encoder whose vectors the chunks hold
    """

    prediction: str = "v_prediction"
    mode: str = "latent"
    warm: bool = True
    pooled: bool = True
    drop: str = "token"
    lr: float = 5e-4
    batch: int = 32
    warmup: int = 60
    ema: float = 0.998
    until: str = ""
    decay_minutes: float = 20.0
    seconds: float = 0.0
    steps: int = 0
    decay: float = 0.33
    own: float = 0.85
    seed: int = 0
    start: str = ""
    encoder: str = "mini"


def read_options(pairs: list[str], kind: type[T]) -> T:
    """Options of a training from words such as `batch=32`; what is not named keeps its default."""
    kinds = {f.name: type(getattr(kind(), f.name)) for f in fields(kind)}
    values: dict[str, Any] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name not in kinds:
            raise SystemExit(f"unknown option {name!r}: known are {', '.join(kinds)}")
        values[name] = value in ("1", "true", "True") if kinds[name] is bool else kinds[name](value)
    return kind(**values)


# -- pictures ----------------------------------------------------------------------------------------------------------


def thing(subject: str, colour: str, number: int) -> str:
    """A scene's thing as words, such as "three red boats"; an empty colour is left out."""
    from pipeline.atelier.scene import number_word
    from pipeline.atelier.subjects import REGISTRY

    named = REGISTRY[subject]
    if number > 1:
        return " ".join(f"{number_word(number)} {named.plural.format(c=colour)}".split())
    return re.sub(r"\ba (?=[aeiou])", "an ", " ".join(f"a {named.noun.format(c=colour)}".split()))


def short_caption(scene: Any, rng: np.random.Generator) -> str:
    """A typical short prompt: only the subject, with its place, or with the hour."""
    from pipeline.atelier.settings import SETTINGS

    where, noun = SETTINGS[scene.setting].phrases, thing(scene.subject, scene.colour, scene.number)
    throw = float(rng.random())
    if throw < 0.4:
        return noun
    if throw < 0.8:
        return f"{noun} {where[int(rng.integers(len(where)))]}"
    return noun if scene.time_of_day == "day" else f"{noun} at {scene.time_of_day}"


def words_of(path: Path, content: dict[str, Any]) -> list[list[str]]:
    """Three texts for each picture of a chunk: the caption, a short one, and one that may name the style."""
    from pipeline.atelier.scene import sample
    from pipeline.training import with_style

    kind, captions, styles = path.parent.name, content["captions"], content["styles"]
    if kind == "held_out":
        return [captions] * 3
    begin = "a drawing of" if kind == "real" else "a picture of"
    third = [
        with_style(caption, style) if i % 3 == 0 and kind != "random" else f"{begin} {caption}"
        for i, (caption, style) in enumerate(zip(captions, styles, strict=True))
    ]
    if kind == "real":
        return [captions, captions, third]
    rng = np.random.default_rng([SEEDS[kind], int(path.name[:4])])
    return [captions, [short_caption(sample(SEEDS[kind], number), rng) for number in content["contents"]], third]


def write_chunk(path: Path, encoder: Path, pixels: Tensor, content: dict[str, Any]) -> None:
    """PATH.px.npy (N, 3, 64, 64) uint8 and PATH.pt: styles, contents, captions; vectors (N, D), texts (N, 3, D) fp16."""
    network, tokenizer = load_encoder(encoder)
    device = torch.device("cpu")
    texts = [embed_texts(network, tokenizer, some, device) for some in words_of(path, content)]
    content |= {
        "vectors": embed_pictures(network, pixels, device).half(),
        "texts": torch.stack(texts, 1).half(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npy")
    np.save(part, pixels.numpy())
    part.replace(path.with_suffix(".px.npy"))
    save_state(path.with_suffix(".pt"), content)


def draw(data: Path, kind: str, chunks: int, first: int = 0, encoder: Path = MINI) -> None:
    """Draw missing chunks. A random style has 64 pictures in a chunk."""
    from pipeline.atelier import STYLES, split_of
    from pipeline.atelier.pictures import render
    from pipeline.atelier.random_styles import FAMILIES, random_style, render_random
    from pipeline.atelier.scene import sample

    kept = [name for name in FAMILIES if name not in HELD_FAMILIES]
    for chunk in range(first, first + chunks):
        path = data / kind / f"{chunk:04d}"
        if path.with_suffix(".pt").exists():
            continue
        images, styles, contents, captions = [], [], [], []
        for i in range(CHUNK):
            content = chunk * CHUNK + i
            while split_of(content) != "train":
                content += 10_000_000
            scene = sample(SEEDS[kind], content)
            if kind == "named":
                style = STYLES[i % len(STYLES)]
                images.append(render(scene, style, 64))
            else:
                number = chunk * (CHUNK // 64) + i % (CHUNK // 64)
                images.append(render_random(scene, random_style(number, kept), 64))
                style = f"random {number}"
            styles.append(style)
            contents.append(content)
            captions.append(scene.caption)
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        write_chunk(path, encoder, pixels, {"styles": styles, "contents": contents, "captions": captions})
        print(f"{kind}: chunk {chunk}", flush=True)


def draw_held_out(data: Path, count: int = 512, encoder: Path = MINI) -> None:
    """Draw held_out/0000: contents that are never trained on (seed 0), in the ten styles."""
    from pipeline.atelier import STYLES, split_of
    from pipeline.atelier.pictures import render
    from pipeline.atelier.scene import sample

    ids = [i for i in range(20 * count) if split_of(i) == "held_out"][:count]
    styles = [STYLES[i % len(STYLES)] for i in range(len(ids))]
    scenes = [sample(0, i) for i in ids]
    pixels = torch.from_numpy(np.stack([render(s, k, 64) for s, k in zip(scenes, styles, strict=True)]))
    content = {"styles": styles, "contents": ids, "captions": [s.caption for s in scenes]}
    write_chunk(data / "held_out" / "0000", encoder, pixels.permute(0, 3, 1, 2).contiguous(), content)


def real(data: Path, pattern: str, held_out: tuple[str, ...], encoder: Path = MINI) -> None:
    """Write real/0000: a collection's rows for training, by the rule of `rdmpipe train`."""
    from pipeline.training.data import DataConfig, read_pictures, training_rows

    config = DataConfig(parquet=(pattern,), held_out_styles=held_out, size=64)
    everything = read_pictures(config)
    some = everything.take(training_rows(everything, config))
    names = {"styles": list(some.styles), "contents": list(some.contents), "captions": list(some.captions)}
    write_chunk(data / "real" / "0000", encoder, some.pixels, names)


class Source:
    """The chunks of one kind: pixels mapped from disk, vectors in memory."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder / kind, kind
        self.seen: list[Path] = []
        self.pixels: list[np.ndarray] = []
        self.vectors = self.texts = torch.empty(0)
        self.styles: list[str] = []
        self.pools: list[Tensor] = []
        self.load()

    def load(self) -> None:
        for path in sorted(self.folder.glob("[0-9]*.pt")):
            if path in self.seen:
                continue
            content = torch.load(path, weights_only=True)
            self.seen.append(path)
            self.pixels.append(np.load(path.with_suffix("").with_suffix(".px.npy"), mmap_mode="r"))
            empty = not len(self.vectors)
            self.vectors = content["vectors"] if empty else torch.cat([self.vectors, content["vectors"]])
            self.texts = content["texts"] if empty else torch.cat([self.texts, content["texts"]])
            self.styles += content["styles"]
        groups: dict[str, list[int]] = {}
        for row, style in enumerate(self.styles):
            groups.setdefault(style, []).append(row)
        self.pools = [torch.tensor(rows) for rows in groups.values() if len(rows) > max(COUNTS)]
        self.starts = np.cumsum([0, *(len(part) for part in self.pixels)])

    def pictures(self, rows: Tensor) -> Tensor:
        """(B, 3, 64, 64) in [-1, 1]."""
        out = np.empty((len(rows), 3, 64, 64), np.uint8)
        for place, row in enumerate(rows.tolist()):
            part = int(np.searchsorted(self.starts, row, "right") - 1)
            out[place] = self.pixels[part][row - self.starts[part]]
        return torch.from_numpy(out).float() / 127.5 - 1


def draw_group(source: Source, count: int, options: Options, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """GROUP pictures of one style (GROUP, 3, 64, 64) and their contexts (GROUP, 1 + count, D)."""

    def throw(n: int) -> Tensor:
        return torch.rand(n, generator=g)

    members = source.pools[int(torch.randint(len(source.pools), (1,), generator=g))]
    rows = members[torch.randint(len(members), (GROUP,), generator=g)]
    if float(throw(1)) > options.own:
        among = torch.randint(len(source.styles), (1500,), generator=g)
    elif len(members) > 400:  # databases of many sizes
        size = int(2 ** (7 + 4 * float(throw(1))))
        among = members[torch.randint(len(members), (size,), generator=g)]
    else:
        among = members
    vectors = source.vectors[among].float()
    which = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), GROUP, replacement=True, generator=g)
    text = source.texts[rows, which].float()
    query = torch.where((throw(GROUP) < 0.75)[:, None], text, source.vectors[rows].float())
    score = query @ vectors.T
    score[among[None, :] == rows[:, None]] = -9
    near = vectors[score.topk(count, dim=1).indices]
    dice = throw(GROUP)
    # A dropped token is replaced by a copy of another, so that attention only sees the others and no mask is needed.
    if options.drop == "token":
        first = torch.where((dice < 0.1)[:, None], near[:, 0], text)
        alone = ((dice >= 0.1) & (dice < 0.2))[:, None, None]
        tokens = torch.cat([first[:, None], torch.where(alone, text[:, None].expand_as(near), near)], dim=1)
        tokens[(dice >= 0.2) & (dice < 0.3)] = 0
    else:
        first = torch.where((dice < 0.3)[:, None], near[:, 0], text)
        tokens = torch.cat([first[:, None], near], dim=1)
        tokens[throw(GROUP) < 0.1] = 0
    pictures = source.pictures(rows)
    mirrored = throw(GROUP) < 0.5
    pictures[mirrored] = pictures[mirrored].flip(-1)
    return pictures, tokens


def draw_batch(sources: list[Source], options: Options, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, 64, 64) and contexts (B, T, D)."""
    count = COUNTS[int(torch.randint(len(COUNTS), (1,), generator=g))]
    there = [source for source in sources if source.pools]
    shares = torch.tensor([SHARES[source.kind] for source in there])
    groups = [
        draw_group(there[int(torch.multinomial(shares, 1, generator=g))], count, options, g)
        for _ in range(options.batch // GROUP)
    ]
    return torch.cat([pictures for pictures, _ in groups]), torch.cat([tokens for _, tokens in groups])


# -- the model ---------------------------------------------------------------------------------------------------------


def describe(options: Options, name: str = "rdm-mini-2") -> dict[str, Any]:
    """The model's description: rdm-mini's widths, on its latents or on folded pixels."""
    down, up = ["DownBlock2D", "CrossAttnDownBlock2D"], ["CrossAttnUpBlock2D", "UpBlock2D"]
    shapes = {
        "latent": (8, 16, [64, 128], down, up, [2, 4]),
        "f8": (8, 192, [64, 128], down, up, [2, 4]),
        "f4": (16, 48, [48, 64, 128], ["DownBlock2D", *down], [*up, "UpBlock2D"], [2, 2, 4]),
    }
    size, channels, widths, down, up, heads = shapes[options.mode]
    unet: dict[str, Any] = {
        "sample_size": size, "in_channels": channels, "out_channels": channels, "block_out_channels": widths,
        "down_block_types": down, "up_block_types": up, "attention_head_dim": heads, "layers_per_block": 1,
        "cross_attention_dim": 192, "norm_num_groups": 8,
    }  # fmt: skip
    if options.pooled:
        unet |= {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 384}
    if options.mode == "latent":
        first = json.loads((ASSETS / "models" / "rdm-mini" / "vae" / "config.json").read_text())
        stage = {key: value for key, value in first.items() if not key.startswith("_")} | {
            "_class_name": "AutoencoderKL"
        }
    else:
        factor = 64 // size
        stage = {"_class_name": "Folded", "factor": factor, "in_channels": 3, "latent_channels": 3 * factor**2}
    return {
        "name": name, "unet": unet, "first_stage": stage, "encoder": options.encoder, "max_neighbours": 20, "default_k": 8,
        "scale_factor": MINI_SCALE if options.mode == "latent" else PIXEL_SCALE, "default_size": 64,
        "default_guidance": 2.0, "prediction_type": options.prediction,
    }  # fmt: skip


def build(options: Options, name: str = "rdm-mini-2") -> RDM:
    """A model to train: with rdm-mini's weights where they fit, and a class embedding that is zero at first."""
    torch.manual_seed(options.seed)
    model = RDM.from_config(describe(options, name))
    mini = RDM.from_pretrained(ASSETS / "models" / "rdm-mini")
    if options.mode == "latent":
        model.first_stage = mini.first_stage
    net = model.unet
    with torch.no_grad():
        for attention in cross_attentions(net):
            attention.to_k.weight.mul_(192**0.5)
            attention.to_v.weight.mul_(192**0.5)
        if options.pooled:
            net.class_embedding.linear_1.weight.mul_(192**0.5 / 1.5)
            net.class_embedding.linear_2.weight.mul_(0.0 if options.warm else 0.5)
            net.class_embedding.linear_2.bias.zero_()
    if options.warm:
        old = mini.unet.state_dict()
        if options.mode == "f4":  # one more level above the old ones
            old = {
                re.sub(r"^down_blocks\.(\d)", lambda m: f"down_blocks.{int(m[1]) + 1}", k): v for k, v in old.items()
            }
        new = net.state_dict()
        fits = {key: value for key, value in old.items() if key in new and new[key].shape == value.shape}
        net.load_state_dict(new | fits)
        print(f"warm: {sum(value.numel() for value in fits.values()) / 1e6:.2f} M weights are rdm-mini's", flush=True)
    net.to(memory_format=torch.channels_last)
    return model


def labels(context: Tensor, options: Options) -> dict[str, Tensor]:
    return {"class_labels": pool(context)} if options.pooled else {}


def held_out(data: Path, model: RDM, count: int = 128, k: int = 8) -> tuple[Tensor, Tensor]:
    """Latents (count, C, h, w) of held-out pictures and contexts (count, 1 + k, D) from training pictures of their style."""
    if not (data / "held_out" / "0000.pt").exists():
        draw_held_out(data)
    asked, named = Source(data, "held_out"), Source(data, "named")
    contexts = []
    for row in range(count):
        among = torch.tensor([i for i, style in enumerate(named.styles[: 2 * CHUNK]) if style == asked.styles[row]])
        query, vectors = asked.texts[row, 0].float(), named.vectors[among].float()
        contexts.append(torch.cat([query[None], vectors[(vectors @ query).topk(k).indices]]))
    pictures = asked.pictures(torch.arange(count))
    return model.encode(pictures) * model.config.scale_factor, torch.stack(contexts)


# -- the loop ----------------------------------------------------------------------------------------------------------


def train(data: Path, run: Path, options: Options) -> None:
    """Train until the time of day or the processor time is reached. Raises FloatingPointError for a gradient that is not
    finite."""
    run.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    model = build(options)
    net: Any = model.unet.train()
    schedule = Schedule(model.config.beta_start, model.config.beta_end)
    average = {key: value.detach().clone() for key, value in net.state_dict().items()}
    groups = [
        {"params": [p for p in net.parameters() if p.dim() > 1], "weight_decay": 0.01},
        {"params": [p for p in net.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.95), foreach=True)
    step, spent, state = 0, 0.0, run / "state.pt"
    found = state if state.exists() else Path(options.start) if options.start else None
    if found is not None:
        content = torch.load(found, map_location="cpu", weights_only=True)
        net.load_state_dict(content["network"])
        optimizer.load_state_dict(content["optimizer"])
        average = content["average"]
        if found == state:
            step, spent = content["step"], content["spent"]
        print(f"continues from {found}, step {content['step']}", flush=True)
    sources = [Source(data, kind) for kind in SHARES]
    held = held_out(data, model)
    end = hour(options.until)
    log = run / "log.csv"
    if not log.exists():
        log.write_text("step,pictures,seconds,loss,rate," + ",".join(f"v{t}" for t in TIMES) + "\n")
    began, loaded, saved, asked = time.process_time(), time.time(), time.time(), spent
    total, count = 0.0, 0
    while True:
        used = spent + time.process_time() - began
        if options.steps:
            left, fall = float(options.steps - step), 1.0
        elif options.seconds:
            left = 1 - used / options.seconds
            fall = left / options.decay if options.decay else 1.0
        else:
            left = end - time.time() if end else 1.0
            fall = left / (60 * options.decay_minutes) if end else 1.0
        rate = options.lr * min(1.0, (step + 1) / options.warmup) * max(0.0, min(1.0, fall))
        values = {
            "network": net.state_dict(), "average": average, "optimizer": optimizer.state_dict(), "step": step,
            "spent": used, "options": asdict(options),
        }  # fmt: skip
        if fall < 1 and not (run / "constant.pt").exists():
            save_state(run / "constant.pt", values)
        if left <= 0 or used - asked > 75:
            errors = _errors(model, average, held, options)
            with log.open("a", newline="") as handle:
                row = [step, step * options.batch, round(used), f"{total / max(count, 1):.4f}", f"{rate:.2e}"]
                csv.writer(handle).writerow([*row, *(f"{error:.4f}" for error in errors.values())])
            total, count, asked = 0.0, 0, used
        if left <= 0 or time.time() - saved > 240:
            save_state(state, values)
            saved = time.time()
        if left <= 0:
            return
        if time.time() - loaded > 180:
            for source in sources:
                source.load()
            loaded = time.time()
        g = torch.Generator().manual_seed((options.seed << 32) + step)
        pictures, context = draw_batch(sources, options, g)
        latents = model.encode(pictures) * model.config.scale_factor
        noise = torch.randn(latents.shape, generator=g)
        t = logit_normal_times(len(latents), schedule, g)
        alpha, sigma = levels(schedule, t, latents)
        x = (alpha * latents + sigma * noise).contiguous(memory_format=torch.channels_last)
        output = net(x, t, encoder_hidden_states=context, **labels(context, options)).sample
        loss = velocity_error(options.prediction, output, latents, noise, t, schedule).mean()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient of step {step} is not finite; {state} is the last good one")
        optimizer.step()
        decay = min(options.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            live = net.state_dict()
            torch._foreach_lerp_([average[k] for k in average], [live[k] for k in average], 1 - decay)
        total, count, step = total + float(loss.detach()), count + 1, step + 1
        if step % 50 == 0:
            print(
                f"step {step}, loss {total / count:.4f}, {step * options.batch / used:.0f} pictures/s of processor",
                flush=True,
            )


def hour(until: str) -> float:
    """The next time of this time of day (18:30), in seconds since 1970; 0 for an empty text."""
    if not until:
        return 0.0
    hours, minutes = map(int, until.split(":"))
    end = datetime.datetime.now().replace(hour=hours, minute=minutes, second=0).timestamp()
    return end if end > time.time() else end + 86400


def save_state(path: Path, values: dict[str, Any]) -> None:
    """Write a file of tensors and plain values in one step."""
    torch.save(values, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def _errors(model: RDM, average: dict[str, Tensor], held: tuple[Tensor, Tensor], options: Options) -> dict[int, float]:
    live = {key: value.clone() for key, value in model.unet.state_dict().items()}
    model.unet.load_state_dict(average)
    model.unet.eval()
    errors = error_by_level(
        model.unet, options.prediction, *held, model.schedule, times=TIMES, extra=labels(held[1], options)
    )  # fmt: skip
    model.unet.load_state_dict(live)
    model.unet.train()
    return errors


def save(run: Path, folder: Path, name: str, guidance: float = 2.0) -> None:
    """The averaged weights as a model folder, fp16, with this default guidance scale."""
    content = torch.load(run / "state.pt", map_location="cpu", weights_only=True)
    model = build(Options(**{**content["options"], "warm": False}), name)
    model.config = replace(model.config, default_guidance=guidance)
    model.unet.load_state_dict(content["average"])
    model.unet.half()
    model.first_stage.half()
    model.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("draw")
    one.add_argument("data", type=Path)
    one.add_argument("kind", choices=tuple(SEEDS))
    one.add_argument("--chunks", type=int, default=8)
    one.add_argument("--first", type=int, default=0)
    one.add_argument("--encoder", type=Path, default=MINI, help="the encoder's folder")
    two = parts.add_parser("real")
    two.add_argument("data", type=Path)
    two.add_argument("pattern")
    two.add_argument("--held-out", default="")
    two.add_argument("--encoder", type=Path, default=MINI)
    three = parts.add_parser("train")
    three.add_argument("data", type=Path)
    three.add_argument("run", type=Path)
    three.add_argument("options", nargs="*")
    four = parts.add_parser("save")
    four.add_argument("run", type=Path)
    four.add_argument("folder", type=Path)
    four.add_argument("--name", default="rdm-mini-2")
    four.add_argument("--guidance", type=float, default=2.0, help="the default guidance scale")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.part == "draw":
        draw(asked.data, asked.kind, asked.chunks, asked.first, asked.encoder)
    elif asked.part == "real":
        left_out = tuple(name for name in asked.held_out.split(",") if name)
        real(asked.data, asked.pattern, left_out, asked.encoder)
    elif asked.part == "train":
        train(asked.data, asked.run, read_options(asked.options, Options))
    else:
        save(asked.run, asked.folder, asked.name, asked.guidance)


if __name__ == "__main__":
    main()
