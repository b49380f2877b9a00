"""Benchmark: filtered search and index builds on synthetic vectors, at a million rows and at ten.

    python jobs/bench_search.py --out DIR [--rows 1000000] [--budget 4GB --budget 256MB] [--json FILE]
    python jobs/bench_search.py --out DIR --budget 256MB --against CHECKOUT [--rounds 20]
    python jobs/bench_search.py --out DIR --budget 4GB --budget 256MB --beside [--rounds 20]
    python jobs/bench_search.py --out DIR --budget 256MB --peer [--rounds 20]
    python -m jobs.bench_search --out DIR --budget 256MB --profile CASE [--rounds 20]

The vectors are clustered (2,000 clusters of unequal size, 128 latent dimensions in 768), with a gap between texts and
pictures as in CLIP: two random pictures have a cosine of 0.47, a text and a random picture 0.15. For each budget an index is
built as for a database without columns, a graph if it fits (key, seconds, measured peak memory, recall). It is searched with
filters that pass 100, 10, 1 and 0.1 % of the rows, independently of the vectors, and with one that follows the clusters (a
style, about 10 %, mostly far from the query). Each query has a different filter, so that no filter's rows are reused. For
comparison: an exact scan of the matching rows (brute force), and post-filtering (the 10 k best rows without a filter, of
which those that match are kept). Finally, 64 text queries are searched at once with one filter of 10 %. Recall counts scores
that reach the exact k-th minus 1e-3. Times are of whole calls; processor times are of all threads.

`--against` compares with another version of this code, whose checkout it names: two processes open the same files, and
answer the same queries in turn, in alternating order, each query with a new filter. `--beside` compares the indexes of two
budgets over the same rows in the same way, and `--peer` compares with faiss alone: IVF1024,SQfp16 with a selector from a NumPy
mask (columns in memory, styles as numbers), and for each case the smallest nprobe with a recall of 0.95 in 20 searches of it.

Resumable: each finished step is kept in DIR/state-ROWS.json and skipped the next time. Wall times need an idle machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.config import parse_size
from pipeline.database import IndexEntry, RetrievalDatabase, Version
from pipeline.encoders import EncoderRecord
from pipeline.index import FILES, IndexConfig, Queries
from pipeline.retrieval import Searcher
from pipeline.storage import Artifact
from pipeline.storage.files import VERIFIED

if TYPE_CHECKING:
    from pipeline.index.splitting import SplitColumn

DIM, LATENT, CLUSTERS, BLOCK, K = 768, 128, 2000, 10_000, 19
COLUMNS = {"share": "float64", "style": "string"}
SHARES = (1.0, 0.1, 0.01, 0.001)
HERE = Path(__file__).parents[1]
PEER = "IVF1024,SQfp16"  # the key of the peer's index, and its name in a comparison
OVERFETCH = 10  # post-filtering fetches this many times k


class Synthetic:
    """Clustered unit vectors with an image/text gap; every block is a function of the seed and its number."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        spectrum = 1 / np.sqrt(1 + np.arange(LATENT) / 8)
        self.spectrum = (spectrum / np.linalg.norm(spectrum)).astype(np.float32)
        self.map = np.linalg.qr(generator.standard_normal((DIM, LATENT)))[0].T.astype(np.float32)
        self.centres = (generator.standard_normal((CLUSTERS, LATENT)) * self.spectrum).astype(np.float32)
        weights = 1 / (1 + np.arange(CLUSTERS)) ** 0.7
        self.weights = weights / weights.sum()
        means = generator.standard_normal((2, DIM))
        self.image_mean, self.text_mean = (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)

    def images(self, count: int, number: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(count, 768) and each row's cluster."""
        return self._draw(np.random.default_rng([1, number]), count, 1.2 * self.image_mean, 0.35)

    def texts(self, count: int, number: int) -> NDArray[np.float32]:
        mean = 1.2 * self.text_mean + 0.3 * self.image_mean
        return self._draw(np.random.default_rng([2, number]), count, mean, 0.5)[0]

    def _draw(
        self, generator: np.random.Generator, count: int, mean: NDArray[np.float32], noise: float
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        clusters = generator.choice(CLUSTERS, count, p=self.weights)
        latent = generator.standard_normal((count, LATENT), dtype=np.float32)
        vectors = (self.centres[clusters] + 0.7 * self.spectrum * latent) @ self.map + mean
        vectors += noise / np.sqrt(DIM) * generator.standard_normal((count, DIM), dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), clusters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="working folder; 1.6 kB a row and the indexes")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--budget", action="append", help="memory for a build, such as 4GB; may be repeated")
    parser.add_argument("--key", default="", help="a faiss index key instead of the automatic choice")
    parser.add_argument("--queries", type=int, default=100, help="of each kind (text, image)")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--against", type=Path, help="compare with the version in this checkout, over the same files")
    parser.add_argument("--profile", metavar="CASE", help="profile searches of one case of a comparison")
    parser.add_argument("--beside", action="store_true", help="compare the indexes of two budgets")
    parser.add_argument("--peer", action="store_true", help="compare with faiss and a NumPy mask")
    parser.add_argument("--rounds", type=int, default=20, help="of a comparison")
    parser.add_argument("--answer", action="store_true", help="answer searches from standard input (used by --against)")
    options = parser.parse_args()
    if options.answer or options.profile:
        profile(options) if options.profile else answer(options)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    state = State(options.out / f"state-{options.rows}.json")
    folder = options.out / f"rows-{options.rows}"
    write_data(folder, options.rows, state)
    synthetic = Synthetic()
    names = []
    for budget in options.budget or ["4GB", "256MB"]:
        name = f"{budget}{'-' + options.key.replace(',', '_') if options.key else ''}"
        index = folder / f"{name}.faiss"
        if f"build {name}" not in state.done:
            from pipeline.index.build import build_whole
            from pipeline.index.values import VALUES

            config = IndexConfig(memory=parse_size(budget), key=options.key)
            texts = Queries("synthetic texts", tuple(f"text {n}" for n in range(200)), synthetic.texts(200, 0))
            start = time.monotonic()
            built = build_whole(folder, config, texts, columns=columns_of(folder, config))
            (folder / "index.faiss").replace(index)
            if (folder / VALUES).exists():
                (folder / VALUES).replace(index.with_suffix(".values"))
            made = {
                "key": built.key,
                "params": built.params,
                "recall": built.recall,
                **built.build,
                "index_bytes": index.stat().st_size,
            }
            state.keep(f"build {name}", {**made, "wall_s": round(time.monotonic() - start, 1)})
        show(f"build {name}", state.done[f"build {name}"])
        names.append(name)
        if options.against:
            compare(options, [(options.against, name), (HERE, name)], state)
        elif options.peer:
            compare(options, [(HERE, PEER), (HERE, name)], state)
        elif not options.beside:
            measure(folder, index, name, state, synthetic, options)
    if options.beside:
        compare(options, [(HERE, name) for name in names], state)
    if options.json:
        options.json.write_text(json.dumps(state.done, indent=1) + "\n", encoding="utf-8")


def columns_of(folder: Path, config: IndexConfig) -> tuple[SplitColumn, ...]:
    """The columns whose values get lists of their own, as in a build."""
    from pipeline.index.build import VALUE_MEMORY
    from pipeline.index.splitting import candidate_columns, split_columns
    from pipeline.schema import read_parquet

    names = candidate_columns(COLUMNS)
    return split_columns([read_parquet(folder / FILES["metadata"], names)], names, config.memory // VALUE_MEMORY)


class State:
    """The finished steps; the file is rewritten after each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[str, dict[str, object]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def keep(self, step: str, figures: dict[str, object]) -> None:
        self.done[step] = figures
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.done, indent=1), encoding="utf-8")
        part.replace(self.path)


def write_data(folder: Path, rows: int, state: State) -> None:
    """Write the files of an index over synthetic rows. Starts over if it was interrupted."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if "data" in state.done:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    synthetic, start = Synthetic(), time.monotonic()
    vectors = np.lib.format.open_memmap(folder / FILES["vectors"], "w+", np.float16, (rows, DIM))
    clusters = np.empty(rows, np.int32)
    for low in range(0, rows, BLOCK):
        high = min(low + BLOCK, rows)
        vectors[low:high], clusters[low:high] = synthetic.images(high - low, low // BLOCK)
    vectors.flush()
    np.save(folder / FILES["keys"], np.arange(rows, dtype=np.int64))
    np.save(folder / FILES["norms"], np.ones(rows, np.float32))
    columns = {
        "key": np.arange(rows),
        "share": (np.random.default_rng(7).permutation(rows) + 0.5) / rows,
        "style": pa.array([f"style {n}" for n in range(10)]).take(pa.array(clusters % 10)),
    }
    pq.write_table(pa.table(columns), folder / FILES["metadata"], row_group_size=5_000)
    state.keep("data", {"rows": rows, "dim": DIM, "seconds": round(time.monotonic() - start, 1)})


def opened(folder: Path, index: Path, build: Mapping[str, object]) -> Searcher:
    """A Searcher over the files in `folder`, as for a published database."""
    home = folder / "home"
    db = RetrievalDatabase("bench", str(home))
    where = Path(db.storage.url)
    where.mkdir(parents=True, exist_ok=True)
    files = {}
    sources = {**{role: folder / name for role, name in FILES.items()}, "faiss": index}
    if index.with_suffix(".values").exists():
        sources["values"] = index.with_suffix(".values")
    for role, source in sources.items():
        link = where / source.name
        if not link.exists():
            os.link(source, link)
        size = source.stat().st_size
        digest = (
            hashlib.sha256(source.read_bytes()).hexdigest() if size <= VERIFIED else ""
        )  # only small files are compared
        files[role] = Artifact(source.name, digest, size)
    params = build["params"]
    assert isinstance(params, dict)
    entry = IndexEntry("bench", "faiss", str(build["key"]), 0, files, params)
    encoder = EncoderRecord("synthetic", DIM, "0" * 64, "openclip", trained=False)
    return Searcher(db, Version("bench", {}, encoder, COLUMNS, (), entry, {}, "drop", ""))


def measure(
    folder: Path, index: Path, name: str, state: State, synthetic: Synthetic, options: argparse.Namespace
) -> None:
    steps = {f"{share:g}": f"search {name} {100 * share:g} %" for share in SHARES} | {
        "style": f"search {name} one style"
    }
    if all(step in state.done for step in steps.values()):
        for step in steps.values():
            show(step, state.done[step])
        return
    start = time.monotonic()
    half = max(1, options.queries)
    queries = {"text": synthetic.texts(half, 1), "image": synthetic.images(half, 10**9)[0]}
    with opened(folder, index, state.done[f"build {name}"]) as searcher:
        searcher.search(queries["text"][:2], K, "share >= 0 AND style IS NOT NULL")  # columns and pages in memory
        searcher.search(queries["text"][:1], K, exact=True)
        print(
            f"open and warm: {time.monotonic() - start:.1f} s, {resident() >> 20} MB without mapped files", flush=True
        )
        batch = f"search {name} 64 queries under one filter of 10 %"
        if batch not in state.done:
            state.keep(batch, one_batch(searcher, synthetic.texts(64, 2)))
        show(batch, state.done[batch])
        for what, step in steps.items():
            if step not in state.done:
                state.keep(step, {kind: one_kind(searcher, vectors, what) for kind, vectors in queries.items()})
            show(step, state.done[step])


def filter_for(what: str, number: int) -> str:
    """The number-th filter that passes a share of the rows, or one style; no two filters have the same text."""
    if what == "style":
        return f"style = 'style {number % 10}' AND share > -{number + 1}"
    share = float(what)
    low = 0.0 if share == 1.0 else (number * 0.37) % (1.0 - share)
    return f"share >= {low:.9f} AND share < {low + share:.9f} AND share > -{number + 1}"


def one_kind(searcher: Searcher, queries: NDArray[np.float32], what: str) -> dict[str, object]:
    """Recall and times of all three ways for queries of one kind."""
    own: list[list[float]] = []
    brute, post, hits, post_hits, post_found, wanted, matched = [], [], 0, 0, 0, 0, 0
    plans: dict[str, int] = {}
    for number, query in enumerate(queries):
        where = filter_for(what, number)
        busy, start = time.process_time(), time.perf_counter()
        results = searcher.search(query[None], K, where)
        whole, busy = time.perf_counter() - start, time.process_time() - busy
        plan = results.plan
        own.append([whole, busy, plan.filter_s, plan.search_s, plan.rerank_s])
        plans[plan.plan] = plans.get(plan.plan, 0) + 1
        matched += plan.matched
        exact = searcher.search(query[None], K, f"({where}) AND true", exact=True)
        brute.append(exact.plan.filter_s + exact.plan.search_s)
        start = time.perf_counter()
        kept = searcher.matching(f"({where}) AND true AND true")
        unfiltered = searcher.search(query[None], OVERFETCH * K)
        passing = unfiltered.scores[0] if kept is None else unfiltered.scores[0][np.isin(unfiltered.ordinals[0], kept)]
        post.append(time.perf_counter() - start)
        bar = exact.scores[0, -1] - 1e-3
        hits += int((results.scores[0] >= bar).sum())
        post_hits += int((passing[:K] >= bar).sum())
        post_found += min(K, len(passing))
        wanted += exact.keys.shape[1]
    parts = 1000 * np.array(own)
    names = ("p50_ms", "cpu_p50_ms", "filter_p50_ms", "search_p50_ms", "rerank_p50_ms")
    return {
        "matched": matched // len(queries),
        "recall": hits / wanted,
        **dict(zip(names, np.median(parts, axis=0).tolist(), strict=True)),
        "p95_ms": float(np.quantile(parts[:, 0], 0.95)),
        "brute_p50_ms": float(1000 * np.median(brute)),
        "brute_p95_ms": float(1000 * np.quantile(brute, 0.95)),
        "post_recall": post_hits / wanted,
        "post_found_of_k": post_found / wanted * K,
        "post_p50_ms": float(1000 * np.median(post)),
        "plans": plans,
        "queries": len(queries),
        "load": os.getloadavg()[0],
    }


def one_batch(searcher: Searcher, queries: NDArray[np.float32], rounds: int = 5) -> dict[str, object]:
    """Times of searching all queries at once, in each round with a different filter that passes 10 % of the rows."""
    times = []
    for number in range(rounds):
        busy, start = time.process_time(), time.perf_counter()
        plan = searcher.search(queries, K, filter_for("0.1", 500 + number)).plan
        times.append([time.perf_counter() - start, time.process_time() - busy])
    whole, busy = (1000 * np.median(times, axis=0)).tolist()
    return {"queries": len(queries), "p50_ms": whole, "cpu_p50_ms": busy, "plan": plan.plan, "load": os.getloadavg()[0]}


def cases(number: int) -> dict[str, tuple[int, str]]:
    """The number-th search of each case of a comparison: how many queries, and the filter."""
    style = f"style ={' ' * (1 + number % 50)}'style {number % 10}'"  # a text that was not seen before
    return {
        "all, no filter": (1, ""),
        "all, by a filter": (1, filter_for("1", number)),
        "10 %": (1, filter_for("0.1", number)),
        "1 %": (1, filter_for("0.01", number)),
        "0.1 %": (1, filter_for("0.001", number)),
        "a style and another condition": (1, filter_for("style", number)),
        "a style, as in a view": (1, style),
        "a tenth of a style": (1, f"{style} AND {filter_for('0.1', number)}"),
        "64 queries, 10 %": (64, filter_for("0.1", number)),
        "64 queries, a style": (64, style),
    }


def profile(options: argparse.Namespace) -> None:
    """Search --rounds times, each time with a new query and filter, and print where the processor time goes."""
    from jobs.profiles import profiling, table

    folder, name = options.out / f"rows-{options.rows}", options.budget[0]
    texts = Synthetic().texts(4 * 64, 1)
    built = State(options.out / f"state-{options.rows}.json").done[f"build {name}"]
    with opened(folder, folder / f"{name}.faiss", built) as searcher:

        def search(number: int) -> None:
            count, where = cases(number)[options.profile]
            searcher.search(np.take(texts, range(number, number + count), axis=0, mode="wrap"), K, where)

        for number in range(50):  # brings columns, lists and pages into memory
            search(number)
        busy = time.process_time()
        for number in range(50, 50 + options.rounds):
            search(number)
        busy = (time.process_time() - busy) / options.rounds
        with profiling() as profiles:
            for number in range(50, 50 + options.rounds):
                search(number)
    print(table(profiles, 15))
    print(f"{options.rounds} searches; without the profile {1000 * busy:.2f} ms each; load {os.getloadavg()[0]:.1f}")


def answer(options: argparse.Namespace) -> None:
    """Answer searches: one JSON object a line on standard input, one on standard output."""
    folder, name = options.out / f"rows-{options.rows}", options.budget[0]
    texts = Synthetic().texts(4 * 64, 1)
    if name == PEER:
        answer_as_peer(folder, texts)
        return
    built = State(options.out / f"state-{options.rows}.json").done[f"build {name}"]
    with opened(folder, folder / f"{name}.faiss", built) as searcher:
        for line in sys.stdin:
            asked = json.loads(line)
            queries = np.take(texts, np.arange(asked["first"], asked["first"] + asked["count"]), axis=0, mode="wrap")
            busy, start = time.process_time(), time.perf_counter()
            results = searcher.search(queries, K, asked["where"], exact=asked["exact"])
            whole, busy, plan = time.perf_counter() - start, time.process_time() - busy, results.plan
            parts = plan.filter_s + plan.search_s + plan.rerank_s
            figures = {"wall": whole, "cpu": busy, "explained": parts / whole, "plan": plan.plan}
            print(json.dumps({**figures, "matched": plan.matched, "scores": results.scores.tolist()}), flush=True)


class Peer:
    """faiss and NumPy alone: an inverted file of half-precision vectors, built if it is not there, and columns in memory."""

    def __init__(self, folder: Path, texts: NDArray[np.float32]) -> None:
        import faiss

        from pipeline.schema import read_parquet

        file, vectors = folder / "peer.faiss", np.load(folder / FILES["vectors"], mmap_mode="r")
        if not file.exists():
            index = faiss.index_factory(DIM, PEER, faiss.METRIC_INNER_PRODUCT)
            chosen = np.sort(np.random.default_rng(0).choice(len(vectors), min(len(vectors), 64 * 1024), replace=False))
            index.train(vectors[chosen].astype(np.float32))
            for low in range(0, len(vectors), BLOCK):
                index.add(vectors[low : low + BLOCK].astype(np.float32))
            faiss.write_index(index, str(file))
            del index  # it would be in memory twice
        self.index, self.texts = faiss.read_index(str(file)), texts
        table = read_parquet(folder / FILES["metadata"], ["share", "style"])
        self.styles = [f"style {number}" for number in range(10)]
        self.columns = {"share": table["share"].to_numpy(), "style": self._numbers(table["style"].to_pylist())}
        self.probes: dict[str, int] = {}

    def _numbers(self, styles: list[str]) -> NDArray[np.uint8]:
        return np.array([self.styles.index(style) for style in styles], np.uint8)

    def mask(self, where: str) -> NDArray[np.bool_]:
        """The rows that match conditions joined by AND."""
        signs = {"=": np.equal, ">": np.greater, ">=": np.greater_equal, "<": np.less}
        mask = np.ones(len(self.columns["share"]), bool)
        for condition in filter(None, where.split(" AND ")):
            column, sign, value = condition.split(maxsplit=2)
            wanted = self.styles.index(value.strip("'")) if column == "style" else float(value)
            mask &= signs[sign](self.columns[column], wanted)
        return mask

    def search(self, queries: NDArray[np.float32], where: str, probes: int) -> tuple[NDArray[np.float32], int]:
        """Scores (Q, K), -2 for a row that was not found, and how many rows match."""
        import faiss

        mask = self.mask(where)
        selector = faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little")) if where else None
        scores, found = self.index.search(queries, K, params=faiss.SearchParametersIVF(sel=selector, nprobe=probes))
        return np.where(found < 0, np.float32(-2), scores), int(mask.sum())

    def tune(self, case: str) -> int:
        """The smallest nprobe with a recall of 0.95 over 20 searches of the case."""
        asked = [(self.texts[number : number + 1], cases(number)[case][1]) for number in range(100, 120)]
        best = [self.search(query, where, self.index.nlist)[0] for query, where in asked]
        probes = 4
        while probes < self.index.nlist:
            probes *= 2
            found = [self.search(query, where, probes)[0] for query, where in asked]
            if np.mean([(one >= bar[:, -1:] - 1e-3).mean() for one, bar in zip(found, best, strict=True)]) >= 0.95:
                break
        return probes


def answer_as_peer(folder: Path, texts: NDArray[np.float32]) -> None:
    """answer() with faiss and NumPy alone."""
    peer = Peer(folder, texts)
    for line in sys.stdin:
        asked = json.loads(line)
        case = asked["case"]
        probes = peer.probes[case] = peer.probes.get(case) or peer.tune(case)
        queries = np.take(texts, np.arange(asked["first"], asked["first"] + asked["count"]), axis=0, mode="wrap")
        busy, start = time.process_time(), time.perf_counter()
        scores, matched = peer.search(queries, asked["where"], probes)
        whole, busy = time.perf_counter() - start, time.process_time() - busy
        figures = {"wall": whole, "cpu": busy, "explained": 1.0, "plan": f"nprobe {probes}"}
        print(json.dumps({**figures, "matched": matched, "scores": scores.tolist()}), flush=True)


def compare(options: argparse.Namespace, versions: list[tuple[Path, str]], state: State) -> None:
    """Print the times and recall of two (checkout, name of an index) in each case, and the ratio of their times."""
    name = " beside ".join(dict.fromkeys(index for _, index in versions))
    command = [sys.executable, __file__, "--answer", "--out", str(options.out), "--rows", str(options.rows)]
    processes = [
        subprocess.Popen(
            [*command, "--budget", index],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(path.resolve())},
        )
        for path, index in versions
    ]

    def ask(
        version: int, number: int, count: int, where: str, exact: bool = False, case: str = "all, no filter"
    ) -> dict[str, object]:
        process = processes[version]
        assert process.stdin is not None and process.stdout is not None
        asked = {"first": number, "count": count, "where": where, "exact": exact, "case": case}
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        reply: dict[str, object] = json.loads(process.stdout.readline())
        return reply

    for version in (0, 1):
        ask(version, 0, 1, "", exact=True)  # maps all pages of the vectors
    figures: dict[str, list[list[tuple[float, ...]]]] = {case: [[], []] for case in cases(0)}
    plans = {case: ["", ""] for case in figures}  # of the last search
    for number in range(-10, options.rounds):  # the first ten bring columns, lists and pages into memory
        for case, (count, where) in cases(number + 10).items():
            if count > 1 and number % 4:
                continue
            turns = ((0, 1), (1, 0))[number % 2]
            replies = {version: ask(version, number + 10, count, where, case=case) for version in turns}
            if number < 0:
                continue
            best = np.array(ask(1, number + 10, count, where, exact=True)["scores"])
            for version, reply in replies.items():
                scores = np.array(reply["scores"])
                if scores.shape != best.shape:
                    raise SystemExit(f"{case}: {scores.shape} results instead of {best.shape}: {where}")
                recall = float((scores >= best[:, -1:] - 1e-3).mean())
                times = (float(str(reply[part])) for part in ("wall", "cpu", "explained"))
                figures[case][version].append((*times, recall))
                plans[case][version] = str(reply["plan"])
    for process in processes:
        process.communicate()
    table = {}
    for case, (before, after) in figures.items():
        old, new = (np.array(one) for one in (before, after))
        middle = [np.median(one[:, :3], axis=0).tolist() for one in (old, new)]
        table[case] = {
            "rounds": len(new),
            "cpu_ms": [1000 * one[1] for one in middle],
            "ratio": float(middle[0][1] / middle[1][1]),
            "wall_ms": [1000 * one[0] for one in middle],
            "recall": [float(one[:, 3].mean()) for one in (old, new)],
            "explained": [one[2] for one in middle],
            "plans": plans[case],
        }
        show(case, table[case])
    state.keep(f"compare {name}", {**table, "load": os.getloadavg()})


def resident() -> int:
    """Resident bytes of this process without mapped files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def show(step: str, figures: Mapping[str, object]) -> None:
    def short(value: object) -> object:
        if isinstance(value, dict):
            return {key: short(item) for key, item in value.items()}
        return round(value, 3) if isinstance(value, float) else value

    print(f"{step}: {json.dumps(short(figures))}", flush=True)


if __name__ == "__main__":
    main()
