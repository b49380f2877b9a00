"""Drawing from the page: previews, neighbours chosen by hand, runs and favourites, and permission to write."""

from __future__ import annotations

import io
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from pipeline.generation import seldom
from pipeline.serving import ServeOptions, create_app
from pipeline.serving.api import Server
from pipeline.serving.app import make_server
from pipeline.serving.drawing import DrawQuestion, Studio, _Work
from tests.builds import folder_of, quiet_build
from tests.generations import add_view, quiet_generate, save_model

pytestmark = pytest.mark.process

OWN = "http://127.0.0.1:8420"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("draw")
    home = folder / "home"
    quiet_build(folder_of(folder / "pictures", 12), name="mine", home=str(home), images="thumbnail")
    for style in ("odd", "even"):
        add_view(home, "mine", style, f"style = '{style}'")
    save_model(home / "models" / "tiny")
    return home


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    made = make_server(ServeOptions(home=str(home), allow_generate=True))
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(server: Server) -> TestClient:
    return TestClient(create_app(server.options, server), OWN, headers={"x-rdmpipe-session": server.session})


def drawn(client: TestClient, **question: object) -> tuple[dict, list[dict]]:
    """A finished drawing, and the states before its end."""
    asked = {"prompt": "a harbour", "databases": ["mine"], "model": "tiny", "steps": 3, "k": 3, **question}
    made = client.post("/api/draw", json=asked).json()
    assert "id" in made, made
    seen = [made]
    for _ in range(1200):
        if seen[-1]["state"] not in ("waiting", "drawing"):
            return seen[-1], seen
        time.sleep(0.05)
        seen.append(client.get(f"/api/draw/{made['id']}").json())
    raise AssertionError(seen[-1])


def test_a_drawing_is_the_picture_that_generate_makes(client: TestClient, home: Path, tmp_path: Path) -> None:
    made, _ = drawn(client, databases=["mine-odd", "mine-even"], seed=5)
    assert made["state"] == "done", made
    assert [(one["database"], one["seed"], one["state"]) for one in made["pictures"]] == [
        ("mine-odd", 5, "done"), ("mine-even", 5, "done")
    ]  # fmt: skip
    ours = quiet_generate("a harbour", db=("mine-odd", "mine-even"), model="tiny", steps=3, k=3, seed=5,
                          home=str(home), out=str(tmp_path))  # fmt: skip
    theirs = {one["file"].rpartition("/")[2]: client.get(one["file"]).content for one in made["pictures"]}
    assert theirs == {path.name: path.read_bytes() for path in (Path(ours.out) / "images").iterdir()}


def test_every_step_is_reported_with_a_preview_of_the_right_picture(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int, str]] = []
    change = Studio._change

    def watch(studio: Studio, work: _Work, **changes: object) -> None:
        change(studio, work, **changes)
        told.extend((place, one.step, one.preview) for place, one in enumerate(work.drawing.pictures) if one.step)

    monkeypatch.setattr(Studio, "_change", watch)
    made = server.studio.draw(DrawQuestion("a castle", ("mine-odd", "mine-even"), model="tiny", steps=4, k=2, seed=77))
    while server.studio.get(made.id).state in ("waiting", "drawing"):
        time.sleep(0.02)
    assert server.studio.get(made.id).state == "done", server.studio.get(made.id)
    assert {(place, step) for place, step, _ in told} == {(place, step) for place in (0, 1) for step in (1, 2, 3, 4)}
    assert told[-1][2].startswith("data:image/jpeg;base64,")


def test_neighbours_picked_by_hand_are_what_it_is_drawn_from(client: TestClient) -> None:
    made, _ = drawn(client, keys=[2, 7], seed=9, k=None)
    row = next(
        one for one in client.get("/api/runs", params={"run": made["run"]}).json()["pictures"] if one["seed"] == "9"
    )
    assert sorted(row["neighbours"]) == [2, 7]
    words = shlex.split(made["command"])
    assert words[:3] == ["rdmpipe", "generate", "a harbour"]
    assert words[words.index("--where") + 1] == "key IN (2, 7)" and words[words.index("-k") + 1] == "2"
    compile(made["python"], "python", "exec")


def test_runs_of_the_home_are_one_gallery_with_favourites(client: TestClient, home: Path) -> None:
    made, _ = drawn(client, seed=21)
    found = client.get("/api/runs").json()
    assert made["run"] in {one["name"] for one in found["runs"]} and found["total"] >= 1
    picture = next(one for one in found["pictures"] if one["seed"] == "21")
    assert picture["settings"]["model"] == "tiny" and picture["settings"]["steps"] == 3
    data = client.get(picture["file"])
    assert data.headers["content-type"] == "image/png" and Image.open(io.BytesIO(data.content)).size == (32, 32)
    marked = client.post("/api/favourites", json={"run": made["run"], "key": picture["key"]})
    assert marked.json() == {"favourites": 1} and (home / "favourites.json").exists()
    favourites = client.get("/api/runs", params={"favourites": "1"}).json()
    assert [one["key"] for one in favourites["pictures"]] == [picture["key"]]
    client.post("/api/favourites", json={"run": made["run"], "key": picture["key"], "on": False})
    assert client.get("/api/runs", params={"favourites": "1"}).json()["total"] == 0


@pytest.mark.parametrize(
    ("question", "problem"),
    [
        ({"prompt": " ", "databases": ["mine"]}, "prompt is empty"),
        ({"prompt": "x", "databases": ["nothing_here"]}, "no database"),
        ({"prompt": "x", "databases": ["mine"], "model": "/etc"}, "no model"),
        ({"prompt": "x", "databases": ["mine", "mine-odd"], "keys": [1]}, "name one"),
        ({"prompt": "x", "databases": ["mine"], "out": "/tmp/x"}, "unknown key 'out'"),
        ({"prompt": "x", "databases": ["mine"], "image": "/etc/passwd"}, "unknown key 'image'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(client: TestClient, question: dict, problem: str) -> None:
    answer = client.post("/api/draw", json=question)
    assert answer.status_code in (400, 404) and problem in answer.json()["error"]


def test_a_prompt_that_names_a_file_is_a_prompt(home: Path) -> None:
    config = DrawQuestion("/etc/passwd.csv", ("mine",)).config(str(home))
    assert [row.prompt for row in config.prompts] == ["/etc/passwd.csv"]  # type: ignore[union-attr]


def test_a_failure_is_reported(client: TestClient) -> None:
    made, _ = drawn(client, where="style = 'none of them'")
    assert made["state"] == "failed" and "matches the filter" in made["error"]


def test_only_with_allow_generate_and_the_sessions_mark_is_anything_written(server: Server, home: Path) -> None:
    asked = {"prompt": "x", "databases": ["mine"]}
    stranger = TestClient(create_app(server.options, server), OWN)
    reading = TestClient(
        create_app(
            ServeOptions(home=str(home)), server.__class__(**{**vars(server), "options": ServeOptions(home=str(home))})
        ),
        OWN,
        headers={"x-rdmpipe-session": server.session},
    )
    for path in ("/api/draw", "/api/favourites", "/api/draw/0/stop"):
        assert stranger.post(path, json=asked).status_code == 403
        assert "--allow-generate" in reading.post(path, json=asked).json()["error"]
    for bad in ("/runs/../images/x.png", "/runs/x/images/..%2fresults.parquet", "/runs/none/images/none.png"):
        assert stranger.get(bad).status_code == 404


def test_previews_are_limited_and_the_last_step_is_shown() -> None:
    due = seldom(3600)
    assert [due(False), due(False), due(True)] == [True, False, True]
