"""Train the small encoder further on the chunks that jobs/train_atelier.py draws, and give the chunks its vectors.

    python -m jobs.train_atelier_encoder train DATA RUN until=18:30
    python -m jobs.train_atelier_encoder embed DATA RUN/model NEW_DATA

`train` starts from the shipped encoder `mini`. Each row of a batch is a picture with a caption: the whole caption, the thing
with or without its colour, with its place or hour, with the style's name, or the style alone. A caption is a positive of every
picture for which it is true: the drawn scenes tell subject, colour, number, place, hour and style of every picture, and each
kind of caption says which of these it asserts. So two pictures of a red boat are both positives of "a red boat". Pictures of
one random style, which no caption names, attract each other in a projection of the vectors that is not kept: the vectors must
hold styles without names, because neighbours' vectors are how a denoiser learns of them.

RUN holds state.pt, model/ (the averaged weights, fp16) and log.csv with held-out figures. `embed` writes the same chunks with
this encoder's vectors of pictures and texts, for `jobs/train_atelier.py train`; pixels are linked.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from jobs.train_atelier import MINI, SEEDS, draw_held_out, hour, read_options, save_state, thing, words_of
from pipeline.training.encoder import augment, contrastive_loss, style_words
from pipeline.training.trained import build_encoder, embed_pictures, embed_texts, load_encoder, save_encoder, to_model

FIELDS = ("subject", "colour", "number", "place", "hour", "style")
KINDS = ("named", "random", "real")
SAME = 6  # pictures of one random style in a group of a batch
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Options:
    """How to train: until the time of day `until` or for `steps`, with a rate that falls over the last decay_minutes or
    not at all.

    style   weight of the loss that brings pictures of one random style together
    gap     weight of the distance between the mean vectors of pictures and texts
    """

    until: str = ""
    steps: int = 0
    decay_minutes: float = 13.0
    batch: int = 192
    lr: float = 1e-3
    warmup: int = 100
    ema: float = 0.998
    style: float = 0.2
    gap: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Described:
    """What a picture shows. A real picture's caption stands in `subject`, and the other fields of its scene are empty."""

    caption: str
    style: str
    subject: str
    colour: str = ""
    number: int = 1
    place: str = ""
    hour: str = ""


class Rows:
    """All chunks for training, with numbers for what each picture shows: `facts` (N, 6), in the order of FIELDS.

    The last named chunk at the start is left out: it is the database of the held-out figures.
    """

    def __init__(self, data: Path) -> None:
        self.data = data
        self.left_out = sorted((data / "named").glob("[0-9]*.pt"))[-1]
        self.seen: set[Path] = set()
        self.pixels: list[np.ndarray] = []
        self.starts = [0]
        self.shown: list[Described] = []
        self.kinds: list[int] = []
        self.facts = np.zeros((0, len(FIELDS)), np.int64)
        self._numbers: dict[tuple[str, object], int] = {}
        self.load()

    def load(self) -> None:
        for kind, name in enumerate(KINDS):
            for path in sorted((self.data / name).glob("[0-9]*.pt")):
                if path in self.seen or path == self.left_out:
                    continue
                shown = described(path, name)
                self.seen.add(path)
                self.pixels.append(np.load(path.with_suffix("").with_suffix(".px.npy"), mmap_mode="r"))
                self.shown += shown
                self.kinds += [kind] * len(shown)
                self.facts = np.concatenate([self.facts, np.array([self._facts(one) for one in shown])])
                self.starts.append(len(self.facts))
        kinds = np.array(self.kinds)
        self.of_kind = [np.flatnonzero(kinds == kind) for kind in range(len(KINDS))]
        styles: dict[int, list[int]] = {}
        for row in self.of_kind[1].tolist():
            styles.setdefault(int(self.facts[row, -1]), []).append(row)
        self.random_styles = list(styles.values())

    def _facts(self, one: Described) -> list[int]:
        return [self._numbers.setdefault((name, getattr(one, name)), len(self._numbers)) for name in FIELDS]

    def pictures(self, rows: list[int]) -> Tensor:
        """(B, 3, 64, 64) uint8."""
        out = np.empty((len(rows), 3, 64, 64), np.uint8)
        for place, row in enumerate(rows):
            part = int(np.searchsorted(self.starts, row, "right") - 1)
            out[place] = self.pixels[part][row - self.starts[part]]
        return torch.from_numpy(out)

    def draw(self, batch: int, rng: np.random.Generator) -> list[int]:
        """Rows of a batch: five eighths named, a quarter random in groups of one style, an eighth real, if there are any."""
        groups = batch // 4 // SAME if self.random_styles else 0
        real = batch // 8 if len(self.of_kind[2]) else 0
        rows: list[int] = rng.choice(self.of_kind[0], batch - groups * SAME - real).tolist()
        for _ in range(groups):
            rows += rng.choice(self.random_styles[int(rng.integers(len(self.random_styles)))], SAME).tolist()
        return rows + (rng.choice(self.of_kind[2], real).tolist() if real else [])


def described(path: Path, kind: str) -> list[Described]:
    """What the pictures of a chunk show."""
    from pipeline.atelier.scene import sample

    content = torch.load(path, weights_only=True)
    rows = zip(content["contents"], content["captions"], content["styles"], strict=True)
    if kind == "real":
        return [Described(caption, style, f"real {content}") for content, caption, style in rows]
    scenes = [(sample(SEEDS.get(kind, 0), number), style) for number, _, style in rows]
    return [Described(s.caption, style, s.subject, s.colour, s.number, s.setting, s.time_of_day) for s, style in scenes]


# Kinds of captions of a drawn scene: the share, and what the caption asserts, in the order of FIELDS.
_DRAWN = (
    (0.30, "whole", (1, 1, 1, 1, 1, 0)),
    (0.18, "thing", (1, 1, 1, 0, 0, 0)),
    (0.14, "colourless", (1, 0, 1, 0, 0, 0)),
    (0.12, "place", (1, 1, 1, 1, 0, 0)),
    (0.06, "hour", (1, 1, 1, 0, 1, 0)),
    (0.10, "whole in style", (1, 1, 1, 1, 1, 1)),
    (0.05, "thing in style", (1, 1, 1, 0, 0, 1)),
    (0.05, "style", (0, 0, 0, 0, 0, 1)),
)
_REAL = (
    (0.65, "whole", (1, 0, 0, 0, 0, 0)),
    (0.25, "whole in style", (1, 0, 0, 0, 0, 1)),
    (0.10, "style", (0, 0, 0, 0, 0, 1)),
)


def caption_of(one: Described, kind: int, rng: np.random.Generator) -> tuple[str, tuple[int, ...]]:
    """A caption of a picture, and which FIELDS it asserts. A random style is never named."""
    table = _REAL if KINDS[kind] == "real" else _DRAWN
    shares = np.array([share for share, _, _ in table])
    _, form, asserted = table[int(rng.choice(len(table), p=shares / shares.sum()))]
    if KINDS[kind] == "random" and asserted[-1]:
        form, asserted = "picture", (1, 1, 1, 1, 1, 0)
    style = f"in the style of {style_words(one.style)}"
    if form in ("whole", "picture", "whole in style", "style"):
        whole = {"whole": one.caption, "picture": f"a picture of {one.caption}", "style": style}
        return whole.get(form, f"{one.caption} {style}"), asserted
    noun = thing(one.subject, "" if form == "colourless" else one.colour, one.number)
    if form == "place":
        from pipeline.atelier.settings import SETTINGS

        phrases = SETTINGS[one.place].phrases
        return f"{noun} {phrases[int(rng.integers(len(phrases)))]}", asserted
    if form == "hour":
        return (noun, (1, 1, 1, 0, 0, 0)) if one.hour == "day" else (f"{noun} at {one.hour}", asserted)
    return f"{noun} {style}" if form == "thing in style" else noun, asserted


def true_of(facts: Tensor, asserted: Tensor) -> Tensor:
    """(B, B) bool: caption i, which asserts some facts (B, 6) of picture i, is true of picture j."""
    return ((facts[:, None] == facts[None]) | ~asserted[:, None]).all(dim=-1)


def style_loss(vectors: Tensor, styles: Tensor) -> Tensor:
    """-log softmax of the likeness (10 times the cosine) to others of the same style, averaged (arXiv 2004.11362)."""
    alone = torch.eye(len(vectors), dtype=torch.bool)
    unit = F.normalize(vectors, dim=-1)
    chances = F.log_softmax((10 * unit @ unit.T).masked_fill(alone, -1e4), dim=1)
    same = (styles[:, None] == styles[None]) & ~alone
    rows = same.any(dim=1)
    return -((same * chances).sum(dim=1) / same.sum(dim=1).clamp(min=1))[rows].mean()


def train(data: Path, run: Path, options: Options) -> None:
    """Train until the time of day or the number of steps; a stopped run continues from its last save."""
    run.mkdir(parents=True, exist_ok=True)
    description = json.loads((MINI / "open_clip_config.json").read_text())["model_cfg"]
    network, tokenizer = build_encoder(description, options.seed)
    network.load_state_dict(load_encoder(MINI)[0].state_dict())
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.manual_seed(options.seed)
    head = torch.nn.Linear(description["embed_dim"], 64, bias=False)
    weights = [*network.parameters(), *head.parameters()]
    groups = [
        {"params": [p for p in weights if p.dim() > 1], "weight_decay": 0.02},
        {"params": [p for p in weights if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98), foreach=True)
    average = {name: value.detach().clone() for name, value in network.state_dict().items()}
    step, state = 0, run / "state.pt"
    if state.exists():
        content = torch.load(state, map_location="cpu", weights_only=True)
        network.load_state_dict(content["network"])
        head.load_state_dict(content["head"])
        optimizer.load_state_dict(content["optimizer"])
        average, step = content["average"], content["step"]
    rows, held = Rows(data), HeldOut(data)
    end = hour(options.until)
    loaded, saved, asked = time.time(), time.time(), 0.0
    while True:
        left = options.steps - step if options.steps else (end - time.time()) / 60
        fall = 1.0 if options.steps else left / options.decay_minutes
        rate = options.lr * min(1.0, (step + 1) / options.warmup) * max(0.0, min(1.0, fall))
        if left <= 0 or time.time() - asked > 300:
            twin, _ = build_encoder(description, 0)
            twin.load_state_dict(average)
            held.report(run / "log.csv", twin.eval(), tokenizer, rows.left_out, step)
            save_encoder(twin, description, run / "model")
            asked = time.time()
        if left <= 0 or time.time() - saved > 240:
            save_state(state, {
                "network": network.state_dict(), "head": head.state_dict(), "optimizer": optimizer.state_dict(),
                "average": average, "step": step,
            })  # fmt: skip
            saved = time.time()
        if left <= 0:
            return
        if time.time() - loaded > 200:
            rows.load()
            loaded = time.time()
        rng = np.random.default_rng([options.seed, step])
        chosen = rows.draw(options.batch, rng)
        told = [caption_of(rows.shown[row], rows.kinds[row], rng) for row in chosen]
        facts = torch.from_numpy(rows.facts[chosen])
        pixels = augment(rows.pictures(chosen), torch.Generator().manual_seed((options.seed << 32) + step))
        images = network.encode_image(to_model(pixels).contiguous(memory_format=torch.channels_last))
        words = network.encode_text(tokenizer([text for text, _ in told]))
        images, words = F.normalize(images, dim=-1), F.normalize(words, dim=-1)
        true = true_of(facts, torch.tensor([asserted for _, asserted in told], dtype=torch.bool))
        loss = contrastive_loss(images, words, network.logit_scale.exp().clamp(max=100), true)
        loss = loss + options.gap * (images.mean(dim=0) - words.mean(dim=0)).square().sum()
        loss = loss + options.style * style_loss(head(images), facts[:, -1])
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if not torch.isfinite(torch.nn.utils.clip_grad_norm_(weights, 1.0)):
            raise FloatingPointError(f"the gradient of step {step} is not finite; {state} is the last good one")
        optimizer.step()
        decay = min(options.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, value in network.state_dict().items():
                if value.is_floating_point():
                    average[name].lerp_(value, 1 - decay)
        step += 1
        if step % 100 == 0:
            print(f"step {step}, {step * options.batch:,} pictures, loss {float(loss.detach()):.3f}", flush=True)


class HeldOut:
    """Queries of held-out contents, and the figures of an encoder on them."""

    def __init__(self, data: Path) -> None:
        path = data / "held_out" / "0000.pt"
        if not path.exists():
            draw_held_out(data)
        self.asked = described(path, "held_out")

    def report(self, log: Path, network: Any, tokenizer: Any, database: Path, step: int) -> None:
        """Append a row of figures over a chunk of training contents that was not trained on.

        caption, thing          share of the queries whose first picture shows their subject
        caption8, thing8        share of right subjects among the first eight
        style12                 share of the twelve nearest others of a picture that share its style
        """
        shown = described(database, "named")
        pixels = torch.from_numpy(np.load(database.with_suffix("").with_suffix(".px.npy")))
        vectors = embed_pictures(network, pixels, CPU)
        subjects, styles = (np.array([getattr(one, name) for one in shown]) for name in ("subject", "style"))
        wanted = np.array([one.subject for one in self.asked])
        row: dict[str, float] = {"step": step}
        queries = {
            "caption": [one.caption for one in self.asked],
            "thing": [thing(one.subject, one.colour, one.number) for one in self.asked],
        }
        for name, texts in queries.items():
            near = (embed_texts(network, tokenizer, texts, CPU) @ vectors.T).topk(8).indices.numpy()
            right = subjects[near] == wanted[:, None]
            row |= {name: float(right[:, 0].mean()), f"{name}8": float(right.mean())}
        like = (vectors @ vectors.T).fill_diagonal_(-2).topk(12).indices.numpy()
        row["style12"] = float((styles[like] == styles[:, None]).mean())
        new = not log.exists()
        with log.open("a", newline="") as handle:
            writer = csv.writer(handle)
            if new:
                writer.writerow(row)
            writer.writerow([step, *(f"{value:.3f}" for name, value in row.items() if name != "step")])
        print(", ".join(f"{name} {value:.3f}" for name, value in row.items()), flush=True)


def embed(data: Path, encoder: Path, target: Path) -> None:
    """Write the chunks with this encoder's vectors. Chunks that the target has are kept."""
    network, tokenizer = load_encoder(encoder)
    for path in sorted(data.glob("*/[0-9]*.pt")):
        place = target / path.relative_to(data)
        if place.exists():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        source, pixels = path.with_suffix("").with_suffix(".px.npy"), place.with_suffix("").with_suffix(".px.npy")
        content = torch.load(path, weights_only=True)
        content["vectors"] = embed_pictures(network, torch.from_numpy(np.load(source)), CPU).half()
        texts = [embed_texts(network, tokenizer, some, CPU) for some in words_of(path, content)]
        content["texts"] = torch.stack(texts, 1).half()
        pixels.unlink(missing_ok=True)
        os.link(source, pixels)
        save_state(place, content)
        print(place, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("train")
    one.add_argument("data", type=Path)
    one.add_argument("run", type=Path)
    one.add_argument("options", nargs="*")
    two = parts.add_parser("embed")
    two.add_argument("data", type=Path)
    two.add_argument("encoder", type=Path)
    two.add_argument("target", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.part == "train":
        train(asked.data, asked.run, read_options(asked.options, Options))
    else:
        embed(asked.data, asked.encoder, asked.target)


if __name__ == "__main__":
    main()
