"""The imports that the processes of tests/forked.py inherit."""

import duckdb  # noqa: F401
import faiss  # noqa: F401
import pyarrow.parquet  # noqa: F401
import rich.console  # noqa: F401
import typer  # noqa: F401

import rdm.networks  # noqa: F401
import tests.crashes
import tests.forked  # noqa: F401
from pipeline.encoders import import_open_clip

import_open_clip()
