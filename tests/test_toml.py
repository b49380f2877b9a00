"""TOML files: every problem of a file is reported at once, and the schemas that editors read agree with the readers."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.cli.schema import KINDS, toml_schema
from pipeline.config import from_mapping
from pipeline.errors import ConfigError
from pipeline.scheduling import load_job

REPO = Path(__file__).parent.parent


@dataclass(frozen=True)
class Inner:
    sides: tuple[int, ...]
    kind: str = ""

    def __post_init__(self) -> None:
        if len(self.sides) > 3:
            raise ConfigError("at most three sides")


@dataclass(frozen=True)
class Outer:
    name: str
    size: float = 1.0
    inner: Inner = field(default_factory=lambda: Inner(()))


def test_all_problems_of_a_file_are_reported_together_with_hints() -> None:
    with pytest.raises(ConfigError) as failed:
        from_mapping(Outer, {"nam": "a", "size": "2", "inner": {"sides": [1, "2", 3.5], "knd": "x"}}, "a.toml")
    told = str(failed.value).splitlines()
    assert told[0] == "6 problems:"
    for words in (
        "unknown key 'nam' (did you mean 'name'?)",
        "size: expected float, found str '2'",
        "inner: sides[1]: expected int, found str '2'",
        "inner: sides[2]: expected int, found float 3.5",
        "inner: unknown key 'knd' (did you mean 'kind'?)",
        "missing key 'name'; add `name = ...`",
    ):
        assert sum(words in line for line in told) == 1, words


def test_a_single_problem_is_its_own_message() -> None:
    with pytest.raises(ConfigError, match=r"^a\.toml size: expected float, found str '2'$"):
        from_mapping(Outer, {"name": "a", "size": "2"}, "a.toml")
    with pytest.raises(ConfigError, match=r"^at most three sides$"):
        from_mapping(Outer, {"name": "a", "inner": {"sides": [1, 2, 3, 4]}}, "a.toml")


def test_a_job_file_with_several_mistakes_lists_them(tmp_path: Path) -> None:
    (tmp_path / "j.toml").write_text('comand = "list"\nretries = "2"\noverlap = "forbit"\n')
    with pytest.raises(ConfigError, match="4 problems:") as failed:
        load_job(str(tmp_path / "j.toml"))
    assert "did you mean 'command'" in str(failed.value) and "did you mean 'forbid'" in str(failed.value)


@pytest.mark.parametrize("kind", ["job", "manifest"])
def test_shipped_files_name_their_schema_and_hold_to_it(kind: str) -> None:
    folder = REPO / f"{kind}s"
    shipped = json.loads((folder / f"{kind}.schema.json").read_text("utf-8"))
    assert shipped == toml_schema(kind), f"write it again: rdmpipe schema {kind} | python -m json.tool --indent 2"
    validator = jsonschema.Draft202012Validator(shipped)
    line = f"#:schema {kind}.schema.json\n"
    files = [path for path in folder.glob("*.toml") if path.read_text("utf-8").startswith(line)]
    assert len(files) >= 4
    for path in files:
        table = json.loads(json.dumps(tomllib.loads(path.read_text("utf-8")), default=str))
        assert not list(validator.iter_errors(table)), path
        assert list(validator.iter_errors({**table, "comand": 1}))


@pytest.mark.parametrize("kind", KINDS)
def test_schemas_are_schemas(kind: str) -> None:
    printed = CliRunner().invoke(app, ["schema", kind])
    jsonschema.Draft202012Validator.check_schema(json.loads(printed.output))


def test_an_unknown_kind_of_file_is_named() -> None:
    failed = CliRunner().invoke(app, ["schema", "manifst"])
    assert failed.exit_code == 2
