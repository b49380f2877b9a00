"""`rdmpipe build-index` and its stages one by one: parse, configure, call, print."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

import typer

from pipeline.cli.options import (
    Address,
    BackendOption,
    Device,
    Home,
    Json,
    LogFormatOption,
    Where,
    Workers,
    command,
    one_of,
    print_json,
    which_backend,
)
from pipeline.errors import ConfigError

Target = Annotated[str, typer.Argument(help="A data set's name, a manifest file (.toml), or a folder of pictures.")]

Name = Annotated[str, typer.Option("--name", help="Call the database this.")]

EncoderOption = Annotated[
    str,
    typer.Option(
        "--encoder", envvar="RDMPIPE_ENCODER", help="Encoder to use (default: the manifest's); see `rdmpipe encoders`."
    ),
]

Images = Annotated[
    str,
    typer.Option(
        "--images", help="keep the pictures, a 256-pixel thumbnail (where they can be read again), or drop them."
    ),
]

Limit = Annotated[int, typer.Option("--limit", min=0, help="At most so many rows; 0: all.")]

Shards = Annotated[str, typer.Option("--shards", help="A range of shards, as 0:200.")]

BaseUrl = Annotated[str, typer.Option("--base-url", help="Mirror to use in place of the source's scheme and host.")]

Precision = Annotated[str, typer.Option("--precision", help="fp32, fp16 or bf16 (default: fp32).")]

Preprocess = Annotated[str, typer.Option("--preprocess", help="openclip or compvis (default: openclip).")]

Refresh = Annotated[
    bool, typer.Option("--refresh", help="Look at the source again; do what is new, drop what is gone.")
]

Batch = Annotated[int, typer.Option("--batch", min=0, help="Pictures a forward pass; 0: by device.")]

Threads = Annotated[int, typer.Option("--threads", min=0, help="Torch threads a worker; 0: its share of the cores.")]

Memory = Annotated[str, typer.Option("--memory", help="Memory an index may take in search and building, as 4GB.")]

IndexKey = Annotated[str, typer.Option("--index-key", help="A faiss index key; empty: chosen by size and --memory.")]

Partitions = Annotated[
    int, typer.Option("--partitions", min=0, help="Build the index in so many parts, merged on disk; 0: by size.")
]

MinRecall = Annotated[
    float, typer.Option("--min-recall", min=0.0, max=1.0, help="Least recall@19 an index must reach.")
]

AllowPrivate = Annotated[
    str,
    typer.Option(
        "--allow-private", help="Networks, as 10.1.0.0/16, that URLs may lead into although they are not public."
    ),
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
        from pipeline.building import BuildRequest, build
        from pipeline.config import parse_size
        from pipeline.execution import Backend
        from pipeline.index import IndexConfig
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
            source=SourceOptions(
                base_url=base_url, limit=limit, shards=_range(shards), allow_private=_networks(allow_private)
            ),
            index=IndexConfig(memory=parse_size(memory), key=index_key, min_recall=min_recall, partitions=partitions),
            backend=Backend(kind=which_backend(backend, address), address=address, workers=workers, retries=retries),
            batch=batch,
            device=device,
            threads=threads,
            wait_s=wait,
            stages=stages,
            refresh=refresh,
        )
        summary = build(request, progress)
    if as_json:
        print_json(asdict(summary))
    else:
        print(summary.text())


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
    """Try the failed URLs of a database again, and nothing else; publishes a new version."""
    with command(log_format) as progress:
        from pipeline.building import BuildRequest, build
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
    if not (colon and first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise ConfigError(f"--shards {text!r}: give a half-open range, as 0:200")
    return int(first), int(last)


def register(app: typer.Typer) -> None:
    """Four commands that share their options: one function under four names."""
    names = {
        "build-index": (
            ("download", "embed", "index"),
            "Download, embed and index a collection; go on where it stopped.",
        ),
        "download": (("download",), "Only fetch the pictures of a collection into shards."),
        "embed": (("download", "embed"), "Fetch what is missing and embed it, without an index."),
        "index": (("index",), "Index what is embedded, and publish it."),
    }
    for name, (stages, text) in names.items():
        app.command(name, help=text)(_bound(stages))
    app.command("retry")(retry)


def _bound(stages: tuple[str, ...]) -> Callable[..., None]:
    """`_build` for these stages, with the signature that typer reads the options from."""

    @functools.wraps(_build)
    def run(*args: Any, **options: Any) -> None:
        _build(stages, *args, **options)

    signature = inspect.signature(_build, eval_str=True)
    run.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]
    return run
