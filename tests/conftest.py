"""Fixtures that all tests share: the folder with real pictures and reference tensors, and a home of one's own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# A shell's background job ignores Ctrl-C, and so would the programs that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the checkout with real pictures (data/) and reference tensors (reference/)."""
    folder = Path(__file__).resolve().parent.parent.parent / "shared"
    if not folder.is_dir():
        message = f"{folder} is absent: it holds the real pictures and reference tensors this test needs"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty RDMPIPE_HOME and RDMPIPE_CACHE."""
    folder = tmp_path / "home"
    monkeypatch.setenv("RDMPIPE_HOME", str(folder))
    monkeypatch.setenv("RDMPIPE_CACHE", str(tmp_path / "cache"))
    return folder
