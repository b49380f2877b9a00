"""The whole command line: every option is used, help is grouped and has an example, errors are explained."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from pipeline.cli import build as build_module
from pipeline.cli.app import app


def commands() -> Iterator[tuple[str, Any]]:
    """Every command that has its own callback, by its words on the command line."""

    def below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        for word, one in getattr(command, "commands", {}).items():
            yield f"{name} {word}".strip(), one
            yield from below(f"{name} {word}".strip(), one)

    yield from ((name, one) for name, one in below("", typer.main.get_command(app)) if not hasattr(one, "commands"))


def names_read(function: Callable[..., object]) -> set[str]:
    """The names that a function's body reads."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    return {node.id for line in tree.body for node in ast.walk(line) if isinstance(node, ast.Name)}


def options(command: Any) -> set[str]:
    return {parameter.name for parameter in command.params if parameter.name != "help"}


def test_every_option_of_every_command_is_read_by_it() -> None:
    seen = 0
    for name, command in commands():
        function = inspect.unwrap(command.callback)
        unread = options(command) - names_read(function)
        assert not unread, f"{name} shows {unread} and ignores them"
        seen += 1
    assert seen > 20


def test_a_stage_shows_only_the_options_that_it_uses() -> None:
    shown = {name: options(command) for name, command in commands()}
    index = {"memory", "index_key", "partitions", "min_recall"}
    encoder = {"encoder", "images", "precision", "preprocess", "batch", "threads"}
    source = {"where", "limit", "shards", "base_url", "refresh", "allow_private"}
    assert not shown["download"] & (index | encoder | {"device"})
    assert not shown["embed"] & index
    assert not shown["index"] & (encoder | source)
    for name, used in (("download", source), ("embed", source | encoder), ("index", index)):
        assert used <= shown[name]
    assert shown["build-index"] == shown["download"] | shown["embed"] | shown["index"]
    assert set(build_module.COMMANDS) <= set(shown)


@pytest.mark.parametrize("arguments", [["download", "x", "--min-recall", "0.9"], ["index", "x", "--where", "1"]])
def test_an_option_of_another_stage_is_refused(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "No such option" in done.output


@pytest.mark.process
def test_help_is_grouped_and_every_command_has_an_example_that_names_it() -> None:
    runner = CliRunner()
    for name, command in commands():
        text = runner.invoke(app, [*name.split(), "--help"], terminal_width=400, color=False).output
        assert not re.search(r"RANGE|<\w+ range>|x[<>]=|=x|<(bool|str|int|float|path|file|dir)", text), name
        if not command.hidden:
            assert f"Example: rdmpipe {name}" in text, name
    text = runner.invoke(app, ["--help"], terminal_width=200).output
    for panel in ("Build databases", "Search and look", "Generate and evaluate", "Train", "Jobs and schedules"):
        assert panel in text
    text = runner.invoke(app, ["build-index", "--help"], terminal_width=200).output
    for panel in ("Source", "Encoder and pictures", "Index", "Machine and cluster", "Home and output"):
        assert panel in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search", "x", "y", "-k", "0"], "'0' is not a whole number of at least 1"),
        (["search", "x", "--key", "1" * 5000], "is not a whole number of at least 0"),
        (["search", "x", "--key", str(2**63)], "is not a whole number of at least 0"),
        (["index", "x", "--min-recall", "1.5"], "'1.5' is not a number from 0 to 1"),
        (["generate", "x", "--eta", "nan"], "'nan' is not a number of at least 0"),
        (["gc", "x", "--keep", "two"], "'two' is not a whole number of at least 1"),
    ],
)
def test_a_number_out_of_range_is_refused_in_words(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(app, arguments, terminal_width=300)
    assert done.exit_code == 2
    assert words in " ".join(done.output.replace("│", " ").split())


def test_the_version_is_printed() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output.strip()) == (0, f"rdmpipe {version('rdmpipe')}")
