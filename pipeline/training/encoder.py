"""Training of the encoder: an open_clip model with a contrastive loss and several positives in each row.

Reads the run's pictures. Writes the part's folder (see training/run.py) and `model/` (see training/trained.py).

A batch holds contents in pairs: two pictures of one content, in two styles if there are two. A caption names the content,
the content and the style, or only the style. Every picture for which a caption is true is a positive of it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pipeline.training.config import EncoderConfig
from pipeline.training.data import LabelledPictures
from pipeline.training.trained import build_encoder, embed_pictures, embed_texts, save_encoder, to_model

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pipeline.training.loop import PartRun
    from pipeline.training.trained import Clip, Tokenizer

CONTENT, BOTH, STYLE = 0, 1, 2

_CONTENT = ("{0}", "{0}", "a picture of {0}", "a drawing of {0}")

_BOTH = ("{0} in the style of {1}", "{0} in the style of {1}", "{0}, {1}", "a {1} picture of {0}")

_STYLE = ("in the style of {1}", "{1}", "a {1} picture")


def style_words(style: str) -> str:
    """The name of a style as words of a caption."""
    return style.replace("-", " ").replace("_", " ")


def with_style(caption: str, style: str) -> str:
    """The prompt with the style's name appended, as in the paper."""
    return f"{caption} in the style of {style_words(style)}"


@dataclass(frozen=True)
class Names:
    """Contents and styles of the pictures as numbers, (N,) each."""

    contents: Tensor
    styles: Tensor

    @staticmethod
    def of(pictures: LabelledPictures) -> Names:
        import torch

        def number(values: Sequence[str]) -> Tensor:
            order = {name: i for i, name in enumerate(dict.fromkeys(values))}
            return torch.tensor([order[name] for name in values])

        return Names(number(pictures.contents), number(pictures.styles))


def draw_rows(names: Names, batch: int, generator: torch.Generator) -> Tensor:
    """(batch,) rows: half of them at random, each followed by another picture of its content if there is one."""
    import torch

    first = torch.randint(len(names.contents), (batch // 2,), generator=generator)
    same = names.contents[first][:, None] == names.contents[None, :]
    same[torch.arange(len(first)), first] = False
    weights = same.float()
    weights[~same.any(dim=1)] = 1.0  # a content with one picture is followed by any picture
    second = torch.multinomial(weights, 1, generator=generator)[:, 0]
    return torch.stack([first, second], dim=1).flatten()


def draw_texts(
    pictures: LabelledPictures, rows: Sequence[int], config: EncoderConfig, seed: int
) -> tuple[list[str], list[int]]:
    """One caption for each row, and its kind: CONTENT, BOTH or STYLE."""
    die = random.Random(seed)
    texts, kinds = [], []
    for row in rows:
        throw = die.random()
        kind = STYLE if throw < config.style_only else BOTH if throw < config.style_only + config.both else CONTENT
        kind = kind if pictures.styles[row] else CONTENT
        content = pictures.captions[row]
        if pictures.tags[row] and die.random() < config.tags:
            content = pictures.tags[row]
        template = die.choice((_CONTENT, _BOTH, _STYLE)[kind])
        texts.append(template.format(content, style_words(pictures.styles[row])))
        kinds.append(kind)
    return texts, kinds


def positives(contents: Tensor, styles: Tensor, kinds: Tensor) -> Tensor:
    """(B, B) bool: caption i is true of picture j."""
    same_content = contents[:, None] == contents[None, :]
    same_style = styles[:, None] == styles[None, :]
    kind = kinds[:, None]
    return (same_content | (kind == STYLE)) & (same_style | (kind == CONTENT))


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, true: Tensor) -> Tensor:
    """-log softmax, averaged over the positives of a row and over the rows, from captions to pictures and from pictures
    to captions.

    images, texts (B, D) unit rows; scale the inverse of the temperature; true (B, B) from `positives`. With one
    positive in each row this is the loss of CLIP. The mean is outside the logarithm, as in arXiv 2004.11362.
    """
    from torch.nn import functional as F

    logits = scale * texts @ images.T
    weights = true.float()

    def one_way(logits: Tensor, weights: Tensor) -> Tensor:
        return -((weights * F.log_softmax(logits, dim=1)).sum(dim=1) / weights.sum(dim=1)).mean()

    return 0.5 * (one_way(logits, weights) + one_way(logits.T, weights.T))


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 pictures (B, 3, H, W) shifted by up to 3 pixels, with repeated border pixels; half of them are mirrored."""
    import torch
    from torch.nn import functional as F

    count, _, height, width = pixels.shape
    wide = F.pad(pixels.float(), (3, 3, 3, 3), mode="replicate").byte()
    moves = torch.randint(7, (count, 2), generator=generator).tolist()
    moved = torch.stack([
        picture[:, y : y + height, x : x + width] for picture, (y, x) in zip(wide, moves, strict=True)
    ])  # fmt: skip
    mirror = torch.rand(count, generator=generator) < 0.5
    moved[mirror] = moved[mirror].flip(-1)
    return moved


def train_encoder(run: PartRun) -> Path:
    """Train, and save the averaged weights. Returns the folder of the model."""
    import torch
    from torch.nn import functional as F

    part, device, crew = run.config.encoder, run.device, run.crew
    assert part is not None
    found = run.read_pictures()
    everything, pictures = found.everything, found.chosen
    pictures.require_captions("the encoder")
    names = Names.of(pictures)
    run.say(f"{len(pictures)} pictures to train on, {len(everything) - len(pictures)} held out")
    network, tokenizer = build_encoder(part.model, part.train.seed)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(index: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        chosen = draw_rows(names, part.train.rows, generator)
        texts, kinds = draw_texts(pictures, chosen.tolist(), part, seed=(part.train.seed << 32) + index)
        pixels = augment(pictures.pixels[chosen], generator)
        images = network.encode_image(to_model(crew.mine(pixels)).to(device, memory_format=torch.channels_last))
        words = network.encode_text(crew.mine(tokenizer(texts)).to(device))
        images, words = (crew.gather(F.normalize(made.float(), dim=-1)) for made in (images, words))
        true = positives(names.contents[chosen], names.styles[chosen], torch.tensor(kinds)).to(device)
        scale = network.logit_scale.exp().clamp(max=100)
        contrast = contrastive_loss(images, words, scale, true)
        apart = (images.mean(dim=0) - words.mean(dim=0)).square().sum()
        best = (words @ images.T).argmax(dim=1)
        right = true[torch.arange(len(best), device=device), best].float().mean()
        return contrast + part.gap * apart, {"found": right, "gap": apart, "scale": scale}

    def keep(step: int, twin: nn.Module) -> Mapping[str, float]:
        model = cast("Clip", twin)
        figures = evaluate_encoder(model, tokenizer, everything, set(found.rows), device)
        run.say(f"step {step}, " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
        save_encoder(model, part.model, run.folder / "model")
        return figures

    return run.fit(network, loss, keep, ("loss", "found", "gap"))


def evaluate_encoder(
    network: Clip, tokenizer: Tokenizer, pictures: LabelledPictures, trained: set[int], device: torch.device,
    most: int = 4000,
) -> dict[str, float]:  # fmt: skip
    """Retrieval figures of `most` captions and pictures, evenly chosen, among all pictures.

    recall10_*      share of captions whose content is among the ten nearest pictures in the style of the caption's picture,
                    for training contents (`trained` holds rows), held-out contents, and held-out styles
    same_style_*    share of the twelve nearest others of those pictures that share their style
    style_text      share of pictures of the training styles whose nearest style name is their own
    """
    import torch

    names = Names.of(pictures)
    vectors = embed_pictures(network, pictures.pixels, device)
    asked = torch.arange(0, len(pictures), max(1, len(pictures) // most))
    words = embed_texts(network, tokenizer, [pictures.captions[i] for i in asked.tolist()], device)
    found, alike = torch.zeros(len(asked)), torch.zeros(len(asked))
    for style in names.styles.unique().tolist():  # type: ignore[no-untyped-call]
        members, queries = (names.styles == style).nonzero()[:, 0], names.styles[asked] == style
        near = (words[queries] @ vectors[members].T).topk(min(10, len(members)), dim=1).indices
        same = names.contents[members][near] == names.contents[asked[queries]][:, None]
        found[queries] = same.any(dim=1).float()
    for rows in torch.split(torch.arange(len(asked)), 1000):
        likeness = vectors[asked[rows]] @ vectors.T
        likeness[torch.arange(len(rows)), asked[rows]] = -2
        near = likeness.topk(min(12, len(pictures) - 1), dim=1).indices
        alike[rows] = (names.styles[near] == names.styles[asked[rows]][:, None]).float().mean(dim=1)
    styles = list(dict.fromkeys(pictures.styles))
    said = embed_texts(network, tokenizer, [f"in the style of {style_words(style)}" for style in styles], device)
    named = ((vectors[asked] @ said.T).argmax(dim=1) == names.styles[asked]).float()
    kept = torch.tensor([row in trained for row in asked.tolist()])
    seen_styles = {pictures.styles[row] for row in trained}
    seen = torch.tensor([pictures.styles[row] in seen_styles for row in asked.tolist()])
    groups = {"trained": kept, "held_out": ~kept & seen, "unseen_style": ~seen}
    figures = {f"recall10_{name}": float(found[chosen].mean()) for name, chosen in groups.items() if chosen.any()}
    figures |= {f"same_style_{name}": float(alike[chosen].mean()) for name, chosen in groups.items() if chosen.any()}
    return {**figures, "style_text": float(named[seen].mean())}
