"""The list of pictures of an evaluation: conditions, levels, captions; nothing is generated here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.evaluation import EvaluateConfig, read_evaluate_config
from pipeline.evaluation.config import Postfix, Sweep
from pipeline.evaluation.data import Caption, Labelled, choose_captions, common_captions, split_by_content
from pipeline.evaluation.plan import (
    ABSENT,
    CONDITIONS,
    POSTFIX_NEIGHBOURS,
    POSTFIX_TEXT,
    SWAP,
    UNNAMED,
    Place,
    Setting,
    share_filter,
    tuning_trials,
)
from pipeline.evaluation.plan import test_trials as trials_of_the_test
from pipeline.evaluation.scores import Nearest, pool_of, shrunk
from pipeline.filters import filter_mask
from pipeline.training import LabelledPictures

JOBS = Path(__file__).resolve().parent.parent / "jobs"
STYLES = ("ink", "oil", "o'hara")
CAPTIONS = tuple(Caption(f"thing {i}", f"content {i}") for i in range(6))
CONFIG = EvaluateConfig(postfix=Postfix(captions=3, count=2), sweep=Sweep(captions=2, styles=2, separate=("ink",)))
CHOSEN = {condition: Setting(4, 2.0) for condition in CONDITIONS}


def place(**changes: object) -> Place:
    return Place(replace(CONFIG, **changes), STYLES, "content_id NOT IN (1, 2)")  # type: ignore[arg-type]


def table() -> pa.Table:
    keys = [shard * 10_000 + row for shard in range(10) for row in range(1000)]
    return pa.table({"key": keys, "style": [STYLES[key % 3] for key in keys], "content_id": [key // 3 for key in keys]})


def test_the_style_is_named_in_the_postfix_prompts_and_nowhere_else() -> None:
    for trial in trials_of_the_test(place(), CAPTIONS, CHOSEN, 20):
        named = "in the style of" in trial.prompt
        assert named == (trial.condition not in (SWAP, ABSENT, UNNAMED)), trial
        if trial.condition == POSTFIX_TEXT:
            assert trial.setting.k == 0
        assert trial.neighbours_only == (trial.condition == POSTFIX_NEIGHBOURS)


def test_every_condition_is_asked_the_same_captions_styles_and_seeds() -> None:
    trials = [trial for trial in trials_of_the_test(place(), CAPTIONS, CHOSEN, 20) if trial.phase == "postfix"]
    asked = {
        (condition, level): sorted(
            (t.caption.text, t.style, t.seed) for t in trials if t.condition == condition and t.level == level
        )
        for condition in CONDITIONS
        for level in ("common", "rare", "unseen")
    }  # fmt: skip
    assert len({tuple(found) for found in asked.values()}) == 1
    assert len(asked[SWAP, "rare"]) == 3 * 2 * 3


@pytest.mark.parametrize("style", STYLES)
def test_a_rare_style_is_thinned_an_unseen_one_is_gone_and_the_others_stay(style: str) -> None:
    rows = table()
    own = np.array([name == style for name in rows["style"].to_pylist()])
    rare, unseen = (filter_mask(place().general_filter(style, level), rows) for level in ("rare", "unseen"))
    assert unseen.tolist() == (~own).tolist()
    assert rare[~own].all()
    assert rare[own].mean() == pytest.approx(0.01, abs=0.003)
    assert place().general_filter(style, "common") == ""


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_a_share_of_a_database_is_a_share_of_every_style(share: float) -> None:
    rows = table()
    kept = filter_mask(share_filter(share), rows)
    for style in STYLES:
        own = np.array([name == style for name in rows["style"].to_pylist()])
        assert kept[own].mean() == pytest.approx(share, abs=0.01)
    assert share_filter(1.0) == ""


def test_a_swap_without_the_content_asked_for_keeps_the_style() -> None:
    trial = next(t for t in trials_of_the_test(place(), CAPTIONS, CHOSEN, 20) if t.condition == ABSENT)
    rows = table()
    kept = filter_mask(trial.where, rows)
    own = np.array([name == trial.style for name in rows["style"].to_pylist()])
    content = np.array(rows["content_id"].to_pylist())
    assert kept.tolist() == (own & ~np.isin(content, [1, 2])).tolist()


def test_a_general_collection_is_taken_as_it_is_and_sources_name_their_databases() -> None:
    found = place(general="laion", sources={"ink": "prints-ink"}, others=("wikiart",))
    trials = trials_of_the_test(found, CAPTIONS, CHOSEN, 20)
    assert {t.level for t in trials if t.phase == "postfix"} == {"as it is"}
    assert {(t.database, t.where) for t in trials if t.condition == UNNAMED} == {("laion", "")}
    assert {(t.database, t.where) for t in trials if t.style == "ink" and t.phase == "swap"} == {("prints-ink", "")}
    assert {t.style for t in trials if t.database == "wikiart"} == {""}


def test_settings_are_tuned_on_captions_that_are_not_tested_and_within_what_the_model_takes() -> None:
    trials = tuning_trials(place(), CAPTIONS[:2], most=5)
    assert {t.caption for t in trials} == set(CAPTIONS[:2])
    assert {t.condition for t in trials} == set(CONDITIONS)
    assert {t.setting.k for t in trials} == {0, 1, 4}
    assert max(t.setting.k for t in trials_of_the_test(place(), CAPTIONS, CHOSEN, 5)) == 4


def made_up(contents: int = 60) -> Labelled:
    """Contents of two words each, in three styles; one style lacks every fifth content."""
    rows = [(content, style) for content in range(contents) for style in STYLES if style != "ink" or content % 5]
    captions = tuple(f"word{content % 7} word{content % 11}" for content, _ in rows)
    names = tuple(f"c{content}" for content, _ in rows)
    count = len(rows)
    pixels = torch.randint(256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pictures = LabelledPictures(pixels, captions, ("",) * count, names, tuple(s for _, s in rows), ("",) * count)
    return Labelled(tuple(range(count)), tuple(f"sum {i}" for i in range(count)), pictures, "content_id", {})


def test_test_captions_are_held_out_and_validation_has_others() -> None:
    from pipeline.training import held_out_contents

    labelled = made_up()
    held = held_out_contents(labelled.pictures, 0.3)
    few = replace(CONFIG.prompts, test=5, validation=4, held_out=0.3)
    validation, test = choose_captions(labelled, STYLES, few)
    assert len(test) == 5
    assert len(validation) == 4
    assert {caption.content for caption in (*test, *validation)} <= held
    assert not {caption.text for caption in test} & {caption.text for caption in validation}
    many = replace(few, test=100)
    validation, test = choose_captions(labelled, STYLES, many)
    assert {caption.content for caption in test} <= held
    assert not {caption.content for caption in validation} & held
    assert (validation, test) == choose_captions(labelled, STYLES, many)


def test_captions_of_contents_that_all_styles_have_come_first() -> None:
    labelled = made_up()
    _, test = choose_captions(labelled, STYLES, replace(CONFIG.prompts, test=8, validation=2, held_out=0.5))
    assert all(int(caption.content[1:]) % 5 for caption in test)


def test_the_most_usual_caption_of_a_content_is_the_one_asked_for() -> None:
    pixels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    pictures = LabelledPictures(
        pixels, ("cat", "dog", "dog", ""), ("",) * 4, ("a", "a", "a", "b"), ("x",) * 4, ("",) * 4
    )
    assert common_captions(pictures) == {"a": "dog"}


def test_contents_are_split_whole() -> None:
    contents = made_up().pictures.contents
    training, held_out = split_by_content(contents, 0.2, "salt")
    assert sorted(training + held_out) == list(range(len(contents)))
    assert not {contents[row] for row in training} & {contents[row] for row in held_out}
    assert len({contents[row] for row in held_out}) == 12


def test_a_copy_is_found_and_a_picture_is_not_its_own_nearest() -> None:
    labelled = made_up()
    nearest = Nearest.of(labelled)
    distance, row = nearest.find(labelled.pictures.pixels[[3, 8]])
    assert row.tolist() == [3, 8]
    assert distance.max() < 1e-3
    distance, row = nearest.find(labelled.pictures.pixels[[3, 8]], without=[3, 8])
    small = shrunk(labelled.pictures.pixels)
    for found, apart, own in zip(row, distance, (3, 8), strict=True):
        all_apart = np.sqrt(((small - small[own]) ** 2).mean(axis=1))
        all_apart[own] = np.inf
        assert found == all_apart.argmin()
        assert apart == pytest.approx(all_apart.min(), rel=1e-3)


def test_a_question_has_as_many_candidates_as_the_protocol_says() -> None:
    assert pool_of(CAPTIONS, ["thing 1", "other", "another"], 7)[:6] == tuple(c.text for c in CAPTIONS)
    assert len(pool_of(CAPTIONS, ["thing 1", "other", "another"], 7)) == 7


def test_the_jobs_are_protocols_that_can_be_read_and_name_files_beside_them() -> None:
    mini, paper = (read_evaluate_config(JOBS / f"{name}.toml") for name in ("evaluate-mini", "paper"))
    assert mini.prompts.test == 100
    assert (mini.sweep.k, mini.sampling.seeds) == ((0, 1, 2, 4, 8, 19), (0, 1, 2))
    assert len(paper.sources) == 10
    assert Path(paper.prompts.file).is_file()
    assert all(Path(entry.target).is_file() == entry.target.endswith(".toml") for entry in (*mini.build, *paper.build))


def test_a_misspelt_key_of_a_protocol_is_answered_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text("[postfix]\nlevel = ['rare']\n")
    with pytest.raises(ConfigError, match="did you mean 'levels'"):
        read_evaluate_config(tmp_path / "job.toml")
    (tmp_path / "job.toml").write_text("[postfix]\nlevels = ['seldom']\n")
    with pytest.raises(ConfigError, match="seldom"):
        read_evaluate_config(tmp_path / "job.toml")
