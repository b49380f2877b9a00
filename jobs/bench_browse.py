"""Benchmark: `rdmpipe browse` with one client that types, and with many clients at once.

    python jobs/bench_browse.py --out DIR [--rows 10000 --rows 100000] [--clients 50] [--seconds 10] [--encoder NAME]
    python jobs/bench_browse.py --out DIR --rows 1000000 --index-key IVF1024_HNSW32,SQ8 --make   # only make the database

Makes a database of synthetic vectors for each number of rows (imported, without pictures; kept in DIR for the next run), starts
`rdmpipe browse` on it as a separate process, and measures over HTTP on this machine:

    type     one client types words letter by letter, 60 results for every prefix, none of them in the server's cache;
    milliseconds
    filter   the same with a filter of one column
    load     many clients at once, each sending its next request when it has an answer; requests a second, p50, p99, errors

The encoder encodes each text, so its time is part of every figure; the default is the shipped `mini`, and `random:ViT-B-32`
takes as long as CLIP's ViT-B/32 without its weights. Wall times need an idle machine; the result states the load at the start,
and the server's processor time for each request, which depends on it less.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

WORDS = (
    "harbour",
    "castle by the sea",
    "two dancers",
    "still life with lemons",
    "a storm over the hills",
    "old bridge in winter",
)

Connection = http.client.HTTPConnection


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="working folder: the home with the databases")
    parser.add_argument("--rows", type=int, action="append", help="rows of a database; may be repeated")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=10.0, help="of load")
    parser.add_argument("--encoder", default="mini")
    parser.add_argument(
        "--index-key", default="", help="a faiss index key for databases that are made (default: automatic)"
    )
    parser.add_argument("--make", action="store_true", help="make the databases and measure nothing")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()
    found: dict[str, dict[str, object]] = {}
    for rows in options.rows or [10_000, 100_000]:
        name = make_database(options.out, rows, options.encoder, options.index_key)
        if options.make:
            continue
        with served(options.out, name) as (port, server):
            figures: dict[str, object] = {"load_average": round(os.getloadavg()[0], 2), "cores": os.cpu_count()}
            figures["type"] = type_words(port, server, name, "")
            figures["filter"] = type_words(port, server, name, "style = 'style 3'", "painting of ")
            if options.clients:
                figures["load"] = load(port, name, options.clients, options.seconds)
        found[f"{rows} rows, {options.encoder}"] = figures
        print(f"{rows:,} rows, {options.encoder}: {json.dumps(figures)}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def make_database(home: Path, rows: int, encoder: str, key: str = "") -> str:
    """Make a database of `rows` clustered vectors with captions and a style, if it does not exist. Returns its name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline.encoders import check_encoder, model_config, resolve_encoder
    from pipeline.exchange import import_embeddings
    from pipeline.index import IndexConfig

    check_encoder(encoder)
    dim = model_config(resolve_encoder(encoder)).embed_dim
    name = f"rows_{rows}_{dim}"
    if (home / "databases" / name / "current").exists():
        return name
    folder = home / "embeddings" / name
    (folder / "img_emb").mkdir(parents=True, exist_ok=True)
    (folder / "metadata").mkdir(exist_ok=True)
    generator = np.random.default_rng(rows)
    centres = generator.standard_normal((200, dim))
    style = generator.integers(0, 20, rows)
    place = folder / "img_emb" / "img_emb_0.npy"
    stored = np.lib.format.open_memmap(place, "w+", np.float16, (rows, dim))
    for first in range(0, rows, 50_000):  # in parts, because a million vectors in double precision take gigabytes
        part = min(50_000, rows - first)
        vectors = centres[generator.integers(0, 200, part)] + 0.7 * generator.standard_normal((part, dim))
        stored[first : first + part] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    stored.flush()
    table = pa.table(
        {
            "caption": [f"picture {n} of something that needs a dozen words to be told" for n in range(rows)],
            "url": [f"https://example.org/pictures/{n}.jpg" for n in range(rows)],
            "artist": [f"artist {n % 900}" for n in range(rows)],
            "style": [f"style {one}" for one in style],
            "year": pa.array(1500 + style * 20 + np.arange(rows) % 19),
        }
    )
    pq.write_table(table, folder / "metadata" / "metadata_0.parquet")
    import_embeddings(name, folder, encoder, str(home), IndexConfig(key=key))
    return name


@contextlib.contextmanager
def served(home: Path, name: str) -> Iterator[tuple[int, int]]:
    """The port and the process id of the server in a separate process, after it has answered a search."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    words = [sys.executable, "-m", "pipeline.cli", "browse", name, "--home", str(home), "--port", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                if not ask(port, name, "warm", 1)["error"]:
                    break
            time.sleep(0.2)
        else:
            raise SystemExit("the server did not come up")
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def ask(
    port: int, name: str, text: str, k: int = 60, where: str = "", connection: Connection | None = None
) -> dict[str, object]:
    """One search. Raises OSError if the server does not answer."""
    own = connection or Connection("127.0.0.1", port, timeout=120)
    body = json.dumps({"databases": [name], "parts": [{"text": text}], "k": k, "where": where})
    own.request("POST", "/api/search", body, {"content-type": "application/json"})
    answer = json.loads(own.getresponse().read())
    if connection is None:
        own.close()
    found: dict[str, object] = answer["answers"][0]
    return found


def type_words(port: int, server: int, name: str, where: str, before: str = "") -> dict[str, float]:
    """Milliseconds from question to answer for every prefix of the words, and the server's processor time for each."""
    spent = processor_s(server)
    connection = Connection("127.0.0.1", port, timeout=120)
    times = []
    for word in WORDS:
        for length in range(1, len(word) + 1):
            start = time.perf_counter()
            ask(port, name, before + word[:length], where=where, connection=connection)
            times.append(1e3 * (time.perf_counter() - start))
    connection.close()
    each = 1e3 * (processor_s(server) - spent) / len(times)
    return {**summary(times), "processor": round(each, 1)}


def processor_s(process: int) -> float:
    """Processor seconds that a process has used, from /proc (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def summary(times: list[float]) -> dict[str, float]:
    """Number, median, 95th and 99th percentile and maximum, in milliseconds."""
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {"n": len(times), **{name: round(float(np.quantile(times, share)), 1) for name, share in shares.items()}}


def load(port: int, name: str, clients: int, seconds: float) -> dict[str, float]:
    """Many clients at once, each with different questions."""
    times: list[float] = []
    errors: list[str] = []
    lock = threading.Lock()
    end = time.perf_counter() + seconds

    def client(number: int) -> None:
        connection = Connection("127.0.0.1", port, timeout=120)
        asked = 0
        while time.perf_counter() < end:
            start = time.perf_counter()
            try:
                problem = str(
                    ask(port, name, f"{WORDS[asked % len(WORDS)]} {number} {asked}", connection=connection)["error"]
                )
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
                connection = Connection("127.0.0.1", port, timeout=120)
            with lock:
                times.append(1e3 * (time.perf_counter() - start))
                if problem:
                    errors.append(problem)
            asked += 1
        connection.close()

    began = time.perf_counter()
    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    if errors:
        print("errors:", sorted(set(errors))[:5], file=sys.stderr)
    return {"clients": clients, "per_second": round(len(times) / took, 1), "errors": len(errors), **summary(times)}


if __name__ == "__main__":
    main()
