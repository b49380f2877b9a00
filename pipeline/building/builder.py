"""`rdmpipe build-index`: plan, download, embed, index and publish, under one lease, resumable at any point.

Reads: a manifest and its source. Writes: a database's files and, last of all, its version and `current`. Publishes nothing
while a shard is missing; finished shards are kept, and the same command continues from there.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import cast

from pipeline import machine
from pipeline.building.choice import choose_plan, download_config, record_part
from pipeline.building.download import download_stage, hosts_file
from pipeline.building.embed import EmbedConfig, Images, embed_stage
from pipeline.building.plan import LEFT_OUT, BuildPlan, plan_shards
from pipeline.building.publishing import Contents, publish, shard_entries
from pipeline.building.request import BuildRequest, BuildSummary, HostCounts, IndexSummary, as_first_built, settle
from pipeline.catalog import command_that_adds, companions, main_database
from pipeline.config import Table, canonical_json, from_mapping, parse_json
from pipeline.database import RetrievalDatabase, Totals, Version, gone_keys, record_receipts, require_purged, totals
from pipeline.encoders import Encoder, EncoderRecord, check_encoder, load_encoder, resolve_encoder
from pipeline.errors import ConfigError, DatabaseError
from pipeline.execution import AHEAD, Failure, Outcome, Progress, Receipt, Stage, StageFailed, head_start, run_stages
from pipeline.filters import filter_mask
from pipeline.index import IndexInput, check_index, text_queries
from pipeline.sources import Manifest, Row
from pipeline.storage import Artifact, lease


def build(request: BuildRequest, progress: Progress) -> BuildSummary:
    """Build a database, or continue an unfinished build. Raises RdmpipeError; finished shards are always kept."""
    start = time.monotonic()
    manifest, request = settle(request)
    if "embed" in request.stages or "index" in request.stages:
        check_encoder(manifest.encoder)
    database = RetrievalDatabase(manifest.name, request.home)
    with lease(database.storage, f"build-index {manifest.name}", request.wait_s, notify=progress.say):
        require_purged(database)
        database.storage.clear_scratch()
        progress.record_in(database.storage)
        return _Build(database, as_first_built(manifest, database), request, progress, start).run()


class _Build:
    """One build under its lease: the request, and what is known so far."""

    def __init__(
        self, database: RetrievalDatabase, manifest: Manifest, request: BuildRequest, progress: Progress, start: float
    ) -> None:
        self.database, self.manifest, self.request, self.progress = database, manifest, request, progress
        self.start = start
        self.published = database.version() if database.exists() else None
        self.gone: Artifact | None = None
        self.changes: Mapping[str, int] = {}
        self.warnings: tuple[str, ...] = ()
        self.plan: BuildPlan | None = None
        self.loaded: list[Encoder] = []

    def run(self) -> BuildSummary:
        chosen = choose_plan(self.database, self.manifest, self.request, self.published, self.progress)
        plan, self.request, self.gone, self.changes = chosen.plan, chosen.request, chosen.gone, chosen.changes
        self.plan, self.warnings = plan, chosen.warnings
        if (nothing := self._nothing_new(plan)) is not None:
            return nothing
        with self._downloading(plan) as download:
            if "index" in self.request.stages and self.published is None:
                check_index(self.request.index, self._known_rows(plan), self._record().dim)
            outcome = Outcome()
            stages = self._stages(plan, download)
            if stages:
                outcome = run_stages(
                    stages, plan_shards(self.database, plan.id), self.request.backend, self.progress, plan.shards
                )
        self._list_failures(outcome.failures)
        if outcome.failures:
            raise StageFailed(tuple(outcome.failures))
        if "index" not in self.request.stages:
            return self._summary(outcome, totals(self.database, self._receipts(stages[-1], plan)))
        version = self._index(plan, self._receipts(self._embed_stage(plan), plan))
        if outcome.ran:
            record_receipts(self.database, version)
        record_part(self.database, self.request, plan)
        return self._summary(outcome, version.counts, version)

    def _nothing_new(self, plan: BuildPlan) -> BuildSummary | None:
        """The end of a refresh whose source and settings equal those of the published version: no shard is read."""
        before = self.published
        if before is None or not self.request.refresh or "index" not in self.request.stages:
            return None
        config = asdict(self.request.index)
        if (plan.id, self.gone, config) != (before.plan, before.gone, before.index.build.get("config")):
            return None
        self.progress.say(f"nothing new: version {before.id} stays")
        self._list_failures([])
        return self._summary(Outcome(skipped=dict.fromkeys(("download", "embed"), plan.shards)), before.counts, before)

    def _list_failures(self, failures: Iterable[Failure]) -> None:
        listed = [asdict(failure) for failure in failures]
        self.database.storage.write_text("failures.json", canonical_json(listed) + "\n")

    # ---- the stages of a shard

    def _stages(self, plan: BuildPlan, download: Stage) -> tuple[Stage, ...]:
        """The chain of stages. `embed` includes the download, because pictures may be removed after embedding."""
        if "embed" in self.request.stages:
            return download, self._embed_stage(plan)
        return (download,) if "download" in self.request.stages else ()

    @contextlib.contextmanager
    def _downloading(self, plan: BuildPlan) -> Iterator[Stage]:
        """The download stage. In a first build, it begins while the encoder loads, if no check has to come before."""
        stage, index = self._download_stage(plan), self.request.index
        checked = not index.key and self._known_rows(plan) <= index.exact_rows
        first = self.published is None and "embed" in self.request.stages and self._known_record() is None
        if not (first and checked and self.request.backend.kind == "inline"):
            yield stage
            return
        todo = (shard for shard in plan_shards(self.database, plan.id) if stage.receipt(shard) is None)
        with head_start(stage, itertools.islice(todo, AHEAD)) as begun:
            yield begun

    def _known_rows(self, plan: BuildPlan) -> int:
        """The number of rows to index; 0 if it is not known yet, because a filter or failed addresses leave some out."""
        return plan.rows if not self.request.where and self.manifest.source.kind != "urls" else 0

    def _download_stage(self, plan: BuildPlan) -> Stage:
        config = download_config(self.manifest, plan, self.request)
        if self.request.backend.kind == "inline":  # on Ray there is a worker for each core
            config = replace(config, options=replace(config.options, processes=machine.cores()))
        stage = download_stage(self.database, config, filter_mask)
        return replace(
            stage, resources=replace(stage.resources, cpus=0.0)
        )  # downloads wait for disk and network; CPUs are for models

    def _embed_stage(self, plan: BuildPlan) -> Stage:
        backend = self.request.backend
        share = machine.cores() // backend.workers if backend.kind == "ray" and backend.workers > 1 else 0
        config = EmbedConfig(
            encoder=self.manifest.encoder,
            precision=self.request.precision,
            preprocess=self.request.preprocess,
            images=cast("Images", self.request.images),
            device=self.request.device,
            batch=self.request.batch,
            torch_threads=self.request.threads or share,
            patches=self.manifest.patches is not None,
        )
        loaded = self._encoder if backend.kind == "inline" else None
        return embed_stage(self.database, config, self._record(), backend.workers, loaded=loaded)

    def _record(self) -> EncoderRecord:
        """The record of the encoder: from the first build, else by loading the encoder."""
        if (known := self._known_record()) is not None:
            return known
        record = self._encoder().record
        self.database.storage.write_text("encoder.json", canonical_json(record) + "\n")
        return record

    def _known_record(self) -> EncoderRecord | None:
        if self.published is not None:
            return self.published.encoder
        text = self.database.storage.read_text("encoder.json")
        wanted = (self.manifest.encoder, self.request.precision, self.request.preprocess)
        if text is not None:
            try:
                record = from_mapping(EncoderRecord, cast("Table", parse_json(text)), "encoder.json")
            except (ValueError, ConfigError) as error:
                raise self.database.damaged("encoder.json", str(error)) from error
            if (record.name, record.precision, record.preprocess) == wanted:
                return record
        return None

    def _encoder(self) -> Encoder:
        if not self.loaded:
            self.progress.say(f"loading encoder {self.manifest.encoder}")
            request = self.request
            self.loaded.append(
                load_encoder(self.manifest.encoder, request.device, request.precision, request.preprocess)
            )
        return self.loaded[0]

    def _receipts(self, stage: Stage, plan: BuildPlan) -> list[Receipt]:
        found = []
        for shard in plan_shards(self.database, plan.id):
            receipt = stage.receipt(shard)
            if receipt is None:
                raise DatabaseError(
                    f"database {self.database.name!r}: shard {shard.name} is not through {stage.name}; run "
                    f"`rdmpipe {stage.name} {self.database.name}` first"
                )
            found.append(receipt)
        return found

    # ---- index, publish, summary

    def _index(self, plan: BuildPlan, receipts: list[Receipt]) -> Version:
        """Index and publish; if nothing is new, return the published version."""
        shards = shard_entries(receipts)
        before, config = self.published, self.request.index
        same = before and (before.shards, before.gone, before.index.build.get("config")) == (
            shards,
            self.gone,
            asdict(config),
        )
        if before and same and all(self.database.storage.exists(file.path) for file in before.index.files.values()):
            return before
        encoder = self._encoder()
        rows = IndexInput(encoder.record, plan.columns, shards, gone_keys(self.database, self.gone))
        text = text_queries(encoder, self.database, rows, config)
        contents = Contents(
            asdict(self.manifest), encoder.record, plan.columns, self.request.images, plan.id, self.gone
        )
        started = time.monotonic()
        self.progress.begin("index", 1)
        try:
            version = publish(
                self.database,
                contents,
                receipts,
                config,
                text,
                before,
                self.request.backend,
                self.progress,
                self.request.device,
            )
        except StageFailed as error:
            self._list_failures(error.failures)
            raise
        self.progress.advance("index", 0, version.index.rows, time.monotonic() - started)
        return version

    def _summary(self, outcome: Outcome, counts: Totals, version: Version | None = None) -> BuildSummary:
        warnings = list(self.warnings)
        trained = version.encoder.trained if version else resolve_encoder(self.manifest.encoder).trained
        if not trained:
            warnings.append("the encoder is untrained (random weights): search results carry no meaning")
        each = self.manifest.patches.per_image if self.manifest.patches else 1
        expected, part = self.manifest.expected_rows * each, self.request.source
        if expected and counts["input"] != expected and not (part.limit or part.shards):
            warnings.append(f"the source has {counts['input']:,} rows; its manifest expects {expected:,}")
        names = sorted({*outcome.ran, *outcome.skipped})
        index: IndexSummary = {}
        if version:
            warnings += self._outdated(version)
            made = version.index
            index = {"id": made.id, "kind": made.kind, "key": made.key, "rows": made.rows, "recall": made.recall}
        return BuildSummary(
            name=self.database.name,
            version=version.id if version else "",
            input=counts["input"],
            ok=counts["ok"],
            filtered=counts["filtered"],
            failed=counts["failed"],
            reasons=counts["reasons"],
            duplicates=version.counts["duplicates"] if version else 0,
            encoder=self.manifest.encoder,
            trained=trained,
            index=index,
            shards={name: {"ran": outcome.ran.get(name, 0), "skipped": outcome.skipped.get(name, 0)} for name in names},
            changes=dict(self.changes),
            left_out=dict(self.plan.options.get(LEFT_OUT, {})) if self.plan else {},
            hosts=self._hosts(),
            seconds=round(time.monotonic() - self.start, 3),
            warnings=tuple(warnings),
            vectors_for=main_database(self.database.name, self.manifest.encoder, self.database.home),
        )

    def _outdated(self, version: Version) -> list[str]:
        """Notes about databases with other encoders' vectors of these pictures, if the pictures changed."""
        return [
            f"{one.database.name} holds the vectors of {one.encoder} of the pictures before; bring it up to date: "
            f"{command_that_adds(self.database, one.encoder)}"
            for one in companions(self.database.name, self.database.home)
            if one.version is not None and (any(self.changes.values()) or one.version.index.rows != version.index.rows)
        ]

    def _hosts(self) -> dict[str, HostCounts]:
        """Summed figures of the hosts from which the plan's shards were fetched, hosts with the most requests first."""
        if self.plan is None or self.manifest.source.kind != "urls":
            return {}
        found: dict[str, Row] = {}
        for shard in plan_shards(self.database, self.plan.id):
            text = self.database.storage.read_text(hosts_file(shard.id))
            for name, figures in _figures(text).items():
                total = found.setdefault(name, dict.fromkeys(figures, 0) | {"set_aside": ""})
                for key, value in figures.items():
                    if key != "set_aside":
                        total[key] += value
                # A shard of picked rows is newer than the shards that it picks from, so its figures replace theirs.
                total["set_aside"] = (
                    figures["set_aside"] if "picked" in shard.spec else total["set_aside"] or figures["set_aside"]
                )
        ordered = dict(sorted(found.items(), key=lambda item: (-item[1]["requests"], item[0])))
        return cast("dict[str, HostCounts]", ordered)


def _figures(text: str | None) -> dict[str, Row]:
    """A shard's figures by host; none if the file is damaged, because they are only shown."""
    try:
        found = parse_json(text or "{}")
    except ValueError:
        return {}
    rows = found.items() if isinstance(found, dict) else ()
    return {str(name): figures for name, figures in rows if isinstance(figures, dict) and "requests" in figures}
