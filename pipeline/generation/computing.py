"""How a run computes its pictures: device, precision, recipe, batch, workers and threads, chosen to suit the machine.

Reads and writes <run>/computing.json: the recipe, and the precision that `auto` became. A run keeps them, so that it continues
with the same keys on another processor or with a newer release. A run of an older release has no such file: it keeps the first
recipe, single precision on a CPU and batches of one.

Batch and workers are chosen anew in each call: with a model of recipe 2 they change no pixel on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from pipeline import machine
from pipeline.config import canonical_json, parse_json
from pipeline.errors import BudgetError, ConfigError
from pipeline.execution import Backend
from pipeline.generation.expand import GenerateConfig
from pipeline.generation.kinds import PRECISIONS, ModelInfo
from pipeline.generation.models import check_memory
from pipeline.generation.previews import current_watcher
from pipeline.storage import Storage

FILE = "computing.json"

BATCHWISE = 1  # the recipe of older releases: a batch is computed as it is

AT_ONCE = 2**16  # pixels that a CPU worker computes at a time; larger batches are no faster


@dataclass(frozen=True)
class Computing:
    """The settings that a run keeps. `precision` is what `auto` became, for devices of this kind; empty before."""

    recipe: int
    precision: str = ""
    device: str = ""  # cpu | cuda


@dataclass(frozen=True)
class Machine:
    """How pictures are computed in one call. `batch` and `workers` are 0 until the pictures are known."""

    device: str
    precision: str
    recipe: int
    threads: int  # of torch, in each worker; 0: torch's own number, on a GPU
    batch: int = 0
    workers: int = 0  # of Ray; without Ray, threads that share the model


def read_computing(storage: Storage, model: ModelInfo) -> Computing:
    """The settings that the run in this folder keeps. Raises ConfigError for a damaged file."""
    text = storage.read_text(FILE)
    if text is None:
        begun_before = storage.list("plan", ".json") or storage.list("images", ".png")
        return Computing(BATCHWISE, "fp32", "cpu") if begun_before else Computing(model.recipe)
    try:
        found = parse_json(text)
        assert isinstance(found, dict)
        return Computing(int(found["recipe"]), str(found["precision"]), str(found["device"]))
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise ConfigError(
            f"{storage.full(FILE)} is damaged: expected recipe, precision and device. Restore it, or give the run another name "
            "(--run) or folder (--out)"
        ) from error


def keep_computing(storage: Storage, used: Machine, config: GenerateConfig, before: Computing) -> None:
    """Record the settings that the run keeps from now on, if it is not one of an older release. Call it under its lease."""
    recorded = storage.read_text(FILE) is not None
    if before.precision and (recorded or before.recipe == BATCHWISE):
        return
    now = before
    if config.precision == "auto":
        now = replace(now, precision=used.precision, device=_kind(used.device))
    if not recorded or now != before:
        storage.write_text(FILE, canonical_json(asdict(now)) + "\n")


def choose_machine(config: GenerateConfig, model: ModelInfo, kept: Computing) -> Machine:
    """Device, precision and threads; rdmpipe chooses those that are auto in the config. Raises ConfigError."""
    device = machine.device(config.device)
    on_gpu = device.startswith("cuda")
    precision: str = config.precision
    if precision == "auto":
        chosen = model.gpu_precision if on_gpu else machine.cpu_precision()
        precision = kept.precision if kept.precision and kept.device == _kind(device) else chosen
    if precision not in PRECISIONS:
        raise ConfigError(f"--precision {precision!r}: expected auto, fp32, fp16 or bf16")
    if config.batch < 0 or config.shard < 0 or config.threads < 0:
        raise ConfigError("--batch, --shard and --threads are whole numbers from 1; with 0, rdmpipe chooses")
    return Machine(device, precision, kept.recipe, config.threads or (0 if on_gpu else 1))


def _kind(device: str) -> str:
    return "cuda" if device.startswith("cuda") else "cpu"


def settle_machine(
    chosen: Machine,
    config: GenerateConfig,
    backend: Backend,
    model: ModelInfo,
    sizes: set[tuple[int, int]],
    pictures: int,
) -> tuple[Machine, int]:
    """The machine with batch and workers for pictures of `sizes` (height, width), and the bytes that a process needs.

    Raises BudgetError if memory does not suffice for the given batch and workers, or for one picture at a time.
    """
    on_gpu = chosen.device.startswith("cuda")
    uniform = chosen.recipe > BATCHWISE and not on_gpu
    if backend.kind == "ray":
        workers = max(1, backend.workers)
    else:
        together = uniform and current_watcher() is None
        workers = (backend.workers or max(1, machine.cores() // chosen.threads)) if together else 1
    batch = config.batch or (4 if on_gpu else 1)
    if uniform and not config.batch:
        largest = max(height * width for height, width in sizes)
        batch = max(1, min(AT_ONCE // largest, -(-pictures // workers)))
    workers = min(workers, -(-pictures // batch)) if backend.kind == "inline" else workers
    made = replace(chosen, batch=batch, workers=workers)

    def need(made: Machine) -> int:
        if backend.kind == "ray":
            here = 0 if backend.address else made.workers
            return check_memory(model, made.precision, made.device, made.batch, sizes, here)
        return check_memory(model, made.precision, made.device, made.batch * made.workers, sizes, 1)

    return _fitting(made, need, uniform and not config.batch)


def _fitting(made: Machine, need: Callable[[Machine], int], may_choose: bool) -> tuple[Machine, int]:
    """The machine with as many pictures at a time as fit into memory: batches become smaller first, then workers fewer."""
    while True:
        try:
            return made, need(made)
        except BudgetError:
            if not may_choose or (made.batch, made.workers) == (1, 1):
                raise
        made = replace(made, batch=made.batch // 2) if made.batch > 1 else replace(made, workers=made.workers - 1)
