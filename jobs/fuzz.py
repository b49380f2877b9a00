"""Fuzz the parsers of foreign input: does any input end in anything other than a result or an RdmpipeError?

    python jobs/fuzz.py --minutes 10 [--seed 0] [--only tar,npz] [--json]

Inputs are made by hypothesis, from scratch and by changing valid examples; the same seed makes the same inputs. Each
parser gets an equal share of the time. An input that ends in another exception, or that is stopped after `--slow` seconds, is
a finding: it is printed with its parser, and the exit code is 1. Writes only to a temporary folder. Does not find crashes of
the process: a crash ends the run, and the last line on standard error names the parser. An input that needs more than
`--memory` is a finding, or also ends the run. It cannot stop a call into a library that never returns to Python.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from pipeline.errors import RdmpipeError
from rdm.errors import RDMError

Parser = Callable[[bytes], object]


@dataclass
class Figures:
    """The counts and findings of one parser."""

    parser: str
    inputs: int = 0
    parsed: int = 0
    refused: int = 0  # an RdmpipeError
    slowest_s: float = 0.0
    findings: list[str] = field(default_factory=list)


# ---- inputs


def changed(sound: bytes) -> SearchStrategy[bytes]:
    """A valid input with some of its bytes replaced, removed, inserted or repeated."""
    place = st.integers(0, max(0, len(sound) - 1))
    edit = st.tuples(
        st.sampled_from(("replace", "remove", "insert", "repeat")), place, st.binary(min_size=1, max_size=24)
    )

    def apply(edits: list[tuple[str, int, bytes]]) -> bytes:
        data = bytearray(sound)
        for kind, at, piece in edits:
            if kind == "replace":
                data[at : at + len(piece)] = piece
            elif kind == "remove":
                del data[at : at + len(piece) * 7]
            elif kind == "insert":
                data[at:at] = piece
            else:
                data[at:at] = data[at : at + len(piece) * 29] * 3
        return bytes(data)

    return st.lists(edit, min_size=1, max_size=6).map(apply)


# A library that was built with -ffast-math turns subnormal numbers into zero, and hypothesis then refuses to draw them.
FLOATS = st.floats(allow_subnormal=False)


def texts(pieces: tuple[str, ...]) -> SearchStrategy[bytes]:
    """Text made of pieces of a language, numbers and arbitrary characters."""
    piece = st.one_of(st.sampled_from(pieces), st.text(max_size=8), st.integers().map(str), FLOATS.map(str))
    deep = st.sampled_from(pieces).flatmap(lambda one: st.integers(1, 4000).map(lambda count: one * count))
    return st.one_of(st.lists(piece, max_size=40), st.lists(deep, max_size=3)).map(
        lambda parts: "".join(parts).encode("utf-8", "surrogatepass")
    )


def json_values() -> SearchStrategy[bytes]:
    leaf = st.one_of(st.none(), st.booleans(), st.integers(), FLOATS, st.text(max_size=12))
    tree = st.recursive(
        leaf, lambda below: st.one_of(st.lists(below), st.dictionaries(st.text(max_size=8), below)), max_leaves=20
    )
    return st.dictionaries(st.sampled_from(("caption", "width", "key", "url", "x")), tree).map(
        lambda value: json.dumps(value).encode()
    )


def sound_tar() -> bytes:
    import tarfile

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in (("a.png", b"x" * 700), ("d" * 150 + "/é.json", b"{}"), ("b.txt", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def sound_npz() -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, embedding=np.ones((5, 4), np.float32), id=np.arange(5))
    return out.getvalue()


def sound_checkpoint(zipped: bool) -> bytes:
    import torch

    out = io.BytesIO()
    value = {"state_dict": {"a": torch.ones(3)}, "n": [1, (2, "x")]}
    torch.save(value, out, _use_new_zipfile_serialization=zipped)
    return out.getvalue()


PICKLED = (
    b"(",
    b")",
    b"\x85",
    b"\x86",
    b"}",
    b"]",
    b"s",
    b"a",
    b"e",
    b"u",
    b"q\x01",
    b"h\x01",
    b"0",
    b"2",
    b"R",
    b"b",
    b"N",
    b".",
)


def pickles() -> SearchStrategy[bytes]:
    """torch's zip format around a pickle of random instructions."""

    def packed(parts: list[bytes]) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02" + b"".join(parts))
            archive.writestr("archive/version", b"3\n")
        return out.getvalue()

    many = st.sampled_from(PICKLED).flatmap(lambda one: st.integers(1, 20_000).map(lambda count: one * count))
    return st.lists(st.one_of(st.sampled_from(PICKLED), many), max_size=60).map(packed)


def sound_version() -> bytes:
    from pipeline.config import canonical_json

    encoder = {"name": "mini", "dim": 4, "weights": "w", "preprocess": "openclip", "precision": "fp32", "trained": True,
               "has_text": True}  # fmt: skip
    file = {"path": "a", "bytes": 1, "sha256": "0" * 64}
    index = {"id": "i", "kind": "exact", "key": "Flat", "rows": 1, "files": {"keys": file}, "params": {}, "recall": {},
             "build": {}}  # fmt: skip
    counts = {"input": 1, "ok": 1, "filtered": 0, "failed": 0, "reasons": {}, "duplicates": 0}
    table = {"database": "x", "manifest": {}, "encoder": encoder, "columns": {"year": "int64"}, "index": index,
             "shards": [{"id": 0, "ok": 1, "artifact": file}], "counts": counts, "images": "keep", "plan": "p",
             "gone": None, "parent": ""}  # fmt: skip
    return canonical_json(table).encode()


def sound_pictures() -> list[bytes]:
    from PIL import Image

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8))
    made = []
    for form, options in (("JPEG", {"progressive": True}), ("PNG", {}), ("TIFF", {"compression": "tiff_lzw"}),
                          ("GIF", {}), ("WEBP", {}), ("BMP", {})):  # fmt: skip
        out = io.BytesIO()
        image.save(out, form, **options)
        made.append(out.getvalue())
    return made


RECEIPT = {
    "stage": "embed", "shard": 3, "config": "c", "input": "f", "ok": 5, "filtered": 0, "failed": 0, "reasons": {},
    "artifacts": [{"path": "a", "bytes": 1, "sha256": "0"}],
}  # fmt: skip

MANIFEST = """name = "x"
title = "X"
licence = "CC0-1.0"
terms = "none"
opt_out = "write to us"
encoder = "mini"
expected_rows = 10
[source]
kind = "folder"
path = "/tmp/x"
"""

JOB = """command = "build-index"
arguments = ["wikiart", "--limit", "10"]
timeout = "6h"
[environment]
variables = { A = "b" }
secrets = ["HF_TOKEN"]
[schedule]
cron = "15 2 * * mon-fri"
timezone = "Europe/Berlin"
"""

TOML = (
    "[",
    "]",
    "[[",
    "{",
    "}",
    "=",
    '"',
    "'''",
    ",",
    "\n",
    "a",
    "source",
    "kind",
    "name",
    "true",
    "1979-05-27",
    "\\u0000",
)

SQL = ("(", ")", " AND ", " OR ", "NOT ", "year", "style", "caption", "'", '"', " = ", " > ", "1", "concat(", ",", "lower(",
       " LIKE ", "::", "[", "CASE WHEN ", " END", "--", ";", "/*", "SELECT ", " IN (")  # fmt: skip

FILTERS = (
    b"year > 1870 AND lower(style) LIKE '%a' OR caption IN ('x', 'y')",
    b"coalesce(year, 0) BETWEEN 1 AND 3 AND NOT regexp_matches(caption, '^a+$')",
    b"CASE WHEN year IS NULL THEN style = 'a' ELSE TRY_CAST(caption AS DATE) > DATE '1900-01-01' END",
)

# ---- parsers


def parsers(folder: Path) -> dict[str, tuple[SearchStrategy[bytes], Parser]]:
    """By name: the strategy for inputs, and the function that reads one."""
    import pyarrow as pa

    from pipeline.catalog import check_manifest
    from pipeline.database import Version
    from pipeline.exchange.npz import read_parts
    from pipeline.execution import Receipt
    from pipeline.filters import filter_mask
    from pipeline.generation import read_prompts
    from pipeline.images import decode
    from pipeline.scheduling import load_job
    from pipeline.scheduling.cron import parse_cron
    from pipeline.sources import SourceOptions, open_source
    from pipeline.sources.archive import open_archive
    from pipeline.sources.manifest import Manifest, SourceSpec
    from rdm.pickles import load_tensors

    table = pa.table({"year": pa.array([1870, None], pa.int64()), "style": ["a", "b"], "caption": ["x", None]})

    def file(name: str, data: bytes) -> Path:
        path = folder / name
        path.write_bytes(data)
        return path

    def webdataset(data: bytes) -> object:
        import tarfile

        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            for name, body in (("0.png", b"\x89PNG\r\n\x1a\n"), ("0.json", data)):
                info = tarfile.TarInfo(name)
                info.size = len(body)
                archive.addfile(info, io.BytesIO(body))
        spec = SourceSpec(kind="webdataset", path=str(file("w.tar", out.getvalue())))
        manifest = Manifest(name="x", title="x", source=spec, licence="x", terms="x", opt_out="x")
        source = open_source(manifest, SourceOptions())
        return [sample for shard in source.plan() for sample in source.read(shard.spec)]

    def archive(data: bytes) -> object:
        found = open_archive(path=str(file("a.tar", data)), options=SourceOptions())
        return list(found.read(found.members().to_pylist()))

    def prompts(suffix: str) -> Parser:
        return lambda data: read_prompts(str(file(f"p{suffix}", data)))

    tar = sound_tar()
    receipt = json.dumps(RECEIPT).encode()
    return {
        "filter": (
            st.one_of(texts(SQL), *map(changed, FILTERS)),
            lambda data: filter_mask(data.decode("utf-8", "replace"), table),
        ),
        "manifest": (
            st.one_of(changed(MANIFEST.encode()), texts(TOML)),
            lambda data: check_manifest(file("x.toml", data)),
        ),
        "job": (st.one_of(changed(JOB.encode()), texts(TOML)), lambda data: load_job(str(file("job.toml", data)))),
        "prompts.csv": (
            st.one_of(changed(b'prompt,seed,k\n"a, b",1,2\nc,3,\n'), st.binary(max_size=200)),
            prompts(".csv"),
        ),
        "prompts.jsonl": (st.one_of(json_values(), changed(b'{"prompt": "a", "seed": 1}\n' * 3)), prompts(".jsonl")),
        "tar": (st.one_of(changed(tar), st.binary(max_size=2000)), archive),
        "tar.gz": (changed(gzip.compress(tar)), archive),
        "webdataset": (st.one_of(json_values(), texts(("[", "{", '"a":', "1", ",", "]", "}", "\\ud800"))), webdataset),
        "npz": (changed(sound_npz()), lambda data: list(read_parts(file("x.npz", data)))),
        "checkpoint": (
            st.one_of(pickles(), changed(sound_checkpoint(True)), changed(sound_checkpoint(False))),
            lambda data: load_tensors(file("x.ckpt", data)),
        ),
        "receipt": (
            st.one_of(changed(receipt), json_values()),
            lambda data: Receipt.from_json(data.decode("utf-8", "replace")),
        ),
        "version": (
            st.one_of(changed(sound_version()), json_values()),
            lambda data: Version.from_json(data.decode("utf-8", "replace")),
        ),
        "cron": (
            st.one_of(
                texts(("*", "/", "-", ",", " ", "mon", "jan", "0", "59", "\n", "²", "L", "#")),
                changed(b"15 2 * * mon-fri"),
                changed(b"*/5 0-6,22 1,15 jan,feb 7"),
            ),
            lambda data: parse_cron(data.decode("utf-8", "replace")),
        ),
        "picture": (st.one_of(*map(changed, sound_pictures()), st.binary(max_size=300)), decode),
    }


class _TooSlowError(BaseException):
    """Raised inside a parser when its time is over. Not an Exception, so that no parser catches it."""


def _stop(number: int, frame: object) -> None:
    raise _TooSlowError


def fuzz(
    name: str,
    inputs: SearchStrategy[bytes],
    parse: Parser,
    seconds: float,
    start: int = 0,
    slow: float = 10.0,
    most: int = 0,
) -> Figures:
    """Run the parser on inputs for a number of seconds, and on at most `most` inputs if that is not 0. Runs in the main
    thread."""
    figures = Figures(name)
    deadline, round_ = time.monotonic() + seconds, 0
    before = signal.signal(signal.SIGALRM, _stop)
    while time.monotonic() < deadline and not 0 < most <= figures.inputs:

        @seed(start + round_)
        @settings(
            max_examples=min(200, most - figures.inputs) if most else 200,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(inputs)
        def one(data: bytes) -> None:
            if time.monotonic() > deadline:
                return
            figures.inputs += 1
            began = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, slow)
            try:
                parse(data)
                signal.setitimer(signal.ITIMER_REAL, 0)
                figures.parsed += 1
            except (RdmpipeError, RDMError):
                figures.refused += 1
            except _TooSlowError:
                figures.findings.append(f"stopped after {slow:g} s: {data[:300]!r}\n{traceback.format_exc(limit=-6)}")
            except Exception:  # a finding: it is listed, and the run continues
                figures.findings.append(f"{data[:300]!r}\n{traceback.format_exc(limit=-6)}")
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            figures.slowest_s = max(figures.slowest_s, round(time.monotonic() - began, 3))

        one()
        round_ += 1
    signal.signal(signal.SIGALRM, before)
    return figures


def told(one: Figures) -> str:
    """The figures of a parser and its first findings, as text."""
    line = (
        f"{one.parser:14s} {one.inputs:7,} inputs, {one.parsed:7,} parsed, {one.refused:7,} refused, slowest "
        f"{one.slowest_s:.2f} s, findings {len(one.findings)}"
    )
    return "\n".join([line, *(f"  {finding}" for finding in one.findings[:3])])


def main() -> int:
    wanted = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    wanted.add_argument("--minutes", type=float, default=10.0)
    wanted.add_argument("--seed", type=int, default=0)
    wanted.add_argument("--only", default="", help="names of parsers, separated by commas")
    wanted.add_argument(
        "--slow", type=float, default=10.0, help="seconds after which an input is stopped and counts as a finding"
    )
    wanted.add_argument("--memory", type=float, default=12.0, help="address space that the process may use, in GiB")
    wanted.add_argument("--json", action="store_true")
    args = wanted.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (int(args.memory * (1 << 30)), resource.RLIM_INFINITY))
    with tempfile.TemporaryDirectory(prefix="rdmpipe-fuzz-") as folder:
        os.environ["RDMPIPE_CACHE"], os.environ["RDMPIPE_HOME"] = f"{folder}/cache", f"{folder}/home"
        known = parsers(Path(folder))
        chosen = [name for name in known if not args.only or name in args.only.split(",")]
        found = []
        for name in chosen:
            print(f"fuzzing {name}", file=sys.stderr, flush=True)
            found.append(fuzz(name, *known[name], args.minutes * 60 / len(chosen), args.seed, args.slow))
            if not args.json:
                print(told(found[-1]), flush=True)
    if args.json:
        print(json.dumps([{**asdict(one), "findings": one.findings[:3], "found": len(one.findings)} for one in found]))
    return 1 if any(one.findings for one in found) else 0


if __name__ == "__main__":
    sys.exit(main())
