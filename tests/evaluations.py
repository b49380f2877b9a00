"""Evaluations for tests: a protocol that takes seconds, on atelier pictures with the small random encoder and model."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.evaluation import EvaluateConfig, evaluate
from pipeline.evaluation.config import Judge, PictureSettings, Postfix, Prompts, Sweep, Tuning
from pipeline.execution import Backend, Progress
from pipeline.training import Steps
from tests.builds import quiet_build
from tests.encoders import RANDOM


def judge(steps: int = 10, **changes: Any) -> Judge:
    train = Steps(steps=steps, batch=16, learning_rate=3e-3, warmup=2, ema=0.8, save_seconds=0.0, report_steps=5)
    return Judge(train, **{"width": 8, **changes})


def tiny(config: EvaluateConfig, model: Path) -> EvaluateConfig:
    """The protocol at reduced size: every measurement, but with fewer captions and shorter training."""
    return replace(
        config,
        model=str(model),
        size=32,
        prompts=replace(config.prompts, test=2, validation=1, held_out=0.5, candidates=5),
        sampling=PictureSettings(steps=2, batch=16, seeds=(0, 1)),
        tuning=Tuning(k=(2, 4), guidance=(2.0,), styles=2),
        postfix=replace(config.postfix, captions=2, count=2),
        sweep=replace(config.sweep, captions=1, styles=1, k=(0, 2, 6), guidance=(1.0, 3.0), shares=(0.5, 1.0)),
        style_judge=judge(backbone=config.style_judge.backbone),
        content_judge=judge(),
    )


def atelier_database(folder: Path, home: Path, contents: int = 20) -> str:
    """A small atelier of `contents` contents in ten styles, published in this home."""
    manifest = folder / "small.toml"
    manifest.write_text(
        f'name = "small"\ntitle = "Small"\nlicence = "CC0-1.0"\nterms = "none"\nopt_out = "none"\nencoder = "{RANDOM}"\n'
        f'[source]\nkind = "atelier"\nshard_rows = 200\n[source.options]\ncount = {10 * contents}\nsize = 64\n'
    )
    quiet_build(manifest, home=str(home), images="keep")
    return "small"


def small_config(model: Path) -> EvaluateConfig:
    """Three of the atelier's ten styles, one of them also as a separate database."""
    config = EvaluateConfig(
        database="small", styles=("mosaic", "pixel_art", "woodcut"), never_seen=("woodcut",), any_encoder=True,
        prompts=Prompts(), postfix=Postfix(), sweep=Sweep(separate=("mosaic", "not of this database")),
    )  # fmt: skip
    return tiny(config, model)


def quiet_evaluate(config: EvaluateConfig, out: Path, home: Path) -> dict[str, Any]:
    """Run an evaluation and return the content of summary.json."""
    folder, summary = evaluate(
        config, Progress(stream=io.StringIO()), Backend(), home=str(home), out=str(out), device="cpu"
    )
    assert folder == out
    return summary.to_json()
