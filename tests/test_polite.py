"""Many addresses of few hosts: no host gets more requests than its limit, its rules are followed, and every address is
counted."""

from __future__ import annotations

import http.client
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.bench_fetch import museums
from pipeline.sources import SourceOptions
from pipeline.sources.web.addresses import Refused
from pipeline.sources.web.hosts import HostFigures, PoliteFetcher, retry_after
from pipeline.sources.web.opener import AGENTS, Answer, FetchRules, SafeOpener, _request_path, _split, moved_to
from pipeline.sources.web.robots import opts_out, parse_robots
from pipeline.sources.web.tdm import parse_tdm, reserved_by_header
from tests.builds import quiet_build
from tests.encoders import RANDOM
from tests.museums import Museum, open_museums
from tests.pictures import jpeg

HOSTS = [f"127.0.0.{number}" for number in range(2, 6)]


def fetch(
    tmp_path: Path, urls: Sequence[str], seconds: float = 60.0, **rules: object
) -> tuple[dict[str, str], dict[str, HostFigures]]:
    """(address -> ok or the reason, figures by host) of a whole list."""
    made = FetchRules(**{"pause_s": 0.0, **rules})  # type: ignore[arg-type]
    until = time.monotonic() + seconds
    fetcher = PoliteFetcher(SafeOpener(made, HOSTS, until), made, urls, 16, until, tmp_path / "spool")
    found = {}
    for url in urls:
        try:
            assert fetcher.result(url) == jpeg(int(url.split("/")[-1].split(".")[0]))
            found[url] = "ok"
        except Refused as refused:
            found[url] = str(refused).split(":")[0]
    return found, fetcher.figures()


def test_a_collection_of_three_museums_is_fetched_within_their_limits(tmp_path: Path, home: Path) -> None:
    quick = Museum(HOSTS[0], work_s=0.002)
    busy = Museum(HOSTS[1], slow_after=30)
    careful = Museum(
        HOSTS[2],
        robots="User-agent: *\nCrawl-delay: 0.2\nDisallow: /closed/\n",
        tdm=json.dumps([{"location": "/reserved/*", "tdm-reservation": 1}]),
        headers={"/1.jpg": {"tdm-reservation": "1"}},
    )
    with open_museums(quick, busy, careful):
        urls = [f"{museum.url}/{number}.jpg" for number in range(50) for museum in (quick, busy)]
        asked = ["0.jpg", "1.jpg", "2.jpg", "closed/3.jpg", "reserved/4.jpg"]
        urls += [f"{careful.url}/{path}" for path in asked]
        found, figures = fetch(tmp_path, urls, contact="mailto:curator@example.org")
    assert [found[f"{careful.url}/{path}"] for path in asked] == ["ok", "tdm", "ok", "robots", "tdm"]
    assert all(found[url] == "ok" for url in urls[:100])
    assert max(quick.most_at_once, busy.most_at_once) <= 2 and careful.most_at_once == 1
    assert quick.connections <= 2 and busy.connections <= 3  # kept alive
    assert max(quick.most_open, busy.most_open) <= 2 and careful.most_open == 1
    assert len(quick.pictures()) == len(busy.pictures()) == 50
    pictures = [when for when, path, _ in careful.log if path.endswith(".jpg")]
    assert all(later - earlier >= 0.19 for earlier, later in itertools.pairwise(pictures))
    assert sorted(careful.pictures()) == ["/0.jpg", "/1.jpg", "/2.jpg"]
    slowed = [when for when, _, status in busy.log if status == 429]
    assert figures[busy.url.removeprefix("http://")].slowed == len(slowed) >= 1
    assert all(not (when < other < when + 0.9) for when in slowed for other, path, s in busy.log if s == 200)
    assert quick.agents == {"Mozilla/5.0 (compatible; rdmpipe/0.1; img2dataset; contact: mailto:curator@example.org)"}


def test_a_host_that_keeps_refusing_is_set_aside_and_does_not_hold_up_others(tmp_path: Path, home: Path) -> None:
    good, bad = Museum(HOSTS[0]), Museum(HOSTS[1], refuses=True)
    with open_museums(good, bad):
        urls = [f"{museum.url}/{number}.jpg" for number in range(50) for museum in (bad, good)]
        found, figures = fetch(tmp_path, urls, refusals=4)
    assert [found[url] for url in urls[1::2]] == ["ok"] * 50
    assert {found[url] for url in urls[::2]} == {"host_refused"}
    name = bad.url.removeprefix("http://")
    assert figures[name].set_aside.startswith(f"{name} answered 429 4 times in a row")
    assert figures[name].failed == 50 and len(bad.log) <= 8


@pytest.mark.process
def test_the_summary_lists_hosts_that_were_set_aside_and_retry_comes_back_to_them(tmp_path: Path, home: Path) -> None:
    good, bad = Museum(HOSTS[0]), Museum(HOSTS[1], refuses=True)
    options = SourceOptions(allow_private=tuple(HOSTS))
    with open_museums(good, bad):
        urls = [f"{good.url}/{number}.jpg" for number in range(3)] + [
            f"{bad.url}/{number}.jpg" for number in range(3, 15)
        ]
        pq.write_table(pa.table({"url": urls}), tmp_path / "list.parquet")
        (tmp_path / "listed.toml").write_text(
            f'name = "listed"\ntitle = "t"\nlicence = "l"\nterms = "t"\nopt_out = "o"\nencoder = "{RANDOM}"\n[source]\n'
            f'kind = "urls"\npath = "{tmp_path / "list.parquet"}"\nimage = "url"\n'
            "[source.options]\nfetch = { pause_s = 0.0, refusals = 3 }\n"
        )
        built = quiet_build(tmp_path / "listed.toml", source=options, images="drop")
        name = bad.url.removeprefix("http://")
        assert (built.ok, built.reasons) == (3, {"host_refused": 12})
        text = built.text()
        assert (
            f"  {good.url.removeprefix('http://')}: 3 requests, 3 ok, " in text
            and f"  {name}: 3 requests, 0 ok, 12 failed, " in text
        )
        assert (
            f"  set aside: {name} answered 429 3 times in a row" in text
            and "`rdmpipe retry listed` asks them again" in text
        )
        bad.refuses = False
        again = quiet_build("listed", source=options, retry=True)
    assert (again.ok, again.reasons, again.hosts[name]["set_aside"]) == (15, {}, "")
    assert "set aside" not in again.text()


@pytest.mark.parametrize(("delay", "reason"), [("86400", "host_refused"), ("0.01", "ok")])
def test_a_crawl_delay_that_no_build_can_wait_for_sets_the_host_aside(
    tmp_path: Path, home: Path, delay: str, reason: str
) -> None:
    museum = Museum(HOSTS[0], robots=f"User-agent: *\nCrawl-delay: {delay}\n")
    with open_museums(museum):
        found, figures = fetch(tmp_path, [f"{museum.url}/{number}.jpg" for number in range(4)])
    assert set(found.values()) == {reason}
    assert bool(figures[museum.url.removeprefix("http://")].set_aside) == (reason != "ok")


def test_requests_of_all_fetchers_together_are_spaced(tmp_path: Path, home: Path) -> None:
    museum = Museum(HOSTS[0])
    with open_museums(museum):
        urls = [f"{museum.url}/{number}.jpg" for number in range(24)]
        rules, until = FetchRules(pause_s=0.02), time.monotonic() + 60
        for i, fetcher in enumerate(
            [
                PoliteFetcher(SafeOpener(rules, HOSTS, until), rules, urls[i::2], 8, until, tmp_path / f"s{i}")
                for i in range(2)
            ]
        ):
            assert [fetcher.result(url) for url in urls[i::2]] == [jpeg(number) for number in range(i, 24, 2)]
    assert museum.most_at_once <= 2 and museum.pace(20) >= 0.018


def test_a_host_that_asks_to_wait_for_longer_than_there_is_time_is_set_aside(tmp_path: Path, home: Path) -> None:
    museum = Museum(HOSTS[0], slow_after=3)
    with open_museums(museum):
        urls = [f"{museum.url}/{number}.jpg" for number in range(10)]
        found, _ = fetch(tmp_path, urls, most_wait_s=0.5)
    assert sorted(found.values()) == ["host_refused"] * 8 + ["ok"] * 2


def test_the_limit_of_a_host_holds_for_several_fetchers_together(tmp_path: Path, home: Path) -> None:
    museum = Museum(HOSTS[0], work_s=0.01)
    with open_museums(museum):
        urls = [f"{museum.url}/{number}.jpg" for number in range(60)]
        rules, until = FetchRules(pause_s=0.0), time.monotonic() + 60
        fetchers = [
            PoliteFetcher(SafeOpener(rules, HOSTS, until), rules, urls[i::2], 8, until, tmp_path / f"spool{i}")
            for i in range(2)
        ]
        bodies = [fetchers[i % 2].result(url) for i, url in enumerate(urls)]
    assert bodies == [jpeg(i) for i in range(60)] and museum.most_at_once <= 2


def test_an_unexpected_answer_is_a_reason_and_blocks_nobody(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def visit(opener: SafeOpener, url: str, deadline: float) -> Answer:
        raise RuntimeError("what is this?")

    monkeypatch.setattr(SafeOpener, "visit", visit)
    found, _ = fetch(tmp_path, ["http://127.0.0.2:1/1.jpg"], robots=False, opt_out=False)
    assert list(found.values()) == ["not_fetched"]


def test_after_the_time_is_up_the_rest_fails_and_nothing_hangs(tmp_path: Path, home: Path) -> None:
    museum = Museum(HOSTS[0], robots="User-agent: *\nCrawl-delay: 0.4\n")
    with open_museums(museum):
        found, _ = fetch(tmp_path, [f"{museum.url}/{number}.jpg" for number in range(20)], seconds=2.5)
    assert set(found.values()) == {"ok", "deadline"}


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/7é.jpg".encode().decode("latin-1"), "/7%C3%A9.jpg"),
        ("7 é.jpg".encode().decode("latin-1"), "/7%20%C3%A9.jpg"),
        ("/7é.jpg", "/7%E9.jpg"),
        ("//münchen.example/7.jpg".encode().decode("latin-1"), "http://xn--mnchen-3ya.example/7.jpg"),
        ("?a=b c&d=é".encode().decode("latin-1"), "/x.jpg?a=b%20c&d=%C3%A9"),
    ],
    ids=["UTF-8", "relative, with a space", "Latin-1", "a host", "a query"],
)
def test_a_location_leads_where_its_server_means(location: str, target: str) -> None:
    headers = http.client.HTTPMessage()
    headers["Location"] = location
    parts = _split(moved_to(Answer(302, headers, b"", "http://h.example/x.jpg")))
    written = _request_path(parts)
    assert (written if target.startswith("/") else f"{parts.scheme}://{parts.netloc}{written}") == target


def test_a_redirect_in_raw_utf8_is_followed(tmp_path: Path, home: Path) -> None:
    from tests.server import Fault, serve

    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "7é.jpg").write_bytes(jpeg(7))
    with serve(tmp_path / "in", host=HOSTS[0]) as server:
        location = "/7é.jpg".encode().decode("latin-1")
        server.fail("/7.jpg", Fault("status", 302, (("Location", location),)))
        found, _ = fetch(tmp_path, [f"{server.url}/7.jpg"])
    assert list(found.values()) == ["ok"]


@pytest.mark.long
def test_two_thousand_pictures_of_three_museums_within_their_limits(tmp_path: Path, home: Path) -> None:
    """Connections, pace and counts are checked against the museums' own logs by the benchmark itself."""
    made = museums(2000, tmp_path)
    assert made["pictures"] == 2000


# ---- what sites write


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("unavailable_after: Friday, 25-Jun-2150 15:00:00 GMT, noai", "noai"),
        ("unavailable_after: 25 Jun 2150 15:00:00 PST, noimageai", "noimageai"),
        ("unavailable_after: 2150-06-25T15:00:00+00:00, noai", "noai"),
        ("unavailable_after: 25 Jun 2150 15:00:00 GMT", ""),
        ("unavailable_after: Fri, 25 Jun 2010 15:00:00 GMT", "unavailable_after"),
        ("otherbot: unavailable_after: 25 Jun 2010 15:00:00 GMT, noai", ""),
        ("unavailable_after: at noon, noindex", "noindex"),
    ],
)
def test_a_date_in_a_header_hides_no_directive(header: str, told: str) -> None:
    assert opts_out([header], AGENTS) == told


def test_crawl_delays_are_those_of_the_group_that_names_us() -> None:
    text = "User-agent: *\nCrawl-delay: 30\n\nUser-agent: rdmpipe\nUser-agent: img2dataset\nCrawl-delay: 2.5\nDisallow: /x\n"
    assert parse_robots(text, AGENTS).delay_s == 2.5
    assert parse_robots("User-agent: *\nCrawl-delay: soon\n", AGENTS).delay_s == 0.0


def test_the_first_rule_of_a_tdmrep_that_matches_decides() -> None:
    rules = [{"location": "/open/*", "tdm-reservation": 0}, {"location": "/*.jpg$", "tdm-reservation": 1}, {"x": 1}, 5]
    found = parse_tdm(json.dumps(rules))
    assert [found.covers(path) for path in ("/open/a.jpg", "/a.jpg", "/a.png")] == [False, True, False]
    assert not parse_tdm("<html>").covers("/a.jpg")
    assert [reserved_by_header(values) for values in ((), ("0",), (" 1 ",), ("0", "1"), ("0, 1",))] == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after("7") == 7.0 and retry_after(None) is None and retry_after("soon") is None
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
