"""Prompt lists: every format, every fault of a row, and the keys of the requested pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import PromptError
from pipeline.generation import GenerateConfig, accept_rows, read_prompts
from pipeline.generation.prompts import COLUMNS, PromptList, PromptRow
from pipeline.generation.requests import (
    ImagePrompting,
    Maker,
    Neighbourhood,
    PictureRequest,
    batches,
    file_name,
    shards,
)
from pipeline.generation.run import run_name
from pipeline.generation.sampling import SAMPLERS, SETTINGS, Sampling


def write(folder: Path, name: str, text: str, encoding: str = "utf-8") -> str:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return str(path)


def test_a_text_that_is_no_file_is_the_prompt() -> None:
    (row,) = read_prompts("a castle by the sea").rows
    assert (row.line, row.prompt) == (1, "a castle by the sea")


@pytest.mark.parametrize("blank", ["", "  \n"])
def test_an_empty_prompt_is_refused(blank: str) -> None:
    with pytest.raises(PromptError, match="empty"):
        read_prompts(blank)


def test_csv_reads_every_known_column(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "p.csv",
        ",".join(COLUMNS) + "\n"
        "a fox,fox-1,9007199254740993,\"wikiart, artbench-baroque\",style = 'x',4,20,2.5,PLMS,3,256,128,blurry,sketch.png\n",
    )
    (row,) = read_prompts(path).rows
    assert row.prompt == "a fox" and row.id == "fox-1" and row.db == ("wikiart", "artbench-baroque")
    assert row.seed == 9007199254740993, "a seed keeps digits that a float would lose"
    assert (row.k, row.n) == (4, 3)
    assert row.sampling == Sampling("plms", 20, 2.5, None, 256, 128)
    assert (row.negative, row.image, row.where) == (
        "blurry",
        "sketch.png",
        "style = 'x'",
    )


def test_blank_cells_leave_the_choice_to_the_flags(tmp_path: Path) -> None:
    (row,) = read_prompts(write(tmp_path, "p.csv", "prompt,seed,db,scale,where\na fox,, ,,\n")).rows
    assert row.seed is None and row.db == () and row.sampling == Sampling() and row.where == ""


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_line_numbers_hold_with_quoted_newlines_blank_lines_and_any_line_ending(
    tmp_path: Path, ending: str, encoding: str
) -> None:
    text = ending.join(["", "prompt,steps", '"a fox', 'in snow",10', "", "ein Fuchs – 狐,20", "bad,many", ""])
    prompts = read_prompts(write(tmp_path, "p.csv", text, encoding))
    assert [(row.line, row.sampling.steps) for row in prompts.rows] == [(3, 10), (6, 20)]
    assert prompts.rows[0].prompt.split() == ["a", "fox", "in", "snow"]
    assert prompts.rows[1].prompt == "ein Fuchs – 狐"
    assert [row.line for row in prompts.bad] == [7]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_the_separator_is_taken_from_the_header(tmp_path: Path, delimiter: str) -> None:
    (row,) = read_prompts(write(tmp_path, "p.csv", f"prompt{delimiter}seed\na fox, red{delimiter}3\n")).rows
    assert (row.prompt, row.seed) == ("a fox, red", 3)


def test_all_formats_give_the_same_rows(tmp_path: Path) -> None:
    records = [{"prompt": "a fox", "seed": 3, "mood": "calm"}, {"prompt": "an owl", "seed": None, "mood": "grim"}]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "p.parquet")
    lists = [
        read_prompts(write(tmp_path, "p.csv", "prompt,seed,mood\na fox,3,calm\nan owl,,grim\n")),
        read_prompts(write(tmp_path, "p.jsonl", "\n".join(map(json.dumps, records)) + "\n")),
        read_prompts(str(tmp_path / "p.parquet")),
    ]
    assert len({tuple((row.prompt, row.seed, row.extra["mood"]) for row in found.rows) for found in lists}) == 1
    assert {found.extra for found in lists} == {("mood",)}
    text = read_prompts(write(tmp_path, "p.txt", "a fox\n\nan owl\n"))
    assert [(row.line, row.prompt) for row in text.rows] == [(1, "a fox"), (3, "an owl")]


def test_unknown_columns_are_carried_and_misspelt_ones_are_named(tmp_path: Path) -> None:
    prompts = read_prompts(write(tmp_path, "p.csv", "prompt,sedd,style,negative_prompt\na fox,3,oil,blur\n"))
    assert prompts.rows[0].extra == {"sedd": "3", "style": "oil", "negative_prompt": "blur"}
    assert prompts.rows[0].seed is None
    assert len(prompts.warnings) == 2
    assert "'sedd'" in prompts.warnings[0] and "'seed'" in prompts.warnings[0]
    assert "'negative_prompt'" in prompts.warnings[1] and "'negative'" in prompts.warnings[1]


def test_case_and_blanks_around_column_names_do_not_matter(tmp_path: Path) -> None:
    prompts = read_prompts(write(tmp_path, "p.csv", "Prompt , SEED\na fox,3\n"))
    assert prompts.rows[0].seed == 3 and not prompts.warnings


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("promt,seed", "did you mean 'promt'"),
        ("prompt,seed,Seed", "twice"),
        ("prompt,mood,mood", "twice"),
        ("prompt,mood,mood ", "twice"),
    ],
)
def test_a_header_that_cannot_be_used_is_refused(tmp_path: Path, header: str, says: str) -> None:
    with pytest.raises(PromptError, match=says):
        read_prompts(write(tmp_path, "p.csv", f"{header}\na,1,2\n"))


BAD_ROWS = [
    (",,,,", None),
    ("a,-1,,,", "seed"),
    ("a,1.5,,,", "seed"),
    ("a,,0,,", "steps"),
    ("a,,1001,,", "steps"),
    ("a,,,nan,", "scale"),
    ("a,,,-1,", "scale"),
    ("a,,,,dimm", "did you mean 'ddim'"),
    ("a,,,,,surplus", "6 cells"),
    ("a,x,y,z,w", "seed is 'x'.*steps is 'y'.*scale is 'z'.*sampler is 'w'"),
    (",3,,,", "no prompt"),
]


@pytest.mark.parametrize(("row", "says"), BAD_ROWS)
def test_a_bad_row_is_named_with_its_line_before_anything_starts(tmp_path: Path, row: str, says: str | None) -> None:
    prompts = read_prompts(write(tmp_path, "p.csv", f"prompt,seed,steps,scale,sampler\ngood,1,1,1,ddim\n{row}\n"))
    if says is None:  # a row of empty cells is an empty line
        assert not prompts.bad
        return
    with pytest.raises(PromptError, match=f"1 of 2 row.*\n  line 3: .*{says}"):
        accept_rows(prompts)
    assert [good.line for good in accept_rows(prompts, skip_bad=True)] == [2]


def test_all_bad_rows_are_reported_at_once_and_the_list_is_capped(tmp_path: Path) -> None:
    path = write(tmp_path, "p.csv", "prompt,seed\ngood,1\n" + "bad,x\n" * 30)
    with pytest.raises(PromptError, match="30 of 31 row") as caught:
        accept_rows(read_prompts(path))
    assert str(caught.value).count("line ") == 20 and "and 10 more" in str(caught.value)
    assert "--skip-bad" in str(caught.value)


def test_a_list_without_any_good_row_stops_even_with_skip_bad(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="No row is left"):
        accept_rows(read_prompts(write(tmp_path, "p.csv", "prompt,seed\nbad,x\n")), skip_bad=True)


def test_an_unclosed_quote_is_a_bad_row_with_the_line_it_opens_on(tmp_path: Path) -> None:
    prompts = read_prompts(write(tmp_path, "p.csv", 'prompt\nfine\n"never closed\nmore\n'))
    assert [row.line for row in prompts.bad] == [3] and "quote" in prompts.bad[0].problem


def test_rows_after_a_stray_quote_are_still_read(tmp_path: Path) -> None:
    content = 'prompt,k\nfine,1\n"a "bad" quote",2\nfine too,3\n"opened,4\nswallowed,5\nit is "closed" here,6\nlast,7\n'
    prompts = read_prompts(write(tmp_path, "p.csv", content))
    assert [(row.line, row.prompt) for row in accept_rows(prompts, skip_bad=True)] == [
        (2, "fine"),
        (4, "fine too"),
        (6, "swallowed"),
        (7, 'it is "closed" here'),
        (8, "last"),
    ]
    assert [row.line for row in prompts.bad] == [3, 5] and "quote" in prompts.bad[1].problem


def test_a_quote_that_is_closed_in_a_later_row_swallows_none_and_a_prompt_of_several_lines_is_one(
    tmp_path: Path,
) -> None:
    content = 'prompt,k\n"a boat,1\na tower,2\na castle",3\n"a boat, at sea\nby night, stormy\nand cold",4\n"never,5\nlast,6\n'
    prompts = read_prompts(write(tmp_path, "p.csv", content))
    assert [(row.line, row.k) for row in accept_rows(prompts, skip_bad=True)] == [(3, 2), (4, 3), (5, 4), (9, 6)]
    assert [row.line for row in prompts.bad] == [2, 8]
    assert prompts.rows[2].prompt == "a boat, at sea\nby night, stormy\nand cold"


@pytest.mark.parametrize(
    "line",
    ['{"prompt": "a", "note": "\\udfff"}', '{"prompt": "half a \\ud800 pair"}', '{"prompt": "nul \\u0000"}', "[" * 100_000,
     '{"prompt": "a", "scale": 1' + "0" * 400 + "}", '{"prompt": "a", "k": 1' + "0" * 400 + "}", '{"prompt": "a", "k": 1e999}'],
)  # fmt: skip
def test_a_hostile_line_of_json_is_a_bad_row_like_any_other(tmp_path: Path, line: str) -> None:
    prompts = read_prompts(write(tmp_path, "p.jsonl", f'{{"prompt": "good"}}\n{line}\n'))
    assert [row.line for row in prompts.bad] == [2] and [row.prompt for row in prompts.rows] == ["good"]


def test_a_gap_in_a_column_of_floats_is_a_blank_cell(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a", "b"], "k": [3.0, float("nan")]}), tmp_path / "p.parquet")
    assert [row.k for row in read_prompts(str(tmp_path / "p.parquet")).rows] == [3, None]


def test_ids_that_stand_twice_are_warned_about(tmp_path: Path) -> None:
    prompts = read_prompts(write(tmp_path, "p.csv", "prompt,id\na,x\nb,y\nc,x\n"))
    assert len(prompts.rows) == 3
    assert [text for text in prompts.warnings if "'x'" in text and "'y'" not in text] == list(prompts.warnings) != []


def test_jsonl_reports_broken_and_mistyped_lines(tmp_path: Path) -> None:
    lines = [
        '{"prompt": "a"}',
        "{broken",
        "[1]",
        '{"prompt": 5}',
        '{"prompt": "b", "seed": true}',
        '{"prompt": "c", "id": 7}',
    ]
    prompts = read_prompts(write(tmp_path, "p.jsonl", "\n".join(lines)))
    assert [row.line for row in prompts.bad] == [2, 3, 4, 5]
    assert prompts.rows[1].id == "7"


def test_an_image_may_stand_in_for_the_prompt(tmp_path: Path) -> None:
    prompts = read_prompts(write(tmp_path, "p.csv", "prompt,image\n,sketch.png\n"))
    assert prompts.rows[0].image == "sketch.png" and prompts.folder == str(tmp_path)


def test_a_tsv_of_one_column_may_hold_commas(tmp_path: Path) -> None:
    assert [row.prompt for row in read_prompts(write(tmp_path, "p.tsv", "prompt\na fox, red\n")).rows] == ["a fox, red"]


@pytest.mark.parametrize("content", [b"prompt\n\xe9t\xe9\n", b"prompt\na\0b\n"])
def test_what_is_not_text_is_refused_with_the_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.csv").write_bytes(content)
    with pytest.raises(PromptError, match="line 2"):
        read_prompts(str(tmp_path / "p.csv"))


def test_a_missing_file_and_an_empty_file_say_so(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="cannot be read"):
        read_prompts(str(tmp_path / "absent.csv"))
    with pytest.raises(PromptError, match="no column 'prompt'"):
        read_prompts(write(tmp_path, "p.csv", ""))
    with pytest.raises(PromptError, match="holds no prompts"):
        read_prompts(write(tmp_path, "p.csv", "prompt\n"))
    with pytest.raises(PromptError, match="not a readable Parquet"):
        read_prompts(write(tmp_path, "p.parquet", "nonsense"))
    late = pa.array([300_000_000_000], pa.timestamp("s"))  # beyond the year 9999
    pq.write_table(pa.table({"prompt": ["a"], "seen": late}), tmp_path / "late.parquet")
    with pytest.raises(PromptError, match="not a readable Parquet"):
        read_prompts(str(tmp_path / "late.parquet"))


def test_sampler_names_are_the_models() -> None:
    sampling = pytest.importorskip("rdm.sampling")
    assert SAMPLERS[: len(sampling.SAMPLERS)] == sampling.SAMPLERS


# ---- keys and plan

PICTURE = PictureRequest(
    prompt="a fox", negative="", image="", use="both", text_weight=1.0, seed=7,
    source=Neighbourhood("wikiart", "v1", ("a = 1",)),
    k=4, sampling=Sampling("ddim", steps=50, scale=5.0, eta=0.0, width=64, height=64),
)  # fmt: skip
MAKER = Maker(model="m", encoder="e", precision="fp32")


def changed(**changes: Any) -> PictureRequest:
    """PICTURE with other values, settings of the sampler among them."""
    sampling = {name: changes.pop(name) for name in SETTINGS if name in changes}
    return replace(PICTURE, **changes, sampling=replace(PICTURE.sampling, **sampling))


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a  fox"}, {"negative": "x"}, {"image": "00"}, {"use": "neighbours"}, {"text_weight": 2.0}, {"seed": 8},
        {"source": Neighbourhood("wikiart", "v2", ("a = 1",))}, {"source": Neighbourhood("wikiart", "v1")},
        {"source": None}, {"k": 5},
        {"sampler": "plms"}, {"steps": 51}, {"scale": 5.5}, {"eta": 0.1}, {"width": 128}, {"height": 128},
        {"prompting": ImagePrompting(0.5)},
    ],
)  # fmt: skip
def test_everything_that_changes_the_pixels_changes_the_key(change: dict[str, object]) -> None:
    assert changed(**change).key(MAKER) != PICTURE.key(MAKER)


def test_what_a_picture_does_not_use_leaves_its_key_alone() -> None:
    unguided, alone = changed(scale=1.0), replace(PICTURE, use="neighbours")
    assert replace(unguided, negative="rain").key(MAKER) == unguided.key(MAKER)
    assert replace(alone, text_weight=3.0).key(MAKER) == alone.key(MAKER)
    assert changed(eta=0, text_weight=1).key(MAKER) == changed(eta=0.0, text_weight=1.0).key(MAKER)


def test_every_part_of_a_picture_and_its_maker_is_in_the_key() -> None:
    assert PICTURE.key(MAKER) == PICTURE.key(MAKER)
    for part in ("model", "encoder", "precision"):
        assert PICTURE.key(replace(MAKER, **{part: "other"})) != PICTURE.key(MAKER)


def test_a_picture_survives_the_plan_file() -> None:
    for picture in (PICTURE, changed(prompting=ImagePrompting(0.5, "mean", "style"))):
        (shard,) = shards({"k": picture}, [["k"]], 8)
        (batch,) = json.loads(json.dumps(shard.spec))["batches"]
        assert PictureRequest.from_dict(batch[0]) == picture


def test_keys_shards_and_names_of_runs_are_those_that_earlier_versions_gave() -> None:
    """Recorded from code in which the sampler's settings had no separate class."""
    unguided = changed(source=None, k=0, use="text", seed=0, scale=1, negative="rain")
    alone = changed(use="neighbours", text_weight=3, sampler="plms", steps=12, eta=0.5, scale=2.5, width=768, height=512,
                    image="00")  # fmt: skip
    assert [picture.key(MAKER) for picture in (PICTURE, unguided, alone)] == [
        "fd5197ec5c8146c06e01ea8f", "51290adb691ab275f759c345", "f08b95fd6f318e687c330108",
    ]  # fmt: skip
    assert shards({"k": PICTURE}, [["k"]], 8)[0].fingerprint == "d022b933cddd71d4b03f006ede80dbed"
    flags = GenerateConfig("a fox", db=("wikiart",), where="year > 1870", k=3, seed=4, negative="x", model="rdm-mini",
                           sampling=Sampling("plms", 30, 3.0, width=64))  # fmt: skip
    assert run_name(flags) == "a-fox-109a22"
    assert run_name(GenerateConfig("A castle, by the sea!")) == "a-castle-by-the-sea-d637e3"


def test_rows_may_be_given_in_place_of_a_list() -> None:
    rows = (PromptRow(1, "a fox", extra={"mood": "calm"}), PromptRow(2, "an owl"))
    prompts = read_prompts(rows)
    assert (prompts.rows, prompts.extra, prompts.unit) == (rows, ("mood",), "row")
    assert run_name(GenerateConfig(rows)).startswith("a-fox-")
    assert run_name(GenerateConfig(rows)) != run_name(GenerateConfig(rows[:1]))
    with pytest.raises(PromptError, match="at least one row"):
        read_prompts(())


def test_batches_hold_one_shape_and_shards_hold_whole_batches() -> None:
    pictures = {f"{i}": changed(seed=i, width=64 if i % 3 else 128) for i in range(20)}
    plan = batches(pictures, 4)
    assert sorted(key for batch in plan for key in batch) == sorted(pictures)
    assert all(len({pictures[key].shape() for key in batch}) == 1 and len(batch) <= 4 for batch in plan)
    for per_shard in (1, 6, 100):
        made = shards(pictures, plan, per_shard)
        assert [[p["key"] for p in batch] for shard in made for batch in shard.spec["batches"]] == plan
        assert sum(shard.rows for shard in made) == 20
        assert [shard.id for shard in made] == list(range(len(made)))


@pytest.mark.parametrize(
    ("prompt", "begins"),
    [
        ("A castle, by the sea!", "a-castle-by-the-sea-7-"),
        ("狐", "7-"),
        ("../../etc/passwd", "etc-passwd-7-"),
        ("x" * 99, "x" * 48),
    ],
)
def test_file_names_are_readable_and_stay_in_the_folder(prompt: str, begins: str) -> None:
    name = file_name(prompt, 7, "abc")
    assert name.startswith(f"images/{begins}") and name.endswith("abc.png") and name.count("/") == 1


def test_reading_gives_a_list_that_can_be_compared() -> None:
    assert isinstance(read_prompts("x"), PromptList)
