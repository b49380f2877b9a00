"""Two models by one protocol: an RDM and Stable Diffusion with an adapter, both small, over one database."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.config import digest
from pipeline.errors import ConfigError
from pipeline.evaluation import Compared, EvaluateConfig, compare, forecast, read_evaluate_config
from pipeline.evaluation.config import Postfix, Sweep
from pipeline.execution import Backend, Progress
from tests.adapters import small_adapter_model
from tests.encoders import RANDOM
from tests.evaluations import atelier_database, small_config
from tests.generations import save_model

pytestmark = pytest.mark.process

JOBS = Path(__file__).resolve().parent.parent / "jobs"


@pytest.fixture(autouse=True)
def process_as_it_was() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def test_a_protocol_without_a_comparison_is_hashed_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of evaluations' folders, and existing protocols, do not change."""
    assert digest(EvaluateConfig(model="rdm-mini").to_dict(), 6) == "c041ff"
    monkeypatch.chdir(JOBS.parent)  # a protocol holds the paths of files beside it
    assert (
        digest(replace(read_evaluate_config(Path("jobs/evaluate-mini.toml")), model="rdm-mini").to_dict(), 6)
        == "12b624"
    )
    assert digest(replace(EvaluateConfig(), compare=(Compared("a"),)).to_dict(), 6) != "c041ff"


def test_what_a_model_of_a_comparison_leaves_empty_is_the_protocols() -> None:
    config = EvaluateConfig(
        database="art", general="all", compare=(Compared("a"), Compared("b", database="art_h", k=(1,)))
    )
    one, two = (config.of(entry) for entry in config.compare)
    assert (one.model, one.database, one.general, one.tuning) == ("a", "art", "all", config.tuning)
    assert (two.model, two.database, two.general, two.tuning.k) == ("b", "art_h", "all", (1,))
    assert one.compare == () and one.sampling == config.sampling
    with pytest.raises(ConfigError, match="twice"):
        EvaluateConfig(compare=(Compared("a"), Compared("a")))
    with pytest.raises(ConfigError, match="two models or more"):
        compare(EvaluateConfig(), Progress(stream=io.StringIO()), Backend())


def test_the_job_of_todays_models_is_planned_without_its_databases_and_weights(home: Path) -> None:
    """`rdmpipe evaluate jobs/today.toml --plan` on a machine without databases and weights."""
    told = CliRunner().invoke(app, ["evaluate", str(JOBS / "today.toml"), "--plan"])
    assert told.exit_code == 0, told.output
    assert "artbench_vit_h_14: to build: rdmpipe embed artbench --encoder vit-h-14" in told.output
    assert "sdxl-ip-adapter: takes vectors of vit-h-14; base stabilityai/" in told.output
    assert "licence: base: CreativeML Open RAIL-M" in told.output
    planned = forecast(read_evaluate_config(JOBS / "today.toml"), str(home))
    names = [one.name for one in planned.databases]
    assert sorted(names) == ["artbench", "artbench_vit_h_14", "laion", "laion_vit_h_14"]
    assert (planned.styles, planned.test_captions) == (10, 32)
    counts = {one.name: one.pictures for one in planned.models}
    assert list(counts) == ["rdm-768", "sd15-ip-adapter", "sdxl-ip-adapter"]
    assert all(one["swap"] == 32 * 10 and one["all"] == sum(one.values()) - one["all"] for one in counts.values())
    assert f"all models: {planned.pictures:,}" in told.output
    assert not home.exists(), "nothing is built, fetched or written"
    as_json = CliRunner().invoke(app, ["evaluate", str(JOBS / "today.toml"), "--plan", "--json"])
    assert json.loads(as_json.stdout)["pictures"] == planned.pictures
    for command in ("run", "submit"):
        refused = CliRunner().invoke(app, [command, str(JOBS / "today.toml")])
        assert refused.exit_code and "is an evaluation's protocol, not a job file: `rdmpipe evaluate" in refused.output
    with pytest.raises(ConfigError, match=r"is not published.*build the database first: `rdmpipe build-index "):
        forecast(replace(read_evaluate_config(JOBS / "today.toml"), styles=()), str(home))


def test_two_models_are_judged_by_the_same_judges_and_shown_side_by_side(tmp_path: Path, home: Path) -> None:
    atelier_database(tmp_path, home)
    adapter = small_adapter_model(tmp_path / "sd", "sd15", RANDOM)
    rdm = str(save_model(tmp_path / "rdm"))
    config = replace(
        small_config(Path(rdm)),
        postfix=Postfix(captions=1, count=1, levels=("common",)),
        sweep=Sweep(captions=1, styles=1, k=(0, 2), guidance=(2.0,), shares=(1.0,)),
        compare=(Compared(rdm), Compared(str(adapter), sampler="ddim", guidance=(5.0,))),
    )
    planned = forecast(config, str(home))
    assert all(one.pictures["all"] > 10 for one in planned.models)
    said = io.StringIO()
    folder, found = compare(
        config, Progress(stream=said), Backend(), home=str(home), out=str(tmp_path / "out"), device="cpu"
    )
    one, two = found.models.values()
    assert (one.setup.model.name, two.setup.model.name) == ("tiny", "sd")
    assert one.judges.style == two.judges.style, "one style judge, trained once"
    assert one.setup.test_captions == two.setup.test_captions
    assert two.tuning["swap"].guidance == 5.0 and one.tuning["swap"].guidance == 2.0
    assert one.swap.all is not None and two.swap.all is not None
    assert json.loads((folder / "summary.json").read_text())["models"][rdm] == json.loads(
        (folder / "rdm" / "summary.json").read_text()
    )
    page = (folder / "index.html").read_text()
    assert "rdm/index.html" in page and "sd/index.html" in page
    assert page.count("data:image/png;base64,") >= 4
    assert not (folder / "rdm" / "judges").exists() and (folder / "judges" / "style").is_dir()
    assert rdm in found.text(folder)
