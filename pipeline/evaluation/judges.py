"""Two networks that judge pictures and take no part in generation: one names the style, one finds the caption.

Reads: labelled real pictures. Writes, in a folder each, rdm.train.fit's state and curve: a killed training continues, a
finished one is read. Neither shares weights, a text tower or a seed with the encoder that retrieves, or with the other.
The data of the style judge are split by content: it is tested on contents that it never saw. The content judge is tested on
pictures that it never saw, of contents that it may have seen in another style, because it has to learn the meaning of a caption
before it can judge.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.evaluation.data import perturb
from pipeline.training import LabelledPictures, caption_words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.evaluation.config import Judge
    from pipeline.execution import Progress

PIECES = 8192  # rows of the content judge's table of words and letter groups

MOST_CAPTIONS = 1024  # wrong captions in addition to the batch's own in a step of the content judge

HELD_OUT = 0.15


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class StyleNetwork(nn.Module):
    """Four strided convolutions, then mean and standard deviation of the last two stages, which depend on the manner of
    drawing."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.low = nn.Sequential(_stage(3, width, 2), _stage(width, 2 * width, 2), _stage(2 * width, 2 * width, 2))
        self.high = nn.Sequential(_stage(2 * width, 4 * width, 2), _stage(4 * width, 4 * width, 1))
        self.dim = 2 * (2 * width + 4 * width)
        self.head = nn.Linear(self.dim, classes)

    def features(self, values: Tensor) -> Tensor:
        """(B, dim) of pictures (B, 3, S, S) in -1..1."""
        low = self.low(values)
        maps = [low.flatten(2), self.high(low).flatten(2)]
        return torch.cat([part for one in maps for part in (one.mean(dim=2), one.std(dim=2))], dim=1)

    def forward(self, values: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(values))
        return logits


class Backbone(nn.Module):
    """A torchvision classifier by name with a new last layer; with `pretrained`, the other layers have its published
    weights."""

    def __init__(self, name: str, classes: int, pretrained: bool) -> None:
        super().__init__()
        from pipeline.machine import prepare_torchvision

        prepare_torchvision()
        from torchvision.models import get_model

        self.network = get_model(name, weights=None, num_classes=classes)
        if pretrained:
            own = self.network.state_dict()
            published = get_model(name, weights="DEFAULT").state_dict()
            fitting = {key: value for key, value in published.items() if own[key].shape == value.shape}
            self.network.load_state_dict({**own, **fitting})

    def features(self, values: Tensor) -> Tensor:
        """The class scores, the only output that all torchvision architectures have."""
        found: Tensor = self.network(values)
        return found

    def forward(self, values: Tensor) -> Tensor:
        return self.features(values)


class Residual(nn.Module):
    """Halves the sides, then adds a convolution of the result to it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(inputs, outputs, 4, 2, 1)
        self.two = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.norms = nn.ModuleList([nn.GroupNorm(8, outputs), nn.GroupNorm(8, outputs)])

    def forward(self, values: Tensor) -> Tensor:
        down = F.silu(self.norms[0](self.one(values)))
        return down + F.silu(self.norms[1](self.two(down)))


class ContentNetwork(nn.Module):
    """Pictures: residual stages, all positions of the last one. Captions: the mean of learnt vectors of words and letters."""

    def __init__(self, width: int, size: int, dim: int = 128) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 5, 2, 2)
        self.stages = nn.Sequential(
            Residual(width, 2 * width), Residual(2 * width, 3 * width), Residual(3 * width, 4 * width)
        )
        side = min(4, max(1, size // 16))
        self.pool = nn.AdaptiveAvgPool2d(side)
        self.out = nn.Linear(4 * width * side**2, dim)
        self.pieces = nn.EmbeddingBag(PIECES, dim, mode="mean")
        self.mix = nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))
        self.scale = nn.Parameter(torch.tensor(2.5))
        nn.init.normal_(self.pieces.weight, std=0.3)

    def features(self, values: Tensor) -> Tensor:
        """(B, dim) unit rows of pictures (B, 3, S, S) in -1..1."""
        found = self.pool(self.stages(F.silu(self.stem(values)))).flatten(1)
        return F.normalize(self.out(found), dim=1)

    def captions(self, texts: Sequence[str]) -> Tensor:
        """(T, dim) unit rows."""
        return self.bags(*pack([pieces(text) for text in texts]))

    def bags(self, numbers: Tensor, starts: Tensor) -> Tensor:
        mean = self.pieces(numbers, starts)
        return F.normalize(mean + self.mix(mean), dim=1)

    def logits(self, values: Tensor, texts: Tensor) -> Tensor:
        return self.scale.exp() * self.features(values) @ texts.T


def pieces(text: str) -> list[int]:
    """Rows of the table for a caption: its words, pairs of neighbouring words, and each word's groups of three letters."""
    found = caption_words(text) or [""]
    pairs = [f"{one} {two}" for one, two in itertools.pairwise(found)]
    groups = [f"#{part}" for word in found for part in re.findall(r"(?=(.{3}))", f" {word} ")]
    return [zlib.crc32(piece.encode()) % PIECES for piece in (*found, *found, *pairs, *groups)]


def pack(bags: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(numbers, starts) for EmbeddingBag."""
    starts = torch.tensor([0, *(len(bag) for bag in bags[:-1])]).cumsum(0)
    return torch.tensor([number for bag in bags for number in bag]), starts


# ---- training


def train_style(
    pictures: LabelledPictures,
    rows: Sequence[int],
    classes: Sequence[str],
    judge: Judge,
    folder: Path,
    progress: Progress,
) -> StyleNetwork | Backbone:
    """The style judge, trained on `rows`, or read if it is finished. Styles have equal weight, for any number of pictures."""
    torch.manual_seed(judge.train.seed)
    network: StyleNetwork | Backbone = (
        Backbone(judge.backbone, len(classes), judge.pretrained)
        if judge.backbone
        else StyleNetwork(len(classes), judge.width)
    )
    of = {style: number for number, style in enumerate(classes)}
    labels = torch.tensor([of[pictures.styles[row]] for row in rows])
    by_class = [torch.tensor(rows)[labels == number] for number in range(len(classes))]
    for style, some in zip(classes, by_class, strict=True):
        if not len(some):
            raise ConfigError(f"no picture of style {style!r} is left to train the style judge on: leave the style out")

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        drawn = torch.randint(len(classes), (judge.train.batch,), generator=generator)
        places = torch.rand(judge.train.batch, generator=generator)
        own = [by_class[label] for label in drawn.tolist()]
        chosen = torch.stack([some[int(place * len(some))] for some, place in zip(own, places.tolist(), strict=True)])
        logits = network(perturb(pictures.pixels[chosen], generator))
        return F.cross_entropy(logits, drawn, label_smoothing=0.05), {
            "accuracy": (logits.argmax(1) == drawn).float().mean()
        }

    return _fit(network, loss, judge, folder, progress, "style judge")


def train_content(
    pictures: LabelledPictures, rows: Sequence[int], judge: Judge, folder: Path, progress: Progress
) -> ContentNetwork:
    """The content judge: which caption of many is this picture's? Trained on `rows` that have one, or read."""
    torch.manual_seed(judge.train.seed)
    network = ContentNetwork(judge.width, pictures.pixels.shape[-1])
    rows = [row for row in rows if pictures.captions[row]]
    texts = list(dict.fromkeys(pictures.captions[row] for row in rows))
    if len(texts) < 2:
        raise ConfigError(
            "the database's pictures have no captions to learn contents from: name one whose pictures have, with --captions "
            "DATABASE or content_database in the protocol"
        )
    number = {text: i for i, text in enumerate(texts)}
    labels = torch.tensor([number[pictures.captions[row]] for row in rows])
    bags = [pieces(text) for text in texts]
    places = torch.tensor(rows)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        chosen = torch.randint(len(rows), (judge.train.batch,), generator=generator)
        others = torch.randperm(len(texts), generator=generator)[:MOST_CAPTIONS]
        asked, target = torch.unique(torch.cat([labels[chosen], others]), return_inverse=True)
        target = target[: len(chosen)]
        vectors = network.bags(*pack([bags[i] for i in asked.tolist()]))
        logits = network.logits(perturb(pictures.pixels[places[chosen]], generator), vectors)
        return F.cross_entropy(logits, target), {"accuracy": (logits.argmax(1) == target).float().mean()}

    return _fit(network, loss, judge, folder, progress, "content judge")


class _Loss(Protocol):
    def __call__(self, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]: ...


N = TypeVar("N", bound=nn.Module)


def _fit(network: N, loss: _Loss, judge: Judge, folder: Path, progress: Progress, name: str) -> N:
    from pipeline.training import say_report
    from rdm.train import fit

    weights = fit(network, loss, judge.train.loop(), folder, resume=True,
                  on_report=say_report(progress, name, judge.train.batch))  # fmt: skip
    network.load_state_dict(dict(weights))
    return network.eval().requires_grad_(False)


# ---- judging


@dataclass(frozen=True)
class Judged:
    """The judges' output for n pictures: style probabilities (n, C), and features of both networks (n, D)."""

    styles: NDArray[np.float64]
    style_features: NDArray[np.float64]
    content_features: NDArray[np.float64]


def judge_pictures(style: StyleNetwork | Backbone, content: ContentNetwork, pixels: Tensor, batch: int = 256) -> Judged:
    """Judge uint8 pictures (n, 3, S, S)."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    with torch.inference_mode():
        for some in torch.split(pixels, batch):
            values = some.float() / 127.5 - 1
            features = style.features(values)
            logits = style.head(features) if isinstance(style, StyleNetwork) else features
            parts.append((logits.softmax(1), features, content.features(values)))
    arrays = [torch.cat(column).double().numpy() for column in zip(*parts, strict=True)]
    return Judged(*arrays)
