"""The destinations of a training run's reports, besides curve.csv: TensorBoard's event files, Weights & Biases, MLflow.

Writes `tensorboard/` in the part's folder, without TensorBoard itself. W&B and MLflow are extras and are configured by
their own environment variables (WANDB_MODE, MLFLOW_TRACKING_URI). Only numbers are sent: no pictures, no weights.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

from pipeline.installation import require

PROJECT = "rdmpipe"


class Tracker(Protocol):
    """A receiver of numbers by name."""

    def start(self, step: int) -> None:
        """Forget the values of later steps: a resumed run repeats them."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def check_trackers(names: Sequence[str]) -> None:
    """Raise ConfigError for a tracker that is not installed."""
    for name in names:
        if name != "tensorboard":
            require(name, f'track = ["{name}"]')


def open_trackers(names: Sequence[str], folder: Path, recipe: Mapping[str, object]) -> list[Tracker]:
    """The trackers of a part; `folder` is <run>/<part>. Raises ConfigError for one that is not installed."""
    check_trackers(names)
    made: dict[str, Tracker] = {}
    for name in names:
        if name == "tensorboard":
            made[name] = EventFile(folder / "tensorboard")
        else:
            made[name] = (_Wandb if name == "wandb" else _Mlflow)(folder, recipe)
    return list(made.values())


class _Wandb:
    """A run of Weights & Biases. It is resumed by its name, of which only letters, digits, - and _ are kept."""

    def __init__(self, folder: Path, recipe: Mapping[str, object]) -> None:
        import wandb

        name = f"{folder.parent.name}-{folder.name}"
        safe = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)
        self._run = wandb.init(
            project=PROJECT, name=name, id=safe, resume="allow", dir=str(folder), config=dict(recipe)
        )

    def start(self, step: int) -> None:
        """W&B keeps the first value of a step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    """A run of MLflow, in the experiment of this project."""

    def __init__(self, folder: Path, recipe: Mapping[str, object]) -> None:
        import mlflow

        self._mlflow = mlflow
        mlflow.set_experiment(PROJECT)
        mlflow.start_run(run_name=f"{folder.parent.name}-{folder.name}")
        mlflow.log_dict(dict(recipe), "recipe.json")

    def start(self, step: int) -> None:
        """Each process is a separate run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


# ---- TensorBoard's files: records that consist of a length, its checksum, a protobuf message `Event` and its checksum


class EventFile:
    """A file of scalars that TensorBoard reads: `tensorboard --logdir RUN`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 1000:020d}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("wb")
        self._write(_text(3, b"brain.Event:2"))

    def start(self, step: int) -> None:
        """TensorBoard drops events of this and later steps from older files (SessionLog START)."""
        self._write(_number(2, step) + _text(7, _number(1, 1)))
        self._file.flush()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        entries = (_text(1, name.encode()) + b"\x15" + struct.pack("<f", value) for name, value in values.items())
        self._write(_number(2, step) + _text(5, b"".join(_text(1, entry) for entry in entries)))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, event: bytes) -> None:
        data = b"\x09" + struct.pack("<d", time.time()) + event
        length = struct.pack("<Q", len(data))
        self._file.write(length + _masked(length) + data + _masked(data))


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes((*made, value))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _text(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


@cache
def _table() -> tuple[int, ...]:
    made = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        made.append(value)
    return tuple(made)


def crc32c(data: bytes) -> int:
    """The checksum of RFC 3720 (Castagnoli)."""
    table, value = _table(), 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ table[(value ^ byte) & 255]
    return value ^ 0xFFFFFFFF


def _masked(data: bytes) -> bytes:
    value = crc32c(data)
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)
