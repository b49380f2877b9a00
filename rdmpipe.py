"""rdmpipe in Python: build a retrieval database, search it, and generate pictures from it.

    import rdmpipe

    rdmpipe.build("atelier", limit=200)
    with rdmpipe.open("atelier") as art:
        found = art.search("a harbour at dawn", k=19, where="subject <> 'cat'")
        found.table  # pyarrow.Table
        found.show()  # a contact sheet (PIL image), which a notebook renders
    run = rdmpipe.generate("a castle by the sea", db="atelier-ukiyo_e", steps=12, sampler="unipc")
    run.table, run.folder, run.show()

Each function corresponds to a command, with the same defaults, files and errors: `build` to `rdmpipe
build-index`, `open(...).search` to `rdmpipe search`. All databases, runs and models are in one folder, the home: the argument
`home`, else the environment variable RDMPIPE_HOME, else ~/.local/share/rdmpipe.

Importing this module loads neither torch nor any other large library: a function loads what it needs when it is called. Every
error that is raised on purpose is an `RdmpipeError`. Reads and writes the home. Does not promise that an open `Database` can be
used by several threads at once.
"""

from __future__ import annotations

import base64
import importlib
import importlib.util
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray
    from PIL.Image import Image

    from pipeline.building import BuildSummary
    from pipeline.catalog import Selection
    from pipeline.encoders import Encoder
    from pipeline.errors import BudgetError as BudgetError
    from pipeline.errors import BusyError as BusyError
    from pipeline.errors import ConfigError as ConfigError
    from pipeline.errors import ConflictError as ConflictError
    from pipeline.errors import DamagedError as DamagedError
    from pipeline.errors import DatabaseError as DatabaseError
    from pipeline.errors import DiskFullError as DiskFullError
    from pipeline.errors import EncoderError as EncoderError
    from pipeline.errors import FilterError as FilterError
    from pipeline.errors import IndexBuildError as IndexBuildError
    from pipeline.errors import JobError as JobError
    from pipeline.errors import ManifestError as ManifestError
    from pipeline.errors import ModelError as ModelError
    from pipeline.errors import NoRepositoryError as NoRepositoryError
    from pipeline.errors import PictureError as PictureError
    from pipeline.errors import PromptError as PromptError
    from pipeline.errors import RdmpipeError as RdmpipeError
    from pipeline.errors import RecallError as RecallError
    from pipeline.errors import SourceError as SourceError
    from pipeline.evaluation import Summary
    from pipeline.execution import Backend as Backend
    from pipeline.execution import Progress
    from pipeline.execution import StageFailed as StageFailed
    from pipeline.generation import GenerateSummary
    from pipeline.index import SearchPlan
    from pipeline.retrieval import Searcher
    from rdm import RDM

    Part: TypeAlias = str | Path | int
    """A text, a Path of a picture file, or the key of a row."""

    Query: TypeAlias = Part | Mapping[Part, float] | NDArray[np.float32]

    __version__: str

__all__ = [
    "Backend",
    "BudgetError",
    "BuildResult",
    "BusyError",
    "ConfigError",
    "ConflictError",
    "DamagedError",
    "Database",
    "DatabaseError",
    "DatabaseMap",
    "DiskFullError",
    "EncoderError",
    "Evaluation",
    "FilterError",
    "IndexBuildError",
    "JobError",
    "ManifestError",
    "ModelError",
    "NoRepositoryError",
    "PictureError",
    "PromptError",
    "RdmpipeError",
    "RecallError",
    "Run",
    "SearchResult",
    "SourceError",
    "StageFailed",
    "__version__",
    "build",
    "evaluate",
    "generate",
    "load_model",
    "open",
    "train",
]

_LAZY: dict[str, str] = {name: "pipeline.errors" for name in __all__ if name.endswith("Error")} | {
    "Backend": "pipeline.execution",
    "StageFailed": "pipeline.execution",
}


def _require_own_pipeline() -> None:
    """Raise ImportError if `import pipeline` would find another module than the package beside this file."""
    own = Path(__file__).resolve().with_name("pipeline")
    found = importlib.util.find_spec("pipeline")
    if found is None:
        raise ImportError(
            f"rdmpipe needs its package `pipeline`, expected at {own}; it is not there. Install rdmpipe again: "
            "python -m pip install --force-reinstall --no-deps rdmpipe"
        )
    place = Path(found.origin).resolve() if found.origin else None
    if place is None or place.parent != own:
        where = place or next(iter(found.submodule_search_locations or ()), "another module")
        raise ImportError(
            f"rdmpipe needs its own package `pipeline` ({own}), but Python finds {where} first. Rename that module, or start "
            "Python in another folder, or leave the script's folder out of the path: python -P SCRIPT"
        )


_require_own_pipeline()


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name == "__version__":
            return importlib.import_module("pipeline.installation").version()
        if name in _LAZY:
            return getattr(importlib.import_module(_LAZY[name]), name)
        raise AttributeError(f"module 'rdmpipe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


# ---- databases


def build(
    target: str | Path,
    *,
    name: str = "",
    encoder: str = "",
    images: Literal["", "keep", "thumbnail", "drop"] = "",
    where: str = "",
    limit: int = 0,
    shards: tuple[int, int] | None = None,
    refresh: bool = False,
    memory: int | str = "4GB",
    min_recall: float = 0.95,
    device: str = "auto",
    backend: Backend | None = None,
    home: str | Path | None = None,
    progress: bool = True,
) -> BuildResult:
    """Build a retrieval database, or continue an unfinished build. A finished database is not changed.

    Args:
        target: A data set's name (`wikiart`), a manifest (a .toml file), or a folder of pictures.
        name: The database's name; empty: the data set's or the folder's name.
        encoder: `mini`, `vit-b-32`, `vit-l-14`, `open_clip:ARCH/TAG`, ...; empty: the manifest's (a folder: `vit-l-14`).
        images: What is kept of the pictures after embedding; empty: a 256-pixel thumbnail if the source can be
            read again, else the pictures.
        where: A SQL expression over the source's columns. Other rows are counted as filtered and neither fetched nor embedded.
        limit: The largest number of rows to read; 0: all.
        shards: A half-open range of shards, as (0, 200); None: all.
        refresh: Read the source again, add new rows, remove rows that are gone, and publish a new version.
        memory: Memory limit for building and searching an approximate index: bytes, or a size such as "4GB".
        min_recall: The lowest recall@19 that is accepted.
        device: auto, cpu, cuda or cuda:N.
        backend: Where the work runs; None: in this process.
        home: The folder of databases; None: RDMPIPE_HOME or the default.
        progress: Whether to show progress on standard error or in the notebook.

    Returns:
        The counts and the published version. `rows in = ok + filtered + failed` always holds.

    Raises:
        ManifestError: The target is unknown, or its manifest is wrong.
        SourceError: The source cannot be read.
        EncoderError: The encoder's weights cannot be loaded or downloaded.
        BudgetError: There is too little memory or disk; raised before work starts.
        StageFailed: Shards failed after their retries. Finished shards are kept: call `build` again.
        IndexBuildError: The index cannot be built.
        RecallError: The recall of every possible index is below `min_recall`.
    """
    from pipeline.building import BuildRequest
    from pipeline.building import build as run_build
    from pipeline.config import parse_size
    from pipeline.execution import Backend as InProcess
    from pipeline.index import IndexConfig
    from pipeline.sources import SourceOptions

    size = memory if isinstance(memory, int) else parse_size(memory, "memory")
    request = BuildRequest(
        target=str(target), name=name, home=_text(home), encoder=encoder, images=images, where=where,
        source=SourceOptions(limit=limit, shards=shards), index=IndexConfig(memory=size, min_recall=min_recall),
        backend=backend or InProcess(), device=device, refresh=refresh,
    )  # fmt: skip
    with _progress(progress) as shown:
        return BuildResult(run_build(request, shown), _text(home))


@dataclass(frozen=True)
class BuildResult:
    """How a build ended. `print` shows the counts, the index's recall and what to do next."""

    summary: BuildSummary
    home: str | None = None

    @property
    def name(self) -> str:
        """The database's name, for `open` and `generate`."""
        return self.summary.name

    @property
    def version(self) -> str:
        """The id of the published version."""
        return self.summary.version

    def open(self, device: str = "auto") -> Database:
        """The database at the version that was built."""
        return open(f"{self.name}@{self.version}", device=device, home=self.home)

    def __str__(self) -> str:
        return self.summary.text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def open(
    name: str, *, encoder: str = "", device: str = "auto", threads: int = 0, home: str | Path | None = None
) -> Database:
    """Open a database for searching.

    Args:
        name: A database (`wikiart`), one version of it (`wikiart@3f0c`), or a view (`artbench-baroque`).
        encoder: The encoder whose vectors are searched, if the database has vectors of several; empty: its own.
        device: Where the encoder runs: auto, cpu, cuda or cuda:N.
        threads: Threads of a search; 0: all cores of this process.
        home: The folder of databases; None: RDMPIPE_HOME or the default.

    Returns:
        An open database. Use it as a context manager, or call `close`.

    Raises:
        DatabaseError: There is no such database or version, or a file of it is missing. The message says what to run.
    """
    from pipeline.catalog import resolve_encoded
    from pipeline.retrieval import open_search

    selection = resolve_encoded(name, encoder, _text(home))
    searcher = open_search(selection.database, selection.version, selection.where, threads)
    return Database(selection, searcher, device)


class Database:
    """An open database at one version: memory-mapped vectors, and the encoder after the first search for a text or a picture.

    Made by `open`. The encoder stays in memory, so that a second search takes milliseconds.
    """

    def __init__(self, selection: Selection, searcher: Searcher, device: str) -> None:
        self._selection, self._searcher, self._device = selection, searcher, device
        self._loaded: list[Encoder] = []

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the mapped files and the encoder."""
        self._searcher.close()
        self._loaded.clear()

    @property
    def name(self) -> str:
        """The name it was opened by."""
        return self._selection.name

    @property
    def version(self) -> str:
        """The id of the version that is open; `name@version` opens the same one later."""
        return self._selection.version.id

    @property
    def columns(self) -> dict[str, str]:
        """The metadata columns and their type names: the columns that `where` can use and `search(...).table` has."""
        return dict(self._searcher.columns)

    def __len__(self) -> int:
        """The number of rows that a search can find; in a view, the rows that match its filter."""
        rows = self._searcher.matching()
        return len(self._searcher.keys) if rows is None else len(rows)

    def __repr__(self) -> str:
        encoder = self._selection.version.encoder.name
        return f"<rdmpipe database {self.name}, version {self.version}: {len(self):,} pictures, encoder {encoder}>"

    def search(
        self,
        query: Query,
        k: int = 19,
        where: str = "",
        *,
        distinct: bool = False,
        exact: bool = False,
    ) -> SearchResult:
        """Find the k pictures nearest to a query, among those that match `where`.

        Args:
            query: A text; a Path of a picture file; the key (int) of a row, which is then left out of the result; several of
                these with weights, such as {"a harbour": 1, "people": -0.5, Path("boat.png"): 0.7}, where a weight below 0
                leads away; or vectors of unit length made by the database's encoder, (D,) for one query or (Q, D) for several.
            k: The number of results for each query. There are always exactly min(k, matching rows).
            where: A SQL expression over `columns`, such as "year > 1870 AND style = 'Realism'".
            distinct: Return files that are equal byte for byte only once.
            exact: Scan all matching rows instead of using an approximate index.

        Returns:
            The results, best first.

        Raises:
            FilterError: `where` is wrong; the message names the nearest column.
            EncoderError: The encoder cannot be loaded, has no text tower, or is not the one that made the database.
            ConfigError: The picture cannot be read, the parts cancel each other out, or the vectors have another shape.
            DatabaseError: There is no row with this key.
        """
        import numpy as np
        import pyarrow as pa

        self._searcher.matching(where)  # a wrong filter is reported before the encoder is loaded
        several = False
        if isinstance(query, str | Path | int | np.integer | Mapping):
            parts = query if isinstance(query, Mapping) else {query: 1.0}
            vectors = self.mix(parts)
            excluded = [int(part) for part in parts if isinstance(part, int | np.integer)]
        else:
            vectors, excluded = np.asarray(query, np.float32), []
            several = vectors.ndim == 2
        found = self._searcher.search(vectors, k, where, exclude_keys=excluded, distinct=distinct, exact=exact)
        table = self._searcher.metadata(found.keys.ravel())
        table = table.add_column(1, "score", pa.array(found.scores.ravel(), pa.float32()))
        if several:
            number = np.repeat(np.arange(len(vectors)), found.keys.shape[1])
            table = table.add_column(0, "query", pa.array(number, pa.int32()))
        return SearchResult(table, found.plan, self._selection)

    def mix(self, parts: Mapping[Part, float]) -> NDArray[np.float32]:
        """Texts, Paths of picture files and keys of rows, each with its weight, as one unit vector for a search: float32 (D,).

        Texts have the vectors of `encode` up to rounding (1e-5).

        Raises EncoderError, DatabaseError for an unknown key, and ConfigError for a picture that cannot be read or parts that
        cancel each other out.
        """
        import numpy as np

        from pipeline.errors import ConfigError as Refused
        from pipeline.retrieval import mix

        if not parts:
            raise Refused("the query has no parts: give at least one text, Path or key, as {'a harbour': 1}")
        vectors = np.concatenate([self._vector(part) for part in parts])
        return mix(list(vectors), list(parts.values()))

    def _vector(self, part: Part) -> NDArray[np.float32]:
        """The unit vector (1, D) of a text, a picture file or a row."""
        if isinstance(part, str):
            return self._encoder().encode_queries([part])
        if isinstance(part, Path):
            from pipeline.retrieval import encode_image_files

            return encode_image_files(self._encoder(), [part])
        return self._searcher.vectors([int(part)])[0]

    def facets(self, where: str = "") -> dict[str, dict[str, int]]:
        """Columns of few values: how many of the rows that match `where` have each value, most frequent first.

        A row without a value counts as "(none)". Raises FilterError.
        """
        from pipeline.retrieval import Facets

        found = Facets(self._searcher, self._searcher.columns).counts(self._searcher.matching(where))
        return {facet.name: {one.value: one.count for one in facet.values} for facet in found}

    def map(self, where: str = "", sample: int = 2_000) -> DatabaseMap:
        """A sample of at most `sample` (10,000 at most) of the rows that match, as points on a plane. Raises FilterError.

        The axes are the first two principal components of the sample's vectors. The same call gives the same map.
        """
        import pyarrow as pa

        from pipeline.retrieval import lay_out

        plane = lay_out(self._searcher, where, sample)
        table = self._searcher.metadata(self._searcher.keys[plane.ordinals])
        for place, name in enumerate(("x", "y")):
            table = table.add_column(1 + place, name, pa.array(plane.places[:, place], pa.float32()))
        return DatabaseMap(table, plane.explained, plane.matched, self._selection)

    def duplicates(self) -> pa.Table:
        """Rows that show one picture, the largest groups first.

        `group` numbers the groups from 0. `kind` is `exact` (byte for byte) or `alike` (equal perceptual hashes: nearly always
        the same picture in another size or format). Then `key` and the metadata columns.
        """
        import numpy as np
        import pyarrow as pa

        from pipeline.retrieval import find_copies

        groups = find_copies(self._searcher, self._searcher.matching())
        sizes = [len(group.ordinals) for group in groups]
        ordinals = np.concatenate([group.ordinals for group in groups]) if groups else np.zeros(0, np.int64)
        table = self._searcher.metadata(self._searcher.keys[ordinals])
        kinds = np.repeat(np.asarray([group.kind for group in groups], dtype=object), sizes)
        table = table.add_column(0, "kind", pa.array(kinds.tolist(), pa.string()))
        return table.add_column(0, "group", pa.array(np.repeat(np.arange(len(groups)), sizes), pa.int32()))

    def failures(self) -> pa.Table:
        """The rows that failed while this version was built: `key`, `item`, `url`, `reason` and `detail`, in order of key.

        A view's failures are those of its database.
        """
        import pyarrow as pa

        from pipeline.catalog import failed_rows

        names = ("key", "item", "url", "reason", "detail")
        rows = list(failed_rows(self._selection.database, self._selection.version))
        schema = pa.schema([(name, pa.int64() if name == "key" else pa.string()) for name in names])
        return pa.table({name: [getattr(row, name) for row in rows] for name in names}, schema=schema)

    def vectors(self, keys: Sequence[int]) -> NDArray[np.float32]:
        """The stored unit vectors of rows, float32 (n, D), in the order of `keys`. Raises DatabaseError for an unknown key."""
        return self._searcher.vectors(keys)[0]

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts as unit vectors of this database's encoder, float32 (n, D). Raises EncoderError."""
        return self._encoder().encode_texts(texts)

    def picture(self, key: int) -> Image | None:
        """The stored picture of a row (RGB; the original if it was kept, else the thumbnail); None if it was dropped."""
        from pipeline.database import picture_files
        from pipeline.images import decode

        data = picture_files(self._selection.database, [key], originals=True).get(key)
        return None if data is None else decode(data).image

    def _encoder(self) -> Encoder:
        from pipeline.encoders import load_recorded

        if not self._loaded:
            self._loaded.append(load_recorded(self._selection.version.encoder, self._device))
        return self._loaded[0]


@dataclass(frozen=True, repr=False)
class DatabaseMap:
    """A sample of a database's rows as points on a plane. A notebook renders it with each picture at its place."""

    table: pa.Table
    """One row a picture: `key`, `x` and `y` (from -1 to 1 for the middle 98 % of each axis) and the metadata columns."""

    explained: float
    """The share of the vectors' variance that the two axes show: a map shows coarse structure only."""

    matched: int
    """How many rows matched; the table is a sample of them."""

    _selection: Selection

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __repr__(self) -> str:
        shown = f"{len(self):,} of {self.matched:,} pictures"
        return f"<map of {self._selection.name}: {shown}, two axes with {self.explained:.0%} of the variance>"

    def show(self) -> Image:
        """The pictures at their places. `.save(path)` writes it."""
        import numpy as np

        from pipeline.database import thumbnails
        from pipeline.retrieval import draw_map

        keys = self.table["key"].to_pylist()
        found = thumbnails(self._selection.database, keys)
        places = np.stack([self.table[name].to_numpy() for name in ("x", "y")], axis=1)
        return draw_map([found.get(key) for key in keys], places)

    def _repr_png_(self) -> bytes:
        return _png(self.show())


@dataclass(frozen=True, repr=False)
class SearchResult:
    """The results of a search, best first. A notebook renders them as a contact sheet."""

    table: pa.Table
    """One row a result: `key`, `score` (inner product of unit vectors) and the metadata columns. Where several vectors were
    searched for, `query` comes first: which of them, from 0."""

    plan: SearchPlan
    """How the search ran: exact scan or index, rows that matched, and the seconds of each step."""

    _selection: Selection

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __repr__(self) -> str:
        best = f", best score {self.table['score'][0].as_py():.3f}" if len(self) else ""
        return f"<{len(self)} results in {self._selection.name}{best}>"

    @property
    def keys(self) -> list[int]:
        """The rows' keys, in order."""
        return [int(key) for key in self.table["key"].to_pylist()]

    @property
    def pictures(self) -> list[Image | None]:
        """Thumbnails (RGB, at most 256 pixels), in the order of the rows; None for a row whose picture was dropped."""
        from pipeline.database import thumbnails

        keys = self.keys
        found = thumbnails(self._selection.database, keys)
        return [found.get(key) for key in keys]

    def show(self) -> Image:
        """A contact sheet: the pictures in reading order, each with its score and its metadata. `.save(path)` writes it."""
        from pipeline.retrieval import result_sheet

        return result_sheet(self._selection.database, self.table)

    def _repr_png_(self) -> bytes:
        return _png(self.show())


# ---- generation


def generate(
    prompts: str | Path | Sequence[str | Mapping[str, object]],
    *,
    db: str | Sequence[str] = (),
    model: str = "",
    where: str = "",
    k: int | None = None,
    steps: int | None = None,
    scale: float | None = None,
    sampler: str | None = None,
    n: int = 1,
    seed: int = 0,
    width: int | None = None,
    height: int | None = None,
    negative: str = "",
    image: str | Path = "",
    use: Literal["both", "neighbours", "text"] = "both",
    image_scale: float | None = None,
    weighting: Literal["", "equal", "similarity", "mean"] = "",
    blocks: str = "",
    batch: int = 0,
    device: str = "auto",
    out: str | Path = "",
    backend: Backend | None = None,
    home: str | Path | None = None,
    progress: bool = True,
) -> Run:
    """Draw `n` pictures for every prompt and database. Pictures that exist are not drawn again.

    Args:
        prompts: One prompt; the path of a prompt list (.csv, .tsv, .parquet, .json, .jsonl, .xlsx, .txt); several prompts; or
            rows as mappings with the columns of a prompt list (`prompt`, `seed`, `k`, `db`, `where`, ...). A value in a row
            overrides the argument.
        db: Databases or views that give the neighbours; every prompt is used with each.
        model: A model's name or folder; empty: the first that takes the first database's encoder.
        where: A SQL expression: only neighbours that match it.
        k: Neighbours of each prompt; None: the model's own number.
        steps: Sampler steps; None: the model's own number (50 for RDMs).
        scale: Guidance scale; None: the model's own.
        sampler: `ddim`, `plms`, `dpmpp_2m` or `unipc`; None: the model's own (`ddim` for RDMs).
        n: Pictures for each prompt and database, with seeds `seed`, `seed + 1`, ...
        seed: Seed of the first picture.
        width, height: Pixels; None: the model's own.
        negative: A prompt to avoid.
        image: A picture file to use in place of the prompt's text.
        use: What the picture is conditioned on.
        image_scale: Strength of the neighbours as image prompts; None: the model's own. This and the next two are for models of
            the kind ip-adapter.
        weighting: Weights of the image prompts: `equal`, `similarity` or `mean`; empty: the model's own.
        blocks: Which attention blocks see the image prompts: `all`, or a set of the model's description; empty: its own.
        batch: Pictures at a time; 0: chosen by their size and number on a CPU, 4 on a GPU.
        device: auto, cpu, cuda or cuda:N.
        out: The run's folder; empty: one in the home, named by prompts and settings.
        backend: Where the work runs; None: in this process.
        home: The folder of databases and runs; None: RDMPIPE_HOME or the default.
        progress: Whether to show progress on standard error or in the notebook.

    Returns:
        The run, with its table, folder and contact sheet.

    Raises:
        PromptError: Rows of the list cannot be used; the message has their line numbers.
        ConfigError: An argument is outside its range.
        ModelError: The model is unknown, or does not take the database's vectors.
        DatabaseError: A database is unknown.
        FilterError: `where` is wrong, or nothing matches it.
        BudgetError: There is too little memory; raised before work starts.
        StageFailed: Pictures failed. Finished ones are kept: call `generate` again.
    """
    from pipeline.generation import GenerateConfig, Sampling, prompt_rows
    from pipeline.generation import generate as run_generation

    rows = str(prompts) if isinstance(prompts, str | Path) else prompt_rows(prompts)
    config = GenerateConfig(
        prompts=rows, db=(db,) if isinstance(db, str) and db else tuple(db), model=model, where=where, k=k,
        sampling=Sampling(sampler, steps, scale, width=width, height=height), n=n, seed=seed, negative=negative,
        image=str(image), use=use, image_scale=image_scale,
        weighting=weighting, blocks=blocks, batch=batch, device=device, out=str(out), home=_text(home),
    )  # fmt: skip
    with _progress(progress) as shown:
        return Run(run_generation(config, shown, backend))


@dataclass(frozen=True)
class Run:
    """A finished run of `generate`. A notebook renders its contact sheet."""

    summary: GenerateSummary

    @property
    def folder(self) -> Path:
        """The run's folder: images/, results.parquet, index.html (the gallery) and contact.png."""
        return Path(self.summary.out)

    @property
    def table(self) -> pa.Table:
        """One row for each picture: its file, status, prompt, settings and neighbours (keys, scores, captions, licences)."""
        import pyarrow.parquet as pq

        return pq.read_table(self.folder / "results.parquet")

    @property
    def pictures(self) -> list[Image | None]:
        """The pictures (RGB) in the order of the table; None for one that failed."""
        from PIL import Image as images

        rows = self.table.select(["file", "status"]).to_pylist()
        return [
            images.open(self.folder / row["file"]).convert("RGB") if row["status"] == "ok" else None for row in rows
        ]

    def show(self) -> Image:
        """The run's contact sheet: a block for each prompt, with its pictures from each database."""
        from PIL import Image as images

        return images.open(self.folder / "contact.png")

    def __str__(self) -> str:
        return self.summary.text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        sheet = base64.b64encode((self.folder / "contact.png").read_bytes()).decode()
        return f'<img alt="contact sheet" src="data:image/png;base64,{sheet}"><pre>{escape(str(self))}</pre>'


def load_model(name: str, *, home: str | Path | None = None) -> RDM:
    """Load a model for use without the pipeline: `model.sample(context, ...)` and `model.decode(latents)`; see `rdm.RDM`.

    Args:
        name: A model's name (`rdm-mini`, `rdm-768`), a folder that `save_pretrained` or `rdmpipe convert` wrote, or a Hub id.
        home: The home whose folder models/ is searched; None: RDMPIPE_HOME or the default.

    Raises:
        ModelError: There is no such model, it cannot be read, or it is not an RDM.
    """
    from pipeline.errors import ModelError as Refused
    from pipeline.generation import find_model

    found = find_model(name, _text(home))
    if found.kind != "rdm":
        raise Refused(
            f"model {name!r} is of kind {found.kind}; load_model loads RDMs. Use it with rdmpipe.generate(..., model={name!r})"
        )
    from rdm import RDM

    return RDM.from_pretrained(found.folder)


# ---- evaluation and training


def evaluate(
    job: str | Path | None = None,
    *,
    out: str | Path = "",
    device: str = "auto",
    threads: int = 1,
    backend: Backend | None = None,
    home: str | Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measure whether swapping the database swaps the style. Takes hours on a CPU; the same call continues a killed evaluation.

    Args:
        job: The protocol, a TOML file such as jobs/evaluate-mini.toml; None: the default protocol.
        out: The evaluation's folder; empty: one in the home.
        device: auto, cpu, cuda or cuda:N.
        threads: torch threads of the judges.
        backend: Where pictures are made; None: in this process.
        home: The folder of databases and evaluations; None: RDMPIPE_HOME or the default.
        progress: Whether to show progress on standard error or in the notebook.

    Raises:
        ConfigError: The protocol is wrong, or the folder holds an evaluation with another one.
        DatabaseError: A database of the protocol is missing and the protocol does not say how to build it.
    """
    from pipeline.evaluation import EvaluateConfig, read_evaluate_config
    from pipeline.evaluation import evaluate as run_evaluation
    from pipeline.execution import Backend as InProcess

    config = read_evaluate_config(Path(job)) if job is not None else EvaluateConfig()
    with _progress(progress) as shown:
        folder, summary = run_evaluation(
            config, shown, backend or InProcess(), home=_text(home), out=str(out), device=device, threads=threads
        )
    return Evaluation(folder, summary)


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation."""

    folder: Path
    """Where it is: protocol.json, summary.json, pictures.parquet and index.html."""

    summary: Summary
    """Every number, as in summary.json."""

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder / "index.html"

    @property
    def table(self) -> pa.Table:
        """One row for each picture: the wanted style and content, the settings and the judges' answers."""
        import pyarrow.parquet as pq

        return pq.read_table(self.folder / "pictures.parquet")

    def __str__(self) -> str:
        from pipeline.evaluation import summary_text

        return summary_text(self.folder, self.summary)

    __repr__ = __str__


def train(
    part: Literal["encoder", "autoencoder", "rdm"],
    job: str | Path,
    *,
    resume: bool = False,
    workers: int = 1,
    address: str = "",
    progress: bool = True,
) -> Path:
    """Train one part of a model.

    Args:
        part: What to train. `rdm`, the denoiser, needs the encoder and the autoencoder of the same run.
        job: The run's TOML file, such as jobs/train-mini.toml.
        resume: Continue from the last save.
        workers: Workers that share each batch, on Ray; 1: this process.
        address: The Ray cluster to use; empty: none.
        progress: Whether to show progress on standard error or in the notebook.

    Returns:
        The folder of the trained model.

    Raises:
        ConfigError: The TOML file is wrong, the part has no table in it, or the run exists and `resume` is False.
    """
    from pipeline.training import read_train_config
    from pipeline.training import train as run_training

    config = read_train_config(Path(job))
    with _progress(progress) as shown:
        if workers == 1 and not address:
            return run_training(part, config, shown, resume=resume)
        from pipeline.training import train_on_ray

        return Path(train_on_ray(part, config, shown, workers=workers, address=address, resume=resume))


# ---- helpers


@contextmanager
def _progress(wanted: bool) -> Iterator[Progress]:
    from pipeline.execution import Progress

    with Progress(stream=None if wanted else io.StringIO()) as shown:
        yield shown


def _png(image: Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _text(home: str | Path | None) -> str | None:
    return None if home is None else os.fspath(home)
