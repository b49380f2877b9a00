"""`build-index` from a folder to a searchable database: counts, versions, bad pictures, bad requests, refresh."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.catalog import resolve_database
from pipeline.database import RetrievalDatabase, gone_keys
from pipeline.errors import BusyError, DatabaseError, FilterError, IndexBuildError, ManifestError
from pipeline.maintenance import collect, list_versions
from pipeline.retrieval import QueryRequest, open_search, run_query
from pipeline.storage import lease
from tests.builds import command, contents, folder_of, last_json, manifest_of, picture, quiet_build
from tests.encoders import RANDOM, local_encoder

pytestmark = pytest.mark.process


def test_a_folder_becomes_a_database_that_can_be_searched(tmp_path: Path, home: Path) -> None:
    summary = quiet_build(folder_of(tmp_path / "My Pictures", 25))
    assert (summary.name, summary.input, summary.ok, summary.failed) == ("my_pictures", 25, 25, 0)
    assert summary.warnings == ("the encoder is untrained (random weights): search results carry no meaning",)
    found = run_query(QueryRequest("my_pictures", key=3, k=4, where="style = 'odd'"))
    assert found.rows.num_rows == 4
    assert set(found.rows["style"].to_pylist()) == {"odd"}
    assert 3 not in found.rows["key"].to_pylist()
    scores = found.rows["score"].to_pylist()
    assert scores == sorted(scores, reverse=True)
    assert {"caption", "licence", "source", "sha256", "phash", "width", "item_id"} <= set(found.rows.column_names)


def test_every_picture_finds_itself_first(tmp_path: Path, home: Path) -> None:
    folder = folder_of(tmp_path / "pictures", 12)
    quiet_build(folder, encoder=local_encoder(tmp_path / "encoder"))
    for i in range(12):
        found = run_query(QueryRequest("pictures", image=folder / f"{i:04d}.png", k=1))
        assert found.rows["item_id"].to_pylist() == [f"{i:04d}.png"]
        assert found.rows["score"][0].as_py() == pytest.approx(1.0, abs=2e-3)  # vectors are stored in half precision
        assert found.warnings == ()


def test_the_command_prints_one_json_document_last(tmp_path: Path, home: Path) -> None:
    folder = folder_of(tmp_path / "pictures", 8)
    built = last_json(command("build-index", folder, "--name", "mine", "--encoder", RANDOM, "--json", home=home))
    assert {"name", "version", "input", "ok", "filtered", "failed", "reasons", "duplicates"} <= set(built)
    assert (built["name"], built["input"], built["ok"]) == ("mine", 8, 8)
    rows = last_json(command("search", "mine", "--key", "2", "-k", "3", "--json", home=home))
    assert [set(row) >= {"key", "score", "caption", "style"} for row in rows] == [True] * 3
    status = last_json(command("status", "mine", "--json", home=home))[0]
    assert status["version"] == built["version"]
    assert [row["name"] for row in last_json(command("list", "--json", home=home))] == ["mine"]


BAD = {
    "empty.jpg": (b"", "empty"),
    "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "not_an_image"),
    "cut.jpg": (picture(1, 400, "JPEG")[:2500], "truncated"),
    "noise.png": (b"\x89PNG\r\n\x1a\n" + b"\0" * 200, "corrupt"),
}


def test_bad_pictures_are_failed_rows_with_reasons_and_the_rest_is_ok(tmp_path: Path, home: Path) -> None:
    folder = folder_of(tmp_path / "pictures", 20)
    for name, (data, _) in BAD.items():
        (folder / name).write_bytes(data)
    (folder / "._0001.png").write_bytes(b"\0\5\26\7")  # AppleDouble junk is no picture and no row
    with (folder / "metadata.csv").open("a") as handle:
        handle.write("gone.png,odd,not there\n")
    summary = quiet_build(folder, name="mine")
    assert (summary.input, summary.ok, summary.filtered, summary.failed) == (25, 20, 0, 5)
    reasons = {reason for _, reason in BAD.values()} | {"missing_file"}
    assert summary.reasons == dict.fromkeys(sorted(reasons), 1)
    version = resolve_database("mine").version
    with open_search(RetrievalDatabase("mine"), version) as searcher:
        assert len(searcher.keys) == 20
    table = pq.read_table(home / "databases" / "mine" / version.shards[0].artifact.path)
    failed = {row["item_id"]: row["error"] for row in table.select(["item_id", "status", "error"]).to_pylist()}
    for name, (_, reason) in BAD.items():
        assert failed[name].startswith(reason)


def test_a_picture_as_large_as_a_bomb_is_refused_and_others_continue(tmp_path: Path, home: Path) -> None:
    from PIL import Image

    folder = folder_of(tmp_path / "pictures", 3)
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    summary = quiet_build(folder)
    assert (summary.ok, summary.reasons) == (3, {"too_large": 1})


def test_exact_duplicates_are_marked_and_can_be_left_out(tmp_path: Path, home: Path) -> None:
    folder = folder_of(tmp_path / "pictures", 10)
    (folder / "zz_copy.png").write_bytes((folder / "0004.png").read_bytes())
    assert quiet_build(folder).duplicates == 1
    everything = run_query(QueryRequest("pictures", image=folder / "0004.png", k=11)).rows
    assert everything["duplicate_of"].to_pylist()[:2] == [None, 4]
    distinct = run_query(QueryRequest("pictures", image=folder / "0004.png", k=11, no_duplicates=True)).rows
    assert distinct.num_rows == 10


def test_a_second_build_does_nothing_and_publishes_nothing(tmp_path: Path, home: Path) -> None:
    target = manifest_of(tmp_path / "mine.toml", folder_of(tmp_path / "pictures", 23))
    first = quiet_build(target)
    before = contents(home)
    second = quiet_build(target)
    assert second.version == first.version
    assert second.shards == {"download": {"ran": 0, "skipped": 3}, "embed": {"ran": 0, "skipped": 3}}
    assert contents(home) == before


def test_the_stages_one_by_one_give_what_all_at_once_gives(tmp_path: Path, home: Path) -> None:
    target = manifest_of(tmp_path / "mine.toml", folder_of(tmp_path / "pictures", 23))
    quiet_build(target, stages=("download",))
    assert len(list((home / "databases/mine/images").glob("*.tar"))) == 3
    with pytest.raises(DatabaseError, match="never finished"):
        resolve_database("mine")
    quiet_build("mine", encoder="", stages=("download", "embed"))
    stepwise = quiet_build("mine", encoder="", stages=("index",))
    at_once = quiet_build(target, home=str(tmp_path / "other"))
    assert stepwise.version == at_once.version
    assert contents(tmp_path / "other") == contents(home)


@pytest.mark.parametrize(("images", "kept"), [("keep", "images"), ("thumbnail", "thumbnails"), ("drop", None)])
def test_pictures_are_kept_or_made_small_or_dropped(tmp_path: Path, home: Path, images: str, kept: str | None) -> None:
    quiet_build(folder_of(tmp_path / "pictures", 5), name="mine", images=images)
    tars = {path.parent.name for path in (home / "databases/mine").rglob("*.tar")}
    assert tars == ({kept} if kept else set())
    sheet = tmp_path / "sheet.png"
    run_query(QueryRequest("mine", key=0, k=3)).write_sheet(sheet)
    assert sheet.stat().st_size > 1000


def test_rows_outside_the_filter_are_counted_as_filtered(tmp_path: Path, home: Path) -> None:
    summary = quiet_build(folder_of(tmp_path / "pictures", 20), where="style = 'even'")
    assert (summary.input, summary.ok, summary.filtered, summary.failed) == (20, 10, 10, 0)


def test_a_filter_that_leaves_nothing_says_so(tmp_path: Path, home: Path) -> None:
    folder = folder_of(tmp_path / "pictures", 5)
    with pytest.raises(IndexBuildError, match="no row to index"):
        quiet_build(folder, where="style = 'neither'", name="empty")
    quiet_build(folder)
    found = run_query(QueryRequest("pictures", key=0, where="style = 'neither'"))
    assert found.records() == []
    assert "matches no row" in found.warnings[-1]


@pytest.mark.parametrize(
    "escape",
    [
        "1=1); select 42; select (1",
        "1=1) or (1=1",
        "key in (select 1)",
        "exists(select * from read_csv('/etc/passwd'))",
    ],
)
def test_a_filter_cannot_leave_its_sandbox(tmp_path: Path, home: Path, escape: str) -> None:
    folder = folder_of(tmp_path / "pictures", 3)
    quiet_build(folder)
    with pytest.raises(FilterError):
        run_query(QueryRequest("pictures", key=0, where=escape))
    with pytest.raises(FilterError):
        quiet_build(folder, name="other", where=escape)


def test_another_encoder_is_an_error_that_says_the_fix(tmp_path: Path, home: Path) -> None:
    folder = folder_of(tmp_path / "pictures", 4)
    quiet_build(folder)
    with pytest.raises(DatabaseError, match="--name"):
        quiet_build(folder, encoder=local_encoder(tmp_path / "encoder"))
    with pytest.raises(DatabaseError, match="preprocess"):
        quiet_build(folder, preprocess="compvis")


def test_two_builds_at_once_never_mix(tmp_path: Path, home: Path) -> None:
    folder = folder_of(tmp_path / "pictures", 4)
    with lease(RetrievalDatabase("mine").storage, "another build"), pytest.raises(BusyError, match="another build"):
        quiet_build(folder, name="mine")
    first = command("build-index", folder, "--name", "mine", "--encoder", RANDOM, "--json", home=home, wait=False)
    second = command(
        "build-index", folder, "--name", "mine", "--encoder", RANDOM, "--wait", "120", "--json", home=home, wait=False
    )
    outputs = [process.communicate(timeout=200) for process in (first, second)]
    codes = sorted([first.returncode, second.returncode])
    assert codes in ([0, 0], [0, 75]), outputs  # the first has no --wait: it refuses if the second was quicker
    done = [json.loads(out.splitlines()[-1]) for out, _ in outputs if out.strip()]
    assert len({summary["version"] for summary in done}) == 1


def test_unknown_targets_are_errors_before_any_work(tmp_path: Path, home: Path) -> None:
    for target, message in [("wikiarts", "did you mean 'wikiart'"), ("./nowhere", "no such file or folder")]:
        with pytest.raises(ManifestError, match=message):
            quiet_build(target)
    assert not home.exists()


def test_a_view_works_wherever_a_name_does(tmp_path: Path, home: Path) -> None:
    quiet_build(folder_of(tmp_path / "pictures", 10), name="mine")
    (home / "manifests").mkdir()
    (home / "manifests" / "mine-odd.toml").write_text('name = "mine-odd"\nbase = "mine"\nwhere = "style = \'odd\'"\n')
    found = run_query(QueryRequest("mine-odd", key=1, k=10))
    assert set(found.rows["style"].to_pylist()) == {"odd"}
    assert found.rows.num_rows == 4
    assert [row["name"] for row in last_json(command("list", "--json", home=home))] == ["mine", "mine-odd"]


# ---- refresh


def test_a_refresh_does_only_what_is_new_and_never_moves_a_key(tmp_path: Path, home: Path) -> None:
    folder = folder_of(tmp_path / "pictures", 60)
    target = manifest_of(tmp_path / "mine.toml", folder)
    first = quiet_build(target)
    old_keys = {row["item_id"]: row["key"] for row in _rows("mine")}
    for i in (3, 17):
        (folder / f"{i:04d}.png").unlink()
    (folder / "0030.png").write_bytes(picture(1030))
    for i in range(60, 65):
        (folder / f"{i:04d}.png").write_bytes(picture(i))
    (folder / "metadata.csv").write_text(
        "file_name,style,caption\n"
        + "".join(
            f"{i:04d}.png,{'even' if i % 2 == 0 else 'odd'},picture number {i}\n" for i in range(65) if i not in (3, 17)
        )
    )
    second = quiet_build(target, refresh=True)
    assert second.changes == {"added": 5, "changed": 1, "removed": 2}
    assert second.shards["embed"]["ran"] == 1  # one new shard; the six old ones are shared
    assert (second.input, second.ok) == (63, 63)
    new_keys = {row["item_id"]: row["key"] for row in _rows("mine")}
    assert {item for item, key in new_keys.items() if old_keys.get(item) == key} == set(old_keys) - {
        "0003.png", "0017.png", "0030.png",
    }  # fmt: skip
    assert set(new_keys) - set(old_keys) == {f"{i:04d}.png" for i in range(60, 65)}
    assert min(new_keys[f"{i:04d}.png"] for i in (30, 60, 61)) >= 60_000
    version = resolve_database("mine").version
    gone = gone_keys(RetrievalDatabase("mine"), version.gone)
    assert gone == sorted(old_keys[f"{i:04d}.png"] for i in (3, 17, 30))
    pinned = {row["item_id"] for row in _rows(f"mine@{first.version}")}
    assert pinned == set(old_keys)


def test_a_refresh_that_finds_nothing_new_publishes_nothing(tmp_path: Path, home: Path) -> None:
    target = manifest_of(tmp_path / "mine.toml", folder_of(tmp_path / "pictures", 25))
    first = quiet_build(target)
    before = contents(home)
    again = quiet_build(target, refresh=True)
    assert (again.version, again.changes) == (first.version, {"added": 0, "changed": 0, "removed": 0})
    assert contents(home) == before


def test_a_row_that_comes_back_gets_a_new_key(tmp_path: Path, home: Path) -> None:
    folder = folder_of(tmp_path / "pictures", 12)
    target = manifest_of(tmp_path / "mine.toml", folder)
    quiet_build(target)
    data, old = (folder / "0005.png").read_bytes(), (folder / "metadata.csv").read_text()
    (folder / "0005.png").unlink()
    (folder / "metadata.csv").write_text(old.replace("0005.png,odd,picture number 5\n", ""))
    assert quiet_build(target, refresh=True).changes["removed"] == 1
    (folder / "0005.png").write_bytes(data)
    (folder / "metadata.csv").write_text(old)
    assert quiet_build(target, refresh=True).changes == {"added": 1, "changed": 0, "removed": 0}
    keys = [row["key"] for row in _rows("mine") if row["item_id"] == "0005.png"]
    assert keys == [20_000]


def _rows(name: str) -> list[dict[str, object]]:
    selection = resolve_database(name)
    with open_search(selection.database, selection.version) as searcher:
        return searcher.metadata(np.asarray(searcher.keys), ["key", "item_id", "style"]).to_pylist()


def test_collecting_old_versions_removes_what_only_they_need(tmp_path: Path, home: Path) -> None:
    folder = folder_of(tmp_path / "pictures", 30)
    target = manifest_of(tmp_path / "mine.toml", folder)
    first = quiet_build(target)
    (folder / "extra.png").write_bytes(picture(500))
    second = quiet_build(target, refresh=True)
    lines = list_versions(RetrievalDatabase("mine"))
    assert [(line.version, line.current) for line in lines] == [(second.version, True), (first.version, False)]
    done = collect(RetrievalDatabase("mine"), keep=1)
    assert (done.kept, done.removed) == ((second.version,), (first.version,))
    assert done.files >= 4  # the old index at least: its shards are shared
    assert len(_rows("mine")) == 31
    with pytest.raises(DatabaseError, match="no version"):
        resolve_database(f"mine@{first.version}")
    assert quiet_build(target, refresh=True).shards["embed"]["ran"] == 0
