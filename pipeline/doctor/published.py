"""The checks of `rdmpipe doctor --verify`: compare downloaded files and databases with known checksums and counts.

The known values are the checksum of every file of the Hub (the Hub's cache names a file by it), the md5 sums of
ArtBench's files and the numbers of rows of data sets (in their manifests), and the numbers of weights in CLIP and in the
original checkpoint of rdm-768. Reads: the caches of the Hub's client and of sources, databases of the home, all of them
completely, which takes minutes. Writes: the run `doctor-rdm-768` in the home, if that model is here. Downloads nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import shlex
import struct
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.catalog import load_manifest
from pipeline.config import cache_dir
from pipeline.database import RetrievalDatabase
from pipeline.doctor.findings import Finding
from pipeline.encoders import hub_files
from pipeline.errors import RdmpipeError
from pipeline.generation import HUB
from pipeline.sources import Manifest, cached_place

DATA_SETS = ("wikiart", "artbench")

STYLES_ROWS = 6_000  # of each of ArtBench's ten styles: 5,000 for training and 1,000 for testing

ENCODERS = {"vit-l-14": 427_616_513, "vit-b-32": 151_277_313}  # weights of OpenAI's CLIP, by short name

RDM = "rdm-768"

RDM_PARTS = {"unet": 1_335_480_400, "vae": 69_610_963}  # weights by part

SIDE, STEPS = 384, 12  # of the picture that is drawn: small, so that it takes minutes on a CPU

_MOST_HEADER = 64 << 20  # bytes of a safetensors file's header


def verify(home: str, only: Collection[str] = ()) -> Iterator[Finding]:
    """Check what was downloaded, and yield findings. only: names of data sets, encoders and the model; empty: all."""
    for name in DATA_SETS:
        if not only or name in only:
            manifest = load_manifest(name, home)
            assert isinstance(manifest, Manifest)
            yield _files(name, manifest)
            yield _database(name, manifest, home)
    for name, weights in ENCODERS.items():
        if not only or name in only:
            yield _encoder(name, weights)
    if not only or RDM in only:
        yield _model(home)
        yield _drawing(home)


# ---- files


@dataclass(frozen=True)
class Sum:
    """A checksum. algorithm: md5, sha256, or git (the id of a blob, which the Hub uses for small files)."""

    algorithm: str
    value: str

    def of(self, path: Path) -> str:
        """The file's checksum."""
        with path.open("rb") as handle:
            if self.algorithm != "git":
                return hashlib.file_digest(handle, self.algorithm).hexdigest()
            made = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
            while chunk := handle.read(1 << 20):
                made.update(chunk)
            return made.hexdigest()


def hub_sums(repository: Path) -> dict[Path, Sum]:
    """The files of one repository in a cache of the Hub's client, with the checksums that the Hub gave.

    A cache without links (on some file systems) does not keep the checksums, so its files are left out.
    """
    found: dict[Path, Sum] = {}
    for path in sorted(repository.glob("snapshots/*/**/*")):
        blob = path.resolve()
        if path.is_file() and blob.parent == (repository / "blobs").resolve():
            found.setdefault(blob, Sum("sha256" if len(blob.name) == 64 else "git", blob.name))
    return found


def _compared(area: str, files: dict[Path, Sum], whose: str, again: str) -> Finding:
    """Compare files with their checksums. again: the command that fetches a file that was removed."""
    if not files:
        return Finding(area, "note", f"not compared: this cache does not hold the checksums of {whose}", again)
    size = 0
    for path, known in files.items():
        found = known.of(path)
        size += path.stat().st_size
        if found != known.value:
            return Finding(
                area, "problem", f"{path} is damaged: expected {known.algorithm} {known.value}, found {found}",
                f"rm {shlex.quote(str(path))} && {again}",
            )  # fmt: skip
    return Finding(area, "ok", f"{len(files):,} file(s), {size / 1e9:,.2f} GB, have the checksums of {whose}")


def _files(name: str, manifest: Manifest) -> Finding:
    """The files of a data set that are in the cache of sources."""
    area, again, spec = f"files of {name}", f"rdmpipe build-index {name}", manifest.source
    if spec.repo:
        files = hub_sums(_repository(cache_dir() / "hub", "datasets", spec.repo))
        whose = "the Hub"
    else:
        known = ((spec.url, spec.md5), (spec.csv, spec.csv_md5))
        files = {place: Sum("md5", md5) for url, md5 in known if (place := cached_place(url)).is_file()}
        whose = "the manifest"
    if not files:
        return Finding(area, "note", f"none in {cache_dir()}", again)
    return _compared(area, files, whose, again)


def _repository(cache: Path, kind: str, repo: str) -> Path:
    return cache / f"{kind}--{repo.replace('/', '--')}"


# ---- databases


def _database(name: str, manifest: Manifest, home: str) -> Finding:
    """Check the number of rows and every file of a data set's published database."""
    from pipeline.maintenance import check_database
    from pipeline.retrieval import count_rows

    area, database, expected = f"database {name}", RetrievalDatabase(name, home), manifest.expected_rows or 0
    if not database.exists():
        return Finding(area, "note", "not built", f"rdmpipe build-index {name}")
    try:
        counts = database.version().counts
        report = check_database(database)
    except RdmpipeError as error:
        return Finding(area, "problem", str(error), f"rdmpipe check {name} --repair")
    if report.damages:
        return Finding(
            area, "problem", f"damaged: {', '.join(one.file for one in report.damages[:5])}",
            f"rdmpipe check {name} --repair",
        )  # fmt: skip
    told = f"{counts['input']:,} rows in, {counts['ok']:,} ok; {report.files:,} files have their checksums"
    if counts["input"] < expected:
        return Finding(
            area, "note", f"{told}; the data set has {expected:,} rows", f"rdmpipe build-index {name} --limit 0"
        )
    if counts["input"] > expected:
        return Finding(area, "problem", f"{told}; the data set had {expected:,} rows when its manifest was written",
                       f"rdmpipe manifests {name}  # compare with its homepage")  # fmt: skip
    if counts["failed"]:
        return Finding(area, "note", f"{told}; {counts['failed']:,} rows failed", f"rdmpipe failures {name}")
    if name == "artbench":
        views = {one: count_rows(one, home) for one in _views(name, home)}
        wrong = [f"{one} has {rows or 0:,}" for one, rows in views.items() if rows != STYLES_ROWS]
        if wrong:
            return Finding(area, "problem", f"{told}; of {STYLES_ROWS:,} rows a style: {', '.join(wrong)}",
                           f"rdmpipe build-index {name} --refresh")  # fmt: skip
    return Finding(area, "ok", f"{told}, as many as the data set has")


def _views(name: str, home: str) -> list[str]:
    from pipeline.catalog import listing

    return [row.name for row in listing(home) if row.base == name]


# ---- weights


def count_weights(path: Path) -> int:
    """The number of values in a safetensors file, from its header only. Raises ValueError if it is not such a file."""
    with path.open("rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8).ljust(8, b"\0"))
        if not 2 <= length <= min(_MOST_HEADER, path.stat().st_size):
            raise ValueError(f"{path} is no safetensors file")
        header = json.loads(handle.read(length))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def cached_weights(name: str) -> Path | None:
    """The path of an encoder's weights in the Hub's cache; None if it has none."""
    from huggingface_hub import try_to_load_from_cache

    repo, names = hub_files(name)
    found = (try_to_load_from_cache(repo, one) for one in names)
    return next((Path(file) for file in found if isinstance(file, str)), None)


def _encoder(name: str, weights: int) -> Finding:
    """Check CLIP's weights in the Hub's cache: checksum, number, and whether they find the captions of pictures."""
    from huggingface_hub import constants

    area, cache = f"encoder {name}", Path(constants.HF_HUB_CACHE)
    repo, names = hub_files(name)
    again, file = f"hf download {repo} {names[0]}", cached_weights(name)
    if file is None:
        return Finding(area, "note", f"not in {cache}", again)
    own = {
        path: known for path, known in hub_sums(_repository(cache, "models", repo)).items() if path == file.resolve()
    }
    finding = _compared(area, own, "the Hub", again)
    if finding.state == "problem":
        return finding
    return _miscounted(area, [file], weights, again) or _encodes(finding, name)


def _miscounted(area: str, files: list[Path], weights: int, again: str) -> Finding | None:
    """A problem if files hold another number of weights; None if the number is right or the files are not safetensors."""
    if not files or any(path.suffix != ".safetensors" for path in files):
        return None
    try:
        found = sum(map(count_weights, files))
        problem = f"{files[0].parent}: {found:,} weights; the published model has {weights:,}"
    except ValueError as error:
        found, problem = -1, str(error)
    if found == weights:
        return None
    return Finding(area, "problem", problem, f"rm {shlex.join(map(str, files))} && {again}")


def _encodes(finding: Finding, name: str) -> Finding:
    """The finding, with the number of drawn pictures for which the encoder finds the caption among six."""
    import numpy as np
    from PIL import Image

    from pipeline.atelier import picture
    from pipeline.encoders import load_encoder

    drawn = [picture(number, size=224, style="impasto") for number in range(6)]
    start = time.monotonic()
    try:
        encoder = load_encoder(name, "cpu")
        texts = encoder.encode_texts([str(one.metadata["caption"]) for one in drawn])
        pictures, _ = encoder.picture_vectors([Image.fromarray(one.image) for one in drawn])
    except RdmpipeError as error:
        return replace(finding, state="problem", found=f"{finding.found}; {error}")
    right = int((np.argmax(pictures @ texts.T, axis=1) == np.arange(len(drawn))).sum())
    told = f"{finding.found}; finds the caption of {right} of {len(drawn)} drawn pictures; {time.monotonic() - start:.1f} s"
    return replace(finding, state=finding.state if 2 * right > len(drawn) else "note", found=told)


def rdm_folder(home: str) -> Path | None:
    """The folder of rdm-768 on this disk: in <home>/models, or in the Hub's cache; None if it is missing or incomplete."""
    from huggingface_hub import constants

    cached = _repository(Path(constants.HF_HUB_CACHE), "models", HUB[RDM])
    places = [Path(home) / "models" / RDM, *sorted(cached.glob("snapshots/*"))]
    return next((place for place in places if all(any((place / part).glob("*.*")) for part in RDM_PARTS)), None)


def _model(home: str) -> Finding:
    """Check rdm-768: checksums of the Hub's files, number of weights of each part."""
    area, again = f"model {RDM}", f"hf download {HUB[RDM]}"
    folder = rdm_folder(home)
    if folder is None:
        return Finding(area, "note", f"not in {Path(home) / 'models'} and not in the Hub's cache", again)
    told, compared = [str(folder)], True
    if folder.parent.name == "snapshots":
        finding = _compared(area, hub_sums(folder.parent.parent), "the Hub", again)
        if finding.state == "problem":
            return finding
        told.append(finding.found)
        compared = finding.state == "ok"
    for part, weights in RDM_PARTS.items():
        files = sorted(path for path in (folder / part).glob("*.safetensors") if ".fp16." not in path.name)
        if problem := _miscounted(area, files, weights, again):
            return problem
        told.append(f"{part}: {weights:,} weights" if files else f"{part}: no safetensors, weights not counted")
        compared &= bool(files)
    if not compared:
        return Finding(area, "note", "; ".join(told), again)
    return Finding(area, "ok", "; ".join(told))


def _drawing(home: str) -> Finding:
    """Draw one picture with rdm-768, from the text only."""
    import numpy as np
    from PIL import Image

    from pipeline.execution import Progress
    from pipeline.generation import GenerateConfig, Sampling, generate

    area = f"a picture with {RDM}"
    if rdm_folder(home) is None:
        return Finding(area, "note", "not drawn: the model is not here", f"hf download {HUB[RDM]}")
    config = GenerateConfig(
        prompts="a harbour at dawn, oil painting", model=RDM, use="text", home=home, run=f"doctor-{RDM}",
        sampling=Sampling("unipc", STEPS, width=SIDE, height=SIDE),
    )  # fmt: skip
    try:
        summary = generate(config, Progress(stream=io.StringIO()))
    except RdmpipeError as error:
        return Finding(area, "problem", str(error), "rdmpipe generate 'a harbour at dawn' --model rdm-768 --use text")
    file = Path(summary.out) / summary.table(["file"])["file"][0].as_py()
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB"), np.float32)
    told = f"{file}, {pixels.shape[1]} x {pixels.shape[0]} pixels, {summary.seconds:.0f} s: look at it"
    if pixels.std() < 8:
        return Finding(area, "problem", f"{told}; it is nearly of one colour", f"rdmpipe models {RDM}")
    return Finding(area, "ok", told)
