"""Fetching pictures from few hosts: with and without their limits, and processor time compared with urllib3.

    python jobs/bench_fetch.py museums [--pictures 2000] [--json FILE]
    python jobs/bench_fetch.py tls [--pictures 1000] [--kilobytes 100] [--rounds 5] [--json FILE]

`museums`: three hosts on loopback, in a separate process, each with a log. The first answers every picture after 20 ms; the
second answers 429 with Retry-After: 1 after every 90 pictures; the third has a Crawl-delay of half a second, a robots.txt, a
tdmrep.json and pictures with the header tdm-reservation. `ours` is the download stage of a build from a list of all addresses,
with the default rules. `careless` fetches from the same hosts with 32 threads of urllib3, one attempt for each address,
and ignores all rules. `floor_seconds` is the time of the pauses only: the slowest host's number of requests times its
pause. The run fails if a log shows more connections, or a faster pace, than the host's limit, or if a count is wrong.

`tls`: one host on loopback over TLS, without pauses, two connections kept alive. `ours` is the fetcher of the worker, with
robots.txt, tdmrep.json and all checks; `urllib3` is a pool of two connections and two threads that reads the same pictures.
Both run in this process, in turn in each round; times are the client's: processor time of all its threads, and wall
time. The medians of the rounds and their ratio are printed.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import urllib3

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.museums import Museum, open_museums, picture

HOSTS = [f"127.0.0.{number}" for number in (2, 3, 4)]
DELAY_S, PAUSE_S, CONNECTIONS = 0.5, 0.05, 2  # the last two are the defaults of a manifest
SLACK_S = 0.01  # a server's clock is read when its thread gets a core


# ---- servers, in a separate process


def _serve(museums: list[Museum], tls: Path | None, pipe: Connection) -> None:
    with open_museums(*museums, tls=tls):
        pipe.send([museum.url for museum in museums])
        pipe.recv()
    pipe.send(museums)


@contextmanager
def served(museums: list[Museum], tls: Path | None = None) -> Iterator[list[str]]:
    """The addresses of museums that another process serves. Their logs are in `museums` after the block."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(museums, tls, there))
    process.start()
    try:
        yield here.recv()
        here.send("stop")
        museums[:] = here.recv()
    finally:
        process.join(10)
        if process.is_alive():
            process.kill()


# ---- three museums


@dataclass(frozen=True)
class Collection:
    """Three hosts, the paths on each, and the expected counts of results."""

    museums: list[Museum]
    paths: list[list[str]]
    expected: Counter[str]

    def addresses(self, urls: Sequence[str]) -> list[str]:
        """All addresses, with the hosts mixed."""
        queues = [[f"{url}{path}" for path in paths] for url, paths in zip(urls, self.paths, strict=True)]
        longest = max(map(len, queues))
        spread = [(place / len(queue), address) for queue in queues for place, address in enumerate(queue)]
        assert longest
        return [address for _, address in sorted(spread)]


def collection(pictures: int) -> Collection:
    """`pictures` addresses: three quarters of the first host, most of the rest of the second."""
    few = max(10, pictures // 40)
    numbers = iter(range(pictures))
    quick = [f"/{next(numbers)}.jpg" for _ in range(pictures * 3 // 4)]
    careful = [f"/{next(numbers)}.jpg" for _ in range(few)]
    busy = [f"/{number}.jpg" for number in numbers]
    reserved, closed, told = careful[: few // 10], careful[few // 10 : few // 5], careful[few // 5 : few * 3 // 10]
    careful = [*(f"/reserved{path}" for path in reserved), *(f"/closed{path}" for path in closed), *careful[few // 5 :]]
    museums = [
        Museum(HOSTS[0], work_s=0.02),
        Museum(HOSTS[1], work_s=0.02, slow_after=90),
        Museum(
            HOSTS[2],
            robots=f"User-agent: *\nCrawl-delay: {DELAY_S}\nDisallow: /closed/\n",
            tdm=json.dumps([{"location": "/reserved/*", "tdm-reservation": 1}]),
            headers={path: {"tdm-reservation": "1"} for path in told},
        ),
    ]
    expected = Counter({"tdm": len(reserved) + len(told), "robots": len(closed)})
    expected["ok"] = pictures - sum(expected.values())
    return Collection(museums, [quick, busy, careful], expected)


def polite(addresses: list[str], folder: Path) -> tuple[Counter[str], dict[str, dict[str, object]], float]:
    """(addresses by result, figures by host, seconds) of a build's download stage."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline.building import BuildRequest, build
    from pipeline.execution import Progress
    from pipeline.sources import SourceOptions

    pq.write_table(pa.table({"url": addresses}), folder / "list.parquet")
    (folder / "museums.toml").write_text(
        'name = "museums"\ntitle = "Museums"\nlicence = "none"\nterms = "none"\nopt_out = "none"\nencoder = "mini"\n'
        f'[source]\nkind = "urls"\npath = "{folder / "list.parquet"}"\nimage = "url"\nshard_rows = 10000\n'
    )
    options = SourceOptions(allow_private=tuple(HOSTS))
    request = BuildRequest(
        str(folder / "museums.toml"), home=str(folder / "home"), source=options, stages=("download",)
    )
    start = time.monotonic()
    done = build(request, Progress(stream=io.StringIO()))
    seconds = time.monotonic() - start
    found = Counter(done.reasons)
    found["ok"] = done.ok
    return found, {name: dict(figures) for name, figures in done.hosts.items()}, seconds


def careless(addresses: list[str]) -> tuple[Counter[str], float]:
    """(addresses by status, seconds) of 32 threads without limits."""
    pool = urllib3.PoolManager(maxsize=32, block=False, retries=False)

    def get(address: str) -> str:
        status = pool.request("GET", address).status
        return "ok" if status == 200 else f"http_{status}"

    start = time.monotonic()
    with ThreadPoolExecutor(32) as threads:
        found = Counter(threads.map(get, addresses))
    return found, time.monotonic() - start


def log_of(museum: Museum) -> dict[str, object]:
    statuses = Counter(status for _, _, status in museum.log)
    return {
        "requests": len(museum.log),
        "answers": {str(status): count for status, count in sorted(statuses.items())},
        "connections": museum.connections,
        "most_open": museum.most_open,
        "most_at_once": museum.most_at_once,
        "seconds_between_requests": round(museum.pace(), 4),
    }


def museums(pictures: int, folder: Path) -> dict[str, object]:
    """Both runs, each with new museums. Raises AssertionError if a limit was exceeded or a count is wrong."""
    ours = collection(pictures)
    with served(ours.museums) as urls:
        found, hosts, seconds = polite(ours.addresses(urls), folder)
    for museum, connections, pause in zip(
        ours.museums, (CONNECTIONS, CONNECTIONS, 1), (PAUSE_S, PAUSE_S, DELAY_S), strict=True
    ):
        assert museum.most_open <= connections, f"{museum.url}: {museum.most_open} connections, limit {connections}"
        assert museum.pace() >= pause - SLACK_S, f"{museum.url}: a request each {museum.pace():.4f} s, limit {pause} s"
        assert hosts[museum.url.removeprefix("http://")]["ok"] == len(museum.pictures()) - len(museum.headers)
    assert found == ours.expected, f"expected {ours.expected}, found {found}"
    theirs = collection(pictures)
    with served(theirs.museums) as urls:
        taken, rushed = careless(theirs.addresses(urls))
    requests = [len(museum.log) for museum in ours.museums]
    floor = max(requests[0] * PAUSE_S, requests[1] * PAUSE_S, requests[2] * DELAY_S)
    return {
        "pictures": pictures,
        "ours": {
            "seconds": seconds,
            "ended": dict(found),
            "logs": {museum.url: log_of(museum) for museum in ours.museums},
        },
        "careless": {
            "seconds": rushed,
            "ended": dict(taken),
            "against_wishes": sum(count for reason, count in theirs.expected.items() if reason != "ok"),
            "logs": {museum.url: log_of(museum) for museum in theirs.museums},
        },
        "floor_seconds": floor,
        "ratio_to_careless": seconds / rushed,
        "ratio_to_floor": seconds / floor,
    }


# ---- processor time over TLS


def timed(action: Callable[[], None]) -> tuple[float, float]:
    """(processor seconds, wall seconds) of this process."""
    wall, spent = time.monotonic(), time.process_time()
    action()
    return time.process_time() - spent, time.monotonic() - wall


def over_tls(pictures: int, size: int, rounds: int, folder: Path) -> dict[str, object]:
    from pipeline.sources.web.hosts import PoliteFetcher
    from pipeline.sources.web.opener import FetchRules, SafeOpener
    from tests.test_opener import certificate

    file = certificate(folder / "own.pem")
    os.environ["SSL_CERT_FILE"] = str(file)
    os.environ["RDMPIPE_CACHE"] = str(folder / "cache")
    museum = Museum(HOSTS[0], size=size)
    wanted = [picture(number, size) for number in range(pictures)]
    found: dict[str, list[tuple[float, float]]] = {"ours": [], "urllib3": []}
    with served([museum], file) as (url,):
        addresses = [f"{url}/{number}.jpg" for number in range(pictures)]

        def ours(number: int) -> None:
            rules, until = FetchRules(pause_s=0.0, connections=2), time.monotonic() + 600
            fetcher = PoliteFetcher(
                SafeOpener(rules, HOSTS, until), rules, addresses, 32, until, folder / f"spool-{number}"
            )
            for address, data in zip(addresses, wanted, strict=True):
                assert fetcher.result(address) == data

        def theirs() -> None:
            pool = urllib3.PoolManager(num_pools=1, maxsize=2, block=True, retries=False, ca_certs=str(file))
            with ThreadPoolExecutor(2) as threads:
                for data, answer in zip(
                    wanted, threads.map(lambda address: pool.request("GET", address).data, addresses), strict=True
                ):
                    assert data == answer

        theirs()  # warm up
        for number in range(rounds):
            found["ours"].append(timed(lambda number=number: ours(number)))  # type: ignore[misc]
            found["urllib3"].append(timed(theirs))
    made: dict[str, object] = {"pictures": pictures, "bytes": size, "rounds": rounds}
    medians = {}
    for name, times in found.items():
        medians[name] = [statistics.median(column) for column in zip(*times, strict=True)]
        made[name] = {
            "processor_milliseconds_a_picture": 1000 * medians[name][0] / pictures,
            "wall_milliseconds_a_picture": 1000 * medians[name][1] / pictures,
        }
    made["ratio"] = {
        "processor": medians["ours"][0] / medians["urllib3"][0],
        "wall": medians["ours"][1] / medians["urllib3"][1],
    }
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("museums", "tls"))
    parser.add_argument("--pictures", type=int, default=0, help="addresses (museums: 2000; tls: 1000)")
    parser.add_argument("--kilobytes", type=int, default=100, help="of a picture of `tls`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "museums":
            made = museums(arguments.pictures or 2000, Path(folder))
        else:
            made = over_tls(arguments.pictures or 1000, arguments.kilobytes * 1024, arguments.rounds, Path(folder))
    made["machine"] = {"cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()}
    text = json.dumps(made, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
