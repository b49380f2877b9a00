"""Databases and models on the Hub: pushed and pulled by the real client, against a local server of the Hub's protocol."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import DatasetCard, ModelCard
from huggingface_hub import constants as hub_constants

from pipeline.catalog import resolve_database
from pipeline.database import RetrievalDatabase
from pipeline.errors import ConfigError, DatabaseError, RdmpipeError, SourceError
from pipeline.exchange import PullRequest, PushRequest, pull, push_database, push_model
from pipeline.exchange.licences import identify
from pipeline.installation import asset
from pipeline.maintenance import check_database
from pipeline.retrieval import open_database
from tests.builds import REPO as CHECKOUT
from tests.builds import contents, folder_of, manifest_of, quiet_build
from tests.hub import TOKEN, Hub, hub

REPO = "anna/mine"


def quiet(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a database of free pictures in two shards, and one whose pictures have no known licence."""
    root = tmp_path_factory.mktemp("built")
    quiet_build(
        manifest_of(root / "mine.toml", folder_of(root / "pictures", 13)), home=str(root / "home"), images="thumbnail"
    )
    quiet_build(folder_of(root / "wikiart", 5), name="wikiart", home=str(root / "home"), images="keep")
    return root / "home"


@pytest.fixture
def server(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(hub_constants, "HF_HUB_DISABLE_XET", True)
    with hub(tmp_path / "hub") as running:
        yield running


def push(server: Hub, built: Path, name: str = "mine", **options: bool) -> object:
    request = PushRequest(REPO, endpoint=server.url, **options)
    return push_database(resolve_database(name, str(built)), request, quiet)


def pulled(server: Hub, home: Path, name: str = "") -> RetrievalDatabase:
    done = pull(PullRequest(REPO, name, home=str(home), endpoint=server.url), quiet)
    return RetrievalDatabase(done.name, str(home))


def test_a_pulled_database_is_the_pushed_one_and_searches_and_checks_as_it(
    server: Hub, built: Path, home: Path
) -> None:
    push(server, built)
    db = pulled(server, home)
    theirs, ours = contents(built), contents(home)
    assert ours.pop("pulled.json") and ours == theirs
    assert check_database(db).damages == ()
    with open_database("mine", str(built)) as first, open_database("mine", str(home)) as second:
        query = np.eye(3, 16, dtype=np.float32)
        a, b = (one.search(query, 5, "style = 'odd'") for one in (first, second))
        assert np.array_equal(a.keys, b.keys) and np.array_equal(a.scores, b.scores)
        assert first.metadata(a.keys[0]) == second.metadata(b.keys[0])
    before = len(server.downloads)
    assert pull(PullRequest(REPO, home=str(home), endpoint=server.url), quiet).fetched == 0
    assert len(server.downloads) <= before + 1, "only the listing is read again"


def test_a_card_states_licence_source_encoder_recall_and_counts(server: Hub, built: Path) -> None:
    push(server, built)
    card = DatasetCard((server.repo("datasets", REPO) / "README.md").read_text("utf-8"))
    told = card.data.to_dict()
    version = resolve_database("mine", str(built)).version
    assert told["license"] == "cc0-1.0" and told["size_categories"] == ["n<1K"]
    assert told["rdmpipe"]["encoder"] == version.encoder.name and told["rdmpipe"]["version"] == version.id
    assert told["rdmpipe"]["counts"]["ok"] == 13 and told["rdmpipe"]["recall"]["k"] == version.index.recall["k"]
    assert f"rdmpipe pull {REPO}" in card.text and "pictures" in card.text
    assert server.private[str(server.repo("datasets", REPO))], "a new repository is private unless --public is given"


def test_pictures_without_a_licence_are_not_pushed_unless_one_insists(server: Hub, built: Path, home: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"(?s)5 of 5 rows.*'unknown': 5 rows \(0000.png, 0001.png, 0002.png, \.\.\.\).*--despite"
    ):
        push(server, built, "wikiart")
    assert not server.repo("datasets", REPO).exists(), "nothing was created"
    push(server, built, "wikiart", despite_licence=True)
    assert "5 rows state no licence" in (server.repo("datasets", REPO) / "README.md").read_text("utf-8")
    assert check_database(pulled(server, home)).damages == ()


LICENCES = {
    "CC0-1.0": "cc0-1.0",
    "CC BY 2.0": "cc-by-2.0",
    "CC-BY-SA-4.0": "cc-by-sa-4.0",
    "https://creativecommons.org/licenses/by-nc/2.0/": "cc-by-nc-2.0",
    "http://creativecommons.org/publicdomain/zero/1.0/": "cc0-1.0",
    "Public Domain": "pdm-1.0",
    "MIT License": "mit",
    "CC-BY-ND-4.0": "",
    "Apache License": "",
    "Apache-2.0 for the list; each picture has its own": "",
    "listed as CC BY 2.0; see each row": "",
    "https://evil.example/licenses/by/4.0/": "",
    "fair use": "",
    "unknown": "",
    "": "",
}


@pytest.mark.parametrize("text", LICENCES)
def test_licences_are_recognised_by_name_and_address(text: str) -> None:
    assert identify(text) == LICENCES[text]


def test_a_push_that_was_cut_off_uploads_the_rest(server: Hub, built: Path, home: Path) -> None:
    server.refuse_after = 2
    with pytest.raises(RdmpipeError):
        push(server, built)
    with pytest.raises(SourceError, match="that push is not finished"):
        pulled(server, home)
    server.refuse_after = -1
    push(server, built)
    assert len(server.uploads) == len(set(server.uploads)), "no file was uploaded twice"
    assert check_database(pulled(server, home)).damages == ()


def test_a_second_push_replaces_the_version_and_removes_its_old_files(server: Hub, tmp_path: Path, home: Path) -> None:
    pictures, own = folder_of(tmp_path / "pictures", 4), tmp_path / "own"
    manifest = manifest_of(tmp_path / "mine.toml", pictures)
    quiet_build(manifest, home=str(own))
    push(server, own)
    first = resolve_database("mine", str(own)).version
    assert push(server, own).uploaded == 0  # type: ignore[attr-defined]
    folder_of(pictures, 2, first=4)
    quiet_build(manifest, home=str(own), refresh=True)
    done = push(server, own)
    assert done.removed > 0  # type: ignore[attr-defined]
    assert not (server.repo("datasets", REPO) / f"versions/{first.id}.json").exists()
    db = pulled(server, home)
    assert db.version().index.rows == resolve_database("mine", str(own)).version.index.rows
    assert check_database(db).damages == ()


def test_a_pull_that_was_cut_off_continues(server: Hub, built: Path, home: Path) -> None:
    push(server, built)
    server.refuse_downloads_after = 6
    with pytest.raises(SourceError):
        pulled(server, home)
    with pytest.raises(DatabaseError, match=f"pulled in part; run `rdmpipe pull {REPO} mine`"):
        resolve_database("mine", str(home))
    server.refuse_downloads_after = -1
    here, before = {*contents(home)} - {"pulled.json"}, len(server.downloads)
    assert check_database(pulled(server, home)).damages == ()
    assert here and not here & {*server.downloads[before:]}, "finished files were not fetched again"


def test_a_half_fetched_file_continues_where_it_stopped(server: Hub, built: Path, home: Path) -> None:
    push(server, built)
    version = resolve_database("mine", str(built)).version
    artifact = version.index.files["metadata"]
    parts = home / "databases" / "mine" / ".tmp" / "pull"
    parts.mkdir(parents=True)
    whole = (built / "databases" / "mine" / artifact.path).read_bytes()
    (parts / artifact.sha256).write_bytes(whole[:100])
    db = pulled(server, home)
    assert check_database(db).damages == () and not parts.exists()


def test_a_name_that_is_taken_is_not_overwritten_and_another_can_be_given(server: Hub, built: Path, home: Path) -> None:
    push(server, built)
    quiet_build(folder_of(home.parent / "others", 3), name="mine", home=str(home))
    before = contents(home)
    with pytest.raises(DatabaseError, match=f"rdmpipe pull {REPO} NAME"):
        pulled(server, home)
    assert contents(home) == before
    db = pulled(server, home, "theirs")
    assert check_database(db).damages == ()
    assert resolve_database("theirs", str(home)).version.id == resolve_database("mine", str(built)).version.id


def test_a_view_an_old_version_and_an_impossible_repository_are_refused(
    server: Hub, built: Path, tmp_path: Path
) -> None:
    chosen = resolve_database("mine", str(built))
    with pytest.raises(ConfigError, match="is a view"):
        push_database(replace(chosen, where="style = 'odd'"), PushRequest(REPO, endpoint=server.url), quiet)
    for repo in ("mine", "../x/y", "a/b/c", "anna/..", "-x/y"):
        with pytest.raises(ConfigError, match="OWNER/REPO"):
            push_database(chosen, PushRequest(repo, endpoint=server.url), quiet)


# ---- repositories of others


def listing(server: Hub) -> dict[str, object]:
    found: dict[str, object] = json.loads((server.repo("datasets", REPO) / "rdmpipe.json").read_text())
    return found


def with_file(path: str) -> Callable[[dict[str, object]], None]:
    def change(found: dict[str, object]) -> None:
        files = found["files"]
        assert isinstance(files, list)
        files[0]["path"] = path

    return change


def other_size(found: dict[str, object]) -> None:
    files = found["files"]
    assert isinstance(files, list)
    files[0]["bytes"] = 1 << 40


def other_sum(found: dict[str, object]) -> None:
    files = found["files"]
    assert isinstance(files, list)
    next(file for file in files if file["path"].endswith(".npy"))["sha256"] = "0" * 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_file("../../outside"), "is not a file of a database"),
        (with_file("/etc/passwd"), "is not a file of a database"),
        (with_file("current"), "is not a file of a database"),
        (with_file("index/mini-00/0123456789ab/model.pkl"), "is not a file of a database"),
        (other_size, "is refused"),
        (other_sum, "is refused"),
        (lambda found: found.update(format=9), "A newer rdmpipe"),
        (lambda found: found.update(name="../x"), "it names database"),
        (lambda found: found.update(version="0" * 12), "it lists no versions"),
        (lambda found: found.update(files=[]), "it lists no versions"),
    ],
)
def test_a_listing_that_rdmpipe_would_not_write_is_refused(
    server: Hub, built: Path, home: Path, change: Callable[[dict[str, object]], None], message: str
) -> None:
    push(server, built)
    found = listing(server)
    change(found)
    (server.repo("datasets", REPO) / "rdmpipe.json").write_text(json.dumps(found))
    with pytest.raises(SourceError, match=message):
        pulled(server, home, "x")
    assert not RetrievalDatabase("x", str(home)).exists()
    assert not list(home.rglob("*outside*"))


def test_other_bytes_than_listed_are_refused(server: Hub, built: Path, home: Path) -> None:
    push(server, built)
    path = resolve_database("mine", str(built)).version.index.files["vectors"].path
    true = (server.repo("datasets", REPO) / path).read_bytes()
    server.swapped[path] = bytes([true[0] ^ 1]) + true[1:]
    with pytest.raises(SourceError, match="does not have the checksum"):
        pulled(server, home)
    server.swapped.clear()
    assert check_database(pulled(server, home)).damages == ()


def test_a_version_whose_text_was_changed_is_refused(server: Hub, built: Path, home: Path) -> None:
    import hashlib

    push(server, built)
    found = listing(server)
    files = found["files"]
    assert isinstance(files, list)
    entry = next(file for file in files if file["path"].startswith("versions/"))
    path = server.repo("datasets", REPO) / entry["path"]
    path.write_text(path.read_text().replace('"ok":13', '"ok":14'))
    entry |= {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
    (server.repo("datasets", REPO) / "rdmpipe.json").write_text(json.dumps(found))
    with pytest.raises(SourceError, match="its content hashes to"):
        pulled(server, home)


def test_a_repository_that_is_not_ours_says_so(server: Hub, home: Path) -> None:
    (server.repo("models", REPO)).mkdir(parents=True)
    (server.repo("models", REPO) / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(SourceError, match=r"no rdmpipe\.json"):
        pulled(server, home)


# ---- models


def test_a_model_comes_back_and_its_programs_and_pickles_do_not(server: Hub, tmp_path: Path, home: Path) -> None:
    folder = tmp_path / "models" / "rdm-mini"
    shutil.copytree(asset("models", "rdm-mini"), folder)
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    request = PushRequest("anna/model", endpoint=server.url)
    done = push_model("rdm-mini", folder, "MIT", {"encoder": "mini"}, request, quiet)
    assert any("diffusion_pytorch_model.bin" in note for note in done.notes)
    repo = server.repo("models", "anna/model")
    told = ModelCard((repo / "README.md").read_text("utf-8")).data.to_dict()
    assert told["license"] == "mit" and told["library_name"] == "diffusers" and told["rdmpipe"]["encoder"] == "mini"
    (repo / "pipeline.py").write_text("raise SystemExit('run')")
    finished: list[Path] = []
    back = pull(PullRequest("anna/model", "other", home=str(home), endpoint=server.url), quiet, finished.append)
    made = home / "models" / "other"
    assert back.kind == "model" and back.licence == "mit" and finished
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (made / weights).read_bytes() == (folder / weights).read_bytes()
    assert not (made / "pipeline.py").exists() and not list(made.rglob("*.bin"))
    assert sorted(path.name for path in made.parent.iterdir()) == ["other"]
    again = push_model("rdm-mini", folder, "MIT", {"encoder": "mini"}, request, quiet)
    assert again.uploaded == 0


def test_a_model_without_a_licence_is_not_pushed_and_its_own_card_can_state_one(server: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "rdm"
    shutil.copytree(asset("models", "rdm-mini"), folder)
    (folder / "README.md").unlink()
    request = PushRequest("anna/model", endpoint=server.url)
    with pytest.raises(ConfigError, match="not stated"):
        push_model("rdm", folder, "", {}, request, quiet)
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# Mine\n")
    push_model("rdm", folder, "", {}, request, quiet)
    assert 'license: "cc-by-4.0"' in (server.repo("models", "anna/model") / "README.md").read_text()


@pytest.mark.process
def test_the_commands_push_pull_and_check_and_print_no_token(
    server: Hub, built: Path, home: Path, tmp_path: Path
) -> None:
    env = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}

    def rdmpipe(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
        # Not tests.builds.command: the client reads these variables when it is imported.
        whole = {**os.environ, "RDMPIPE_HOME": str(home), "PYTHONPATH": str(CHECKOUT), **env}
        words = [sys.executable, "-m", "pipeline.cli", *arguments]
        return subprocess.run(words, env=whole, capture_output=True, text=True, timeout=240)

    refused = rdmpipe("push", "wikiart", REPO, home=built)
    assert refused.returncode == 2 and "--despite-licence" in refused.stderr
    pushed = rdmpipe("push", "mine", REPO, "--json", home=built)
    assert pushed.returncode == 0, pushed.stderr
    assert json.loads(pushed.stdout.splitlines()[-1])["name"] == "mine"
    pulled = rdmpipe("pull", REPO, "yours", home=home)
    assert pulled.returncode == 0 and "rdmpipe search yours" in pulled.stdout
    assert all(TOKEN not in done.stdout + done.stderr for done in (refused, pushed, pulled))
    assert check_database(RetrievalDatabase("yours", str(home))).damages == ()
