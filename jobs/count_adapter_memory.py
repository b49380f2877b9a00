"""GPU memory of the ip-adapter models, computed on the meta device from the bases' configs: nothing is downloaded or run.

    python jobs/count_adapter_memory.py            # Markdown table of GiB: batch 1 and 4, 512 and 1024 pixels, k = 4

fp16 for Stable Diffusion 1.5 and XL, bf16 for Flux and SD 3, as published. Not counted: the CUDA context, workspaces of
convolutions and the allocator's fragmentation, together 1 to 2 GiB; a vision tower.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.generation.adapter_families import FAMILIES  # noqa: E402
from pipeline.generation.adapter_memory import count_pipeline  # noqa: E402
from tests.test_adapter_layouts import PUBLISHED  # noqa: E402


def main() -> None:
    print("| base | adapter | pixels | batch 1 | batch 4 |\n|---|---|---|---|---|")
    for file, one in PUBLISHED.items():
        precision = FAMILIES[one.base].precision
        for side in (512, 1024):
            counts = [count_pipeline(one.adapted, precision, batch, (side, side)) / 2**30 for batch in (1, 4)]
            print(f"| {one.base} | {file} | {side} | {counts[0]:.1f} | {counts[1]:.1f} |")


if __name__ == "__main__":
    main()
