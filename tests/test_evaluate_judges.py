"""The judges learn their task from scratch in seconds; a trained judge is read and not trained again."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.evaluation.judges import ContentNetwork, judge_pictures, pieces, train_content, train_style
from pipeline.evaluation.scores import Panel
from pipeline.execution import Progress
from pipeline.training import LabelledPictures
from tests.evaluations import judge

pytestmark = pytest.mark.process

WORDS = ("red", "green", "blue", "white")
PLACES = ("left", "right")


def shapes(count: int = 160) -> LabelledPictures:
    """A coloured square on the left or right, as the caption says, drawn flat or hatched: content and style."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.full((count, 3, 32, 32), 90, dtype=torch.uint8)
    captions, styles = [], []
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], dtype=torch.uint8)
    for i in range(count):
        colour, place, style = i % 4, (i // 4) % 2, (i // 8) % 2
        top = int(torch.randint(4, 16, (1,), generator=generator))
        left = 4 if place == 0 else 18
        pixels[i, :, top : top + 12, left : left + 10] = colours[colour][:, None, None]
        if style:
            pixels[i, :, ::2] //= 3
        captions.append(f"a {WORDS[colour]} square low" if place == 0 else f"a {WORDS[colour]} square high")
        styles.append("hatched" if style else "flat")
    # The place is told by the height as well, since judges see pictures mirrored.
    low = torch.tensor(["low" in caption for caption in captions])
    pixels[low] = pixels[low].flip(2)
    pixels[low, :, :4] = 255
    return LabelledPictures(pixels, tuple(captions), ("",) * count, tuple(captions), tuple(styles), ("",) * count)


def quiet() -> Progress:
    return Progress(stream=io.StringIO())


def test_the_style_judge_learns_how_things_are_drawn_and_is_read_again(tmp_path: Path) -> None:
    pictures, rows = shapes(), list(range(120))
    network = train_style(pictures, rows, ("flat", "hatched"), judge(40), tmp_path, quiet())
    state = (tmp_path / "state.pt").stat().st_mtime_ns
    content = ContentNetwork(8, 32).eval()
    found = judge_pictures(network, content, pictures.pixels[120:])
    truth = [("flat", "hatched").index(style) for style in pictures.styles[120:]]
    assert (found.styles.argmax(axis=1) == truth).mean() > 0.9
    again = train_style(pictures, rows, ("flat", "hatched"), judge(40), tmp_path, quiet())
    assert (tmp_path / "state.pt").stat().st_mtime_ns == state
    assert (judge_pictures(again, content, pictures.pixels[120:]).styles == found.styles).all()


def test_the_content_judge_finds_the_caption_among_others(tmp_path: Path) -> None:
    pictures = shapes()
    content = train_content(pictures, list(range(120)), judge(80), tmp_path, quiet())
    style = train_style(pictures, list(range(120)), ("flat", "hatched"), judge(1), tmp_path / "style", quiet())
    panel = Panel(style, content, ("flat", "hatched"), tuple(sorted(set(pictures.captions))), 8)
    ranks = panel.ranks(panel.judge(pictures.pixels[120:]).content_features, pictures.captions[120:])
    assert (ranks == 1).mean() > 0.5  # by chance one in eight
    wrong = panel.ranks(
        panel.judge(pictures.pixels[120:]).content_features, pictures.captions[121:] + pictures.captions[120:121]
    )
    assert (wrong == 1).mean() < 0.2


def test_a_backbone_is_named_and_has_one_output_a_style(tmp_path: Path) -> None:
    pictures = shapes(16)
    network = train_style(
        pictures, list(range(16)), ("flat", "hatched"), judge(1, backbone="squeezenet1_1"), tmp_path, quiet()
    )
    assert judge_pictures(network, ContentNetwork(8, 32).eval(), pictures.pixels).styles.shape == (16, 2)


def test_a_style_without_pictures_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'engraved'"):
        train_style(shapes(16), list(range(16)), ("flat", "hatched", "engraved"), judge(1), tmp_path, quiet())


def test_pictures_without_captions_are_an_error_that_says_where_to_get_some(tmp_path: Path) -> None:
    pictures = shapes(16)
    bare = LabelledPictures(pictures.pixels, ("",) * 16, *(("",) * 16,) * 4)
    with pytest.raises(ConfigError, match="--captions"):
        train_content(bare, list(range(16)), judge(1), tmp_path, quiet())


def test_a_question_is_the_same_for_all_pictures_of_a_caption_and_differs_between_captions() -> None:
    panel = Panel(None, None, (), tuple(f"caption {i}" for i in range(30)), 10)  # type: ignore[arg-type]
    one, other = panel.question("caption 3"), panel.question("caption 4")
    assert one == panel.question("caption 3")
    assert one[0] == "caption 3"
    assert len(one) == len(set(one)) == 10
    assert set(one[1:]) != set(other[1:])


def test_a_captions_pieces_do_not_depend_on_the_process_and_know_the_order_of_words() -> None:
    assert pieces("a red cat") == pieces("A red  cat!")
    assert pieces("red cat") != pieces("cat red")
    assert pieces("") == pieces("...")
    assert pieces("zebra")[0] == 7606
