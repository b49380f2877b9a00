"""Names of runs, jobs, models, databases and preparations that lead out of the home, in every command that takes one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli.app import app
from tests.attempts import tried

NAMES = [
    "../out", "..", "/tmp/rdmpipe-out", "a/../../out", "a\n", "a\x1b[2J", "a" * 5000, "~nobody", "$HOME", "a\\..\\b", "\u202ea",
    ".hidden/../x",
]  # fmt: skip

COMMANDS = [
    ("search", "{}", "--key", "1"), ("versions", "{}"), ("status", "{}"), ("gc", "{}"), ("check", "{}"), ("check", "{}",
    "--repair"),
    ("purge", "{}", "--where", "true"), ("export", "{}", "out"), ("failures", "{}"), ("retry", "{}"), ("embed",
    "{}"), ("download", "{}"),
    ("index", "{}"), ("build-index", "{}"), ("import", "{}", "x.npz", "--encoder", "mini"), ("train", "prepare", "{}"),
    ("generate", "a prompt", "--db", "{}"), ("generate", "a prompt", "--run", "{}"), ("generate", "a prompt", "--model",
    "{}"),
    ("models", "{}"), ("manifests", "{}"), ("evaluate", "{}"), ("run", "{}"), ("render", "{}"), ("build-index", "mine",
    "--name", "{}"),
]  # fmt: skip


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home beside files that no command may touch."""
    for name in ("out", "a", "databases"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "current").write_text("0" * 12)
        (tmp_path / name / "manifest.json").write_text("{}")
    monkeypatch.setenv("RDMPIPE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RDMPIPE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.mark.parametrize("count", [2, pytest.param(len(NAMES), marks=pytest.mark.long)])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_name_that_leads_elsewhere_is_an_error_and_touches_nothing(
    ours: Path, command: tuple[str, ...], count: int
) -> None:
    before = {path: path.read_bytes() for path in sorted(ours.rglob("*")) if path.is_file()}
    for name in random.Random(" ".join(command)).sample(NAMES, count):
        made = CliRunner().invoke(app, [word.replace("{}", name) for word in command])
        assert made.exit_code not in (0, None), name
        assert made.exception is None or isinstance(made.exception, SystemExit), (name, made.exception)
        assert "\x1b[2J" not in made.output and "\u202e" not in made.output
    # A command may begin something in the home; beside it nothing changes.
    after = {
        path: path.read_bytes()
        for path in sorted(ours.rglob("*"))
        if path.is_file() and not {"home", "cache"} & set(path.relative_to(ours).parts[:1])
    }
    assert after == before
    assert not Path("/tmp/rdmpipe-out").exists()
    tried(count)
