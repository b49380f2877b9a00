"""The console script `rdmpipe`: parse, configure, call a stage, print. No logic, and no heavy import for `--help`."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pipeline import cli_data, cli_generate, cli_jobs, cli_train
from pipeline.console import (
    Address,
    BackendOption,
    Home,
    Json,
    LogFormatOption,
    Workers,
    command,
    one_of,
    print_json,
    print_table,
    which_backend,
)
from pipeline.errors import ConfigError

app = typer.Typer(
    name="rdmpipe",
    help="Build CLIP retrieval databases from art collections; run a retrieval-augmented diffusion model on them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Target = Annotated[str, typer.Argument(help="A data set's name, a manifest file (.toml), or a folder of pictures.")]
Name = Annotated[str, typer.Option("--name", help="Call the database this.")]
EncoderOption = Annotated[
    str,
    typer.Option(
        "--encoder", envvar="RDMPIPE_ENCODER", help="Encoder to use [default: the manifest's]; see `rdmpipe encoders`."
    ),
]
Images = Annotated[
    str,
    typer.Option(
        "--images", help="keep the pictures, a 256-pixel thumbnail (where they can be read again), or drop them."
    ),
]
Where = Annotated[str, typer.Option("--where", help="One SQL expression over the metadata columns.")]
Limit = Annotated[int, typer.Option("--limit", min=0, help="At most so many rows; 0: all.")]
Shards = Annotated[str, typer.Option("--shards", help="A range of shards, as 0:200.")]
BaseUrl = Annotated[str, typer.Option("--base-url", help="Mirror to use in place of the source's scheme and host.")]
Precision = Annotated[str, typer.Option("--precision", help="fp32, fp16 or bf16 [default: fp32].")]
Preprocess = Annotated[str, typer.Option("--preprocess", help="openclip or compvis [default: openclip].")]
Refresh = Annotated[
    bool, typer.Option("--refresh", help="Look at the source again; do what is new, drop what is gone.")
]
Batch = Annotated[int, typer.Option("--batch", min=0, help="Pictures a forward pass; 0: by device.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Memory = Annotated[str, typer.Option("--memory", help="Memory an index may take in search and building, as 4GB.")]
IndexKey = Annotated[str, typer.Option("--index-key", help="A faiss index key; empty: chosen by size and --memory.")]
MinRecall = Annotated[
    float, typer.Option("--min-recall", min=0.0, max=1.0, help="Least recall@19 an index must reach.")
]
Wait = Annotated[float, typer.Option("--wait", min=0.0, help="Seconds to wait for another writer of this database.")]
Retries = Annotated[int, typer.Option("--retries", min=0, help="Further attempts for a failed shard.")]


def _build(
    stages: tuple[str, ...],
    target: Target,
    name: Name = "",
    encoder: EncoderOption = "",
    images: Images = "",
    where: Where = "",
    limit: Limit = 0,
    shards: Shards = "",
    base_url: BaseUrl = "",
    precision: Precision = "",
    preprocess: Preprocess = "",
    batch: Batch = 0,
    device: Device = "auto",
    memory: Memory = "4GB",
    index_key: IndexKey = "",
    min_recall: MinRecall = 0.95,
    refresh: Refresh = False,
    wait: Wait = 0.0,
    backend: BackendOption = "auto",
    address: Address = "",
    workers: Workers = 0,
    retries: Retries = 2,
    home: Home = None,
    log_format: LogFormatOption = "text",
    as_json: Json = False,
) -> None:
    with command(log_format) as progress:
        from pipeline.build import build
        from pipeline.config import parse_size
        from pipeline.executor import Backend
        from pipeline.index import IndexConfig
        from pipeline.request import BuildRequest
        from pipeline.sources import SourceOptions

        request = BuildRequest(
            target=target,
            name=name,
            home=home,
            encoder=encoder,
            precision=one_of("--precision", precision, ("", "fp32", "fp16", "bf16")),
            preprocess=one_of("--preprocess", preprocess, ("", "openclip", "compvis")),
            images=one_of("--images", images, ("", "keep", "thumbnail", "drop")),
            where=where,
            source=SourceOptions(base_url=base_url, limit=limit, shards=_range(shards)),
            index=IndexConfig(memory=parse_size(memory), key=index_key, min_recall=min_recall),
            backend=Backend(kind=which_backend(backend, address), address=address, workers=workers, retries=retries),
            batch=batch,
            device=device,
            wait_s=wait,
            stages=stages,
            refresh=refresh,
        )
        summary = build(request, progress)
    if as_json:
        print_json(asdict(summary))
    else:
        print(summary.text())


def _range(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise ConfigError(f"--shards {text!r}: give a half-open range, as 0:200")
    return int(first), int(last)


def _stage_command(name: str, stages: tuple[str, ...], text: str) -> None:
    """The build commands share their options: one function under four names."""
    import functools
    import inspect

    @functools.wraps(_build)
    def run(*args: object, **options: object) -> None:
        _build(stages, *args, **options)  # type: ignore[arg-type]

    signature = inspect.signature(_build, eval_str=True)
    run.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]
    app.command(name, help=text)(run)


_stage_command(
    "build-index", ("download", "embed", "index"), "Download, embed and index a collection; go on where it stopped."
)
_stage_command("download", ("download",), "Only fetch the pictures of a collection into shards.")
_stage_command("embed", ("download", "embed"), "Fetch what is missing and embed it, without an index.")
_stage_command("index", ("index",), "Index what is embedded, and publish it.")


@app.command()
def search(
    database: Annotated[str, typer.Argument(help="A database, a view, or either with @version.")],
    query: Annotated[str, typer.Argument(help="What to look for, in words.")] = "",
    image: Annotated[Path | None, typer.Option("--image", help="Look for pictures like this file.")] = None,
    key: Annotated[int | None, typer.Option("--key", help="Look for pictures like this row of the database.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many results.")] = 10,
    where: Where = "",
    no_duplicates: Annotated[bool, typer.Option("--no-duplicates", help="Leave exact duplicates out.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Print the plan and the times to standard error.")] = False,
    sheet: Annotated[Path | None, typer.Option("--sheet", help="Write a contact sheet of the results, as PNG.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the results to a .parquet file.")] = None,
    device: Device = "auto",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Find the pictures nearest to a text, an image or a row, among those a filter lets through."""
    with command():
        from pipeline.query import QueryRequest, run_query

        request = QueryRequest(database, query, image, key, k, where, no_duplicates, device, home)
        found = run_query(request)
        if explain:
            typer.echo(found.explanation(), err=True)
        for warning in found.warnings:
            typer.echo(f"note: {warning}", err=True)
        if sheet is not None:
            found.write_sheet(sheet)
        if out is not None:
            found.write_parquet(out)
        if as_json:
            print_json(found.records())
        else:
            print_table(*found.table(), right=(0, 1))


@app.command()
def status(
    name: Annotated[str, typer.Argument(help="A database; empty: all of them.")] = "",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """What is built, what is running, what failed."""
    with command():
        from pipeline.status import database_status, home_status

        states = [database_status(name, home)] if name else home_status(home)
        if as_json:
            print_json([asdict(state) for state in states])
        else:
            for state in states:
                print(state.text())
            if not states:
                print("no databases yet; build one with `rdmpipe build-index NAME`")


@app.command("list")
def list_command(home: Home = None, as_json: Json = False) -> None:
    """The databases in the home, with their versions, and the views on them."""
    with command():
        from pipeline.status import listing

        rows = listing(home)
        if as_json:
            print_json(rows)
        else:
            print_table(
                ("name", "rows", "encoder", "version", "view of"),
                [(row["name"], row["rows"], row["encoder"], row["version"], row["base"]) for row in rows],
                right=(1,),
            )


@app.command()
def manifests(
    name: Annotated[str, typer.Argument(help="Show this manifest whole.")] = "",
    check: Annotated[Path | None, typer.Option("--check", help="Check a manifest file.")] = None,
    add: Annotated[Path | None, typer.Option("--add", help="Check a manifest file and copy it into the home.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """The data sets and views that are known by name."""
    with command():
        from pipeline import manifest

        if check is not None or add is not None:
            made = manifest.load(str(check or add), home)
            where = manifest.add(add, home) if add is not None else check
            if as_json:
                print_json({"name": made.name, "file": str(where), "ok": True})
            else:
                print(f"{where}: {made.name} is well formed")
        elif name:
            if as_json:
                print_json(asdict(manifest.load(name, home)))
            else:
                manifest.load(name, home)
                print(manifest.known(home).get(name, Path(name)).read_text(encoding="utf-8"), end="")
        else:
            made_all = [manifest.load(str(path), home) for path in manifest.known(home).values()]
            if as_json:
                print_json([asdict(made) for made in made_all])
            else:
                print_table(
                    ("name", "what"),
                    [
                        (m.name, m.title or f"{getattr(m, 'base', '')} where {getattr(m, 'where', '')}")
                        for m in made_all
                    ],
                )


@app.command()
def encoders(as_json: Json = False) -> None:
    """The encoders that can be asked for by name, and the forms a name can have."""
    with command():
        from pipeline.encoder_specs import describe_encoders

        rows = describe_encoders()
        if as_json:
            print_json(rows)
        else:
            print_table(("name", "what"), [(row["name"], row["what"]) for row in rows])


@app.command()
def versions(
    name: Annotated[str, typer.Argument(help="A database.")], home: Home = None, as_json: Json = False
) -> None:
    """The published versions of a database, newest first; `--db NAME@VERSION` pins one."""
    with command():
        from pipeline.database import RetrievalDatabase
        from pipeline.versions import list_versions

        lines = list_versions(RetrievalDatabase(name, home))
        if as_json:
            print_json([asdict(line) for line in lines])
        else:
            rows = [
                (line.version, "current" if line.current else "", line.rows, line.shards, line.index) for line in lines
            ]
            print_table(("version", "", "rows", "shards", "index"), rows, right=(2, 3))


@app.command()
def gc(
    name: Annotated[str, typer.Argument(help="A database.")],
    keep: Annotated[int, typer.Option("--keep", min=1, help="Versions to keep, the current one among them.")] = 3,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Remove old versions and the files that no other version needs."""
    with command() as progress:
        from pipeline.database import RetrievalDatabase
        from pipeline.versions import collect

        done = collect(RetrievalDatabase(name, home), keep, progress.say)
        if as_json:
            print_json(asdict(done))
        else:
            print(
                f"removed {len(done.removed)} version(s), {done.files:,} files, {done.bytes / 1e6:,.1f} MB; kept {len(done.kept)}"
            )


for commands in (cli_data, cli_generate, cli_jobs, cli_train):
    commands.register(app)


def main() -> None:
    # Waiting OpenMP threads sleep instead of spinning: the decoding pool and other processes need the cores they would burn.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()


if __name__ == "__main__":
    main()
