"""From flags and rows to requested pictures, all of them checked before any work starts.

Reads: the model's description, published databases, filters' columns, image prompts. Writes nothing. A mistake in a flag is an
error at once, because it affects every row; a mistake in a row is a BadRow with its line. A row's value overrides the flag's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from pipeline.catalog import (
    Selection,
    command_that_adds,
    command_with_thumbnails,
    difference,
    resolve_database,
    with_encoder,
)
from pipeline.encoders import EncoderRecord, same_encoder
from pipeline.errors import ConfigError, DatabaseError, EncoderError, FilterError, ModelError, PictureError, nearest
from pipeline.filters import check_filter
from pipeline.generation.kinds import ModelInfo
from pipeline.generation.prompts import BadRow, PromptList, PromptRow
from pipeline.generation.requests import (
    NEIGHBOURS,
    TEXT,
    USES,
    ImagePrompting,
    Maker,
    Neighbourhood,
    PictureRequest,
    RequestedCopy,
    copies,
)
from pipeline.generation.sampling import Sampling, is_scheduler, known
from pipeline.schema import metadata_columns
from pipeline.storage import read_url

if TYPE_CHECKING:
    from pipeline.retrieval import Searcher

_Problem = (ConfigError, DatabaseError, EncoderError, ModelError)


@dataclass(frozen=True)
class GenerateConfig:
    """The flags of one `rdmpipe generate`. None and empty mean the row's value, else the model's own."""

    prompts: str | tuple[PromptRow, ...]  # a list's path, one prompt, or rows
    db: tuple[str, ...] = ()
    model: str = ""  # empty: the first by name that takes the first database's encoder; rdm-768 without a database
    where: str = ""
    k: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1
    seed: int = 0  # every row starts from it: the same noise under every prompt and database, to compare them by
    negative: str = ""
    image: str = ""
    text_weight: float = 1.0
    use: Literal["both", "neighbours", "text"] = "both"
    image_scale: float | None = None  # for models that take neighbours as image prompts, as the next two
    weighting: str = ""
    blocks: str = ""
    any_encoder: bool = False  # accept a database whose encoder has another name than the model's
    skip_bad: bool = False
    home: str | None = None
    out: str = ""  # the run's folder; empty: <home>/generations/<run>
    run: str = ""  # the run's name; empty: made from the prompts' name and the flags
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    device: str = "auto"
    batch: int = 0  # pictures at a time; 0: by their size and number on a CPU, 4 on a GPU
    shard: int = 0  # pictures in a shard; 0: one or two batches
    threads: int = 0  # of torch, in each worker; 0: one on a CPU, where there is a worker for each core
    gallery: bool = True  # whether index.html and contact.png are written beside the results


@dataclass
class Expander:
    """Turns rows into requests; caches the databases, filters and images that it has checked."""

    config: GenerateConfig
    model: ModelInfo
    precision: str
    folder: str = ""  # to which rows' image paths are relative
    warnings: list[str] = field(default_factory=list)
    images: dict[str, str] = field(default_factory=dict)  # paths of image prompts, by sha256
    selections: dict[str, Selection] = field(default_factory=dict)
    text_encoder: EncoderRecord | None = None  # for pictures without a database
    _filters: dict[tuple[str, str], str] = field(default_factory=dict)
    _open: dict[str, Searcher] = field(default_factory=dict)
    _looked_at: dict[str, str] = field(default_factory=dict)  # sha256 of image prompts, by path

    def requests(self, prompts: PromptList) -> tuple[list[RequestedCopy], list[BadRow]]:
        """Every requested picture in order (rows, databases, copies), and the rows that cannot be used."""
        self.folder = prompts.folder
        self.check_flags()
        made: list[RequestedCopy] = []
        bad: list[BadRow] = []
        for row in prompts.rows:
            try:
                made += list(self._row(row))
            except _Problem as error:
                bad.append(BadRow(row.line, str(error)))
        for searcher in self._open.values():
            searcher.close()
        self._open.clear()
        return made, bad

    def check_flags(self) -> None:
        """Raise for a flag that no row could use."""
        config = self.config
        if config.use not in USES:
            raise ConfigError(f"--use {config.use!r}: expected one of {', '.join(USES)}")
        config.sampling.check()
        bounds = (("-n", config.n, 1, 10_000), ("--text-weight", config.text_weight, 0, 1000),
                  ("--seed", config.seed, 0, 2**62), ("--image-scale", config.image_scale or 0.0, 0, 10))  # fmt: skip
        for flag, value, low, high in bounds:
            if not math.isfinite(value) or not low <= value <= high:
                raise ConfigError(f"{flag} {value}: expected a number from {low} to {high}")
        if config.text_weight == 0:
            raise ConfigError("--text-weight 0 leaves the text out: use `--use neighbours` instead")
        if config.text_weight != 1 and self.model.prompt == "text":
            raise ConfigError(
                f"--text-weight: {self.model.name} has no weight of the text; --image-scale sets the neighbours' strength"
            )
        self._prompting()
        self._check_k("-k", self._k(PromptRow(0, "x")))
        self._sampling(PromptRow(0, "x"), "--")
        for name in config.db:
            self.selection(name)
        if config.where and not config.db:
            raise ConfigError("--where needs a --db to filter")
        for name in config.db:
            self._where(name, config.where)
        if config.image:
            self._image(config.image, "")

    def _row(self, row: PromptRow) -> Iterator[RequestedCopy]:
        config = self.config
        k = self._k(row)
        self._check_k("k", k)
        sampling = self._sampling(row, "")
        image = (
            self._image(row.image, self.folder) if row.image else self._image(config.image, "") if config.image else ""
        )
        if not row.prompt and not image:
            raise ConfigError("no prompt, and no image in its place")
        names = (row.db or tuple(dict.fromkeys(config.db))) if k else ("",)
        if not names:
            raise ConfigError("no database: give --db NAME or a `db` column (or --use text for none)")
        first = row.seed if row.seed is not None else config.seed
        negative = row.negative or config.negative
        for name in names:
            source = self._source(name, row) if name else None
            record = self.selection(name).version.encoder if name else self._text_record(image)
            if (
                record is not None
                and not record.has_text
                and (not image or (negative and self.model.prompt == "vector"))
            ):
                raise EncoderError(f"encoder {record.name} has no text tower: give an image in place of the prompt")
            for copy, seed in enumerate(copies(first, row.n or config.n)):
                picture = PictureRequest(
                    prompt=row.prompt, negative=negative, image=image, use=config.use if k else TEXT,
                    text_weight=config.text_weight if k else 1.0, seed=seed, source=source, k=k, sampling=sampling,
                    prompting=self._prompting(),
                )  # fmt: skip
                yield RequestedCopy(row, copy, name, picture, picture.key(self.maker(record)))

    def maker(self, record: EncoderRecord | None) -> Maker:
        return Maker(self.model.hash, record.id if record else "", self.precision)

    # ---- one value at a time

    def _k(self, row: PromptRow) -> int:
        if self.config.use == TEXT:
            return 0
        if row.k is not None:
            return row.k
        return self.model.default_k if self.config.k is None else self.config.k

    def _check_k(self, what: str, k: int) -> None:
        most = self.model.max_neighbours
        if not 0 <= k <= most:
            raise ModelError(f"{what} is {k}: {self.model.name} takes 0 to {most} neighbours beside the prompt")
        if k == 0 and self.config.use == NEIGHBOURS:
            raise ConfigError(f"{what} is 0, and --use neighbours leaves the prompt out: nothing would be left")

    def _sampling(self, row: PromptRow, dashes: str) -> Sampling:
        """All settings: the row's, else the flags', else the model's own."""
        model, sampling = self.model, row.sampling.over(self.config.sampling).over(self.model.sampling)
        sampler = known(sampling.sampler)
        if model.kind in ("rdm", "rdm-lora") and is_scheduler(sampler):
            from pipeline.generation.rdm_model import check_scheduler

            check_scheduler(sampler, dashes)
        elif sampler not in model.samplers:
            raise ModelError(
                f"{dashes}sampler {sampling.sampler!r}: {model.name} takes {', '.join(model.samplers)}"
                f"{nearest(str(sampling.sampler), model.samplers)}"
            )
        if sampling.eta and sampling.sampler != "ddim":
            raise ConfigError(f"sampler {sampling.sampler} takes no eta: --eta {sampling.eta} goes with ddim")
        model.check_size(*sampling.size, dashes)
        model.check_guidance(known(sampling.scale), row.negative or self.config.negative, dashes)
        return replace(sampling, scale=float(known(sampling.scale)), eta=float(known(sampling.eta)))

    def _prompting(self) -> ImagePrompting | None:
        """How a model uses neighbours as image prompts. Raises ConfigError for a flag that it does not take."""
        config, own = self.config, self.model.prompting
        if own is None:
            flags = {"--image-scale": config.image_scale is not None, "--weighting": bool(config.weighting),
                     "--blocks": bool(config.blocks)}  # fmt: skip
            if said := [flag for flag, there in flags.items() if there]:
                raise ConfigError(
                    f"{said[0]}: {self.model.name} does not take neighbours as image prompts; leave it out, or name a model "
                    "of the kind ip-adapter (`rdmpipe models` lists them)"
                )
            return None
        weighting, blocks = config.weighting or own.weighting, config.blocks or own.blocks
        for flag, value, choices in (
            ("--weighting", weighting, self.model.weightings),
            ("--blocks", blocks, self.model.blocks),
        ):
            if value not in choices:
                raise ConfigError(f"{flag} {value!r}: expected one of {', '.join(choices)}{nearest(value, choices)}")
        return ImagePrompting(own.scale if config.image_scale is None else float(config.image_scale), weighting, blocks)

    def selection(self, name: str) -> Selection:
        """The published database of a name. Raises an error if the model cannot use it."""
        if name not in self.selections:
            found = self._for_model(resolve_database(name, self.config.home))
            self._check_encoder(found)
            self.selections[name] = found
        return self.selections[name]

    def _for_model(self, found: Selection) -> Selection:
        """The same pictures with the vectors that the model takes, if such a database is published beside this one."""
        if self.config.any_encoder or self.model.takes == "pictures":
            return found
        chosen = with_encoder(found, self.model.encoder) or found
        if said := difference(found, chosen):
            self._warn(said)
        return chosen

    def _check_encoder(self, selection: Selection) -> None:
        record, model = selection.version.encoder, self.model
        if model.takes == "pictures":
            self._check_pictures(selection)
            return
        command = command_that_adds(selection.database, model.encoder)
        if record.dim != model.dim:
            raise ModelError(
                f"database {selection.name!r} holds vectors of {record.dim} numbers (encoder {record.name}); {model.name} "
                f"takes {model.dim} (encoder {model.encoder}). Add its vectors: {command}, or use a model for {record.name}"
            )
        if not same_encoder(record.name, model.encoder) and not self.config.any_encoder:
            raise ModelError(
                f"database {selection.name!r} was made by encoder {record.name}; {model.name} was trained with "
                f"{model.encoder}. Add its vectors: {command}, or give --any-encoder if both have the same weights"
            )
        if not record.trained:
            self._warn(
                f"database {selection.name!r}: its encoder is untrained (random weights): neighbours mean nothing"
            )

    def _check_pictures(self, selection: Selection) -> None:
        """Raise ModelError for a database without stored pictures if the model takes pictures."""
        database, images = selection.database, selection.version.images
        if images not in ("keep", "thumbnail"):
            raise ModelError(
                f"database {selection.name!r} keeps no pictures (--images {images}), and {self.model.name} takes patches of "
                f"the neighbours' pictures. Build it with thumbnails: {command_with_thumbnails(database, selection.version)}, "
                "or use a model that takes vectors (`rdmpipe models` lists them)"
            )

    def _text_record(self, image: str) -> EncoderRecord | None:
        """The encoder for pictures that use no database: the first --db's, else the model's own; None if none is needed."""
        if self.model.prompt == "text" and (not image or self.model.takes == "pictures"):
            return None
        if self.text_encoder is None and self.config.db:
            self.text_encoder = self.selection(self.config.db[0]).version.encoder
        if self.text_encoder is None:
            from pipeline.encoders import load_encoder

            self.text_encoder = load_encoder(self.model.encoder, "cpu").record
        return self.text_encoder

    def _source(self, name: str, row: PromptRow) -> Neighbourhood:
        selection = self.selection(name)
        columns = metadata_columns(selection.version.columns)
        view = check_filter(selection.where, columns).sql if selection.where else ""
        own = self._where(name, row.where or self.config.where)
        return Neighbourhood(selection.database.name, selection.version.id, tuple(part for part in (view, own) if part))

    def _where(self, name: str, where: str) -> str:
        """The filter as DuckDB writes it, after a check of its columns and that it matches a row."""
        if not where:
            return ""
        if (name, where) not in self._filters:
            selection = self.selection(name)
            checked = check_filter(where, metadata_columns(selection.version.columns)).sql
            if name not in self._open:
                from pipeline.retrieval import open_search

                self._open[name] = open_search(selection.database, selection.version, selection.where)
            matching = self._open[name].matching(where)
            if matching is not None and not len(matching):
                raise FilterError(f"no picture of database {name!r} matches the filter {where}")
            self._filters[name, where] = checked
        return self._filters[name, where]

    def _image(self, path: str, folder: str) -> str:
        """sha256 of an image prompt, after a check that it can be decoded."""
        from pipeline.images import decode

        full = path if "://" in path or path.startswith(("/", "~")) or not folder else f"{folder}/{path}"
        if full in self._looked_at:
            return self._looked_at[full]
        try:
            data = read_url(full)
            decode(data)
        except (OSError, ValueError, ImportError, PictureError) as error:
            raise ConfigError(f"image {path!r} is not a picture that can be read: {error}") from error
        key = hashlib.sha256(data).hexdigest()
        self.images.setdefault(key, full)
        self._looked_at[full] = key
        return key

    def image_bytes(self, key: str) -> bytes:
        """An image prompt as it was when the rows were checked. Raises ConfigError if it has changed."""
        data = read_url(self.images[key])
        if hashlib.sha256(data).hexdigest() != key:
            raise ConfigError(f"image {self.images[key]!r} changed while the run began; run the same command again")
        return data

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)
