"""The page's server in this process: its answers, and the requests that it refuses."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.errors import ConfigError
from pipeline.retrieval.plane import principal_plane
from pipeline.serving import ServeOptions, create_app
from pipeline.serving.api import ENDPOINTS, Server
from pipeline.serving.app import listen, make_server
from pipeline.serving.clip_retrieval import CLIP_RETRIEVAL, firsts
from pipeline.serving.jobs import JOBS
from pipeline.serving.questions import QueryPart, SearchQuestion
from pipeline.serving.studio_api import STUDIO
from tests.builds import folder_of, picture, quiet_build
from tests.generations import add_view

ROWS = 24
OWN = "http://127.0.0.1:8420"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two databases and a view; one file of `mine` cannot be read, and one occurs twice."""
    folder = tmp_path_factory.mktemp("serving")
    home = folder / "home"
    pictures = folder_of(folder / "pictures", ROWS - 1)
    (pictures / "9000.png").write_bytes((pictures / "0003.png").read_bytes())
    (pictures / "9001.png").write_bytes(b"\x89PNG, and then nothing")
    quiet_build(pictures, name="mine", home=str(home), images="thumbnail")
    quiet_build(folder_of(folder / "others", 8, first=100), name="others", home=str(home), images="drop")
    add_view(home, "mine", "odd", "style = 'odd'")
    return home


@pytest.fixture(scope="module")
def server(built: Path) -> Iterator[Server]:
    made = make_server(ServeOptions(home=str(built), database="mine"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(server: Server) -> TestClient:
    return TestClient(create_app(server.options, server), OWN)


def guarded(server: Server, **changes: object) -> TestClient:
    """A client of the same server with other options."""
    options = ServeOptions(**{"home": server.options.home, **changes})  # type: ignore[arg-type]
    return TestClient(create_app(options, server), OWN, follow_redirects=False)


def search(client: TestClient, *databases: str, **question: object) -> dict:
    answers = client.post("/api/search", json={"databases": databases or ("mine",), **question}).json()["answers"]
    return answers[0] if len(answers) == 1 else {answer["database"]: answer for answer in answers}


# ---- searching


def test_a_row_finds_the_row_that_shows_the_same_picture(client: TestClient) -> None:
    found = search(client, parts=[{"key": 3}], k=5)
    assert len(found["items"]) == 5 and found["matched"] == ROWS - 1  # not itself
    best = found["items"][0]
    assert best["title"] == "9000.png" and best["score"] == pytest.approx(1, abs=1e-3)


def test_pages_of_results_are_one_list(client: TestClient) -> None:
    whole = search(client, parts=[{"text": "a harbour"}], k=20)["items"]
    pages = [search(client, parts=[{"text": "a harbour"}], k=7, offset=offset)["items"] for offset in (0, 7, 14)]
    assert [row["key"] for page in pages for row in page][:20] == [row["key"] for row in whole]


def test_a_picture_that_is_sent_finds_itself(client: TestClient) -> None:
    sent = client.post("/api/pictures", content=picture(5)).json()
    assert sent["width"] == 48
    assert search(client, parts=[{"picture": sent["id"]}], k=1)["items"][0]["key"] == 5
    shown = client.get(f"/api/pictures/{sent['id']}")
    assert Image.open(io.BytesIO(shown.content)).size == (48, 48)


def test_parts_are_mixed_by_weight_and_a_minus_leads_away(client: TestClient, server: Server) -> None:
    opened = server.library.current("mine")
    vectors = opened.searcher.vectors([1, 2])[0].astype(np.float64)
    wanted = 2 * vectors[0] - vectors[1]
    wanted /= np.linalg.norm(wanted)
    found = search(client, parts=[{"key": 1, "weight": 2.0}, {"key": 2, "weight": -1.0}], k=ROWS)["items"]
    assert {1, 2}.isdisjoint(row["key"] for row in found)
    for row in found[:5]:
        assert row["score"] == pytest.approx(float(opened.searcher.vectors([row["key"]])[0][0] @ wanted), abs=1e-4)
    nothing = search(client, parts=[{"key": 1}, {"key": 1, "weight": -1.0}])
    assert "cancel each other out" in nothing["error"]


def test_several_databases_answer_side_by_side_and_one_error_hides_no_other(client: TestClient) -> None:
    both = search(
        client, "mine", "others", "nothing_here", parts=[{"text": "a cat"}], where="caption LIKE 'picture number 1%'"
    )
    assert [both[name]["matched"] for name in ("mine", "others")] == [11, 8]
    assert both["nothing_here"]["kind"] == "DatabaseError" and "no database" in both["nothing_here"]["error"]
    other = search(client, "others", parts=[{"key": 3, "database": "mine"}], k=2)
    assert len(other["items"]) == 2, "a row of one database is a query of another with the same encoder"


def test_without_a_query_matching_rows_are_listed_each_once(client: TestClient) -> None:
    pages = [search(client, k=10, offset=offset, where="style = 'even'")["items"] for offset in (0, 10)]
    keys = [row["key"] for page in pages for row in page]
    assert len(keys) == len(set(keys)) == 12
    ordered = search(client, k=10, order="key")["items"]
    assert [row["key"] for row in ordered] == list(range(10))


def test_a_view_shows_its_rows_only(client: TestClient) -> None:
    found = search(client, "mine-odd", parts=[{"text": "anything"}], k=100)
    assert found["matched"] == len(found["items"]) == 11
    listed = {one["name"]: one for one in client.get("/api/databases").json()["databases"]}
    assert (listed["mine"]["rows"], listed["mine-odd"]["rows"], listed["mine-odd"]["base"]) == (ROWS, 11, "mine")
    assert listed["mine"]["trained"] is False


@pytest.mark.parametrize(
    ("question", "problem"),
    [
        ({"databases": ["mine"], "where": "styl = 'odd'"}, "did you mean 'style'"),
        ({"databases": ["mine"], "parts": [{"key": 999}]}, "no row with key 999"),
        ({"databases": ["mine"], "parts": [{"vector": [1, 2, 3]}]}, "3 numbers"),
        ({"databases": ["mine"], "parts": [{"picture": "0" * 32}]}, "drop it again"),
    ],
)
def test_what_cannot_be_answered_says_why(client: TestClient, question: dict, problem: str) -> None:
    answer = client.post("/api/search", json=question).json()["answers"][0]
    assert problem in answer["error"] and answer["items"] == []


@pytest.mark.parametrize(
    "body",
    [
        "no json", "[1]", '{"databases": []}', '{"databases": ["mine"], "k": 0}', '{"databases": ["mine"], "k": 501}',
        '{"databases": ["mine"], "parts": [{}]}', '{"databases": ["mine"], "parts": [{"text": "a", "key": 1}]}',
        '{"databases": ["mine"], "colour": 1}', '{"databases": ["mine"], "parts": [{"text": "a", "weight": 1e9}]}',
        json.dumps({"databases": ["mine"], "parts": [{"text": "a" * 2001}]}), "[" * 100_000,
    ],
)  # fmt: skip
def test_an_invalid_question_is_refused(client: TestClient, body: str) -> None:
    answer = client.post("/api/search", content=body)
    assert answer.status_code == 400 and answer.json()["error"]


def test_many_clients_at_once_are_answered_in_few_batches_and_each_with_its_own(server: Server) -> None:
    question = [SearchQuestion(("mine",), (QueryPart(key=key),), k=1, where="key <> 0") for key in range(1, 20)]
    alone = [server.engine.submit("mine", one).result(30).items[0].key for one in question]
    with server.library.current("mine").searching:  # they wait, and are then taken together
        waiting = [server.engine.submit("mine", one) for one in question for _ in range(3)]
    together = [future.result(30).items[0].key for future in waiting]
    assert together == [key for key in alone for _ in range(3)]
    assert server.engine.largest_batch > 19


def test_queries_that_nobody_waits_for_are_skipped(server: Server) -> None:
    with server.library.current("mine").searching:
        first = server.engine.submit("mine", SearchQuestion(("mine",), (QueryPart(key=1),)))
        while not first.running():  # the engine has taken it, and waits for the database
            threading.Event().wait(0.001)
        dropped = server.engine.submit("mine", SearchQuestion(("mine",), (QueryPart(key=2),)))
        assert dropped.cancel()
    assert first.result(30).items and dropped.cancelled()


# ---- looking at a database


def test_facets_count_the_rows_that_match(client: TestClient) -> None:
    made = client.get("/api/databases/mine/facets", params={"where": "key < 10"}).json()
    assert made["matched"] == 10
    style = next(one for one in made["facets"] if one["name"] == "style")
    assert {one["value"]: one["count"] for one in style["values"]} == {"even": 5, "odd": 5}
    for one in style["values"]:
        assert search(client, where=f"key < 10 AND {one['sql']}")["matched"] == one["count"]


def test_columns_offer_their_values(client: TestClient) -> None:
    made = {one["name"]: one for one in client.get("/api/databases/mine/columns").json()["columns"]}
    assert [one["sql"] for one in made["style"]["values"]] == ["style = 'even'", "style = 'odd'", "style IS NULL"]
    assert (made["width"]["low"], made["width"]["high"]) == (48, 48)
    values = client.get("/api/databases/mine/values", params={"column": "style", "begins": "EV"}).json()["values"]
    assert [(one["value"], one["sql"], one["count"]) for one in values] == [("even", "'even'", 12)]


def test_the_map_places_equal_pictures_together(client: TestClient) -> None:
    made = client.get("/api/databases/mine/map").json()
    place = {key: (x, y) for key, x, y in zip(made["keys"], made["x"], made["y"], strict=True)}
    twin = next(key for key, title in zip(made["keys"], made["titles"], strict=True) if title == "9000.png")
    assert len(place) == ROWS and place[twin] == pytest.approx(place[3], abs=2e-3)
    assert 0 < made["explained"] <= 1
    assert [made["groups"]["style"]["values"][code] for code in made["groups"]["style"]["codes"]][:2] == ["even", "odd"]


def test_principal_axes_are_those_of_most_variance() -> None:
    generator = np.random.default_rng(0)
    spread = generator.standard_normal((500, 6)) * np.array([1, 9, 1, 4, 1, 1])
    places, explained = principal_plane(spread.astype(np.float32))
    assert abs(np.corrcoef(places[:, 0], spread[:, 1])[0, 1]) > 0.99
    assert abs(np.corrcoef(places[:, 1], spread[:, 3])[0, 1]) > 0.99
    assert explained == pytest.approx(97 / 101, abs=0.02)


def test_copies_and_failures_are_listed(client: TestClient) -> None:
    copies = client.get("/api/databases/mine/copies").json()
    assert copies["groups"][0]["kind"] == "exact" and copies["groups"][0]["items"][0]["key"] == 3
    failed = client.get("/api/databases/mine/failures").json()
    assert failed["total"] == 1 and failed["reasons"] == {failed["failures"][0]["reason"]: 1}
    assert failed["failures"][0]["item"] == "9001.png"


def test_a_row_has_all_its_metadata_and_its_picture(client: TestClient) -> None:
    row = client.get("/api/databases/mine/rows/4").json()
    assert (
        row["metadata"]["style"] == "even" and row["metadata"]["caption"] == "picture number 4" and row["has_picture"]
    )
    shown = client.get("/pictures/mine/4")
    assert shown.headers["content-type"] == "image/jpeg" and Image.open(io.BytesIO(shown.content)).size == (48, 48)
    assert client.get("/pictures/others/0").status_code == 404, "this database keeps no pictures"
    assert client.get("/pictures/mine/123456").status_code == 404
    for bad in ("/pictures/mine/x", "/pictures/mine/1e3", "/api/databases/mine/rows/-1"):
        assert client.get(bad).status_code == 400
    assert client.get("/pictures/..%2f..%2fetc/1").status_code == 404


def test_a_new_version_is_shown_without_a_restart(
    server: Server, client: TestClient, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.serving.library.CHECK_S", 0.0)
    pictures = folder_of(tmp_path / "growing", 6)
    quiet_build(pictures, name="growing", home=str(built))
    before = search(client, "growing", parts=[{"text": "a cat"}])
    (pictures / "0006.png").write_bytes(picture(6))
    quiet_build(pictures, name="growing", home=str(built), refresh=True)
    after = search(client, "growing", parts=[{"text": "a cat"}])
    assert (before["matched"], after["matched"]) == (6, 7) and before["version"] != after["version"]


# ---- the page and the document


def test_the_page_and_its_files_ask_no_other_machine(client: TestClient, server: Server) -> None:
    page = client.get("/")
    assert server.session in page.text and page.headers["cache-control"] == "no-store"
    files = {part.split('"')[0] for part in page.text.split("/static/")[1:]}
    assert {"app.js", "design.css", "browse.css"} <= files
    for name in files:
        answer = client.get(f"/static/{name}")
        assert answer.status_code == 200 and "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
        again = client.get(f"/static/{name}", headers={"if-none-match": answer.headers["etag"]})
        assert again.status_code == 304
    assert client.get("/static/..%2fdesign.css").status_code == 404


def test_the_api_document_names_every_endpoint_and_type(client: TestClient) -> None:
    made = client.get("/api/openapi.json").json()
    operations = {(method.upper(), path) for path, found in made["paths"].items() for method in found}
    assert operations == {(one.method, one.path) for one in (*ENDPOINTS, *STUDIO, *JOBS, *CLIP_RETRIEVAL)}
    text = json.dumps(made)
    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named <= set(made["components"]["schemas"])
    assert made["components"]["schemas"]["SearchQuestion"]["required"] == ["databases"]
    assert client.get("/api").text.count("<section") >= len(ENDPOINTS)


# ---- jobs


def test_runs_of_jobs_are_listed_and_their_pages_run_no_script(client: TestClient, built: Path) -> None:
    folder = built / "jobs/nightly/runs"
    folder.mkdir(parents=True, exist_ok=True)
    made = {"status": "succeeded", "exit_code": 0, "started": "2026-01-02T03:04:05+00:00", "ended": "", "command":
            ["search", "mine", "a red boat"], "attempts": [{"seconds": 61.5}]}  # fmt: skip
    (folder / "20260102.json").write_text(json.dumps(made))
    (folder / "20260102.html").write_text("<!doctype html><title>nightly</title>")
    (folder / "20260101.json").write_text(json.dumps({**made, "started": "2026-01-01T03:04:05+00:00"}))
    (folder / "torn.json").write_text("{")
    found = client.get("/api/jobs").json()
    assert [(run["slot"], run["page"]) for run in found["runs"]] == [
        ("20260102", "/jobs/nightly/20260102"), ("20260101", ""),
    ]  # fmt: skip
    assert (found["runs"][0]["command"], found["runs"][0]["seconds"]) == ("rdmpipe search mine 'a red boat'", 61.5)
    page = client.get("/jobs/nightly/20260102")
    assert page.text.startswith("<!doctype html>") and "sandbox" in page.headers["content-security-policy"]
    for wrong in ("/jobs/nightly/20260101", "/jobs/nightly/..", "/jobs/none/x"):
        assert client.get(wrong).status_code == 404


# ---- clip-retrieval's API


def knn(client: TestClient, **question: object) -> list[dict]:
    """A request as clip-retrieval's client sends it: every field, JSON without a content type."""
    sent = {
        "text": None, "image": None, "image_url": None, "embedding_input": None, "deduplicate": True,
        "use_safety_model": True, "use_violence_detector": True, "indice_name": "mine", "use_mclip": False,
        "aesthetic_score": 9, "aesthetic_weight": 0.5, "modality": "image", "num_images": 4, "num_result_ids": 4,
        "verbose": False, **question,
    }  # fmt: skip
    return client.post("/knn-service", content=json.dumps(sent)).json()


def test_clip_retrievals_requests_get_its_answers(client: TestClient, server: Server) -> None:
    assert {"mine", "mine-odd", "others"} <= set(client.get("/indices-list").json())
    by_text = knn(client, text="a harbour", deduplicate=False)
    ours = search(client, parts=[{"text": "a harbour"}], k=4)["items"]
    assert [(row["id"], row["similarity"]) for row in by_text] == [(row["key"], row["score"]) for row in ours]
    assert by_text[0]["caption"] and Image.open(io.BytesIO(base64.b64decode(by_text[0]["image"]))).size == (48, 48)
    by_image = knn(client, image=base64.b64encode(picture(5)).decode(), num_images=1, deduplicate=False)
    assert by_image[0]["id"] == 5 and len(by_image) == 4 and set(by_image[3]) == {"id", "similarity"}
    vector = server.library.current("mine").searcher.vectors([7])[0][0].tolist()
    assert knn(client, embedding_input=vector)[0]["id"] == 7
    assert {row["id"] % 2 for row in knn(client, text="a harbour", where="style = 'odd'")} == {1}
    rows = client.post("/metadata", content=json.dumps({"ids": [4, 1], "indice_name": "mine"})).json()
    assert [(row["id"], row["metadata"]["caption"]) for row in rows] == [
        (4, "picture number 4"),
        (1, "picture number 1"),
    ]
    refused = client.post("/knn-service", json={"indice_name": "mine", "image_url": "http://127.0.0.1/x.png"})
    assert refused.status_code == 400 and "not fetched" in refused.json()["error"]


def test_results_that_are_nearly_one_picture_are_shown_once() -> None:
    angles = np.array([0.0, 1.0, 0.3, 1.2, 2.5])  # a chain of 0.0, 0.3; of 1.0, 1.2; and one alone
    assert firsts(np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)) == [0, 1, 4]
    chain = np.arange(8) * 0.3  # each is near the next, and so they are one group
    assert firsts(np.stack([np.cos(chain), np.sin(chain)], 1).astype(np.float32)) == [0]


def test_a_body_does_not_wait_for_the_acknowledgement_of_its_headers() -> None:
    """asyncio sets TCP_NODELAY only on connections whose socket names its protocol."""
    with listen(ServeOptions(port=0)) as listener:
        assert listener.proto == socket.IPPROTO_TCP


# ---- who may ask


def test_only_its_own_names_are_answered(client: TestClient) -> None:
    for host in ("127.0.0.1:8420", "localhost:8420", "[::1]:8420", "localhost"):
        assert client.get("/api/session", headers={"host": host}).status_code == 200, host
    for host in ("evil.example", "evil.example:8420", "127.0.0.1:80", "127.0.0.1.evil.example:8420", ""):
        assert client.get("/api/session", headers={"host": host}).status_code == 421, host


def test_other_sites_are_refused(client: TestClient) -> None:
    for headers in (
        {"origin": "http://evil.example"}, {"origin": "null"}, {"origin": "http://localhost:9999"},
        {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"},
    ):  # fmt: skip
        for answer in (
            client.get("/api/databases", headers=headers),
            client.get("/pictures/mine/1", headers=headers),
            client.post("/api/search", json={"databases": ["mine"]}, headers=headers),
        ):
            assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers
    follows = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=follows).status_code == 200, "a link from elsewhere may be followed"
    assert client.get("/api/session", headers={"origin": OWN, "sec-fetch-site": "same-origin"}).status_code == 200


def test_a_named_site_may_use_the_api_and_no_other(server: Server) -> None:
    client = guarded(server, allow_origins=("https://friend.example",))
    friend = {"origin": "https://friend.example", "sec-fetch-site": "cross-site"}
    answer = client.get("/api/session", headers=friend)
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "https://friend.example"
    asks_first = client.options("/api/search", headers={**friend, "access-control-request-method": "POST"})
    assert asks_first.status_code == 204 and "content-type" in asks_first.headers["access-control-allow-headers"]
    assert client.get("/api/session", headers={"origin": "https://friend.example.evil"}).status_code == 403
    with pytest.raises(ConfigError, match="every site"):
        ServeOptions(allow_origins=("*",)).checked()


def test_another_address_than_loopback_needs_the_token(server: Server) -> None:
    assert len(ServeOptions(host="0.0.0.0").checked().token) >= 16
    assert ServeOptions().checked().token == ""
    with pytest.raises(ConfigError, match="at least 16"):
        ServeOptions(host="0.0.0.0", token="short").checked()
    token = "a-token-that-is-long-enough"
    client = guarded(server, host="0.0.0.0", token=token)
    assert client.get("/api/session").status_code == 401
    assert client.get("/api/session", headers={"authorization": f"Bearer {token}"}).status_code == 200
    assert client.get("/api/session", headers={"authorization": "Bearer another-token-of-somebody"}).status_code == 401
    assert client.get("/api/session", headers={"host": "10.1.2.3:8420"}).status_code == 401
    assert client.get("/api/session", headers={"host": "evil.example:8420"}).status_code == 421
    entered = client.get("/", params={"token": token})
    assert entered.status_code == 303 and entered.headers["location"] == "/"
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert client.get("/api/session").status_code == 200, "the cookie is the token"


def test_bodies_and_pictures_are_bounded(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.serving.security.MOST_BODY", 1000)

    def parts() -> Iterator[bytes]:
        yield from [b"x" * 400] * 4

    assert client.post("/api/pictures", content=b"x" * 1001).status_code == 413
    assert client.post("/api/pictures", content=parts()).status_code == 413, "counted while it arrives"
    assert client.post("/api/pictures", content=b"x" * 10, headers={"content-length": "-5"}).status_code == 413
    monkeypatch.setattr("pipeline.serving.security.MOST_BODY", 64 << 20)
    for data, problem in ((b"", "zero bytes"), (b"no picture", "not_an_image"), (_wide_png(), "too_large")):
        answer = client.post("/api/pictures", content=data)
        assert answer.status_code == 400 and problem in answer.json()["error"]


def _wide_png() -> bytes:
    """A PNG whose header says 60,000 x 60,000 pixels."""
    import struct
    import zlib

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))  # noqa: E731
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_every_answer_forbids_what_a_page_does_not_need(client: TestClient) -> None:
    for path in ("/", "/api/session", "/nowhere", "/static/app.js"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"


# ---- the command


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_the_command_says_what_keeps_it_from_serving(built: Path, tmp_path: Path) -> None:
    def said(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["browse", *arguments])
        assert done.exit_code in (1, 2)
        return done.output

    port = str(free_port())
    assert "rdmpipe build-index atelier" in said("--home", str(tmp_path), "--port", port)
    assert "did you mean 'mine'" in said("mine_", "--home", str(built), "--port", port)
    assert "every site" in said("--allow-origin", "*", "--home", str(built))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "--port" in said("--home", str(built), "--port", str(taken.getsockname()[1]))
