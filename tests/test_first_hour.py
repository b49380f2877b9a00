"""Commands that new users need: show a row, count views' rows, delete a database, see that a build runs."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.catalog import status_of
from pipeline.cli.app import app
from pipeline.database import RetrievalDatabase, list_databases
from pipeline.doctor import examine
from pipeline.errors import BusyError, ConfigError, DatabaseError, SourceError
from pipeline.evaluation.forecasting import PlannedModel
from pipeline.execution import Progress
from pipeline.generation import PromptRow, measured_speed
from pipeline.maintenance import delete_database, plan_deletion
from pipeline.retrieval import count_rows, show_row
from pipeline.retrieval.result_files import write_results
from pipeline.storage import Storage, lease
from pipeline.training import read_train_config, train
from tests.builds import folder_of, picture, quiet_build
from tests.gallery_demo import page_data
from tests.generations import add_view, quiet_generate, save_model

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hour")
    quiet_build(folder_of(folder / "pictures", 9), name="mine", home=str(folder / "home"), images="thumbnail")
    add_view(folder / "home", "mine", "odd", "style = 'odd'")
    return folder / "home"


def test_a_row_is_shown_with_its_picture_and_its_neighbours(built: Path) -> None:
    shown = show_row("mine", 4, 3, str(built))
    assert shown.metadata["caption"] == "picture number 4" and shown.metadata["style"] == "even"
    assert shown.picture is not None and Image.open(io.BytesIO(shown.picture)).size == (48, 48)
    keys = shown.neighbours["key"].to_pylist()
    assert len(keys) == 3 and 4 not in keys
    assert shown.neighbours["score"].to_pylist() == sorted(shown.neighbours["score"].to_pylist(), reverse=True)
    with pytest.raises(DatabaseError, match="no row with key 99"):
        show_row("mine", 99, home=str(built))


def test_the_command_writes_the_picture_and_lists_views_with_their_rows(built: Path, tmp_path: Path) -> None:
    out = tmp_path / "four.jpg"
    done = CliRunner().invoke(app, ["show", "mine", "4", "-k", "2", "--out", str(out), "--home", str(built)])
    assert done.exit_code == 0 and "caption: picture number 4" in done.output
    assert Image.open(out).size == (48, 48)
    listed = CliRunner().invoke(app, ["list", "--home", str(built)]).output
    assert "mine-odd\t4\t" in listed and (count_rows("mine", str(built)), count_rows("none", str(built))) == (9, None)
    wrong = CliRunner().invoke(app, ["show", "mine", "four", "--home", str(built)])
    assert wrong.exit_code == 2


def test_a_deleted_database_is_gone_with_all_its_files(tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    quiet_build(folder_of(tmp_path / "pictures", 4), name="mine", home=home)
    add_view(Path(home), "mine", "odd", "style = 'odd'")
    planned = plan_deletion("mine", home)
    assert (planned.rows, planned.versions, planned.views) == (4, 1, ("mine-odd",))
    asked = CliRunner().invoke(app, ["delete", "mine", "--home", home], input="n\n")
    assert asked.exit_code == 1 and "mine-odd" in asked.output and list_databases(home) == ["mine"]
    with lease(RetrievalDatabase("mine", home).storage, "build-index mine"), pytest.raises(BusyError):
        delete_database("mine", home)
    assert CliRunner().invoke(app, ["delete", "mine", "--yes", "--home", home]).exit_code == 0
    assert Storage(home).list("databases") == []
    with pytest.raises(DatabaseError, match="no database 'mine'"):
        delete_database("mine", home)


def test_a_build_that_runs_reads_building(tmp_path: Path) -> None:
    storage = RetrievalDatabase("art", str(tmp_path)).storage
    storage.write_text("manifest.json", "{}")
    assert status_of("art", str(tmp_path)).text().startswith("art: not published yet")
    with lease(storage, "build-index art"):
        assert status_of("art", str(tmp_path)).text().startswith("art: building")


def test_generate_without_a_database_says_what_to_add(built: Path) -> None:
    with pytest.raises(ConfigError, match=r"add --db NAME .*published: mine"):
        quiet_generate("a harbour", home=str(built))


def test_a_table_is_not_replaced_while_its_pictures_exist(built: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    common = {"model": str(tmp_path / "model"), "home": str(built), "out": str(tmp_path / "run")}
    first = quiet_generate("a harbour", db=("mine",), **common)
    assert not any("earlier request" in warning for warning in first.warnings)
    with pytest.raises(
        ConfigError, match=r"1 picture\(s\) of another request \(databases: mine\).*--db mine,mine-odd.*rm -r "
    ):
        quiet_generate("a harbour", db=("mine-odd",), **common)
    assert first.table(["db"])["db"].to_pylist() == ["mine"], "the table is as it was"
    both = quiet_generate("a harbour", db=("mine", "mine-odd"), **common)
    assert (both.ok, both.made) == (2, 1)
    with pytest.raises(ConfigError, match="another request"):
        quiet_generate("a harbour", db=("mine", "mine-odd"), **{**common, "seed": 9})
    edited = quiet_generate("a harbour", db=("mine", "mine-odd"), **{**common, "n": 2})
    assert edited.made == 2 and not any("earlier request" in warning for warning in edited.warnings)
    fewer = quiet_generate("a harbour", db=("mine", "mine-odd"), **{**common, "seed": 1})
    assert any("2 picture(s) of an earlier request" in warning for warning in fewer.warnings)


def test_notes_on_many_pictures_are_counted_and_shown_once(
    built: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_model(tmp_path / "model")
    prompts = tuple(PromptRow(number, f"picture {number} " + "of a very long harbour " * 40) for number in range(3))
    summary = quiet_generate(
        prompts, db=("mine",), model=str(tmp_path / "model"), home=str(built), k=6, where="key < 4"
    )
    (counted,) = [warning for warning in summary.warnings if "picture(s)" in warning]
    assert (
        counted.startswith("3 picture(s): ") and "longer than the encoder reads" in counted and "only 4 of 6" in counted
    )
    assert sum("texts are longer" in record.message for record in caplog.records) == 1
    assert counted in summary.text() and counted not in summary.text(said=summary.warnings)


def test_the_denoiser_names_the_missing_autoencoder_before_pictures_are_read(tmp_path: Path) -> None:
    recipe = Path(__file__).parent.parent / "jobs/train-mini.toml"
    text = recipe.read_text("utf-8").replace("runs/mini", f"{tmp_path}/run").replace("../shared", f"{tmp_path}/none")
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(ConfigError, match="train it first with `rdmpipe train autoencoder`"):
        train("rdm", read_train_config(tmp_path / "run.toml"), Progress(stream=io.StringIO()))
    with pytest.raises(SourceError, match=r"no file matches .*atelier = 900"):
        train("encoder", read_train_config(tmp_path / "run.toml"), Progress(stream=io.StringIO()))


def test_a_note_that_is_given_again_is_counted() -> None:
    out = io.StringIO()
    with Progress(stream=out) as progress:
        for text in ("a", "b", "a", "a"):
            progress.note(text)
    assert [line.split("] ")[1] for line in out.getvalue().splitlines()] == ["note: a", "note: b", "note, 3 times: a"]


def test_the_hours_of_an_evaluation_come_from_pictures_of_this_home(built: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "home/models/small")
    home = str(tmp_path / "home")
    assert measured_speed("small", home) is None
    quiet_build(folder_of(tmp_path / "pictures", 4), name="mine", home=home)
    made = quiet_generate("a harbour", db=("mine",), model="small", home=home, n=2, steps=4)
    name = made.table(["model"])["model"][0].as_py()
    speed = measured_speed(name, home)
    assert speed is not None and speed.pictures == 2 and speed.step_seconds > 0
    known = PlannedModel(name, "", "", "", {"all": 100}, hours=2.5, measured=2)
    assert "about 2.5 hours" in known.time and "2 pictures" in known.time
    assert "rdmpipe generate 'a castle by the sea' --model small" in PlannedModel("small", "", "", "", {"all": 1}).time


def test_the_doctor_says_what_is_there_and_how_to_get_what_is_not(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # it is read when the library is imported
    monkeypatch.setattr("pipeline.doctor.examination.EXTRAS", {"serve": ("starlette",), "other": ("no_such_module",)})
    found = {one.area: one for one in examine(str(built), load=False)}
    assert found["home"].state == "ok" and "databases: mine" in found["home"].found
    assert found["Hub"].state == "note" and "--encoder mini" in found["Hub"].fix
    assert found["extra serve"].state == "ok" and found["extra other"].fix == "pip install 'rdmpipe[other]'"
    assert found["faiss"].state == "ok"
    (tmp_path / "file").write_text("no folder")
    done = CliRunner().invoke(app, ["doctor", "--quick", "--home", str(tmp_path / "file")])
    assert done.exit_code == 1 and "problem  home" in done.output and "--home FOLDER" in done.output


def test_results_are_written_as_a_table_or_as_a_page(built: Path, tmp_path: Path) -> None:
    rows = pa.table(
        {
            "key": [0, 1], "score": [0.5, 0.25], "title": ["=1+1", "<script>"], "caption": [None, "a, b"],
            "licence": ["CC0-1.0", None], "source": ["here", "there"], "url": ["javascript:alert(1)", "https://example.org/1"],
        }
    )  # fmt: skip
    database = RetrievalDatabase("mine", str(built))
    write_results(tmp_path / "x.csv", rows, database, "a harbour")
    lines = (tmp_path / "x.csv").read_text("utf-8").splitlines()
    assert lines[1].startswith("0,0.5,'=1+1,,CC0-1.0") and '"a, b"' in lines[2]
    write_results(tmp_path / "x.html", rows, database, "a <b>harbour</b>")
    page = (tmp_path / "x.html").read_text("utf-8")
    assert page.count("data:image/jpeg;base64,") == 2 and "<script>" not in page and "<b>" not in page
    assert 'href="https://example.org/1"' in page and "javascript:" not in page
    write_results(tmp_path / "x.parquet", rows, database, "")
    assert pq.read_table(tmp_path / "x.parquet").num_rows == 2


def test_the_gallery_shows_the_picture_that_was_the_prompt(built: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    (tmp_path / "asked.png").write_bytes(picture(3))
    summary = quiet_generate(
        "ignored", db=("mine",), image=str(tmp_path / "asked.png"), model=str(tmp_path / "model"), home=str(built),
        out=str(tmp_path / "run"),
    )  # fmt: skip
    data = page_data(Path(summary.out))
    prompt = data["prompts"][0]
    assert prompt["by_image"] and data["urls"][prompt["image"]].startswith("data:image/webp")
    plain = quiet_generate(
        "a harbour", db=("mine",), model=str(tmp_path / "model"), home=str(built), out=str(tmp_path / "x")
    )
    assert page_data(Path(plain.out))["prompts"][0]["image"] == -1
