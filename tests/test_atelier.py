"""The atelier draws the same picture for the same number, in every subject, setting and style."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from multiprocessing import get_context

import cv2
import numpy as np
import pytest

from pipeline.atelier import STYLES, metadata, picture, png_bytes, split_of
from pipeline.atelier.palette import COLOURS, TIMES, WEATHERS, sample_light
from pipeline.atelier.pen import Pen
from pipeline.atelier.pictures import SUBJECTS, caption_with_style, cell
from pipeline.atelier.plate import make_plate
from pipeline.atelier.scene import CAPTION_WORDS, HELD_OUT_FRACTION, chance, number_word, sample
from pipeline.atelier.settings import SETTINGS, View
from pipeline.atelier.subjects import REGISTRY
from pipeline.errors import ConfigError

INDICES = (0, 7, 23, 1_000_003, 5_000_000_019)


def digest(index: int, **options: object) -> str:
    made = picture(index, **options)  # type: ignore[arg-type]
    return hashlib.sha256(made.image.tobytes() + json.dumps(made.metadata).encode()).hexdigest()


@cache
def content_of(subject: str) -> int:
    return next(i for i in itertools.count() if sample(0, i).subject == subject)


def test_there_are_ten_styles_and_forty_subjects_and_their_names_are_slugs_and_words() -> None:
    assert len(STYLES) >= 10
    assert len(SUBJECTS) >= 40
    assert all(re.fullmatch(r"[a-z0-9_]+", s) for s in STYLES)
    asked = {
        "pointillism", "impasto", "watercolour", "ukiyo_e", "mosaic",
        "stained_glass", "woodcut", "charcoal", "cubist", "pixel_art",
    }  # fmt: skip
    assert asked <= set(STYLES)
    assert list(STYLES) == sorted(STYLES)


@pytest.mark.process
def test_a_fresh_process_draws_the_same_bytes_in_another_order_and_with_other_threads() -> None:
    here = {str(i): digest(i) for i in INDICES}
    code = (
        "import cv2, json, sys; cv2.setNumThreads(2); sys.path.insert(0, sys.argv[1]); import numpy; numpy.random.seed(5)\n"
        "from test_atelier import digest, INDICES\n"
        "print(json.dumps({str(i): digest(i) for i in reversed(INDICES)}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(__file__).rsplit("/", 1)[0]], capture_output=True, text=True, check=True
    )
    assert json.loads(run.stdout) == here


def test_any_number_of_workers_draws_the_same_bytes() -> None:
    with get_context("spawn").Pool(3) as pool:
        assert pool.map(digest, range(12), chunksize=1) == [digest(i) for i in range(12)]


def test_the_seed_changes_content_and_picture() -> None:
    assert digest(3, seed=0) != digest(3, seed=1)
    assert metadata(3, seed=0)["item_id"] != metadata(3, seed=1)["item_id"]


def test_an_index_runs_through_a_full_grid_of_contents_and_styles() -> None:
    n = len(STYLES)
    cells = [cell(i) for i in range(3 * n)]
    assert cells == [(c, s) for c in range(3) for s in STYLES]
    assert cell(4 * n + 2) == (4, STYLES[2])
    assert np.array_equal(picture(4 * n + 2).image, picture(4, style=STYLES[2]).image)


def test_each_index_can_have_a_content_of_its_own_and_all_styles_then_occur() -> None:
    cells = [cell(i, layout="own") for i in range(400)]
    assert [c for c, _ in cells] == list(range(400))
    assert set(Counter(s for _, s in cells)) == set(STYLES)
    assert [cell(i, layout="own") for i in range(400)] == cells


def test_a_content_has_the_same_metadata_in_every_style() -> None:
    rows = [metadata(11, style=s) for s in STYLES]
    assert {r["style"] for r in rows} == set(STYLES)
    assert len({r["item_id"] for r in rows}) == len(STYLES)
    rest = [{k: v for k, v in r.items() if k not in ("style", "item_id")} for r in rows]
    assert all(r == rest[0] for r in rest)
    assert all(isinstance(v, (str, int)) for v in rest[0].values())


def test_metadata_alone_equals_that_of_the_picture() -> None:
    assert metadata(91, seed=4) == picture(91, seed=4).metadata


def test_the_held_out_split_goes_by_content_and_has_its_share() -> None:
    for index in range(200):
        row = metadata(index, seed=index % 3)
        assert row["split"] == split_of(index // len(STYLES))
    share = np.mean([split_of(i) == "held_out" for i in range(20_000)])
    # Binomial: three standard deviations of 20,000 draws
    assert abs(share - HELD_OUT_FRACTION) < 3 * (HELD_OUT_FRACTION * (1 - HELD_OUT_FRACTION) / 20_000) ** 0.5
    assert {split_of(i) for i in range(100)} == {"train", "held_out"}


def test_captions_name_the_attributes_and_never_the_style() -> None:
    names = {w for s in STYLES for w in (s, s.replace("_", " "), s.replace("_", "-"))} | {
        "painting",
        "print",
        "drawing",
    }
    for i in range(600):
        row = metadata(i, style=STYLES[i % len(STYLES)])
        caption = str(row["caption"])
        assert str(row["colour"]) in caption, caption
        if row["number"] != 1:
            assert re.search(rf"\b{number_word(int(row['number']))}\b", caption), caption
        assert any(p in caption for p in SETTINGS[str(row["setting"])].phrases), caption
        spoken = [row["weather"]] + ([row["time_of_day"]] if row["time_of_day"] != "day" else [])
        for value in spoken:
            if value != "clear":
                assert any(w in caption for w in CAPTION_WORDS[str(value)]), (value, caption)
        assert not [n for n in names if re.search(rf"\b{n}\b", caption)], caption
        assert not re.search(r"\ba [aeio]|\ban [^aeio]", caption), caption
        assert caption == caption.strip() and "  " not in caption and "{" not in caption


def test_captions_name_the_style_where_asked() -> None:
    words = {"ukiyo_e": ("ukiyo-e", "japanese"), "impasto": ("impasto", "oil", "knife"), "woodcut": ("wood", "linocut")}
    words |= {
        "pointillism": ("pointillis", "dots"),
        "mosaic": ("mosaic", "tiles"),
        "pixel_art": ("pixel", "video game"),
    }
    for i in range(60):
        made = metadata(i)
        style, caption = str(made["style"]), str(made["caption"])
        named = caption_with_style(caption, style)
        assert caption in named
        stem = words.get(style, (style[:5],))
        assert any(w in named.lower() for w in stem), named
    assert picture(3).caption_with_style == caption_with_style(str(metadata(3)["caption"]), STYLES[3])


def test_captions_of_one_kind_are_phrased_in_several_ways() -> None:
    captions = {str(metadata(i, style="mosaic")["caption"]) for i in range(300)}
    assert len(captions) > 290


def test_attributes_stay_within_their_lists_and_all_occur() -> None:
    rows = [metadata(i, style="mosaic") for i in range(4000)]
    assert {r["subject"] for r in rows} == set(SUBJECTS)
    assert {r["weather"] for r in rows} == set(WEATHERS)
    assert {r["time_of_day"] for r in rows} == set(TIMES)
    assert {r["setting"] for r in rows} == set(SETTINGS)
    assert {r["colour"] for r in rows} == set(COLOURS)
    assert {r["number"] for r in rows} == {1, 2, 3, 4, 5}


def test_two_pictures_of_one_caption_differ_in_composition() -> None:
    groups: dict[str, list[int]] = {}
    for i in range(4000):
        scene = sample(0, i)
        groups.setdefault(f"{scene.subject} {scene.colour} {scene.number} {scene.setting}", []).append(i)
    pairs = [g[:2] for g in groups.values() if len(g) > 1][:20]
    assert len(pairs) == 20
    for a, b in pairs:
        one, two = (picture(i, style="ukiyo_e").image.astype(float) for i in (a, b))
        assert np.abs(one - two).mean() > 8, (a, b)


@pytest.mark.parametrize("style", STYLES)
def test_every_subject_in_every_style_is_a_picture(style: str) -> None:
    for subject in SUBJECTS:
        image = picture(content_of(subject), style=style).image
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8
        grey = image.mean(axis=2)
        assert grey.std() > 8, subject  # not one colour
        assert np.abs(np.diff(grey, axis=1)).mean() > 0.8, subject  # not one gradient


@pytest.mark.process
@pytest.mark.parametrize("style", STYLES)
def test_sizes_from_64_to_1024_show_the_same_picture(style: str) -> None:
    content = content_of("lighthouse")
    small = picture(content, style=style, size=96).image.astype(np.float32)
    for size in (64, 1024):
        image = picture(content, style=style, size=size).image
        assert image.shape == (size, size, 3)
        # The same composition: compared as eight by eight fields of colour
        a, b = (cv2.resize(v.astype(np.float32), (8, 8), interpolation=cv2.INTER_AREA).ravel() for v in (small, image))
        assert np.corrcoef(a, b)[0, 1] > 0.7, size


def test_the_subject_covers_a_fair_part_of_the_picture() -> None:
    from pipeline.atelier.compose import compose

    for subject in SUBJECTS:
        scene = sample(0, content_of(subject))
        plate = make_plate(compose(scene), 128, chance(0, 0, 9))
        share = float(plate.map("subject").mean())
        assert 0.03 < share < 0.75, (subject, share)
        rows, columns = np.nonzero(plate.map("subject"))
        assert max(np.ptp(rows), np.ptp(columns)) > 128 * 0.3, subject


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_every_setting_holds_every_hour_and_weather_within_its_paints(name: str) -> None:
    for k, (hour, weather) in enumerate(itertools.product(TIMES, WEATHERS)):
        rng = chance(k, 0, 1)
        light, palette = sample_light(rng, hour, weather)
        pen = Pen(light, palette, rng)
        ground = SETTINGS[name].draw(pen, View(weather, hour, 0.58))
        assert 0 < ground.far <= ground.near < 1
        assert len(pen.paints) < 160  # the rest of 255 is for subjects
        assert np.all(make_plate(pen, 64, rng).ids > 0)  # no pixel is left bare


def test_large_groups_in_busy_settings_stay_within_the_paints() -> None:
    from pipeline.atelier.compose import compose

    most = max(len(compose(sample(1, i)).paints) for i in range(500))
    assert most < 255


def test_registering_a_subject_or_style_twice_is_refused() -> None:
    from pipeline.atelier.styles import style
    from pipeline.atelier.subjects import subject

    with pytest.raises(ValueError, match="registered twice"):
        subject("cat", "animal", "red", "meadow", width=1.0)
    with pytest.raises(ValueError, match="unknown settings"):
        subject("unicorn", "animal", "red", "medow", width=1.0)
    with pytest.raises(ValueError, match="slug"):
        style("mosaic")
    assert "unicorn" not in REGISTRY


@pytest.mark.parametrize("size", [0, 63, 1025, -5])
def test_a_size_that_cannot_be_drawn_is_refused_with_the_range(size: int) -> None:
    with pytest.raises(ConfigError, match=r"size is .* 64 to 1024 pixels were expected"):
        picture(0, size=size)


def test_an_unknown_style_names_the_nearest_and_lists_them() -> None:
    with pytest.raises(ConfigError, match=r"mosiac.*did you mean 'mosaic'.*watercolour"):
        picture(0, style="mosiac")
    with pytest.raises(ConfigError, match="did you mean 'grid'"):
        cell(0, layout="gird")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="0 or more"):
        picture(-1)


def test_png_bytes_repeat_and_decode_to_the_picture() -> None:
    image = picture(5).image
    data = png_bytes(image)
    assert data == png_bytes(image.copy())
    back = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(back[..., ::-1], image)


def test_random_styles_are_functions_of_their_number() -> None:
    from pipeline.atelier.random_styles import FAMILIES, random_style, render_random
    from pipeline.atelier.scene import sample

    scene, other = sample(0, 3), sample(0, 4)
    for family in FAMILIES:
        look = random_style(5, [family])
        first = render_random(scene, look, 64)
        assert look.family == family and first.shape == (64, 64, 3) and first.dtype == np.uint8
        render_random(other, look, 64)
        assert np.array_equal(first, render_random(scene, random_style(5, [family]), 64)), family
        assert first.std() > 4, f"{family}: an even picture"
        assert render_random(scene, look, 128).shape == (128, 128, 3)
    assert len({random_style(seed) for seed in range(300)}) == 300
    assert {random_style(seed).family for seed in range(200)} == set(FAMILIES)
    kept = [name for name in FAMILIES if name not in ("dots", "relief")]
    assert {random_style(seed, kept).family for seed in range(100)} == set(kept)
    assert np.array_equal(render_random(scene, 7, 64), render_random(scene, random_style(7), 64))
    with pytest.raises(ConfigError, match="families of tiles"):
        random_style(1, ["pastel"])


def test_random_styles_leave_the_ten_as_they_are() -> None:
    """None of them is registered: what an index stands for, and what captions name, stays."""
    from pipeline.atelier.random_styles import FAMILIES

    assert len(STYLES) == 10 and not set(STYLES) & set(FAMILIES)
