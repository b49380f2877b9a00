"""WikiArt's exact format, from a local server with the Hub's paths, through the real Hub client."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.catalog import load_manifest
from pipeline.errors import SourceError
from pipeline.sources import Manifest, Sample, SourceOptions, open_source
from pipeline.sources.hub import HubRepository
from pipeline.sources.parquet import ParquetSource
from pipeline.sources.web.retries import Patience
from tests.pictures import jpeg, wikiart_files
from tests.server import Fault, Server, commit, serve

ROWS = 60
FIRST = "data/train-00000-of-00003.parquet"


@pytest.fixture
def wikiart() -> Manifest:
    """The shipped manifest, with fewer rows a shard."""
    manifest = load_manifest("wikiart")
    assert isinstance(manifest, Manifest)
    return replace(manifest, source=replace(manifest.source, shard_rows=12))


@pytest.fixture
def told(tmp_path: Path) -> list[dict[str, str]]:
    """The labels of the served rows, in the files' order."""
    return wikiart_files(tmp_path / "served" / "hub" / "huggan" / "wikiart", [jpeg(i) for i in range(ROWS)], 3, 10)


@pytest.fixture
def server(tmp_path: Path, home: Path, told: list[dict[str, str]]) -> Iterator[Server]:
    with serve(tmp_path / "served") as running:
        yield running


def samples(manifest: Manifest, options: SourceOptions) -> list[Sample]:
    source = open_source(manifest, options)
    return [sample for spec in source.plan() for sample in source.read(spec.spec)]


def test_class_labels_become_names_and_rows_keep_their_order(
    server: Server, wikiart: Manifest, told: list[dict[str, str]]
) -> None:
    found = samples(wikiart, SourceOptions(base_url=server.url))
    assert [dict(sample.metadata) for sample in found] == told
    assert [sample.data for sample in found[:2]] == [jpeg(0), jpeg(3)]
    assert found[0].item_id == f"{FIRST}#0"
    assert open_source(wikiart, SourceOptions(base_url=server.url)).columns() == dict.fromkeys(
        ("artist", "genre", "style"), "string"
    )


def test_other_files_of_a_data_set_are_counted_and_those_of_an_operating_system_are_not_read(
    server: Server, wikiart: Manifest, told: list[dict[str, str]]
) -> None:
    folder = server.folder / "hub" / "huggan" / "wikiart"
    (folder / FIRST).rename(folder / FIRST.replace(".parquet", ".PARQUET"))
    (folder / "data" / "._train-00001-of-00003.parquet").write_bytes(b"junk")
    (folder / "README.md").write_text("about it")
    source = open_source(wikiart, SourceOptions(base_url=server.url))
    assert sum(spec.rows for spec in source.plan()) == len(told)
    assert source.left_out() == {".md": 1, "system files": 1}


def test_the_revision_is_pinned_when_planning_and_read_even_after_the_data_set_moved_on(
    server: Server, wikiart: Manifest, told: list[dict[str, str]]
) -> None:
    options = SourceOptions(base_url=server.url)
    source = open_source(wikiart, options)
    specs = list(source.plan())
    assert {spec.spec["revision"] for spec in specs} == {commit(server.folder / "hub/huggan/wikiart")}
    for spec in specs:
        list(source.read(spec.spec))  # now in the cache
    (server.folder / "hub/huggan/wikiart/README.md").write_text("moved on")
    later = open_source(wikiart, options)
    assert later.revision() != specs[0].spec["revision"]
    assert [dict(s.metadata) for spec in specs for s in later.read(spec.spec)] == told
    fingerprints = [spec.fingerprint for spec in later.plan()]
    assert fingerprints == [spec.fingerprint for spec in specs], "a README does not change what a shard reads"


def test_planning_reads_only_the_ends_of_files(server: Server, wikiart: Manifest) -> None:
    list(open_source(wikiart, SourceOptions(base_url=server.url)).plan())
    spans = [span for method, path, span in server.requests if method == "GET" and path.endswith(FIRST)]
    assert spans and all(span for span in spans)


def test_each_file_is_fetched_once_and_then_comes_from_the_cache(server: Server, wikiart: Manifest) -> None:
    samples(wikiart, SourceOptions(base_url=server.url))
    whole = [path for method, path, span in server.requests if method == "GET" and "/resolve/" in path and not span]
    assert len(whole) == len(set(whole)) == 3
    asked = len(server.requests)
    offline = samples(wikiart, SourceOptions(base_url=server.url, offline=True))
    assert len(offline) == ROWS and len(server.requests) == asked


def test_reading_by_range_keeps_nothing_in_the_cache(
    server: Server, wikiart: Manifest, told: list[dict[str, str]], tmp_path: Path
) -> None:
    streamed = replace(wikiart, source=replace(wikiart.source, options={"cache": False}))
    found = samples(streamed, SourceOptions(base_url=server.url))
    assert [dict(sample.metadata) for sample in found] == told
    assert not list((tmp_path / "cache").rglob("*.parquet"))


def test_temporary_server_errors_are_retried(server: Server, wikiart: Manifest) -> None:
    sha = commit(server.folder / "hub/huggan/wikiart")
    server.fail("/api/datasets/huggan/wikiart/revision/main", Fault("status", 500), times=2)
    server.fail(f"/api/datasets/huggan/wikiart/tree/{sha}", Fault("status", 503), times=1)
    assert len(samples(wikiart, SourceOptions(base_url=server.url))) == ROWS


def test_a_cut_transfer_is_finished(server: Server, wikiart: Manifest) -> None:
    source = open_source(wikiart, SourceOptions(base_url=server.url))
    specs = list(source.plan())
    sha = specs[0].spec["revision"]
    server.fail(f"/datasets/huggan/wikiart/resolve/{sha}/{FIRST}", Fault("cut", 4000))
    assert len(list(source.read(specs[0].spec))) == specs[0].rows


def test_the_limit_stops_at_exactly_so_many_rows(server: Server, wikiart: Manifest) -> None:
    source = open_source(wikiart, SourceOptions(base_url=server.url, limit=25))
    specs = list(source.plan())
    assert sum(spec.rows for spec in specs) == 25
    assert sum(len(list(source.read(spec.spec))) for spec in specs) == 25


def test_names_come_from_dataset_infos_where_the_files_do_not_carry_them(
    server: Server, wikiart: Manifest, told: list[dict[str, str]]
) -> None:
    import json

    folder = server.folder / "hub/huggan/wikiart"
    for path in folder.rglob("*.parquet"):
        table = pq.read_table(path)
        features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        pq.write_table(table.replace_schema_metadata(None), path)
    (folder / "dataset_infos.json").write_text(json.dumps({"huggan--wikiart": {"features": features}}))
    assert [dict(s.metadata) for s in samples(wikiart, SourceOptions(base_url=server.url))] == told


def test_a_gated_data_set_says_how_to_get_access_and_opens_with_the_token(
    tmp_path: Path, home: Path, wikiart: Manifest, told: list[dict[str, str]]
) -> None:
    with serve(tmp_path / "served", token="hf_secret") as server:
        with pytest.raises(SourceError, match="accept its terms"):
            list(open_source(wikiart, SourceOptions(base_url=server.url, token="hf_wrong")).plan())
        assert len(samples(wikiart, SourceOptions(base_url=server.url, token="hf_secret"))) == ROWS


def quick(server: Server, repo: str, revision: str = "") -> HubRepository:
    return HubRepository(repo, revision, SourceOptions(base_url=server.url), Patience(2, 0.01, 5.0))


def test_a_data_set_or_revision_that_is_not_there_is_named(server: Server) -> None:
    with pytest.raises(SourceError, match="huggan/wikiarts: there is no such repository"):
        quick(server, "huggan/wikiarts").commit()
    with pytest.raises(SourceError, match="no revision 'v9'"):
        quick(server, "huggan/wikiart", "v9").commit()


def test_files_that_match_nothing_are_answered_with_what_there_is(server: Server) -> None:
    dataset = quick(server, "huggan/wikiart")
    with pytest.raises(SourceError, match=r"it holds data/train-00000-of-00003\.parquet"):
        dataset.files(dataset.commit(), ("date/*.parquet",))


def test_offline_without_a_cache_says_so(server: Server, wikiart: Manifest) -> None:
    with pytest.raises(SourceError, match="without --offline"):
        list(open_source(wikiart, SourceOptions(base_url=server.url, offline=True)).plan())


def test_the_estimate_before_work_is_the_rows_expected_and_the_bytes_listed(server: Server, wikiart: Manifest) -> None:
    source = open_source(wikiart, SourceOptions(base_url=server.url))
    assert isinstance(source, ParquetSource)
    size = sum(path.stat().st_size for path in server.folder.rglob("*.parquet"))
    assert source.estimate() == (81444, size)


def test_a_file_that_goes_while_it_is_streamed_is_an_error_that_names_it(server: Server) -> None:
    dataset = HubRepository("huggan/wikiart", "main", SourceOptions(base_url=server.url))
    file = server.folder / "hub/huggan/wikiart" / FIRST
    with (
        pytest.raises(SourceError, match="huggan/wikiart"),
        dataset.stream(FIRST, dataset.commit(), file.stat().st_size) as handle,
    ):
        file.unlink()
        handle.read(10)
