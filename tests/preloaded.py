"""The imports that a forked driver of the crash tests has behind it."""

from pipeline.machine import prepare_torchvision

prepare_torchvision()

import duckdb  # noqa: E402, F401
import faiss  # noqa: E402, F401
import open_clip  # noqa: E402, F401
import pyarrow.parquet  # noqa: E402, F401

import tests.crashes  # noqa: E402, F401
