"""The checks of `rdmpipe doctor`: this machine, the home, optional packages, fonts, the network, weights.

Reads: the home, installed packages, one address of the Hub. Writes: one temporary file in the home, which is removed at once.
Each finding states what was found and, if something is missing, the command that adds it. It does not compare the checksums of
databases or of downloads (`rdmpipe check NAME` and `rdmpipe doctor --verify` do) and downloads nothing.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline import machine
from pipeline.catalog import listing
from pipeline.config import cache_dir, default_home
from pipeline.doctor.findings import Finding
from pipeline.doctor.published import ENCODERS, RDM, cached_weights, rdm_folder
from pipeline.encoders import hub_files
from pipeline.errors import RdmpipeError
from pipeline.generation import HUB
from pipeline.images import unlettered
from pipeline.installation import EXTRAS, version
from pipeline.storage import Storage

LOW_DISK = 10 << 30  # bytes; a database of 100,000 pictures with thumbnails takes about 2 GB

REACH_S = 5.0


def examine(home: str | None = None, load: bool = True) -> Iterator[Finding]:
    """Run all checks and yield their findings. load: also load the shipped encoder and model."""
    place = home or default_home()
    checks: list[Callable[[], Finding]] = [
        _program, _device, lambda: _home(place), lambda: _disk("disk of the home", place),
        lambda: _disk("disk of the cache", str(cache_dir())), _faiss, _hub,
    ]  # fmt: skip
    checks += [lambda extra=extra: _extra(extra) for extra in EXTRAS]  # type: ignore[misc]
    checks += [_fonts, lambda: _weights(place)]
    if load:
        checks += [_encoder, _model]
    for check in checks:
        yield check()


def _program() -> Finding:
    return Finding(
        "rdmpipe", "ok", f"version {version()}, Python {platform.python_version()}, {machine.cores()} core(s), "
        f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB of memory",
    )  # fmt: skip


def _device() -> Finding:
    import torch

    device = machine.device("auto")
    if device == "cpu":
        return Finding("GPU", "note", f"none that torch {torch.__version__} can use: work runs on the CPU")
    gpu = torch.cuda.get_device_properties(0)
    return Finding("GPU", "ok", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, torch {torch.__version__}")


def _home(place: str) -> Finding:
    storage = Storage(place)
    try:
        storage.write_text(".doctor", "x")
        storage.remove(".doctor")
        rows = listing(place)
    except (RdmpipeError, OSError) as error:
        return Finding(
            "home", "problem", f"{place}: {error}", "give a folder that can be written: --home FOLDER or RDMPIPE_HOME"
        )
    damaged = [row.name for row in rows if row.version.startswith("damaged")]
    if damaged:
        return Finding(
            "home", "problem", f"{place}: damaged: {', '.join(damaged)}", f"rdmpipe check {damaged[0]} --repair"
        )
    bases = [row.name for row in rows if not row.base]
    if not bases:
        return Finding(
            "home", "ok", f"{place}, no databases yet", "rdmpipe build-index atelier --limit 200 --encoder mini-2"
        )
    return Finding("home", "ok", f"{place}, databases: {', '.join(bases)}")


def _disk(area: str, place: str) -> Finding:
    if "://" in place:
        return Finding(area, "ok", f"{place} is an object store")
    path = Path(place).expanduser().absolute()
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    if free < LOW_DISK:
        return Finding(
            area,
            "note",
            f"{free / 2**30:.1f} GiB free at {path}",
            "set RDMPIPE_HOME and RDMPIPE_CACHE to a larger disk",
        )
    return Finding(area, "ok", f"{free / 2**30:,.0f} GiB free at {path}")


def _faiss() -> Finding:
    if importlib.util.find_spec("faiss") is None:
        return Finding("faiss", "problem", "not installed", "pip install faiss-cpu")
    names = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12")
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return Finding("faiss", "ok", f"{name} {importlib.metadata.version(name)}")
    return Finding("faiss", "ok", "installed")


def _hub() -> Finding:
    from huggingface_hub import constants

    place = constants.ENDPOINT
    offline = "without it: --encoder mini-2 and models that ship, or weights on this disk (--encoder local:...)"
    if constants.HF_HUB_OFFLINE:
        return Finding(
            "Hub", "note", "HF_HUB_OFFLINE is set: only weights in the cache are used", "unset HF_HUB_OFFLINE"
        )
    try:
        request = urllib.request.Request(place, method="HEAD")
        urllib.request.urlopen(request, timeout=REACH_S).close()
    except urllib.error.HTTPError:  # the server answers
        return Finding("Hub", "ok", f"{place} can be reached")
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        return Finding(
            "Hub",
            "note",
            f"{place} cannot be reached ({why}): weights and data sets there cannot be downloaded",
            offline,
        )
    return Finding("Hub", "ok", f"{place} can be reached")


def _extra(extra: str) -> Finding:
    missing = [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if missing:
        return Finding(
            f"extra {extra}", "note", f"{', '.join(missing)} not installed", f"pip install 'rdmpipe[{extra}]'"
        )
    return Finding(f"extra {extra}", "ok", "installed")


LETTERS = {"accents": "é", "Greek": "α", "Cyrillic": "Ж", "Japanese": "海", "emoji": "🙂"}


def _fonts() -> Finding:
    """Fonts for contact sheets. HTML pages do not need them, because the browser has its own."""
    missing = [name for name, letter in LETTERS.items() if unlettered([letter])]
    if not missing:
        return Finding("fonts", "ok", f"contact sheets show {', '.join(LETTERS)}")
    return Finding(
        "fonts", "note", f"contact sheets show boxes for {', '.join(missing)}; pages are not affected",
        "install fonts, on Debian: apt install fonts-dejavu-core fonts-noto-cjk fonts-symbola",
    )  # fmt: skip


def _weights(place: str) -> Finding:
    """Whether the published weights are on this disk."""
    here = {name: cached_weights(name) is not None for name in ENCODERS} | {RDM: rdm_folder(place) is not None}
    repos = {name: hub_files(name)[0] for name in ENCODERS} | {RDM: HUB[RDM]}
    missing = [name for name, there in here.items() if not there]
    if not missing:
        return Finding("published weights", "ok", f"here: {', '.join(here)}", "rdmpipe doctor --verify")
    there = [name for name in here if name not in missing]
    return Finding(
        "published weights", "note",
        f"here: {', '.join(there) or 'none'}; not here: {', '.join(missing)} (downloaded when they are first used)",
        " && ".join(f"hf download {repos[name]}" for name in missing),
    )  # fmt: skip


def _encoder() -> Finding:
    from pipeline.encoders import load_encoder

    start = time.monotonic()
    try:
        vectors = load_encoder("mini-2", "cpu").encode_texts(["a harbour at dawn"])
    except RdmpipeError as error:
        return Finding(
            "encoder mini-2", "problem", str(error), "python -m pip install --force-reinstall --no-deps rdmpipe"
        )
    return Finding(
        "encoder mini-2", "ok", f"a text became {vectors.shape[1]} numbers; {time.monotonic() - start:.1f} s"
    )


def _model() -> Finding:
    from pipeline.generation import find_model, load_model

    start = time.monotonic()
    try:
        info = find_model("rdm-mini-2")
        load_model(info, "fp32", "cpu")
    except RdmpipeError as error:
        return Finding(
            "model rdm-mini-2", "problem", str(error), "python -m pip install --force-reinstall --no-deps rdmpipe"
        )
    return Finding(
        "model rdm-mini-2", "ok", f"loads; draws {info.default_size} pixels; {time.monotonic() - start:.1f} s"
    )
