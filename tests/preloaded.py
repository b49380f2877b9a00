"""The imports that a forked driver of the crash tests has behind it."""

import duckdb  # noqa: F401
import faiss  # noqa: F401
import pyarrow.parquet  # noqa: F401

import tests.crashes  # noqa: F401
from pipeline.encoders import import_open_clip

import_open_clip()
