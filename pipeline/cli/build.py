"""`rdmpipe build-index`, its stages as separate commands, and `retry`: parse, configure, call, print.

`build-index`, `download`, `embed` and `index` are one function under four names. Each shows only the options that its stages
use: `_STAGE_OPTIONS` says which stage uses which.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import (
    MACHINE,
    Address,
    BackendOption,
    Device,
    Home,
    Json,
    LogFormatOption,
    Threads,
    Wait,
    Where,
    Workers,
    command,
    decimal,
    one_of,
    print_json,
    which_backend,
    whole,
)
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.building import BuildRequest
    from pipeline.execution import Progress

SOURCE, ENCODER, INDEX = "Source", "Encoder and pictures", "Index"

Target = Annotated[
    str,
    typer.Argument(
        help="A data set's name, a manifest (.toml), a folder of pictures, or a .parquet, .tar, .csv or picture file."
    ),
]

Name = Annotated[str, typer.Option("--name", metavar="NAME", help="Name of the database (default: the target's).")]

EncoderOption = Annotated[
    str,
    typer.Option(
        "--encoder",
        metavar="NAME",
        envvar="RDMPIPE_ENCODER",
        help="Encoder to use (default: the manifest's); see `rdmpipe encoders`.",
        rich_help_panel=ENCODER,
    ),
]

Images = Annotated[
    str,
    typer.Option(
        "--images",
        metavar="WHAT",
        help="What is kept of the pictures: keep, thumbnail (256 pixels) or drop. Default: thumbnail if the source can be "
        "read again, else keep.",
        rich_help_panel=ENCODER,
    ),
]

Limit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        metavar="N",
        parser=whole(0),
        help="Largest number of rows to read; 0: all. A published database grows to a larger limit.",
        rich_help_panel=SOURCE,
    ),
]

Shards = Annotated[
    str, typer.Option("--shards", metavar="FROM:TO", help="A range of shards, such as 0:200.", rich_help_panel=SOURCE)
]

BaseUrl = Annotated[
    str,
    typer.Option(
        "--base-url",
        metavar="URL",
        help="Mirror to use in place of the source's scheme and host.",
        rich_help_panel=SOURCE,
    ),
]

AllowPrivate = Annotated[
    str,
    typer.Option(
        "--allow-private",
        metavar="NETWORKS",
        help="Private networks that may be fetched from, such as 10.1.0.0/16.",
        rich_help_panel=SOURCE,
    ),
]

Refresh = Annotated[
    bool,
    typer.Option(
        "--refresh", help="Read the source again: add new rows, remove rows that are gone.", rich_help_panel=SOURCE
    ),
]

Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="TYPE",
        help="auto, fp32, fp16 or bf16 (default: auto, the fastest here).",
        rich_help_panel=ENCODER,
    ),
]

Preprocess = Annotated[
    str,
    typer.Option(
        "--preprocess", metavar="WAY", help="openclip or compvis (default: openclip).", rich_help_panel=ENCODER
    ),
]

Batch = Annotated[
    int,
    typer.Option(
        "--batch",
        metavar="N",
        parser=whole(0),
        help="Pictures in one forward pass; 0: chosen by device.",
        rich_help_panel=MACHINE,
    ),
]

Memory = Annotated[
    str,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="Memory for building and searching the index, such as 4GB.",
        rich_help_panel=INDEX,
    ),
]

IndexKey = Annotated[
    str,
    typer.Option(
        "--index-key",
        metavar="KEY",
        help="A faiss index key, such as IVF1024,Flat (default: chosen by size and --memory).",
        rich_help_panel=INDEX,
    ),
]

Partitions = Annotated[
    int,
    typer.Option(
        "--partitions",
        metavar="N",
        parser=whole(0),
        help="Build the index in this many parts, merged on disk; 0: chosen by size.",
        rich_help_panel=INDEX,
    ),
]

MinRecall = Annotated[
    float,
    typer.Option(
        "--min-recall",
        metavar="SHARE",
        parser=decimal(0.0, 1.0),
        help="Lowest recall@19 that is accepted, from 0 to 1.",
        rich_help_panel=INDEX,
    ),
]

Retries = Annotated[
    int,
    typer.Option(
        "--retries", metavar="N", parser=whole(0), help="Further attempts for a failed shard.", rich_help_panel=MACHINE
    ),
]

_SOURCE_OPTIONS = ("where", "limit", "shards", "base_url", "refresh", "allow_private")

# The options that only some stages use. All other parameters of `_build` are used by every stage.
_STAGE_OPTIONS = {
    "download": _SOURCE_OPTIONS,
    "embed": (*_SOURCE_OPTIONS, "encoder", "images", "precision", "preprocess", "batch", "device", "threads"),
    "index": ("device", "memory", "index_key", "partitions", "min_recall"),
}

COMMANDS = {
    "build-index": (
        ("download", "embed", "index"),
        "Download, embed and index a collection; continues where it stopped.",
    ),
    "download": (("download",), "Fetch the pictures of a collection into shards, without embedding them."),
    "embed": (
        ("download", "embed"),
        "Fetch what is missing and embed it, without an index; or add another encoder's vectors to a database.",
    ),
    "index": (("index",), "Index what is embedded, and publish it."),
}

EXAMPLES = {
    "build-index": "rdmpipe build-index ~/Pictures --name mine --encoder vit-b-32",
    "download": "rdmpipe download wikiart --limit 1000",
    "embed": "rdmpipe embed wikiart --encoder vit-b-32 --device cuda",
    "index": "rdmpipe index wikiart --min-recall 0.97",
    "retry": "rdmpipe retry met-open-access",
}


def _build(
    stages: tuple[str, ...],
    target: Target,
    name: Name = "",
    encoder: EncoderOption = "",
    images: Images = "",
    where: Where = "",
    limit: Limit = None,
    shards: Shards = "",
    base_url: BaseUrl = "",
    precision: Precision = "",
    preprocess: Preprocess = "",
    batch: Batch = 0,
    device: Device = "auto",
    threads: Threads = 0,
    memory: Memory = "4GB",
    index_key: IndexKey = "",
    partitions: Partitions = 0,
    min_recall: MinRecall = 0.95,
    refresh: Refresh = False,
    allow_private: AllowPrivate = "",
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
        from pipeline.building import BuildRequest, for_second_encoder
        from pipeline.config import parse_size
        from pipeline.execution import Backend
        from pipeline.index import IndexConfig
        from pipeline.sources import SourceOptions

        request = BuildRequest(
            target=target,
            name=name,
            home=home,
            encoder=encoder,
            precision=one_of("--precision", precision, ("", "auto", "fp32", "fp16", "bf16")),
            preprocess=one_of("--preprocess", preprocess, ("", "openclip", "compvis")),
            images=one_of("--images", images, ("", "keep", "thumbnail", "drop")),
            where=where,
            source=SourceOptions(
                base_url=base_url, limit=limit or 0, shards=_range(shards), allow_private=_networks(allow_private)
            ),
            index=IndexConfig(memory=parse_size(memory), key=index_key, min_recall=min_recall, partitions=partitions),
            backend=Backend(kind=which_backend(backend, address), address=address, workers=workers, retries=retries),
            batch=batch,
            device=device,
            threads=threads,
            wait_s=wait,
            stages=stages,
            refresh=refresh,
            whole=limit == 0 and not shards,
        )
        if stages == COMMANDS["embed"][0]:
            request = for_second_encoder(request)
        _run(request, progress, as_json)


def retry(
    name: Annotated[str, typer.Argument(help="A published database made from a list of URLs.")],
    allow_private: AllowPrivate = "",
    base_url: BaseUrl = "",
    device: Device = "auto",
    threads: Threads = 0,
    memory: Memory = "4GB",
    min_recall: MinRecall = 0.95,
    wait: Wait = 0.0,
    backend: BackendOption = "auto",
    address: Address = "",
    workers: Workers = 0,
    retries: Retries = 2,
    home: Home = None,
    log_format: LogFormatOption = "text",
    as_json: Json = False,
) -> None:
    """Fetch the failed URLs of a database again and publish a new version; other rows are not touched."""
    with command(log_format) as progress:
        from pipeline.building import BuildRequest
        from pipeline.config import parse_size
        from pipeline.execution import Backend
        from pipeline.index import IndexConfig
        from pipeline.sources import SourceOptions

        request = BuildRequest(
            target=name,
            home=home,
            source=SourceOptions(base_url=base_url, allow_private=_networks(allow_private)),
            index=IndexConfig(memory=parse_size(memory), min_recall=min_recall),
            backend=Backend(kind=which_backend(backend, address), address=address, workers=workers, retries=retries),
            device=device,
            threads=threads,
            wait_s=wait,
            retry=True,
        )
        _run(request, progress, as_json)


def _run(request: BuildRequest, progress: Progress, as_json: bool) -> None:
    from pipeline.building import build

    summary = build(request, progress)
    if as_json:
        print_json(asdict(summary))
    else:
        print(summary.text())


def _networks(text: str) -> tuple[str, ...]:
    from pipeline.sources import networks

    return tuple(str(network) for network in networks(text.split(","))) if text else ()


def _range(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    first, colon, last = text.partition(":")
    digits = first.isascii() and last.isascii() and first.isdigit() and last.isdigit() and len(text) < 40
    if not (colon and digits and int(first) < int(last)):
        raise ConfigError(f"--shards {text!r}: expected a range such as 0:200, without its end")
    return int(first), int(last)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    panel = "Build databases"
    for name, (stages, text) in COMMANDS.items():
        app.command(name, help=text, epilog=f"Example: {EXAMPLES[name]}", rich_help_panel=panel)(_bound(stages))
    app.command("retry", epilog=f"Example: {EXAMPLES['retry']}", rich_help_panel=panel)(retry)


def _bound(stages: tuple[str, ...]) -> Callable[..., None]:
    """`_build` for these stages, with the signature that typer reads: without the options that they do not use."""

    @functools.wraps(_build)
    def run(**options: object) -> None:
        _build(stages, **options)  # type: ignore[arg-type]  # typer converted them by the signature

    used = {option for stage in stages for option in _STAGE_OPTIONS[stage]}
    unused = {option for options in _STAGE_OPTIONS.values() for option in options} - used
    signature = inspect.signature(_build, eval_str=True)
    parameters = [one for name, one in signature.parameters.items() if name != "stages" and name not in unused]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run
