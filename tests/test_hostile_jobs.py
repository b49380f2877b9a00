"""Job files, schedules and secrets that are meant to leak, to add lines or to break a parser."""

from __future__ import annotations

import base64
import html
import json
import random
import shlex
import urllib.parse
from pathlib import Path

import markupsafe
import pytest

from pipeline.config import read_toml
from pipeline.errors import ConfigError
from pipeline.scheduling import load_job, render, with_home
from pipeline.scheduling.cron import parse_cron
from pipeline.scheduling.jobfile import NAME, OBJECT, SLOT, VARIABLE, parse_duration
from pipeline.scheduling.schedules import crontab, systemd
from pipeline.scheduling.secrets import hidden_forms, scrub, scrub_value, secret_name, secret_shape
from pipeline.sources import NAME as DATABASE_NAME
from tests.attempts import tried

VALUES = (
    'quo"te\'s', "back\\slash", "schlüssel-日本", "a&b<c>d", "with space", "per%cent+plus", "tab\tand/slash", "x=1;y=2",
    "-----BEGIN KEY-----\nMIIabc/def+ghi==\nsecond line\n-----END KEY-----", "é", "emoji🔑key", "ab12",
)  # fmt: skip


@pytest.mark.parametrize("value", [value for value in VALUES if len(value) >= 4])
def test_a_secret_is_found_in_every_form_that_programs_write(value: str) -> None:
    hidden = hidden_forms({"MY_TOKEN": value})
    forms = [
        value, json.dumps(value), json.dumps(value, ensure_ascii=False), json.dumps(json.dumps(value)), html.escape(value),
        str(markupsafe.escape(value)),
        html.escape(repr(value)), urllib.parse.quote(value), urllib.parse.quote(value, safe=""), urllib.parse.quote_plus(value),
        repr(value), ascii(value), repr(value.encode()), repr(repr(value)), shlex.quote(value), json.dumps(repr(value)),
        base64.b64encode(value.encode()).decode(), *value.splitlines(),
    ]  # fmt: skip
    parts = [line for line in value.splitlines() if len(line) >= 4]
    for form in forms:
        shown = scrub(f"before {form} after", hidden)
        assert "[MY_TOKEN]" in shown, form
        for part in parts:
            assert part not in shown
            assert json.dumps(part)[1:-1] not in shown


def test_a_secret_is_taken_out_of_nested_results() -> None:
    hidden = hidden_forms({"PIN": "123456", "NAME": 'a"b\\c'})
    found = scrub_value({'a"b\\c': ["x 123456", {"deep": ['is a"b\\c']}, 123456, 7, None, True]}, hidden)
    assert found == {"[NAME]": ["x [PIN]", {"deep": ["is [NAME]"]}, "[PIN]", 7, None, True]}


def test_random_secrets_do_not_survive_a_line_of_json_or_repr() -> None:
    chance = random.Random(5)
    letters = "ab\"'\\ \t&<>%é日/+=#{}$`"
    for _ in range(200):
        value = "".join(chance.choice(letters) for _ in range(chance.randrange(6, 20))).strip()
        if len(value) < 6:
            continue
        hidden = hidden_forms({"S": value})
        for form in (json.dumps({"a": f"x{value}y"}), repr([f"x{value}y"]), html.escape(f"x{value}y")):
            shown = scrub(form, hidden)
            assert value not in shown
            assert "[S]" in shown
    tried(200)


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("PGPASS", True), ("DB_PWD", True), ("HFTOKEN", True), ("HF_TOKEN", True), ("dbPassword", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("MYSQL_PASSWD", True), ("GOOGLE_CREDENTIALS", True), ("OPENAI_APIKEY", True), ("SENTRY_DSN", True), ("SSH_KEY", True),
        ("TOKENIZERS_PARALLELISM", False), ("OMP_WAIT_POLICY", False), ("BYPASS_CACHE", False), ("KEYBOARD", False),
        ("RAY_AUTH_MODE", False), ("PWDIR", False), ("COMPASS", False), ("HF_HOME", False), ("MONKEY", False),
    ],
)  # fmt: skip
def test_names_that_say_secret(name: str, secret: bool) -> None:
    assert secret_name(name, "some value") is secret
    assert not secret_name("MAX_TOKENS", "77")


@pytest.mark.parametrize(
    "value",
    [
        "postgres://user:hunter2@host/db", "https://token@host/x", "https://h/x?sig=abcdef", "https://h/x?a=1&access_token=q",
        "hf_abcdefghijklmnopqrst", "ghp_" + "a" * 36, "AKIAABCDEFGHIJKLMNOP", "-----BEGIN RSA PRIVATE KEY-----",
        "Bearer abcdefgh12",
        "sk-" + "a" * 30, "eyJhbGciOiJI.eyJzdWIiOiIx.abc",
    ],
)  # fmt: skip
def test_values_that_look_like_secrets_are_refused_in_variables_arguments_and_home(value: str, tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    places = (
        f"[environment]\nvariables = {{ PLAIN = {json.dumps(value)} }}",
        f'arguments = ["x", {json.dumps(value)}]',
        f"[environment]\nhome = {json.dumps(value)}",
    )
    assert secret_shape(value)
    for text in places:
        path.write_text(f'command = "list"\n{text}\n')
        with pytest.raises(ConfigError, match=r"looks like|holds"):
            load_job(str(path))


@pytest.mark.parametrize(
    "value", ["http://proxy:3128", "s3://bucket/prefix", "https://h/x?q=token", "skating", "a@b", "x:y"]
)
def test_plain_values_are_taken(value: str) -> None:
    assert secret_shape(value) == ""


def test_a_secret_that_is_too_short_to_hide_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.scheduling.environment import command_environment

    path = tmp_path / "job.toml"
    path.write_text('command = "list"\n[environment]\nsecrets = ["PIN"]\n')
    monkeypatch.setenv("PIN", "12")
    with pytest.raises(ConfigError, match="PIN has fewer than 4 characters"):
        command_environment(load_job(str(path)))


SCHEDULED = 'command = "list"\n[schedule]\ncron = "0 2 * * *"\n'


def test_no_home_or_path_adds_a_line_to_a_crontab_or_unit(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(SCHEDULED)
    loaded = load_job(str(path))
    with pytest.raises(ConfigError, match="one line of plain text"):
        with_home(loaded, "/data\n* * * * * touch /tmp/evil #")
    folder = tmp_path / "a\n* * * * * touch evil #"
    folder.mkdir()
    (folder / "job.toml").write_text(SCHEDULED)
    for target in ("crontab", "systemd"):
        with pytest.raises(ConfigError, match="cannot hold"):
            render(load_job(str(folder / "job.toml")), target)


def test_a_trailing_backslash_continues_no_line_of_a_unit(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(f"title = 'ends with \\\\ \\'\n{SCHEDULED}".replace("\\\\ ", "\\ "))
    loaded = with_home(load_job(str(path)), "/data/home\\")
    text = systemd(loaded)
    assert "Description=ends with" in text
    assert not [line for line in text.splitlines() if line.rstrip().endswith("\\")]
    assert len(crontab(loaded).splitlines()) == 5


@pytest.mark.parametrize(
    "text",
    [
        "*/² * * * *", "٣ * * * *", "*/" + "1" * 5000 + " * * * *", "1" * 5000 + " * * * *", "1-" + "9" * 5000 + " * * * *",
        "* * * * *\n* * * * *", "*/0 * * * *", "5-1 * * * *", "* * 31 2 *", "- * * * *", "1//2 * * * *", "*" * 5000,
    ],
)  # fmt: skip
def test_cron_expressions_that_break_parsers_are_config_errors(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_cron(text)
    assert len(str(error.value)) < 1000


def test_a_name_with_a_newline_behind_it_is_no_name() -> None:
    for pattern in (NAME, OBJECT, SLOT, VARIABLE, DATABASE_NAME):
        assert pattern.match("abc")
        assert not pattern.match("abc\n")


@pytest.mark.parametrize("text", ["9" * 400 + "d", "٣m", "1e9s", "5m\n6h", "infd", "nans", ""])
def test_lengths_of_time_are_bounded(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_duration(text, "timeout")


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 5000, "a = " + "{b=" * 5000, "a = " + "1" * 5000, "\x00", "a = '\udcff'"]
)
def test_toml_that_breaks_the_parser_is_a_config_error(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=r"job\.toml"):
        read_toml(path)
    monkeypatch.setenv("RDMPIPE_JOB", text.replace("\x00", "\x01"))
    with pytest.raises(ConfigError, match=r"RDMPIPE_JOB: (not a job file|unknown key)"):
        load_job("env:RDMPIPE_JOB")
