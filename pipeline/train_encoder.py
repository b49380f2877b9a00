"""Training of the encoder: an open_clip model, contrastive, several positives a row.

Reads the run's pictures. Writes the part's folder (see pipeline/train.py) and `model/`: open_clip_config.json and
open_clip_model.safetensors (fp16), which `open_clip.create_model_and_transforms("local-dir:...")` loads.

A batch holds contents in pairs: two pictures of one content, in two styles where there are two. A caption names the content,
or content and style, or the style alone; every picture that it is true of is a positive.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError
from pipeline.sheets import curve_picture
from pipeline.storage import Storage
from pipeline.train import EncoderConfig, TrainConfig, load_average, say_report
from pipeline.train_data import Pictures, read_pictures, training_rows

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pipeline.progress import Progress
    from pipeline.workers import Crew

CONTENT, BOTH, STYLE = 0, 1, 2
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_CONTENT = ("{0}", "{0}", "a picture of {0}", "a drawing of {0}")
_BOTH = ("{0} in the style of {1}", "{0} in the style of {1}", "{0}, {1}", "a {1} picture of {0}")
_STYLE = ("in the style of {1}", "{1}", "a {1} picture")


def style_words(style: str) -> str:
    """A style's name as a caption says it."""
    return style.replace("-", " ").replace("_", " ")


def with_style(caption: str, style: str) -> str:
    """The prompt that asks for a style in words (the paper's postfix)."""
    return f"{caption} in the style of {style_words(style)}"


@dataclass(frozen=True)
class Names:
    """Contents and styles of the pictures as numbers, (N,) each."""

    contents: Tensor
    styles: Tensor

    @staticmethod
    def of(pictures: Pictures) -> Names:
        import torch

        def number(values: Sequence[str]) -> Tensor:
            order = {name: i for i, name in enumerate(dict.fromkeys(values))}
            return torch.tensor([order[name] for name in values])

        return Names(number(pictures.contents), number(pictures.styles))


def draw_rows(names: Names, batch: int, generator: torch.Generator) -> Tensor:
    """(batch,) rows: half of them by chance, each followed by another picture of its content where there is one."""
    import torch

    first = torch.randint(len(names.contents), (batch // 2,), generator=generator)
    same = names.contents[first][:, None] == names.contents[None, :]
    same[torch.arange(len(first)), first] = False
    weights = same.float()
    weights[~same.any(dim=1)] = 1.0  # a content with one picture: any other
    second = torch.multinomial(weights, 1, generator=generator)[:, 0]
    return torch.stack([first, second], dim=1).flatten()


def draw_texts(
    pictures: Pictures, rows: Sequence[int], config: EncoderConfig, seed: int
) -> tuple[list[str], list[int]]:
    """One caption a row, and what it names: CONTENT, BOTH or STYLE."""
    die = random.Random(seed)
    texts, kinds = [], []
    for row in rows:
        throw = die.random()
        kind = STYLE if throw < config.style_only else BOTH if throw < config.style_only + config.both else CONTENT
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
    """Mean over rows of -log softmax averaged over the row's positives, captions to pictures and back.

    images, texts (B, D) unit rows; scale the temperature's inverse; true (B, B) as `positives` gives it. With one positive
    a row this is CLIP's loss; the mean outside the logarithm is arXiv 2004.11362's.
    """
    from torch.nn import functional as F

    logits = scale * texts @ images.T
    weights = true.float()

    def one_way(logits: Tensor, weights: Tensor) -> Tensor:
        return -((weights * F.log_softmax(logits, dim=1)).sum(dim=1) / weights.sum(dim=1)).mean()

    return 0.5 * (one_way(logits, weights) + one_way(logits.T, weights.T))


def to_model(pixels: Tensor) -> Tensor:
    """uint8 pictures (B, 3, S, S) as the encoder takes them, with open_clip's mean and standard deviation."""
    import torch

    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 pictures moved by up to 3 pixels and, half of them, mirrored; the border is repeated."""
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


def build_encoder(model: Mapping[str, Any], seed: int) -> tuple[nn.Module, Any]:
    """open_clip's model of a config with fresh weights, and its tokenizer."""
    import torch

    from pipeline.encoder_specs import import_open_clip

    open_clip = import_open_clip()
    torch.manual_seed(seed)
    settings = {key: value for key, value in model.items() if key != "custom_text"}
    network = (open_clip.CustomTextCLIP if model.get("custom_text") else open_clip.CLIP)(**settings)
    length = int(model["text_cfg"].get("context_length", 77))
    return network, open_clip.tokenizer.SimpleTokenizer(context_length=length)


def save_encoder(network: nn.Module, model: Mapping[str, Any], folder: Path) -> None:
    """open_clip's folder: config with preprocessing, and fp16 weights without the buffers that are not saved."""
    import torch
    from safetensors.torch import save_file

    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in network.state_dict().items()
    }
    preprocess = {"mean": list(MEAN), "std": list(STD), "interpolation": "bicubic", "resize_mode": "shortest"}
    config = {"model_cfg": dict(model), "preprocess_cfg": preprocess}
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "open_clip_model.part"
    save_file({name: torch.clone(value) for name, value in state.items()}, part, metadata={"format": "pt"})
    part.replace(folder / "open_clip_model.safetensors")
    Storage(str(folder)).write_text("open_clip_config.json", json.dumps(config, indent=2) + "\n")


def train_encoder(config: TrainConfig, folder: Path, progress: Progress, crew: Crew, resume: bool) -> Path:
    """Train, and save the averaged weights; see pipeline.train.train."""
    import torch
    from torch.nn import functional as F

    from rdm.train import CURVE, fit

    part = config.encoder
    assert part is not None
    device = crew.torch_device()
    everything = read_pictures(config.data, config.folder())
    rows = training_rows(everything, config.data)
    pictures = everything.take(rows)
    names = Names.of(pictures)
    progress.say(f"encoder: {len(pictures)} pictures to train on, {len(everything) - len(pictures)} held out")
    network, tokenizer = build_encoder(part.model, part.train.seed)
    net: Any = network
    net.to(device, memory_format=torch.channels_last)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        chosen = draw_rows(names, part.train.batch, generator)
        texts, kinds = draw_texts(pictures, chosen.tolist(), part, seed=(part.train.seed << 32) + step)
        pixels = augment(pictures.pixels[chosen], generator)
        images = net.encode_image(to_model(crew.mine(pixels)).to(device, memory_format=torch.channels_last))
        words = net.encode_text(crew.mine(tokenizer(texts)).to(device))
        images, words = (crew.gather(F.normalize(made.float(), dim=-1)) for made in (images, words))
        true = positives(names.contents[chosen], names.styles[chosen], torch.tensor(kinds)).to(device)
        scale = net.logit_scale.exp().clamp(max=100)
        contrast = contrastive_loss(images, words, scale, true)
        apart = (images.mean(dim=0) - words.mean(dim=0)).square().sum()
        best = (words @ images.T).argmax(dim=1)
        right = true[torch.arange(len(best), device=device), best].float().mean()
        return contrast + part.gap * apart, {"found": right, "gap": apart, "scale": scale}

    def on_save(step: int, live: nn.Module, weights: Mapping[str, Tensor]) -> None:
        twin = load_average(live, weights)
        figures = evaluate_encoder(twin, tokenizer, everything, set(rows), device)
        progress.say(f"encoder: step {step}, " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
        Storage(str(folder)).write_text("figures.json", json.dumps({"step": step, **figures}, indent=1))
        curve_picture(folder / CURVE, folder / "curve.png", ("loss", "found", "gap"))
        save_encoder(twin, part.model, folder / "model")

    fit(
        network, loss, part.train.loop(), folder, resume=resume, average=crew.average, writes=crew.first,
        on_report=say_report(progress, "encoder", part.train.batch) if crew.first else None, on_save=on_save,
    )  # fmt: skip
    return folder / "model"


def embed_pictures(network: nn.Module, pixels: Tensor, device: torch.device) -> Tensor:
    """Unit vectors (N, D) of uint8 pictures."""
    import torch
    from torch.nn import functional as F

    net: Any = network
    with torch.inference_mode():
        made = [net.encode_image(to_model(part).to(device)).float().cpu() for part in torch.split(pixels, 256)]
    return F.normalize(torch.cat(made), dim=-1).clone()


def embed_texts(network: nn.Module, tokenizer: Any, texts: Sequence[str], device: torch.device) -> Tensor:
    """Unit vectors (N, D) of texts."""
    import torch
    from torch.nn import functional as F

    net: Any = network
    with torch.inference_mode():
        tokens = torch.split(tokenizer(list(texts)), 256)
        made = [net.encode_text(part.to(device)).float().cpu() for part in tokens]
    return F.normalize(torch.cat(made), dim=-1).clone()


def evaluate_encoder(
    network: nn.Module, tokenizer: Any, pictures: Pictures, trained: set[int], device: torch.device, most: int = 4000
) -> dict[str, float]:
    """What `most` captions and pictures, evenly chosen, find among all pictures.

    recall10_*      share of captions whose content is among the ten nearest pictures of the caption's picture's style, for
                    contents trained on (`trained` holds rows), held out, and of styles held out whole
    same_style_*    share of those pictures' twelve nearest others that share their style
    style_text      share of pictures of the styles trained on whose nearest style name is theirs
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


def load_encoder(folder: Path) -> tuple[nn.Module, Any]:
    """The network and tokenizer that `save_encoder` wrote, in fp32 and eval mode."""
    from safetensors.torch import load_file

    model = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    network, tokenizer = build_encoder(model, 0)
    network.load_state_dict({name: value.float() if value.is_floating_point() else value
                             for name, value in load_file(folder / "open_clip_model.safetensors").items()})  # fmt: skip
    return network.eval().requires_grad_(False), tokenizer


def early_features(config: TrainConfig, device: torch.device) -> Any:
    """A function from pictures in [-1, 1] to the activations of the trained convolutional tower's stem, convolution by
    convolution, and of its first two stages."""
    import torch

    network, _ = load_encoder(config.folder() / "encoder" / "model")
    tower: Any = network.to(device).visual
    if not hasattr(tower, "layer1"):
        raise ConfigError(
            "perceptual and texture compare the activations of a convolutional tower: give [encoder.model] a vision_cfg with "
            "layers = [1, 1, 1, 1], or set both to 0"
        )
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD))

    def features(images: Tensor) -> list[Tensor]:
        one = tower.act1(tower.bn1(tower.conv1(((images + 1) / 2 - mean) / std)))
        two = tower.act2(tower.bn2(tower.conv2(one)))
        three = tower.act3(tower.bn3(tower.conv3(two)))
        first = tower.layer1(tower.avgpool(three))
        return [one, two, three, first, tower.layer2(first)]

    return features
