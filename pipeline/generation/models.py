"""Models by name: a model's folder, its facts, and whether it fits this machine's memory.

Reads: folders of models under their path, in <home>/models and in the package, and the Hub's copy of a published RDM. Writes:
the folder of a converted checkpoint. Loads no weights, except to convert them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipeline.config import default_home, read_toml
from pipeline.errors import BudgetError, ModelError, RdmpipeError, nearest
from pipeline.generation.kinds import DESCRIPTION, KINDS, LoadedModel, ModelInfo, ModelKind, kind_named
from pipeline.installation import asset

HUB = {"rdm-768": "fusing/rdm"}  # published RDMs that the Hub has in diffusers' layout

SHIPPED = asset("models")  # models and descriptions that come with the package

_RELEASE = "see the original release, github.com/CompVis/retrieval-augmented-diffusion-models, for its weights' terms"

_RIGHTS = {  # licences of models without a description; the others state theirs in it
    "rdm-mini": {"licence": "MIT, as this package"},
    "rdm-mini-2": {"licence": "MIT, as this package"},
    "rdm-768": {"terms": _RELEASE},
    "rdm-imagenet": {"terms": _RELEASE},
}


def _is_model(path: Path) -> bool:
    return (path / DESCRIPTION).is_file() or (path / "unet").is_dir()


def _kind_of(folder: Path) -> ModelKind:
    if not (folder / DESCRIPTION).is_file():
        return kind_named("rdm")
    kind = str(read_toml(folder / DESCRIPTION).get("kind", ""))
    if kind not in KINDS:
        raise ModelError(
            f"{folder / DESCRIPTION}: kind is {kind!r}{nearest(kind, KINDS)}; expected one of {', '.join(KINDS)}"
        )
    return kind_named(kind)


def _named(home: str | None) -> dict[str, Path]:
    """Folders of the home's models and of the package's, by name; the home's have priority."""
    own = Path(home or default_home()) / "models"
    found: dict[str, Path] = {}
    for place in (own, SHIPPED):
        for path in sorted(place.glob("*")):
            if _is_model(path):
                found.setdefault(path.name, path)
    return found


def find_model(name: str, home: str | None = None) -> ModelInfo:
    """The model called `name`: a folder, one in <home>/models, a shipped or a published model, or an RDM's Hub id.

    Raises ModelError.
    """
    own, named = Path(home or default_home()) / "models", _named(home)
    path = Path(name).expanduser()
    if _is_model(path):
        return _kind_of(path).describe(path, name)
    if name in named:
        return _kind_of(named[name]).describe(named[name], name)
    if name not in HUB and name.count("/") != 1:
        known = sorted({*HUB, *named})
        raise ModelError(
            f"no model {name!r}{nearest(name, known)}: expected a folder with unet/ and vae/, vqvae/ or folded/ (`rdmpipe "
            f"convert model.ckpt FOLDER` writes one) or with {DESCRIPTION}, a folder in {own}, or one of {', '.join(known)}"
        )
    return kind_named("rdm").describe(_fetch(name, own), name)


def _fetch(name: str, own: Path) -> Path:
    """The folder of an RDM on the Hub. Raises ModelError."""
    from rdm.errors import RDMError
    from rdm.folder import find_folder

    try:
        return find_folder(HUB.get(name, name))
    except RDMError as error:
        raise ModelError(f"model {name!r}: {error}") from error
    except Exception as error:  # the Hub's client raises a dozen kinds of errors
        raise ModelError(
            f"model {name!r} cannot be fetched from the Hub ({type(error).__name__}: {str(error).splitlines()[0][:200]}). Give "
            f"a folder, or put one at {own / name}: `rdmpipe convert model.ckpt {own / name}`"
        ) from error


def load_model(info: ModelInfo, precision: str, device: str, recipe: int = 1) -> LoadedModel:
    """The model with its weights, on a device. Raises ModelError."""
    return kind_named(info.kind).load(info, precision, device, recipe)


# ---- lists


@dataclass(frozen=True)
class ModelRow:
    """A model in a list: what it needs, and where it is. Facts are None if its folder cannot be read; `where` then has
    the reason.

    `encoder` is empty for a model that takes the neighbours' pictures in place of vectors.
    """

    name: str
    encoder: str | None
    neighbours: int | None
    size: int | None
    where: str
    kind: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def licence(self) -> str:
        """The licence of the weights, or what is known of their terms if no licence is stated."""
        return self.facts.get("licence") or self.facts.get("terms", "")

    @property
    def takes(self) -> str:
        """The encoder whose vectors it takes, as text."""
        return "any: takes pictures" if self.encoder == "" else self.encoder or ""

    def lines(self) -> list[tuple[str, object]]:
        """All known facts, as names and values to print."""
        own = [(name, getattr(self, name)) for name in ("name", "kind", "neighbours", "size", "where")]
        return [*own[:2], ("encoder", self.takes), *own[2:], *self.facts.items()]


def list_models(home: str | None = None) -> list[ModelRow]:
    """Models by name: the home's, the shipped and the published."""
    from pipeline.generation.rdm_model import info_of
    from rdm.config import model_names, read_config

    own = Path(home or default_home()) / "models"
    rows = [_listed(name, folder) for name, folder in _named(home).items()]
    here = {row.name for row in rows}
    for name in model_names():
        if name not in here:
            where = f"Hub: {HUB[name]}" if name in HUB else f"`rdmpipe convert model.ckpt {own / name}` makes it"
            rows.append(_row(name, info_of(read_config(name)), where))
    return rows


def _listed(name: str, folder: Path) -> ModelRow:
    try:
        return _row(name, _kind_of(folder).outline(folder, name), str(folder))
    except RdmpipeError as error:
        return ModelRow(name, None, None, None, str(error))


def outline_model(name: str, home: str | None = None) -> ModelRow:
    """One model of `list_models`, or the one in a folder. Raises ModelError."""
    path = Path(name).expanduser()
    if _is_model(path):
        return _row(name, _kind_of(path).outline(path, name), str(path))
    rows = {row.name: row for row in list_models(home)}
    if name not in rows:
        raise ModelError(f"no model {name!r}{nearest(name, rows)}: `rdmpipe models` lists {', '.join(rows)}")
    return rows[name]


def _row(name: str, info: ModelInfo, where: str) -> ModelRow:
    facts = {**_RIGHTS.get(name, {}), **info.facts}
    return ModelRow(name, info.encoder, info.max_neighbours, info.default_size, where, info.kind, facts)


def default_model(encoder: str, home: str | None = None) -> str:
    """The first RDM of `list_models` that was trained with this encoder. Raises ModelError if there is none."""
    from pipeline.encoders import same_encoder

    rows = list_models(home)
    for row in rows:
        if row.kind == "rdm" and row.encoder is not None and same_encoder(encoder, row.encoder):
            return row.name
    known = ", ".join(f"{row.name} ({row.encoder})" for row in rows)
    raise ModelError(
        f"no model by name takes the vectors of encoder {encoder}; give --model NAME or FOLDER, or build the database with a "
        f"model's encoder: {known}"
    )


def finish_model(folder: Path) -> None:
    """Check an RDM's description and write its pipeline for diffusers. Raises ModelError; loads no weights."""
    from rdm.errors import RDMError
    from rdm.folder import read_folder_config, write_pipeline

    try:
        write_pipeline(folder, read_folder_config(folder))
    except RDMError as error:
        raise ModelError(f"{folder}: {error}") from error


# ---- memory


def check_memory(
    model: ModelInfo, precision: str, device: str, batch: int, sizes: set[tuple[int, int]], workers: int
) -> int:
    """The bytes that one worker needs for its largest batch, (height, width) in `sizes`. Raises BudgetError if fewer are free.

    Compares with this machine's memory; for another cluster (workers = 0) it only returns the number.
    """
    import torch

    height, width = max(sizes, key=lambda size: size[0] * size[1])
    need = _count_bytes(model, precision, batch, height, width)
    if not workers:
        return need
    if torch.device(device).type == "cuda":
        free, workers = torch.cuda.mem_get_info(torch.device(device))[0] - (1 << 30), 1  # less context and workspaces
    else:
        free = _available()
    if free and need * workers > free:
        raise BudgetError(
            f"{batch} picture(s) of {width} x {height} at a time with {model.name} in {precision} take about "
            f"{need / 1e9:.1f} GB in each of {workers} worker(s); {free / 1e9:.1f} GB are free here. Use a smaller --batch, "
            "fewer --workers, --precision fp16 on a GPU, or smaller pictures."
        )
    return need


_counted: dict[
    tuple[str, str, int, int, int], int
] = {}  # a cache: the computation takes seconds, and a model's hash covers its input


def _count_bytes(model: ModelInfo, precision: str, batch: int, height: int, width: int) -> int:
    key = (model.hash, precision, batch, height, width)
    if key not in _counted:
        _counted[key] = kind_named(model.kind).count_bytes(model, precision, batch, height, width)
    return _counted[key]


def _available() -> int:
    """Free memory of this machine in bytes, or 0 if it is unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)


# ---- the original release


@dataclass(frozen=True)
class Conversion:
    """The result of `convert_checkpoint`."""

    folder: str
    weights: str  # the checkpoint's weights that were used: EMA or not
    tensors: int
    left_aside: Mapping[str, int]

    def to_json(self) -> dict[str, object]:
        return {name.replace("_", " "): value for name, value in asdict(self).items()}


def convert_checkpoint(checkpoint: Path, folder: Path, config: str, say: Callable[[str], None]) -> Conversion:
    """Convert an original checkpoint into a diffusers folder of safetensors. Reports what was loaded and what was not used.

    `config` is a model's name or the path of a JSON description. Raises ModelError.
    """
    from rdm import RDM
    from rdm.errors import RDMError

    if not checkpoint.is_file():
        raise ModelError(f"no checkpoint at {checkpoint}; give the path of the original release's model.ckpt")
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise ModelError(f"{folder} exists and is not an empty folder; give a new one")
    say(f"reading {checkpoint} ({checkpoint.stat().st_size / 1e9:,.2f} GB)")
    try:
        model = RDM.from_compvis(checkpoint, config, dtype=None)
        say(f"writing {folder}")
        model.save_pretrained(folder)
    except RDMError as error:
        raise ModelError(str(error)) from error
    assert model.report is not None
    return Conversion(str(folder), model.report.weights, model.report.loaded, dict(model.report.ignored))
